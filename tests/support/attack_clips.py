"""Attacks on CLIP4Clip's forward: videos, which frames are there, texts, weights.

What is right: scores of all pairs, finite, and those that each video has alone; or ValueError names the argument or
the weight.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from attack_cases import WRONG, Case
from attack_prompts import ODD, _ways, _weight
from clip4clip_runs import clip4clip_batch, clip4clip_model


KIND = "clips"
HEADS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")


def forward(rng: random.Random):
    head = rng.choice(HEADS)
    model, given = clip4clip_model(similarity_head=head), clip4clip_batch(2)
    wrong = {name: (*ODD, None, *_ways(one, rng)) for name, one in given.items() if isinstance(one, torch.Tensor)}
    videos, mask = given["pixel_values_videos"], given["video_mask"]
    holed = mask.clone()
    holed[0, 0] = 0
    wrong["pixel_values_videos"] = (
        *wrong["pixel_values_videos"], videos[:, :, :1], videos[..., :1, :1], videos[..., :3], videos[:, :0],
        videos.repeat(1, 3, 1, 1, 1), videos.flatten(0, 1), videos.half(), videos[:, 0],
    )  # fmt: skip
    wrong["video_mask"] = (*wrong["video_mask"], holed, mask[:, :2], mask * 3, mask.flip(1), mask - 2)
    named: tuple[str, ...]
    if rng.random() < 0.25:
        model, weight, name, value = _weight(model, rng)
        named = (weight, "overflow", "not finite", "numbers")
    else:
        name = rng.choice(sorted(wrong))
        given[name] = value = rng.choice(wrong[name])
        named = (name, "return_loss", *(["video_mask"] if name == "pixel_values_videos" else []))
    if rng.random() < 0.5:
        given["return_loss"] = True

    def run():
        with torch.inference_mode():
            found = model(**given)
        texts, clips = len(given["input_ids"]), len(given["pixel_values_videos"])
        if list(found.logits_per_text.shape) != [texts, clips]:
            return f"{WRONG}scores {list(found.logits_per_text.shape)}"
        tensors = (found.logits_per_text, found.logits_per_video, found.text_embeds, found.video_embeds, found.loss)
        if not all(one.isfinite().all() for one in tensors if one is not None):
            return f"{WRONG}not finite"
        return True

    shown = f"{type(value).__name__} {tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else f"{value}"
    return f"{head}, {name} = {' '.join(shown.split())[:70]}", run, named


def alone(rng: random.Random):
    """A video beside longer ones has the scores that it has alone; what stands in frames that are not there is
    nothing."""
    head, patches = rng.choice(HEADS), rng.choice(["2d", "3d"])
    model = clip4clip_model(similarity_head=head, patch_embedding=patches)
    given = clip4clip_batch(3, seed=rng.randrange(99))
    lengths = torch.tensor([rng.randint(1, 4) for _ in range(3)])
    given["video_mask"] = (torch.arange(4) < lengths[:, None]).long()
    videos = given["pixel_values_videos"].clone()
    videos[given["video_mask"] == 0] = rng.choice([math.nan, math.inf, 1e30, 0.0])

    def run():
        with torch.inference_mode():
            together = model(**given | {"pixel_values_videos": videos}).logits_per_video
            own = {"pixel_values_videos": given["pixel_values_videos"][:1, : lengths[0]], "video_mask": None}
            expected = model(**given | own).logits_per_video
        if not torch.allclose(together[:1], expected, atol=1e-3):
            return f"{WRONG}other scores beside others: {(together[:1] - expected).abs().max()}"
        return True

    return (
        f"{head} {patches}, lengths {lengths.tolist()}, {videos.view(-1)[-1]}",
        run,
        ("pixel_values_videos", "video_mask"),
    )


def training(rng: random.Random):
    """Gradients are finite, whatever stands in frames that are not there."""
    head = rng.choice(HEADS)
    model, given = copy.deepcopy(clip4clip_model(similarity_head=head)).train(), clip4clip_batch(2)
    given["video_mask"] = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])
    given["pixel_values_videos"] = given["pixel_values_videos"].clone()
    given["pixel_values_videos"][given["video_mask"] == 0] = rng.choice([math.nan, 1e30])

    def run():
        model(**given | {"return_loss": True}).loss.backward()
        wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        return f"{WRONG}gradients of {wrong[:3]}" if wrong else True

    return f"{head}, training", run, ("pixel_values_videos",)


ATTACKS = (forward, forward, alone, forward, training, forward)


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        name, run, named = ATTACKS[count % len(ATTACKS)](random.Random(rng.random()))
        yield Case(KIND, f"{count} {name}", run, named)


__all__ = ["KIND", "cases"]
