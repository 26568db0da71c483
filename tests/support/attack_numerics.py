"""Attacks with numbers: NaN, infinity and huge values in weights, buffers, settings, pixels, labels and features, and
arguments of `forward` of wrong types and shapes.

What is right: the answers are finite, or ValueError or OSError says which argument, weight or setting it was.
"""

import copy
import functools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from adapter_contract import Case as AdapterCase
from adapter_models import tiny_classifier
from attack_cases import WRONG, Case
from attack_configurations import tiny_image
from tiny import tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor
from hf_clip_variants.adapters import LinearHeadConfig, TipAdapterConfig, load_adapter
from hf_clip_variants.evaluation.prediction import classify, load_for_prediction
from hf_clip_variants.evaluation.probes import knn_classify, linear_probe
from hf_clip_variants.modeling.clip_classifier.classification_loss import classification_loss


KIND = "numerics"
BAD = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3e38)

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


@functools.cache
def _saved(folder: Path) -> tuple[Path, Path]:
    """The folder of a classifier with its processor, and an image."""
    model, target = tiny_classifier(), folder / "numerics"
    model.save_pretrained(target)
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPClassifierProcessor(CLIPClassifierImageProcessor(**sizes), tiny_tokenizer()).save_pretrained(target)
    tiny_image(40, 30).save(target / "image.png")
    return target, target / "image.png"


def _finite_scores(loaded, image: Path) -> object:
    found = list(classify(loaded, [str(image)], top=5))[0]
    if found.error is not None:
        raise ValueError(found.error)
    scores = [score for _, score in found.top]
    return True if all(map(math.isfinite, scores)) and scores else f"{WRONG}scores {scores}"


def _finite(output: torch.Tensor) -> object:
    return True if output.isfinite().all() else f"{WRONG}answers are not finite"


def bad_weight(draw: random.Random, folder: Path) -> Attack:
    """A number of a saved tensor, then `predict`."""
    from safetensors.torch import load_file, save_file

    source, image = _saved(folder)
    tensors = load_file(source / "model.safetensors")
    name = draw.choice(sorted(n for n, t in tensors.items() if t.is_floating_point() and t.numel()))
    value, place = draw.choice(BAD), draw.randrange(tensors[name].numel())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[place] = value
    target = folder / f"weights-{draw.randrange(10**9)}"

    def run():
        target.mkdir()
        for path in source.iterdir():
            if path.name != "model.safetensors":
                (target / path.name).write_bytes(path.read_bytes())
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return _finite_scores(load_for_prediction(target), image)

    return f"{name}[{place}] = {value}", run, (name, "numbers overflow", "class_features")


def bad_adapter(draw: random.Random, folder: Path) -> Attack:
    """A setting or a tensor of an adapter, put there behind the back of its checks."""
    config = draw.choice((TipAdapterConfig, lambda: LinearHeadConfig(gamma=2.0, trainable=True)))
    method = "tip_adapter" if config is TipAdapterConfig else "linear_head"
    field, value = draw.choice(("alpha", "beta")), draw.choice((*BAD, 1e308, -1e308, -5.0))

    def run():
        model = AdapterCase(method, config, {}).model()
        setattr(model.peft_config["default"], field, value)
        model.eval()
        with torch.no_grad():
            return _finite(model(pixel_values=tiny_pixels(2)).logits)

    return f"{method}: {field} = {value}", run, (field,)


def bad_saved_adapter(draw: random.Random, folder: Path) -> Attack:
    import json

    field, value = draw.choice(("alpha", "beta", "logit_scale", "temperature")), draw.choice((*BAD, 1e308, -1.0, 0.0))
    target = folder / f"adapter-{draw.randrange(10**9)}"

    def run():
        AdapterCase("tip_adapter", TipAdapterConfig, {}).model().save_pretrained(target)
        path = target / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
        with torch.no_grad():
            return _finite(load_adapter(target, tiny_classifier())(pixel_values=tiny_pixels(2)).logits)

    return f"saved {field} = {value}", run, (field,)


def bad_setting(draw: random.Random, folder: Path) -> Attack:
    """A number of an image processor."""
    name = draw.choice(("image_mean", "image_std", "rescale_factor"))
    value = draw.choice((*BAD, 0.0, 1e-300, 1e300, -1.0))
    at_call = draw.random() < 0.3
    setting = {name: value if name == "rescale_factor" else [0.5, value, 0.5]}

    def run():
        processor = CLIPClassifierImageProcessor(**({} if at_call else setting))
        return _finite(processor(tiny_image(30, 20), return_tensors="pt", **(setting if at_call else {})).pixel_values)

    return f"{setting} {'at the call' if at_call else ''}", run, (name,)


def bad_pixels(draw: random.Random, folder: Path) -> Attack:
    value, size = draw.choice(BAD), draw.choice((1, 2, 5))
    pixels = tiny_pixels(size)
    pixels[draw.randrange(size), draw.randrange(3), draw.randrange(24), draw.randrange(24)] = value
    model, name = draw.choice(((tiny_classifier, "classifier"), (tiny_clip, "features")))

    def run():
        with torch.no_grad():
            if name == "classifier":
                return _finite(model()(pixel_values=pixels).logits)
            features = model().get_image_features(pixel_values=pixels).pooler_output
            return _finite(tiny_classifier()(image_features=features).logits)

    return f"{name} of pixels with {value}", run, ("pixel_values", "image_features")


def bad_inputs(draw: random.Random, folder: Path) -> Attack:
    """Arguments of `forward` of another type, shape or range."""
    good = tiny_pixels(2)
    cases = {
        "pixel_values": (
            good[:0],
            good[0],
            good.tolist(),
            good.numpy(),
            None,
            "image",
            good.to(torch.uint8),
            good.bool(),
            good[:, :2],
            good[:, :, :0],
            torch.zeros(2, 3, 0, 24),
            good.double() * 1e300,
            good.to(torch.complex64),
            good[..., :17],
        ),
        "image_features": (
            torch.randn(2, 24).tolist(),
            torch.ones(2, 24).int(),
            torch.randn(0, 24),
            torch.randn(2, 23),
            torch.randn(24),
            torch.full((2, 24), math.nan),
            "x",
        ),
        "input_ids": (
            torch.tensor([[4036, 10**6, 4037]]),
            torch.tensor([[4036, -1, 4037]]),
            torch.zeros(0, 5).long(),
            torch.zeros(3, 0).long(),
            [[4036, 5, 4037]],
            torch.tensor([4036, 5, 4037]),
            torch.tensor([[4036.0, 5.0, 4037.0]]),
            torch.full((1, 99), 5),
            torch.ones(1, 3).bool(),
            "cat",
        ),
        "labels": (
            torch.tensor([0, 5]),
            torch.tensor([-1, 0]),
            torch.tensor([0, 10**12]),
            torch.tensor([0.0, 1.0]),
            [0, 1],
            torch.tensor([True, False]),
            torch.tensor([0]),
            torch.tensor([0, 1, 2]),
            torch.tensor(0),
            torch.full((2, 5), math.nan),
            torch.ones(2, 5),
            torch.zeros(2, 5),
            torch.full((2, 5), 2.0),
            torch.tensor([0, 1], dtype=torch.complex64),
            "cat",
            torch.tensor([0, 1], dtype=torch.int32),
            torch.tensor([0, 4], dtype=torch.uint8),
            torch.tensor([-100, -100]),
            torch.tensor([-100, 3], dtype=torch.int16),
        ),
    }
    name = draw.choice(sorted(cases))
    value = draw.choice(cases[name])
    training = name == "labels" and draw.random() < 0.5  # in training nobody waits for the numbers to be looked at

    def run():
        model = tiny_classifier().train(training)
        values = {name: value} | ({} if name in ("pixel_values", "image_features") else {"pixel_values": good})
        output = model(**values)
        return _finite(output.logits if output.loss is None else output.loss)

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else value
    return f"{name} = {str(shown)[:60]}", run, (name,)


def bad_loss(draw: random.Random, folder: Path) -> Attack:
    """Any labels against any logits."""
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    images, classes = draw.choice((0, 1, 3)), draw.choice((1, 2, 4))
    kind = draw.choice((torch.int64, torch.int32, torch.uint8, torch.int8, torch.float32, torch.float16, torch.bool))
    shape = draw.choice(((images,), (images, classes), (images, 1), (images + 1,), ()))
    labels = torch.randint(-3, 6, shape, generator=generator).to(kind)
    if draw.random() < 0.2:
        labels = torch.full(shape, -100).to(kind)
    problem = draw.choice((None, "single_label_classification", "multi_label_classification", "regression", "evil"))
    logits = torch.randn(images, classes, generator=generator, requires_grad=True)

    def run():
        loss = classification_loss(logits, labels, problem)
        loss.backward()
        return _finite(torch.cat([loss.reshape(1), logits.grad.reshape(-1)]))

    title = f"labels {kind} {shape} for logits {(images, classes)}, {problem}"
    return title, run, ("labels", "problem_type", "logits")


def bad_features(draw: random.Random, folder: Path) -> Attack:
    """Features of a probe."""
    train, test = torch.randn(12, 4), torch.randn(3, 4)
    where, value = draw.choice(("train_features", "test_features")), draw.choice(BAD)
    (train if where == "train_features" else test)[draw.randrange(3), draw.randrange(4)] = value
    labels = torch.arange(12) % 2
    probe = draw.choice(("knn", "linear"))

    def run():
        if probe == "knn":
            found = knn_classify(train, labels, test, k=3)
        else:
            found = linear_probe(train, labels, test, strength=1.0).predicted
        return True if set(found.tolist()) <= {0, 1} else f"{WRONG}{found}"

    return f"{probe}, {where} with {value}", run, (where,)


def half_precision(draw: random.Random, folder: Path) -> Attack:
    """Weights that float32 can hold and float16 cannot."""
    dtype, factor = draw.choice((torch.float16, torch.bfloat16, torch.float32)), draw.choice((1.0, 1e3, 1e6, 1e15))

    def run():
        model = copy.deepcopy(tiny_classifier())
        model.clip.visual_projection.weight.data.mul_(factor)
        model.clip.vision_model.post_layernorm.weight.data.mul_(factor)
        with torch.no_grad():
            return _finite(model.to(dtype)(pixel_values=tiny_pixels(2)).logits)

    return f"{dtype}, weights times {factor:g}", run, ("float16", "weight")


def logit_scale(draw: random.Random, folder: Path) -> Attack:
    value, training = draw.choice((*BAD, 89.0, 1000.0, -1000.0, 50.0)), draw.random() < 0.2

    def run():
        model = copy.deepcopy(tiny_classifier())
        model.clip.logit_scale.data.fill_(value)
        with torch.no_grad():
            return _finite(model.eval()(pixel_values=tiny_pixels(2)).logits)

    return f"logit_scale = {value}{' ' if training else ''}", run, ("logit_scale",)


ATTACKS = (bad_weight, bad_adapter, bad_saved_adapter, bad_setting, bad_pixels, bad_inputs, bad_inputs, bad_loss)
ATTACKS += (bad_features, half_precision, logit_scale)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    draw = random.Random(seed)
    while True:
        for attack in draw.sample(ATTACKS, len(ATTACKS)):
            title, run, named = attack(draw, folder)
            yield Case(KIND, f"{attack.__name__}: {title}", run, named)


__all__ = ["KIND", "cases"]
