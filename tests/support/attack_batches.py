"""Attacks on the arguments of `forward`: pixels, features, labels and token ids of any shape and type.

What is right: logits of each image are those that it has alone, the loss is the mean of theirs; or ValueError names
the argument.
"""

import functools
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from adapter_contract import Case as AdapterCase
from adapter_models import tiny_classifier
from attack_bases import CONFIGS
from attack_cases import WRONG, Case
from tiny import tiny_clip, tiny_pixels


KIND = "batches"
CLASSES, WIDTH = 5, 24
_DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int32,
    torch.int64, torch.bool, torch.complex64,
]  # fmt: skip
_SHAPES = [
    (3, 24, 24), (0, 3, 24, 24), (2, 1, 24, 24), (2, 24, 24, 3), (2, 3, 24, 23), (2, 3, 32, 32),
    (2, 3, 0, 0), (), (24, 24), (2, 4, 24, 24), (2, 3, 24), (1, 2, 3, 24, 24), (2, 3, 25, 24),
    (2, 3, 8, 8), (0,), (2, 0, 24, 24),
]  # fmt: skip
_ODD = [None, "image", 3, 0.5, [], [[1.0]], {}, [None], object(), b"x", range(3)]


@functools.cache
def _model(method: str):
    if method == "clip":
        return tiny_clip()
    if method == "plain":
        return tiny_classifier()
    return AdapterCase(method.split()[0], CONFIGS[method], {}).model(tiny_classifier()).eval()


def _pixels(rng: random.Random, count: int) -> torch.Tensor:
    return tiny_pixels(count, seed=rng.randrange(1000))


def _wrong_pixels(rng: random.Random, model):
    which = rng.choice(["shape", "dtype", "odd", "values", "numpy"])
    if which == "shape":
        shape = rng.choice(_SHAPES)
        value, name = torch.randn(shape), f"shape {list(shape)}"
    elif which == "dtype":
        dtype = rng.choice(_DTYPES)
        value, name = _pixels(rng, 2).to(dtype), f"{dtype}"
    elif which == "odd":
        value = rng.choice(_ODD)
        name = f"{type(value).__name__}"
    elif which == "numpy":
        value, name = _pixels(rng, 2).numpy(), "numpy"
    else:
        number = rng.choice([torch.nan, torch.inf, -torch.inf, 1e30, 3e38])
        value, name = _pixels(rng, 2), f"{number}"
        value.view(-1)[rng.randrange(value.numel())] = number

    def run():
        with torch.inference_mode():
            found = model(pixel_values=value).logits
        if not isinstance(value, torch.Tensor) or len(found) != len(value) or not len(value):
            return f"{WRONG}{list(found.shape)}"
        if not torch.isfinite(found).all():
            return f"{WRONG}not finite"
        if not value.is_floating_point():
            return f"{WRONG}accepted {value.dtype}"
        with torch.inference_mode():
            plain = model(pixel_values=value.float()).logits
        close = torch.allclose(found.float(), plain.float(), atol=0.05 * float(plain.abs().max().clamp_min(1)))
        return found if close else f"{WRONG}other logits"

    return f"pixels, {name}", run, ("pixel_values", "pixel values", "image")


def _right_pixels(rng: random.Random, model):
    pixels = _pixels(rng, rng.randint(1, 9))
    layout = rng.choice(["plain", "channels last", "strided", "expanded", "gradient"])
    if layout == "channels last":
        pixels = pixels.to(memory_format=torch.channels_last)
    elif layout == "strided":
        pixels = torch.cat([pixels, pixels])[::2]
    elif layout == "expanded":
        pixels = pixels[:1].expand(4, -1, -1, -1)
    elif layout == "gradient":
        pixels = pixels.clone().requires_grad_()

    def run():
        with torch.no_grad():
            found = model(pixel_values=pixels).logits
            alone = torch.cat([model(pixel_values=image[None]).logits for image in pixels])
        return found if torch.allclose(found, alone, atol=1e-4) else f"{WRONG}together, images have other logits"

    return f"{len(pixels)} images, {layout}", run, ("pixel_values",)


def _labels(rng: random.Random, model):
    pixels = _pixels(rng, 4)
    which = rng.choice(["right", "right", "soft", "range", "dtype", "shape", "odd", "ignored", "values"])
    labels = torch.randint(0, CLASSES, (4,), generator=torch.Generator().manual_seed(rng.randrange(1000)))
    what: object = ""
    if which == "soft":
        labels = torch.rand(4, CLASSES).softmax(-1)
    elif which == "range":
        what = rng.choice([CLASSES, -1, -99, -101, 2**40, 99])
        labels[rng.randrange(4)] = what
    elif which == "dtype":
        what = rng.choice([*_DTYPES, torch.int16])
        labels = labels.to(what)
    elif which == "shape":
        what = rng.choice([(3,), (5,), (4, 1), (1, 4), (), (0,), (4, 4), (4, CLASSES, 1)])
        labels = torch.zeros(what, dtype=torch.int64)
    elif which == "odd":
        labels = rng.choice([value for value in _ODD if value is not None] + [[0, 1, 2, 3], (0, 1, 2, 3)])
        what = type(labels).__name__
    elif which == "ignored":
        labels[torch.randperm(4)[: rng.randint(1, 4)]] = -100
    elif which == "values":
        what = rng.choice([torch.nan, torch.inf, 2.0, -1.0])
        labels = torch.rand(4, CLASSES).softmax(-1)
        labels[0, 0] = what

    def run():
        with torch.no_grad():
            found = model(pixel_values=pixels, labels=labels)
        if which in ("range", "shape", "odd", "values") or found.loss is None or not torch.isfinite(found.loss):
            return f"{WRONG}loss {found.loss}"
        logits, wanted = found.logits.float(), labels
        if which in ("right", "ignored", "dtype") and labels.dim() == 1:
            kept = labels.long() != -100
            wanted = labels.long()[kept]
            logits = logits[kept]
        expected = torch.nn.functional.cross_entropy(logits, wanted) if len(logits) else torch.tensor(0.0)
        return (
            found if torch.allclose(found.loss, expected, atol=1e-4) else f"{WRONG}loss {found.loss}, not {expected}"
        )

    return f"labels, {which} {what}", run, ("labels",)


def _features(rng: random.Random, model):
    which = rng.choice(["right", "both", "neither", "shape", "dtype", "odd", "values"])
    features, pixels = torch.randn(3, WIDTH), None
    what: object = ""
    if which == "both":
        pixels = _pixels(rng, 3)
    elif which == "neither":
        features = None
    elif which == "shape":
        what = rng.choice([(3, 23), (3,), (WIDTH,), (3, 1, WIDTH), (), (0, WIDTH), (3, 0)])
        features = torch.randn(what)
    elif which == "dtype":
        what = rng.choice(_DTYPES)
        features = features.to(what)
    elif which == "odd":
        features = rng.choice([value for value in _ODD if value is not None])
        what = type(features).__name__
    elif which == "values":
        what = rng.choice([torch.nan, torch.inf, 1e30])
        features[1, 2] = what

    def run():
        with torch.no_grad():
            found = model(pixel_values=pixels, image_features=features).logits
        if which in ("both", "neither", "odd", "shape"):
            return f"{WRONG}accepted"
        if not features.is_floating_point():
            return f"{WRONG}accepted {features.dtype}"
        fine = found.shape == (3, CLASSES) and torch.isfinite(found).all()
        return found if fine else f"{WRONG}{list(found.shape)}, or not finite"

    return f"features, {which} {what}", run, ("image_features", "pixel_values")


def _token_ids(rng: random.Random, model):
    which = rng.choice(["right", "no end", "range", "dtype", "shape", "long", "odd"])
    ids = torch.full((2, 6), 4037)
    ids[:, 0], ids[:, 1:4] = (
        4036,
        torch.randint(0, 4000, (2, 3), generator=torch.Generator().manual_seed(rng.randrange(99))),
    )
    what: object = ""
    if which == "no end":
        ids[1] = 5
    elif which == "range":
        what = rng.choice([-1, 4038, 2**40])
        ids[0, 2] = what
    elif which == "dtype":
        what = rng.choice(_DTYPES)
        ids = ids.to(what)
    elif which == "shape":
        what = rng.choice([(6,), (0, 6), (2, 0), (), (2, 3, 4)])
        ids = torch.zeros(what, dtype=torch.int64)
    elif which == "long":
        ids = torch.cat([ids[:, :4], torch.full((2, 40), 7), ids[:, 4:]], 1)
    elif which == "odd":
        ids = rng.choice([value for value in _ODD if value is not None])
        what = type(ids).__name__

    def run():
        with torch.no_grad():
            found = model(pixel_values=tiny_pixels(2), input_ids=ids).logits
        if which in ("no end", "range", "shape", "odd", "long"):
            return f"{WRONG}accepted, {list(found.shape)}"
        return found if found.shape == (2, 2) and torch.isfinite(found).all() else f"{WRONG}{list(found.shape)}"

    return f"ids, {which} {what}", run, ("input_ids",)


ATTACKS = (_wrong_pixels, _right_pixels, _labels, _features, _token_ids)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        own = random.Random(rng.random())
        torch.manual_seed(own.randrange(2**31))
        attack = ATTACKS[count % len(ATTACKS)]
        method = own.choice(["plain", "plain", *CONFIGS]) if attack is not _token_ids else "plain"
        name, run, named = attack(own, _model(method))
        yield Case(KIND, f"{count} {method}, {name}", run, named)
