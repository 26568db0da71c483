"""Attacks on the forwards of GLIPv2: detections with masks, answers to questions, captions and their generation.

What is right: answers of the right shapes, finite, boxes inside of the image; or ValueError names the argument, or the
weight, and the model is as it was.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from attack_cases import WRONG, Case
from glipv2_runs import WORDS, answering_inputs, answering_model, captioning_inputs, glipv2_inputs, glipv2_model
from tiny import copy_of

from hf_clip_variants import GLIPv2ForImageTextToText


KIND = "prompts"
BAD = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3e38)
ODD = ("cat", 3, {}, [], [[1.0]], [None], object(), b"x", True)


def writer() -> GLIPv2ForImageTextToText:
    def build():
        model = glipv2_model()
        captioning = GLIPv2ForImageTextToText(model.config).eval()
        captioning.load_state_dict(model.state_dict())
        return captioning

    return copy_of("attack captioning", build)


def _ways(one: torch.Tensor, rng: random.Random) -> tuple:
    """A tensor in other shapes, types and ranges."""
    whole, spot = one.long(), one.float().clone()
    if spot.numel():
        spot.view(-1)[rng.randrange(spot.numel())] = rng.choice(BAD)
    shapes = (one[:0], one[:1], one[0], one[None], one[:, None], one[..., :1], one[..., :0], one.t()) if (
        one.dim() < 3
    ) else (one[:0], one[:1], one[0], one[None], one[:, :0], one[:, :1], one[..., :1], one[..., :0])  # fmt: skip
    twice = torch.cat([one, one])
    long = torch.cat([one] * 20, dim=-1)
    ranges = (whole * 0, whole * -1 - 1, whole + 10**5, spot, spot * math.nan, spot * 1e38, one.float())
    types = (one.double(), one.half(), one.to(torch.complex64), one.bool(), one.to(torch.int32), one.to(torch.uint8))
    return (*shapes, twice, long, *ranges, *types, one.tolist(), one.numpy())


def _objects(labels: list[dict], rng: random.Random) -> tuple:
    def other(key, value):
        return [{**labels[0], key: value}, labels[1]]

    without = [{n: v for n, v in labels[0].items() if n != rng.choice(sorted(labels[0]))}, labels[1]]
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    masks = torch.zeros(2, 64, 64)
    return (
        *(labels[:1], [{}, {}], [None, None], labels[0], tuple(labels), without, [empty] * 2, [empty, labels[1]]),
        *(other("class_labels", v) for v in (torch.tensor([0, 9]), torch.tensor([-1, 1]), "ab", None, [0, 0])),
        *(other("class_labels", v) for v in (torch.tensor([0]), torch.tensor([0.5, 1]), torch.tensor([True, False]))),
        *(other("boxes", v) for v in (None, torch.full((2, 4), math.nan), torch.full((2, 4), 1e30), torch.rand(2, 3))),
        *(other("boxes", v) for v in (torch.zeros(2, 4), torch.rand(8), "x", torch.full((2, 4), -0.5))),
        *(other("masks", v) for v in (None, "x", masks[:1], masks[..., :5], masks * math.nan, masks.bool(), masks)),
        *(other("masks", v) for v in (masks.numpy(), masks + 0.5, masks[None], masks.to(torch.complex64))),
    )


def _checked(outputs, batch: int) -> object:
    if "detection" in outputs:
        found = _checked(outputs.detection, batch)
        if found is not True:
            return found
    names = ("loss", "logits", "pred_boxes", "centerness", "mlm_logits")
    tensors = {name: outputs.get(name) for name in names if outputs.get(name) is not None}
    if wrong := [name for name, one in tensors.items() if not one.isfinite().all()]:
        return f"{WRONG}{wrong} are not finite"
    if wrong := [name for name, one in tensors.items() if name != "loss" and len(one) != batch]:
        return f"{WRONG}{wrong} have not {batch} rows"
    found = outputs.get("detections")
    if found is not None and not (found.masks.isfinite().all() and (found.masks >= 0).all()):
        return f"{WRONG}masks are no probabilities"
    return True


def _weight(model, rng: random.Random) -> tuple[torch.nn.Module, str, str, float]:
    model = copy.deepcopy(model)
    name, tensor = rng.choice([pair for pair in model.named_parameters() if pair[1].numel()])
    place, value = rng.randrange(tensor.numel()), rng.choice(BAD)
    tensor.data.view(-1)[place] = value
    return model, name, f"{name}[{place}]", value


def _attack(rng: random.Random, what: str, model, given: dict, wrong: dict, with_loss: tuple[str, ...], run):
    """One argument, or one weight, of `run(model, given)`."""
    named: tuple[str, ...]
    if rng.random() < 0.2:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "overflow", "not finite", "numbers")
    else:
        name = rng.choice(sorted(wrong))
        place = rng.randrange(len(wrong[name]))
        given[name] = value = wrong[name][place]
        named = (name, "input_ids") if name in ("attention_mask", "phrase_map") else (name,)
        if name == "pixel_values":
            named = (name, "input_ids", "pixel_mask", "is_caption", "labels")
    if name not in with_loss and rng.random() < 0.5:
        for one in with_loss:
            given.pop(one, None)

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value}"
    return f"{what}, {name} = {' '.join(shown.split())[:70]}", lambda: run(model, given), named


def _forward(model, given) -> object:
    with torch.inference_mode():
        return _checked(model(**given), 2)


def detection(rng: random.Random):
    given = glipv2_inputs(2)
    options = {"output_masks": True} if rng.random() < 0.5 else {}
    wrong = {name: (*ODD, *_ways(given[name], rng)) for name in given if name != "labels"}
    wrong["labels"] = (*ODD, *_objects(given["labels"], rng))
    wrong["pixel_mask"] = (*ODD, *_ways(torch.ones(2, 64, 64, dtype=torch.long), rng))
    wrong["text_embeds"] = (*ODD, *_ways(torch.randn(2, 16, 20), rng))
    given |= options
    return _attack(rng, "detection", glipv2_model(), given, wrong, ("labels", "mlm_labels"), _forward)


def answers(rng: random.Random):
    given = answering_inputs(2)
    wrong = {name: (*ODD, *_ways(given[name], rng)) for name in given if name not in ("object_labels", "labels")}
    right = torch.tensor([[1.0, 0, 0.5], [0, 1, 0]])
    wrong["labels"] = (*ODD, *_ways(given["labels"][:, None], rng), given["labels"] + 3, right, *_ways(right, rng))
    wrong["object_labels"] = (*ODD, *_objects(given["object_labels"], rng))
    return _attack(rng, "answers", answering_model(), given, wrong, ("labels", "object_labels"), _forward)


def captions(rng: random.Random):
    given, model = captioning_inputs(2), writer()
    wrong = {name: (*ODD, *_ways(one, rng)) for name, one in given.items()}
    wrong["labels"] = (*wrong["labels"], given["labels"] + 100, given["labels"].clamp(max=-5))
    with torch.inference_mode():
        states = model.encode_images(given["pixel_values"], given["input_ids"][:, :1])
    if rng.random() < 0.3:
        del given["pixel_values"], wrong["pixel_values"]
        given["image_states"] = states
        wrong["image_states"] = (
            *ODD, states[:1], states[0], tuple(one[:1] for one in states), tuple(one[..., :3] for one in states),
            tuple(one * math.nan for one in states), [*states], tuple(one[:, :0] for one in states),
            tuple(one.long() for one in states), tuple(one.numpy() for one in states), (states[0], None),
            tuple(one[0] for one in states), tuple(one.to(torch.complex64) for one in states), (*states, states[0]),
        )  # fmt: skip
    return _attack(rng, "captions", model, given, wrong, ("labels",), _forward)


def generation(rng: random.Random):
    given = captioning_inputs(2)
    del given["labels"]
    given = {name: one[:, :3] if name != "pixel_values" else one for name, one in given.items()}
    wrong = {name: (*ODD, *_ways(one, rng)) for name, one in given.items()}
    wrong["max_new_tokens"] = (0, -3, "x", 1.5, 10**9, math.nan, [3], True, torch.tensor(2), 4)
    wrong["max_length"] = (0, 2, -1, "x", 1.5, 10**9, 5)
    wrong["num_beams"] = (1, 3)

    def run(model, given):
        found = model.generate(**{"max_new_tokens": 3} | given if "max_length" not in given else given)
        if len(found) != 2 or found.shape[1] > 24 or not 0 <= int(found.min()) <= int(found.max()) < len(WORDS):
            return f"{WRONG}ids {list(found.shape)}"
        return True

    return _attack(rng, "generation", writer(), given, wrong, (), run)


ATTACKS = (detection, answers, captions, detection, generation)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        name, run, named = ATTACKS[count % len(ATTACKS)](random.Random(rng.random()))
        yield Case(KIND, f"{count} {name}", run, named)


__all__ = ["KIND", "cases"]
