"""Attacks on models that read images in small parts: CLIP-ViL's forwards, generation, processor, pipeline and answers
as labels; DepthCLIP's images, depth maps, words and configurations, and depth metrics.

What is right: answers of the right shapes, finite; each image's are those that it has alone, whatever stands in its
padding; depth lies within the bins; or ValueError names the argument, the field, the weight or the image.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from attack_cases import WRONG, Case
from attack_posts import BLANK, _odd_images, _shown
from attack_prompts import BAD, ODD, _ways, _weight
from clip_vil_runs import (
    ANSWERS,
    WORDS,
    captioning_inputs,
    clip_vil_model,
    clip_vil_processor,
    entailment_inputs,
    noise,
    pretraining_inputs,
    vit_config,
    vqa_inputs,
)
from depthclip_runs import BINS, depth_processor, depthclip_batch, depthclip_model
from tiny import copy_of, tiny_tokenizer

from hf_clip_variants import DepthCLIPConfig, DepthCLIPForDepthEstimation
from hf_clip_variants.metrics.depth import fit_scale_and_shift, kitti_depth_metrics, nyu_depth_metrics, order_accuracy
from hf_clip_variants.modeling.questions.answer_labels import soft_answers
from hf_clip_variants.modeling.questions.image_question_answering import ImageQuestionAnsweringPipeline


KIND = "questions"
INPUTS = {
    "vqa": vqa_inputs,
    "entailment": entailment_inputs,
    "pretraining": pretraining_inputs,
    "captioning": captioning_inputs,
}
QUESTIONS = ("what colour is the cat ?", "how many", "w1 w2", "is there a red dog ? " * 9, "日本", "?")

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


def _finite(outputs, names: tuple[str, ...], rows: int) -> object:
    tensors = {name: outputs[name] for name in names if outputs.get(name) is not None}
    if wrong := [name for name, one in tensors.items() if not one.isfinite().all()]:
        return f"{WRONG}{wrong} are not finite"
    if wrong := [name for name, one in tensors.items() if name != "loss" and len(one) != rows]:
        return f"{WRONG}{wrong} have not {rows} rows"
    return True


# ---- CLIP-ViL


def forward(rng: random.Random, folder: Path) -> Attack:
    """One argument, or one weight."""
    head = rng.choice(sorted(INPUTS))
    vit = {"config": vit_config} if head == "vqa" and rng.random() < 0.4 else {}
    model, given = clip_vil_model(head, **vit), INPUTS[head](2, rng.randrange(99))
    given["pixel_mask"] = torch.ones(2, 64, 96, dtype=torch.long)
    named: tuple[str, ...]
    if rng.random() < 0.2:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "overflow", "not finite", "numbers")
        for one in [key for key in given if "labels" in key]:
            del given[one]
    else:
        if rng.random() < 0.2:
            with torch.no_grad():
                given["grid_features"] = model.get_grid_features(given.pop("pixel_values")).contiguous()
            del given["pixel_mask"]
        name = rng.choice(sorted(given))
        ways = (
            _ways(given[name], rng) if given[name].dim() > 1 else (*_ways(given[name][:, None], rng), given[name] + 9)
        )
        given[name] = value = rng.choice((*ODD, None, *ways))
        named = (name, "input_ids") if name in ("attention_mask", "labels") else (name,)
        named += tuple(given) if name in ("pixel_values", "input_ids", "grid_features") else ()
    names = ("loss", "logits", "prediction_logits", "matching_logits", "answer_logits")

    def run():
        with torch.inference_mode():
            found = model(**given)
        return _finite(found, names, len(given["input_ids"]))

    return f"{head}{' ViT' if vit else ''}, {name} = {_shown(value)}", run, named


def beside(rng: random.Random, folder: Path) -> Attack:
    """A pair beside others has the answer that it has alone, whatever stands behind the end of its text; with
    `mask_padding`, and in the padding of its image."""
    model, count = clip_vil_model("vqa", mask_padding=True), rng.randint(2, 4)
    given = {name: one for name, one in vqa_inputs(count, rng.randrange(99)).items() if name != "labels"}
    mask = torch.ones(count, 64, 96, dtype=torch.long)
    mask[:, :, 96 - 32 * rng.randint(0, 2) :] = 0
    given["pixel_mask"] = mask
    own = {name: one[1:2].clone() for name, one in given.items()}
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, rng.randrange(5, len(WORDS)))

    def run():
        with torch.inference_mode():
            together, expected = model(**given).logits[1:2], model(**own).logits
        difference = float((together - expected).abs().max())
        return True if difference < 1e-3 else f"{WRONG}another answer beside others, by {difference}"

    return f"beside {count - 1}, {int(mask[0, 0].sum())} of 96 columns", run, ("pixel_mask",)


def generation(rng: random.Random, folder: Path) -> Attack:
    model, given = clip_vil_model("captioning"), captioning_inputs(2, rng.randrange(99))
    given = {name: one if name == "pixel_values" else one[:, :1] for name, one in given.items() if name != "labels"}
    options: dict = {"max_new_tokens": 3}
    ways = {name: (*ODD, *_ways(one, rng)) for name, one in given.items()}
    ways["max_new_tokens"] = (0, -3, "x", 1.5, 10**9, math.nan, [3], True, 4)
    ways["num_beams"] = (1, 2, 0, "x")
    name = rng.choice(sorted(ways))
    value = rng.choice(ways[name])
    options |= given | {name: value}

    def run():
        found = model.generate(**options)
        if len(found) != 2 or found.shape[1] > 40 or not 0 <= int(found.min()) <= int(found.max()) < len(WORDS):
            return f"{WRONG}ids {list(found.shape)}"
        return True

    return f"generation, {name} = {_shown(value)}", run, (name, *given)


@functools.cache
def _pipeline() -> ImageQuestionAnsweringPipeline:
    return ImageQuestionAnsweringPipeline(model=clip_vil_model("vqa"), processor=clip_vil_processor())


def processing(rng: random.Random, folder: Path) -> Attack:
    """The processor, or the pipeline, with one image or text that is none."""
    count = rng.randint(1, 3)
    images = [noise(rng.randint(1, 120), rng.randint(1, 120), n) for n in range(count)]
    given = {"images": images, rng.choice(["text", "questions"]): [rng.choice(QUESTIONS) for _ in range(count)]}
    name, place = rng.choice(sorted(given)), rng.randrange(count)
    value = rng.choice(_odd_images(rng, folder) if name == "images" else BLANK)
    given[name] = [value if number == place else one for number, one in enumerate(given[name])]
    if rng.random() < 0.2:
        given[name] = rng.choice([value, given[name][1:]])
    settings = rng.choice(
        [{}, {"size": {"height": 32, "width": 64}}, {"do_pad": False}, {"size": {"shortest_edge": 9}}]
    )
    answering = rng.random() < 0.4

    def run():
        if answering:
            questions = given.get("questions", given.get("text"))
            found = _pipeline()(given["images"], questions, top_k=2)
            rows = found if found and isinstance(found[0], list) else [found]
            scores = [one["score"] for row in rows for one in row]
            right = all(math.isfinite(one) and 0 <= one <= 1 for one in scores) and {len(row) for row in rows} <= {2}
            return right or f"{WRONG}{found}"
        found = clip_vil_processor()(**given, **settings, return_tensors="pt")
        rows = {len(one) for one in found.values()}
        if len(rows) != 1 or not all(one.isfinite().all() for one in found.values()):
            return f"{WRONG}{rows} rows"
        if all(given.get(texts) is None for texts in ("text", "questions")):
            return "input_ids" not in found or f"{WRONG}words of no text"
        return True if found["input_ids"].shape[1] <= 12 else f"{WRONG}{found['input_ids'].shape[1]} tokens"

    what = f"{'pipeline' if answering else 'processor'}, {name}[{place}] = {_shown(value)}, {[*settings]}"
    return what, run, ("image", "text", "question", "size", "do_pad")


def labels(rng: random.Random, folder: Path) -> Attack:
    """What people answered, as labels."""
    ids = {name: number for number, name in enumerate(ANSWERS)}
    people = [[rng.choice(ANSWERS) for _ in range(rng.randint(1, 10))] for _ in range(rng.randint(1, 4))]
    odd = rng.choice(
        [None, [], "maybe", ["maybe"], {"red": 2.0}, {"red": math.nan}, {"red": -1}, {"red": "x"}, 3, [3]]
    )
    odd = rng.choice([odd, [None], [["red"]], {"red": None}, {"maybe": 1.0}, {}, b"red", {"red": True}])
    place = rng.randrange(len(people))
    given = [odd if number == place else one for number, one in enumerate(people)] if rng.random() < 0.7 else people
    given = rng.choice([given, given, given, odd, []])
    unknown = rng.choice(["error", "error", "ignore", "x", None])

    def run():
        found = soft_answers(given, ids, unknown)
        if list(found.shape) != [len(given), len(ANSWERS)] or not ((found >= 0) & (found <= 1)).all():
            return f"{WRONG}{found.tolist()}"
        for row, one in zip(found, given, strict=True):
            if one in people and [round(float(x), 5) for x in row] != [
                round(min(one.count(name) / 3, 1.0), 5) for name in ANSWERS
            ]:
                return f"{WRONG}{row.tolist()} of {one}"
        return True

    return f"answers, {_shown(given)}, {unknown!r}", run, ("answers", "unknown")


# ---- DepthCLIP


def _depth_model(rng: random.Random) -> DepthCLIPForDepthEstimation:
    backbone = rng.choice(["resnet", "vit"])
    options = {"flip_average": rng.random() < 0.5, "panorama": rng.random() < 0.3}
    projection = "attnpool_value" if backbone == "vit" else rng.choice(["official", "attnpool_value"])
    return depthclip_model(backbone=backbone, feature_projection=projection, **options)


def depth(rng: random.Random, folder: Path) -> Attack:
    """Images of any size, depth maps of any kind, one weight."""
    model = _depth_model(rng)
    size = rng.choice([(40, 64), (1, 1), (33, 5), (32, 32), (7, 130), (64, 31)])
    given, named = depthclip_batch(2, size, rng.randrange(99)), ("pixel_values", "labels", "patches", "image_size")
    what = f"of {size[0]} x {size[1]}"
    if rng.random() < 0.2:
        model, weight, name, value = _weight(model, rng)
        named, what = (weight, "overflow", "not finite", "numbers"), f"{name} = {value}"
        del given["labels"]
    elif rng.random() < 0.7:
        name = rng.choice(sorted(given))
        more = (given[name] * 0, -given[name]) if name == "labels" else ()
        given[name] = value = rng.choice((*ODD, None, *_ways(given[name], rng), *more))
        what = f"{what}, {name} = {_shown(value)}"

    def run():
        with torch.inference_mode():
            found = model(**given)
            pixels = given["pixel_values"]
            if list(found.predicted_depth.shape) != [len(pixels), *pixels.shape[-2:]]:
                return f"{WRONG}depth {list(found.predicted_depth.shape)}"
            low, high = float(found.predicted_depth.min()), float(found.predicted_depth.max())
            if not min(BINS) - 1e-3 <= low <= high <= max(BINS) + 1e-3:
                return f"{WRONG}depth from {low} to {high}"
            if found.loss is not None and not found.loss.isfinite():
                return f"{WRONG}loss {found.loss}"
            alone = model(pixel_values=pixels[-1:]).predicted_depth
        difference = float((alone - found.predicted_depth[-1:]).abs().max())
        return True if difference < 1e-2 else f"{WRONG}another depth beside others, by {difference}"

    return f"depth, {what}", run, named


def words(rng: random.Random, folder: Path) -> Attack:
    """Words, bins and templates that are set, and fields of a configuration as JSON has them."""
    model = copy_of("attack words", lambda: depthclip_model())
    junk = (
        None,
        "x",
        3,
        -1,
        0,
        1.5,
        [],
        [None],
        [[]],
        {},
        "",
        True,
        *BAD,
        [math.nan] * 3,
        ["a", "b", "c"],
        ["a", "a"],
    )
    junk += (["{distance}"], [[1.0]], 10**30, ["x" * 10**4], ["a\0"], ["near", " "], [1, 2, 3], (0.5, 1.0, 2.0))
    value = rng.choice(junk)
    if rng.random() < 0.5:
        name = rng.choice(["words", "bins", "templates", "object_word"])

        def run():
            before = model.config.to_dict()
            try:
                model.set_depth_words(tiny_tokenizer(), **{name: value})
            except Exception:
                if model.config.to_dict() != before:
                    return f"{WRONG}refused, and changed"
                raise
            return True if model.depth_embeddings.isfinite().all() else f"{WRONG}not finite"

        fields = ("depth_words", "bin_centers", "templates", "object_word")
        return f"words, {name} = {_shown(value)}", run, (name, *fields)
    fields = model.config.to_dict()
    name = rng.choice([key for key in fields if key not in ("transformers_version", "architectures", "model_type")])

    def run():
        config = DepthCLIPConfig.from_dict(fields | {name: value})
        again = DepthCLIPConfig.from_dict(config.to_dict()).to_dict()
        return True if again == config.to_dict() else f"{WRONG}another configuration comes back"

    named = (name, "projection_dim") if name == "vision_config" else (name,)  # the default one has another width
    return f"configuration, {name} = {_shown(value)}", run, named


def depth_images(rng: random.Random, folder: Path) -> Attack:
    """Images and depth maps of the processor."""
    width, height = rng.randint(1, 90), rng.randint(1, 90)
    image, truth = noise(width, height, rng.randrange(99)), np.random.default_rng(0).random((height, width))
    spotted = truth.copy()
    spotted[0, 0] = rng.choice([*BAD, 0.0, -1.0])
    maps = (
        truth,
        spotted,
        truth[:1],
        truth[None],
        truth.tolist(),
        truth.astype(np.float16),
        truth > 0.5,
        truth.T,
        None,
    )
    maps += (
        torch.from_numpy(truth),
        (truth * 1000).astype(np.uint16),
        "no such.png",
        3,
        [],
        truth[..., None],
        truth * 0,
    )
    given = rng.choice([image, *_odd_images(rng, folder)]) if rng.random() < 0.4 else image
    target = rng.choice(maps)

    def run():
        found = depth_processor()(given, target, return_tensors="pt")
        pixels, known = found["pixel_values"], found.get("labels")
        if pixels.dim() != 4 or not pixels.isfinite().all():
            return f"{WRONG}pixels {list(pixels.shape)}"
        if known is not None and list(known.shape[-2:]) != list(pixels.shape[-2:]):
            return f"{WRONG}labels {list(known.shape)} of pixels {list(pixels.shape)}"
        return True

    what = f"{_shown(given) if given is not image else 'an image'}, {_shown(target)}"
    return f"depth processor, {width} x {height}, {what}", run, ("image", "depth", "map", "label", "size")


def metrics(rng: random.Random, folder: Path) -> Attack:
    shape = rng.choice([(1, 12, 16), (2, 12, 16), (1, 1, 1), (1, 480, 640)])
    target = 0.5 + 8 * torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(99)))
    predicted = target * (0.7 + 0.6 * torch.rand(shape))
    given = {"predicted": predicted, "target": target}
    name = rng.choice(["predicted", "target", "nothing"])
    if name != "nothing":
        given[name] = rng.choice((*ODD, None, *_ways(given[name], rng), -given[name]))
    measure = rng.choice([nyu_depth_metrics, kitti_depth_metrics, order_accuracy, fit_scale_and_shift])
    crop = {"crop": False} if measure in (nyu_depth_metrics, kitti_depth_metrics) and shape[1] != 480 else {}

    def run():
        found = measure(given["predicted"], given["target"], **crop)
        numbers = [*found.values()] if isinstance(found, dict) else list(np.ravel(found))
        # Where no depth is known there is no error, which NaN says.
        known = torch.as_tensor(given["target"]).double()
        if not all(math.isfinite(one) for one in numbers) and ((known > 0) & known.isfinite()).sum() > 1:
            return f"{WRONG}{found}"
        return True

    return f"{measure.__name__}, {shape}, {name} = {_shown(given.get(name))}", run, ("predicted", "target")


ATTACKS = (forward, depth, processing, words, forward, labels, beside, depth_images, generation, depth, metrics)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        place = folder / f"questions-{seed}-{count}"
        place.mkdir(parents=True, exist_ok=True)
        name, run, named = ATTACKS[count % len(ATTACKS)](random.Random(rng.random()), place)
        yield Case(KIND, f"{count} {name}", run, named)


__all__ = ["KIND", "cases"]
