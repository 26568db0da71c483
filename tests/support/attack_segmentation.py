"""Attacks on models that segment by texts: image files, label maps, inputs of `forward`, labels and thresholds,
numbers in weights.

What is right: each image has the segments that it has alone, whatever is beside it, and each label those of its text;
a label map comes back as it was; or ValueError names the argument, the file or the weight.
"""

import functools
import io
import itertools
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from attack_cases import WRONG, Case
from attack_images import _CHANGES as CHANGES
from attack_images import _image as image_file
from attack_texts import _names as texts_of
from attack_texts import _template as template_of
from PIL import Image
from safetensors.torch import load_file, save_file
from segmenters import SEGMENTERS, register_toy, save_segmenter, segmenter

from hf_clip_variants.annotations.label_maps import label_map_png
from hf_clip_variants.commands.segmentation import read_background
from hf_clip_variants.evaluation.segmentation import load_segmenter, segment
from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor


KIND = "segmentation"
METHODS = [name for name in SEGMENTERS if name != "toy"]
LABELS = ["cat", "sky;cloud", "dog"]
_FIELDS = ("label_texts", "id2label", "model_type", "text_encoder_dropped", "candidate_labels")
BAD = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3e38)

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


@functools.cache
def _saved(kind: str, folder: Path) -> Path:
    return save_segmenter(folder / "good" / kind, kind, labels=LABELS)


@functools.cache
def _loaded(kind: str, folder: Path):
    return load_segmenter(_saved(kind, folder), device="cpu")


def _finite(*tensors: torch.Tensor | None) -> object:
    wrong = [one for one in tensors if one is not None and not one.isfinite().all()]
    return f"{WRONG}answers are not finite" if wrong else True


def _picture(rng: random.Random, name: str, folder: Path) -> Path:
    values = np.random.default_rng(rng.getrandbits(32)).integers(
        0, 256, (rng.randint(8, 60), rng.randint(8, 60), 3), dtype=np.uint8
    )
    Image.fromarray(values).save(folder / name)
    return folder / name


# ---- files


def image_files(rng: random.Random, folder: Path, home: Path) -> Attack:
    """A damaged file between two sound ones."""
    kind = rng.choice(METHODS)
    change = rng.choice(["none", *CHANGES])
    content, format, mode = image_file(rng)
    if change != "none":
        content = CHANGES[change](rng, content, format)
    first, last = (_picture(rng, name, folder) for name in ("first.png", "last.png"))
    odd = folder / "odd.png"
    odd.write_bytes(content)

    def run():
        loaded = _loaded(kind, home)
        found = list(segment(loaded, map(str, (first, odd, last)), rng.choice([1, 2, 3])))
        if [one.path for one in found] != [str(first), str(odd), str(last)] or found[0].error or found[2].error:
            return f"{WRONG}others than the damaged one failed"
        for one in found:
            if one.error is not None:
                continue
            if one.label_map.shape != one.image.size[::-1] or not np.isfinite(one.scores).all():
                return f"{WRONG}a map of {one.label_map.shape} for {one.image.size}"
            if (np.bincount(one.label_map[one.label_map >= 0], minlength=3) != one.areas).any():
                return f"{WRONG}areas {one.areas}"
        for one in (found[0], found[2]):
            (alone,) = segment(loaded, [one.path], 1)
            if not (alone.label_map == one.label_map).mean() > 0.999:  # rounding at a border
                return f"{WRONG}beside others, it has other labels"
        if found[1].error is not None:
            if change == "none":
                return f"{WRONG}a sound file: {found[1].error}"
            raise ValueError(f"{odd}: {found[1].error}")
        return found

    return f"{kind}, image, {change}, {format} {mode}", run, (str(odd),)


def label_maps(rng: random.Random, folder: Path, home: Path) -> Attack:
    """Maps as PNG files, of any numbers, and what is no map."""
    shape = rng.randint(1, 40), rng.randint(1, 40)
    highest = rng.choice([1, 3, 255, 256, 65535])
    label_map = np.random.default_rng(rng.getrandbits(32)).integers(0, highest + 1, shape)
    image = Image.new("RGB", shape[::-1])
    # As large as it is: every number is seen.
    processor = DenseImageProcessor(do_resize=False)
    which = rng.choice(["sound", "sound", "damaged", "mode", "size", "dtype", "shape", "odd", "numbers"])
    path = folder / "map.png"
    if which in ("sound", "damaged", "size"):
        content = label_map_png(label_map)
        if which == "damaged":
            change = rng.choice(["flipped bits", "cut", "extreme numbers", "claims in headers", "no images"])
            content = CHANGES[change](rng, content, "PNG")
        if which == "size":
            image = Image.new("RGB", (shape[1] + rng.choice([1, 5]), shape[0]))
        path.write_bytes(content)
        given = str(path)
    elif which == "mode":
        mode = rng.choice(["RGB", "RGBA", "F", "LA", "CMYK", "YCbCr"])
        given = Image.new(mode, shape[::-1])
    elif which == "dtype":
        given = label_map.astype(rng.choice([np.float32, np.complex64, object, "U3", "M8[s]"]))
    elif which == "shape":
        given = np.zeros(rng.choice([(0, 3), (3,), (), (2, 3, 4, 5), (5, 6, 2)]), dtype=np.int64)
    elif which == "odd":
        given = rng.choice([3, b"x", {}, [], "nowhere.png", object(), [[0, 1], [0]], ["a"], "/dev/zero", "\x00"])
    else:
        given = label_map.astype(np.int64) - rng.choice([1, 1000, 2**40])
    name = f"{given}"[:40] if which == "odd" else highest

    def run():
        found = processor(image, [given], return_tensors="pt").labels
        if which in ("mode", "size", "dtype", "shape", "odd"):
            return f"{WRONG}accepted"
        if which == "damaged":  # palettes and text are no pixels
            return found if found.shape == (1, *shape) else f"{WRONG}{list(found.shape)}"
        wanted = given if which == "numbers" else label_map
        return found if (found[0].numpy() == wanted).all() else f"{WRONG}other labels"

    return f"label map, {which} {name}", run, ("segmentation_maps",)


def label_map_files(rng: random.Random, folder: Path, home: Path) -> Attack:
    """What is written as a map."""
    numbers = rng.choice([[-1, 0], [0, 65536], [0, 2**40], [0.5], [True], [], [[0, 1]], [0, 255], [70, 65535], ["a"]])
    label_map = np.array([numbers])

    def run():
        found = np.asarray(Image.open(io.BytesIO(label_map_png(label_map))))
        return found if (found == label_map).all() else f"{WRONG}other labels"

    return f"label_map_png, {numbers}", run, ("label_map",)


# ---- forward


def _ids(rng: random.Random, *shape: int) -> torch.Tensor:
    ids = torch.randint(1, 4000, (*shape, 6), generator=torch.Generator().manual_seed(rng.randrange(1000)))
    ids[..., 0], ids[..., -1] = 4036, 4037
    return ids


def _wrong_inputs(rng: random.Random, width: int) -> dict[str, tuple]:
    pixels, ids = torch.randn(2, 3, 32, 32), _ids(rng, 3)
    nan = pixels.clone()
    nan.view(-1)[rng.randrange(nan.numel())] = rng.choice([math.nan, math.inf, 1e38])
    ones = torch.ones(3, 6).long()
    embeddings = torch.nn.functional.normalize(torch.randn(3, width), dim=-1)
    maps = torch.randint(0, 3, (2, 32, 32))
    odd = (None, "cat", 3, [], {}, [[1.0]], object(), b"x")
    return {
        "pixel_values": (
            *odd, nan, pixels[:0], pixels[0], pixels[:, :1], pixels.byte(), pixels.long(), pixels.numpy(),
            pixels[..., :0], pixels.permute(0, 2, 3, 1), pixels[None], pixels.to(torch.complex64), pixels.tolist(),
            pixels[..., :1, :1], pixels[..., :3], pixels.double(), pixels.bfloat16(),
        ),
        "input_ids": (
            *odd[1:], ids[:0], ids[:, :0], ids.float(), ids.bool(), ids - 5000, ids + 4038, ids * 10**9, ids[0],
            ids[None, None, None], ids.tolist(), ids.repeat(1, 30), ids.int(), _ids(rng, 3, 2), _ids(rng, 2, 3, 1),
            _ids(rng, 5, 3, 1), _ids(rng, 0, 3, 1), ids.to(torch.complex64), ids.numpy(), torch.tensor(5),
        ),
        "attention_mask": (
            *odd[1:], ones[:2], ones[:, :3], ones.float(), ones.bool(), ones * 0, ones - 2, ones[0], ones[None],
            torch.full((3, 6), math.nan), ones.tolist(), ones.int(), ones.repeat(1, 2), ones[:0],
        ),
        "class_embeddings": (
            *odd[1:], embeddings[:0], embeddings[:, :5], embeddings[0], embeddings.long(), embeddings * math.nan,
            embeddings[None].repeat(2, 1, 1), embeddings[None].repeat(5, 1, 1), embeddings.double(),
            embeddings * 1e30, embeddings.repeat(1, 2), embeddings.bool(), embeddings[None, None], embeddings.tolist(),
            embeddings * 0, embeddings.numpy(), embeddings.to(torch.complex64),
        ),
        "labels": (
            *odd[1:], maps[:1], maps[0], maps[..., :5], maps + 1, maps - 1, maps.float(), maps.bool(), maps * 10**12,
            maps.int(), maps * 0 + 255, maps.byte(), maps[:0], maps[..., :0], maps[:, None], maps.numpy(),
            maps.tolist(), maps.to(torch.complex64), maps.repeat(1, 2, 2), torch.tensor(0),
        ),
    }  # fmt: skip


def inputs(rng: random.Random, folder: Path, home: Path) -> Attack:
    """One argument of `forward` of another type, shape or range."""
    kind = rng.choice(METHODS)
    model, _ = segmenter(kind)
    wrong = _wrong_inputs(rng, model.config.projection_dim)
    name = rng.choice(sorted(wrong))
    place = rng.randrange(len(wrong[name]))
    value = wrong[name][place]
    arguments = {"pixel_values": torch.randn(2, 3, 32, 32), "input_ids": _ids(rng, 3)}
    if name == "class_embeddings" and rng.random() < 0.8:
        del arguments["input_ids"]
    arguments[name] = value
    training = rng.random() < 0.2

    def run():
        model.train(training)
        with torch.set_grad_enabled(training):
            found = model(**arguments)
        model.eval()
        if found.logits.shape[0] != 2 or found.logits.dim() != 4:
            return f"{WRONG}logits {list(found.logits.shape)}"
        # In training nobody waits for the numbers to be looked at.
        return True if training else _finite(found.logits, found.loss)

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value}"
    return f"{kind}, {name} = {shown[:60]} ({place})", run, (name,)


def alone(rng: random.Random, folder: Path, home: Path) -> Attack:
    """An image beside others, and with labels in another order, has the same scores."""
    kind = rng.choice(METHODS)
    model, _ = segmenter(kind)
    count, labels = rng.randint(1, 4), rng.randint(1, 5)
    size = rng.choice([(32, 32), (32, 48), (33, 40), (50, 31)])
    pixels = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(rng.randrange(1000)))
    ids = _ids(rng, labels)
    order = rng.sample(range(labels), labels)

    def run():
        with torch.inference_mode():
            together = model(pixels, ids).logits
            one = model(pixels[-1:], ids).logits
            turned = model(pixels, ids[order]).logits
        scale = float(together.abs().max()) + 1e-6
        if together.shape != (count, labels, *size):
            return f"{WRONG}logits {list(together.shape)}"
        for found, wanted in ((one[0], together[-1]), (turned, together[:, order])):
            if not torch.allclose(found, wanted, atol=1e-3 * scale):
                return f"{WRONG}scores differ by {float((found - wanted).abs().max()):.3g} of {scale:.3g}"
        return together

    return f"{kind}, {count} images {size}, {labels} labels", run, ()


# ---- labels, templates, thresholds


def labels(rng: random.Random, folder: Path, home: Path) -> Attack:
    """Any texts as labels: each has the embedding of its own texts."""
    kind = rng.choice(METHODS)
    odd = [None, "cat", {"a", "b"}, {"a": 1}, [], [[]], [None], [3], ["cat", "cat"], [["a", 3]], [" "], ["a;;b"], b"x"]
    given = rng.choice(odd) if rng.random() < 0.3 else texts_of(rng)
    if isinstance(given, list) and rng.random() < 0.3:
        given = [[name, f"{name} too"] if isinstance(name, str) else name for name in given]
    templates = rng.choice([None, [template_of(rng)], template_of(rng), [], 3, [3]])
    background = rng.choice(
        [None, None, None, 0.5, "other", False, True, math.nan, -1.0, [0.5], {"cat": 0.5}, "", "learned", 10**400]
    )

    def run():
        model, processor = segmenter(kind)
        before = {name: t.clone() for name, t in model.state_dict().items()}, model.config.to_dict()
        try:
            model.set_labels(given, processor, templates, background)
        except ValueError:
            after = model.state_dict()
            same = before[0].keys() == after.keys() and all(torch.equal(after[n], t) for n, t in before[0].items())
            if not same or model.config.to_dict() != before[1]:
                raise RuntimeError("the model was changed by labels that were refused") from None
            raise
        texts = model.config.label_texts
        used = model.config.templates
        alone = torch.cat([model.embed_texts([text], processor, used) for one in texts for text in one])
        if not torch.allclose(alone, model.class_embeddings, atol=2e-5):
            return f"{WRONG}alone, a text has other embeddings"
        with torch.inference_mode():
            return _finite(model(torch.randn(1, 3, 32, 32)).logits)

    shown = f"{given!a}, {templates!a}, background={background!a}"[:150]
    return f"{kind}, labels {shown}", run, ("labels", "template", "background")


def thresholds(rng: random.Random, folder: Path, home: Path) -> Attack:
    """`--background`, and what the pipeline takes with it."""
    text = rng.choice(
        ["0.5", "x", "", "nan", "inf", "-inf", "1e999", "[]", "{}", '{"cat": 0.5}', '{"cat": "x"}', "true", "null",
         '{"cat": true}', "[0.5]", "nowhere.json", '{"cat": 0.5, "sky": 0.1, "dog": 0.3}', "1e308", "-5",
         '{"cat": NaN, "sky": 0.1, "dog": 0.3}', "{", "0x1", "1_0", '{"cat": 0.5, "cat": 0.6, "sky": 1, "dog": 1}',
         str(folder), "9" * 5000]
    )  # fmt: skip
    window = rng.choice([None, None, 16, 32, 1, 0, -3, 10**9, 7, 2.5, "x", (16, 24), (0, 5), True])
    kind = rng.choice(METHODS)

    def run():
        value = read_background(text)
        picture = _picture(random.Random(1), "picture.png", folder)
        loaded = load_segmenter(_saved(kind, home), device="cpu", background=value, window=window)
        (found,) = segment(loaded, [str(picture)])
        if found.error is not None:
            raise ValueError(found.error)
        if any(bad in text for bad in ("nan", "NaN", "inf", "999", "true", "null")):
            return f"{WRONG}accepted {text}"
        return found if np.isfinite(found.scores).all() else f"{WRONG}scores {found.scores}"

    shown = text[:40].replace(str(folder), "FOLDER")
    return f"{kind}, background {shown}, window {window}", run, ("background", "window", str(folder))


# ---- weights


def weights(rng: random.Random, folder: Path, home: Path) -> Attack:
    """A number of a saved tensor, then `predict`."""
    kind = rng.choice(METHODS)
    source = _saved(kind, home)
    tensors = load_file(source / "model.safetensors")
    name = rng.choice(sorted(n for n, t in tensors.items() if t.is_floating_point() and t.numel()))
    value, place = rng.choice(BAD), rng.randrange(tensors[name].numel())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[place] = value
    target = folder / "weights"

    def run():
        target.mkdir()
        for path in source.iterdir():
            if path.name != "model.safetensors":
                (target / path.name).write_bytes(path.read_bytes())
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        picture = _picture(random.Random(1), "picture.png", folder)
        (found,) = segment(load_segmenter(target, rng.choice([None, ["cat", "dog"]]), device="cpu"), [str(picture)])
        if found.error is not None:
            raise ValueError(found.error)
        return found if np.isfinite(found.scores).all() else f"{WRONG}scores {found.scores}"

    return f"{kind}, {name}[{place}] = {value}", run, (name, "numbers overflow", "class_embeddings")


def folders(rng: random.Random, folder: Path, home: Path) -> Attack:
    """Folders that are not whole, and of other models."""
    kind = rng.choice(METHODS)
    target = folder / "model"
    shutil.copytree(_saved(kind, home), target)
    which = rng.choice(["no file", "no file", "no text", "labels", "model_type", "empty", "json"])
    files = sorted(path.name for path in target.iterdir())
    name = rng.choice(files)
    if which == "no file":
        (target / name).unlink()
    elif which == "empty":
        (target / name).write_bytes(b"")
    elif which == "json":
        name = rng.choice([file for file in files if file.endswith(".json")])
        (target / name).write_text(rng.choice(["[]", "3", "{", '"x"', "null"]))
    else:
        name = "config.json"
        config = json.loads((target / name).read_text())
        if which == "labels":
            config["label_texts"] = rng.choice([None, [], [["cat"]], [["cat"], ["cat"], ["dog"]], 3, {"a": 1}, [[1]]])
        elif which == "model_type":
            config["model_type"] = rng.choice(["bert", "clip", "clipv-vild", "clipv-clip_classifier", "x", 3, None])
        else:
            config["text_encoder_dropped"] = rng.choice([True, "x", 3])
        (target / name).write_text(json.dumps(config))

    def run():
        picture = _picture(random.Random(1), "picture.png", folder)
        (found,) = segment(load_segmenter(target, rng.choice([None, ["cat", "dog"]]), device="cpu"), [str(picture)])
        if found.error is not None:
            raise ValueError(found.error)
        if found.label_map.shape != found.image.size[::-1]:
            return f"{WRONG}{found.label_map.shape}"
        return found

    return f"{kind}, folder, {which} {name}", run, (str(folder), name, *_FIELDS)


ATTACKS = (image_files, label_maps, inputs, labels, inputs, alone, thresholds, weights, folders, label_map_files)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn. The files of a case are removed when it has run."""
    rng = random.Random(f"{KIND} {seed}")
    register_toy()
    for count in itertools.count():
        place = Path(folder) / f"{count}"
        place.mkdir(parents=True)
        name, run, named = ATTACKS[count % len(ATTACKS)](random.Random(rng.random()), place, Path(folder))

        def tidy(run=run, place=place):
            try:
                return run()
            finally:
                shutil.rmtree(place, ignore_errors=True)

        yield Case(KIND, f"{count} {name}", tidy, named)


__all__ = ["KIND", "cases"]
