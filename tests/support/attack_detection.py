"""Attacks on models that find boxes of classes that are texts: image files, annotations, inputs of `forward`, numbers
in weights.

What is right: each image has the boxes that it has alone, annotations become boxes inside of their image; or
ValueError names the argument, the file or the weight.
"""

import copy
import functools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from attack_cases import WRONG, Case, in_turn
from attack_images import _CHANGES as CHANGES
from attack_images import _image as image_file
from attack_texts import _names as texts_of
from glip_runs import glip_inputs, glip_model
from PIL import Image
from safetensors.torch import load_file, save_file
from vild_runs import NAMES, vild_boxes, vild_inputs, vild_labels, vild_model, vild_processor

from hf_clip_variants import ViLDForZeroShotObjectDetection


KIND = "detection"
WIDTH = 24  # of the texts' embeddings
BAD = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3e38)

Attack = tuple[str, Callable[[], object], tuple[str, ...]]


@functools.cache
def _processor():
    return vild_processor()


def _model(copied: bool = False):
    model = vild_model()
    return copy.deepcopy(model) if copied else model


def _checked(outputs) -> object:
    found = {name: outputs.get(name) for name in ("loss", "logits", "pred_boxes")}
    if wrong := [name for name, one in found.items() if one is not None and not one.isfinite().all()]:
        return f"{WRONG}{wrong} are not finite"
    return True


def _numbers(rng: random.Random, count: int) -> list:
    odd = [*BAD, -5, 0, 1e-9, "3", None, 10**20, True]
    return [rng.choice(odd) if rng.random() < 0.3 else rng.uniform(0, 40) for _ in range(count)]


# ---- files and annotations


def image_files(rng: random.Random, folder: Path) -> Attack:
    change = rng.choice(["none", *CHANGES])
    content, format, mode = image_file(rng)
    if change != "none":
        content = CHANGES[change](rng, content, format)
    path = folder / "odd.png"
    path.write_bytes(content)

    def run():
        inputs = _processor()(images=[str(path)], text=["a cat"], return_tensors="pt")
        with torch.inference_mode():
            return _checked(_model()(**inputs))

    return f"image, {change}, {format} {mode}", run, ("images[0]", str(path), "image")


def annotations(rng: random.Random, folder: Path) -> Attack:
    """COCO's, of which something is odd."""
    width, height = rng.randint(8, 60), rng.randint(8, 60)
    image = Image.new("RGB", (width, height))
    objects = [
        {"bbox": [1, 2, 5, 4], "category_id": number, "area": 20, "iscrowd": 0,
         "segmentation": [[1, 2, 6, 2, 6, 6]]}
        for number in range(rng.randint(1, 3))
    ]  # fmt: skip
    marks: object = {"image_id": 7, "annotations": objects}
    one = rng.choice(objects)
    which = rng.choice(
        ["sound", "bbox", "bbox", "category_id", "area", "segmentation", "missing", "whole", "image_id"]
    )
    if which == "bbox":
        one["bbox"] = rng.choice(
            [_numbers(rng, 4), _numbers(rng, 4), _numbers(rng, 3), None, "1234", [], {}, [[1, 2, 3, 4]]]
        )
    elif which == "category_id":
        one["category_id"] = rng.choice([-1, 10**20, "cat", None, 1.5, math.nan, [1], True])
    elif which == "area":
        one["area"] = rng.choice([math.nan, -1, "x", None, [], 1e308])
    elif which == "segmentation":
        polygons = [[], [[]], [[1, 2]], [[1, 2, 3]], [["a", 1, 2, 3, 4, 5]], [[math.nan] * 6], [[1e30] * 6], 5, "x"]
        runs = [{"counts": counts, "size": [height, width]} for counts in ([1, 2], [-1, width * height + 1], [], "x")]
        one["segmentation"] = rng.choice([*polygons, *runs, None, {}, [None], [[1, 2, 3, 4, 5, 6], "x"], [10**9]])
    elif which == "missing":
        del one[rng.choice(["bbox", "category_id", "area", "segmentation"])]
    elif which == "image_id":
        marks["image_id"] = rng.choice(["x", None, 10**20, math.nan, [1]])
    elif which == "whole":
        marks = rng.choice([[], {}, 3, "x", None, {"image_id": 1}, {"annotations": []}, [marks, marks], [None], [3],
                            {"image_id": 1, "annotations": None}, {"image_id": 1, "annotations": [3]},
                            {"image_id": 1, "annotations": {"a": 1}}])  # fmt: skip
    masks = rng.random() < 0.5
    name = f"{one.get(which, '')}" if which not in ("whole",) else f"{marks}"

    def run():
        found = _processor()(images=image, annotations=marks, return_segmentation_masks=masks, return_tensors="pt")
        if "labels" not in found:
            return found if marks is None else f"{WRONG}no labels"
        (labels,) = found["labels"]
        boxes = labels["boxes"]
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])
        if not ((corners > -1e-5) & (corners < 1 + 1e-5)).all() or (boxes[:, 2:] <= 0).any():
            return f"{WRONG}boxes {boxes.tolist()}"
        if len(labels["class_labels"]) != len(boxes) or (labels["class_labels"] < 0).any():
            return f"{WRONG}class_labels {labels['class_labels'].tolist()}"
        if not labels["area"].isfinite().all() or (labels["area"] < 0).any():
            return f"{WRONG}area {labels['area'].tolist()}"
        if which == "sound" and len(boxes) != len(objects):
            return f"{WRONG}{len(boxes)} boxes"
        return found

    return f"annotations, {which}, {name[:50]}, masks {masks}", run, ("annotations",)


def chosen(rng: random.Random, folder: Path) -> Attack:
    """Arguments of `post_process_grounded_object_detection`."""
    name, value = rng.choice(
        [("threshold", math.nan), ("threshold", "x"), ("threshold", -1.0), ("threshold", 2.0), ("threshold", 0.3),
         ("target_sizes", [(10, 20)]), ("target_sizes", "x"), ("target_sizes", [(10,), (3,)]), ("target_sizes", 3),
         ("target_sizes", torch.tensor([[10, 20], [30, 40]])), ("target_sizes", [(0, 0), (5, 5)]),
         ("target_sizes", []),
         ("target_sizes", [(math.nan, 1), (5, 5)]), ("target_sizes", [(-3, 5), (5, 5)]),
         ("target_sizes", [None, None]),
         ("text_labels", ["cat"]), ("text_labels", NAMES), ("text_labels", [NAMES, NAMES]), ("text_labels", [NAMES]),
         ("text_labels", 3), ("text_labels", "cat"), ("text_labels", [NAMES, None]), ("nms_threshold", math.nan),
         ("nms_threshold", 7.0), ("nms_threshold", "x"), ("max_detections", 0), ("max_detections", -1),
         ("max_detections", 10**9), ("max_detections", "x"), ("pre_nms", -1), ("pre_nms", 0), ("pre_nms", 2)]
    )  # fmt: skip

    def run():
        with torch.inference_mode():
            outputs = _model()(torch.randn(2, 3, 64, 64))
        found = _processor().post_process_grounded_object_detection(outputs, **{name: value})
        if len(found) != 2:
            return f"{WRONG}{len(found)} results for 2 images"
        for one in found:
            counts = {len(one[key]) for key in ("scores", "labels", "boxes")}
            if len(counts) != 1 or not one["boxes"].isfinite().all():
                return f"{WRONG}{counts}"
            if name == "threshold" and (one["scores"] <= value).any():
                return f"{WRONG}scores below the threshold"
        if isinstance(value, float) and math.isnan(value):
            return f"{WRONG}accepted NaN"
        return found

    return f"post_process, {name} = {str(value)[:50]}", run, (name,)


# ---- forward


def _wrong_inputs(rng: random.Random) -> dict[str, tuple]:
    pixels, labels = torch.randn(2, 3, 64, 64), vild_labels(2)
    nan = pixels.clone()
    nan.view(-1)[rng.randrange(nan.numel())] = rng.choice([math.nan, math.inf, 1e38])
    mask = torch.ones(2, 64, 64).long()
    ids = torch.randint(1, 4000, (3, 6))
    ids[:, 0], ids[:, -1] = 4036, 4037
    embeddings = torch.nn.functional.normalize(torch.randn(3, WIDTH), dim=-1)
    boxes, far = vild_boxes(2, 8), vild_boxes(2, 8) + 1e6
    holed = boxes.clone()
    holed[0, 2] = torch.tensor(rng.choice([[math.nan] * 4, [math.inf] * 4, [30.0, 30, 3, 3], [-1.0] * 4, [5.0] * 4]))
    odd = (None, "cat", 3, [], {}, [[1.0]], object(), b"x")

    def other(key, value):
        return [{**labels[0], key: value}, labels[1]]

    return {
        "pixel_values": (
            *odd, nan, pixels[:0], pixels[0], pixels[:, :1], pixels.byte(), pixels.numpy(), pixels[..., :0],
            pixels[..., :1, :1], pixels[..., :3], pixels.double(), pixels.to(torch.complex64), pixels.tolist(),
        ),
        "pixel_mask": (
            *odd[1:], mask * 0, mask[:1], mask[..., :3], mask.float(), mask.bool(), mask[0], mask.numpy(),
            mask * math.nan, torch.cat([mask[:1] * 0, mask[1:]]), mask.to(torch.complex64),
        ),
        "input_ids": (
            *odd[1:], ids[:0], ids[:, :0], ids.float(), ids - 5000, ids + 4038, ids[0], ids.repeat(1, 30),
            ids[None, None, None], ids.bool(), ids.tolist(), ids[None, :, None].repeat(2, 1, 1, 1), ids.int(),
            ids[None, :, None].repeat(3, 1, 1, 1), ids[:, :2], ids.numpy(),
        ),
        "class_embeddings": (
            *odd[1:], embeddings[:0], embeddings[:, :5], embeddings[0], embeddings.long(), embeddings * math.nan,
            embeddings[None].repeat(2, 1, 1), embeddings[None].repeat(5, 1, 1), embeddings.double(), embeddings * 1e30,
            embeddings * 0, embeddings.numpy(), embeddings.tolist(),
        ),
        "labels": (
            *odd[1:], labels[:1], [{}, {}], [None, None], other("class_labels", torch.tensor([0, 9])),
            other("class_labels", torch.tensor([-1, 1])), other("class_labels", torch.tensor([0.5, 1.5])),
            other("class_labels", "ab"), other("class_labels", None), other("class_labels", torch.tensor([0])),
            other("boxes", torch.rand(2, 3)), other("boxes", torch.full((2, 4), math.nan)), other("boxes", "x"),
            other("boxes", torch.full((2, 4), 1e30)), other("boxes", torch.full((2, 4), -0.5)), other("boxes", None),
            other("boxes", torch.rand(8)), other("masks", torch.zeros(2, 5, 5)),
            other("masks", torch.zeros(3, 64, 64)),
            other("masks", "x"), other("masks", torch.full((2, 64, 64), math.nan)), other("masks", None),
            other("boxes", torch.zeros(0, 4)),
            [{"class_labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}] * 2, labels[0], tuple(labels),
            torch.zeros(2, 3).long(),
        ),
        "proposals": (
            *odd[1:], boxes[:1], boxes[..., :3], holed, far, boxes.long(), boxes * 0 - 1, boxes[:, :0], boxes.tolist(),
            boxes * math.nan, boxes.double(), boxes[0], boxes.numpy(), boxes.bool(),
        ),
        "distill_boxes": (
            *odd, boxes[:, :5], boxes, holed[:, :5], boxes[:1, :5], boxes[:, :5, :3], boxes[:, :5] * 0 - 1,
            boxes[:, :5].long(), far[:, :5], boxes[:, :5].numpy(),
        ),
        "distill_embeddings": (
            *odd, torch.zeros(2, 5, WIDTH), torch.full((2, 5, WIDTH), math.nan), torch.zeros(2, 5, 3),
            torch.zeros(1, 5, WIDTH), torch.zeros(2, 5, WIDTH).long(), torch.full((2, 5, WIDTH), 1e30),
        ),
    }  # fmt: skip


def inputs(rng: random.Random, folder: Path) -> Attack:
    """One argument of `forward` of another type, shape or range."""
    wrong = _wrong_inputs(rng)
    name = rng.choice(sorted(wrong))
    place = rng.randrange(len(wrong[name]))
    value = wrong[name][place]
    with_loss = name in ("labels", "distill_boxes", "distill_embeddings") or rng.random() < 0.3
    arguments = vild_inputs(2) if with_loss else {"pixel_values": torch.randn(2, 3, 64, 64)}
    arguments[name] = value
    training = with_loss and rng.random() < 0.5

    def run():
        model = _model(copied=training).train(training)
        with torch.set_grad_enabled(training):
            found = model(**arguments)
        if found.logits is not None and len(found.logits) != 2:
            return f"{WRONG}logits {list(found.logits.shape)}"
        if found.pred_boxes is not None and ((found.pred_boxes < -1e-4) | (found.pred_boxes > 1.0001)).any():
            return f"{WRONG}boxes outside of the image"
        # In training nobody waits for the numbers to be looked at.
        return True if training else _checked(found)

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value}"
    shown = " ".join(shown.split())[:60]
    other = {"distill_boxes": "distill_embeddings", "distill_embeddings": "distill_boxes"}
    return f"{name} = {shown} ({place}){', training' if training else ''}", run, (name, other.get(name, name))


def alone(rng: random.Random, folder: Path) -> Attack:
    """An image beside others, padded to their size, has the boxes that it has alone."""
    sizes = [(rng.randint(10, 60), rng.randint(10, 60)) for _ in range(rng.randint(1, 3))]
    images = [
        Image.fromarray(np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in sizes
    ]
    texts = [name for name in dict.fromkeys(texts_of(rng)) if name.strip() and ";" not in name] or ["cat"]

    def run():
        together = _processor()(images=images, text=texts, return_tensors="pt")
        one = _processor()(images=images[-1:], text=texts, return_tensors="pt")
        with torch.inference_mode():
            outputs = _model()(**together), _model()(**one)
        found, wanted = (
            _processor().post_process_grounded_object_detection(
                each, 0.0, target_sizes=[images[-1].size[::-1]] * count
            )
            for each, count in zip(outputs, (len(images), 1), strict=True)
        )
        for box in (found[-1]["boxes"], wanted[0]["boxes"]):
            if (box < -1e-3).any() or (box > max(images[-1].size) + 1e-3).any():
                return f"{WRONG}boxes outside of the image"
        if not len(found[-1]["scores"]) or not len(wanted[0]["scores"]):
            return f"{WRONG}no boxes at all"
        close = abs(float(found[-1]["scores"].max()) - float(wanted[0]["scores"].max())) < 1e-2
        return outputs[0] if close else f"{WRONG}other scores beside others"

    return f"{sizes}, {texts!a}"[:150], run, ("text", "images")


# ---- labels and weights


def labels(rng: random.Random, folder: Path) -> Attack:
    odd = [None, "cat", {"a"}, [], [[]], [None], [3], ["cat", "cat"], [["a", 3]], [" "], b"x"]
    given = rng.choice(odd) if rng.random() < 0.3 else texts_of(rng)

    def run():
        model = _model(copied=True)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        try:
            model.set_labels(given, _processor())
        except ValueError:
            if not all(torch.equal(model.state_dict()[name], t) for name, t in before.items()):
                raise RuntimeError("the model was changed by labels that were refused") from None
            raise
        texts, used = model.config.label_texts, model.config.templates
        found = torch.cat([model.embed_texts([text], _processor(), used) for one in texts for text in one])
        if not torch.allclose(found, model.class_embeddings, atol=2e-5):
            return f"{WRONG}alone, a text has other embeddings"
        with torch.inference_mode():
            return _checked(model(torch.randn(1, 3, 64, 64)))

    return f"labels {given!a}"[:150], run, ("labels", "template")


def weights(rng: random.Random, folder: Path) -> Attack:
    """A number of a saved tensor, then an answer."""
    place = folder / "model"

    def run():
        _model().save_pretrained(place)
        tensors = load_file(place / "model.safetensors")
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[at % tensors[name].numel()] = value
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        loaded = ViLDForZeroShotObjectDetection.from_pretrained(place).eval()
        with torch.inference_mode():
            return _checked(loaded(torch.randn(2, 3, 64, 64), output_masks=True))

    floats = sorted(n for n, t in _model().state_dict().items() if t.is_floating_point() and t.numel())
    name, value, at = rng.choice(floats), rng.choice(BAD), rng.randrange(10**6)
    return f"{name}[{at}] = {value}", run, (name, "numbers overflow", "class_embeddings")


def grounding(rng: random.Random, folder: Path) -> Attack:
    """An input of a model that reads a prompt, of another type, shape or range; or a number among its weights."""
    given = glip_inputs(2)
    odd, prompt = ("cat", 3, {}, [[1.0]], object(), b"x"), {n: given[n] for n in ("input_ids", "attention_mask")}
    wrong = {
        "pixel_values": _wrong_inputs(rng)["pixel_values"],
        **{
            name: (
                *odd, one[:0], one[:, :0], one[0], one[:1], one.repeat(1, 40), one[:, None, None], one + 10**5,
                one - 10**5, one.tolist(), one.numpy(), one.to(torch.complex64), one * 0, one.repeat(2, 1),
            )
            for name, one in prompt.items()
        },
        "phrase_map": (*odd, *(one for one in _changed(given["phrase_map"]))),
        "labels": (
            *odd, given["labels"][:1], [{}, {}], [None, None],
            *([{**given["labels"][0], key: value}, given["labels"][1]] for key, value in (
                ("class_labels", torch.tensor([0, 9])), ("class_labels", torch.tensor([-1, 1])),
                ("class_labels", "ab"), ("class_labels", torch.tensor([0])), ("boxes", None),
                ("boxes", torch.full((2, 4), math.nan)),
                ("boxes", torch.full((2, 4), 1e30)), ("boxes", torch.rand(2, 3)), ("boxes", torch.zeros(2, 4)),
            )),
        ),
    }  # fmt: skip
    model, with_loss = glip_model(), rng.random() < 0.5
    if rng.random() < 0.3:
        model = copy.deepcopy(model)
        name, tensor = rng.choice([pair for pair in model.named_parameters() if pair[1].numel()])
        place, value = rng.randrange(tensor.numel()), rng.choice(BAD)
        tensor.data.view(-1)[place] = value
        named = (name, "overflow")
    else:
        name = rng.choice(sorted(wrong))
        place = rng.randrange(len(wrong[name]))
        given[name] = value = wrong[name][place]
        with_loss, named = with_loss or name == "labels", (name, "input_ids")
    if not with_loss:
        given.pop("labels")

    def run():
        with torch.inference_mode():
            return _checked(model(**given))

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value}"
    return f"grounding, {name} = {' '.join(shown.split())[:60]} ({place}){', loss' if with_loss else ''}", run, named


def _changed(one: torch.Tensor) -> tuple:
    """A tensor in other shapes, types and ranges."""
    return (
        one[:0], one[:, :0], one[0], one[:1], one[..., :1], one[..., :0], one.tolist(), one.numpy(), one.float(),
        one.float() * math.nan, one.float() * 1e38, one.to(torch.complex64), one * 0, one.bool(), one[None],
    )  # fmt: skip


ATTACKS = (inputs, annotations, image_files, inputs, chosen, alone, annotations, labels, weights, grounding, grounding)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    return in_turn(KIND, ATTACKS, seed, folder)


__all__ = ["KIND", "cases"]
