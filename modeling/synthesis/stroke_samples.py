"""Strokes as what is optimised: samples of a `SynthesisLoop`, and drawings of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..strokes.stroke_drawing import StrokeDrawing
from ..strokes.stroke_rasterizer import render_strokes
from .synthesis_loop import SynthesisLoop, SynthesisSample


MOST_STROKES = 4096


@dataclass
class SynthesizedDrawing:
    """
    Args:
        drawing: the strokes.
        seed: of its random numbers.
        loss: of the picture without augmentation, in the state that is kept.
        losses: of each step, with augmentation.
        evaluations: (step, loss without augmentation).
        prompt: what it shows, if that was told in words.
        similarity: cosine between the picture and its first prompt (of a story, the last chapter's) or its photograph.
        similarities: the same of each guide, where there are prompts.
    """

    drawing: StrokeDrawing
    seed: int
    loss: float
    losses: list[float]
    evaluations: list[tuple[int, float]]
    prompt: str | None = None
    similarity: float | None = None
    similarities: list[float] = field(default_factory=list)


def checked_count(name: str, value: int, high: int = MOST_STROKES) -> int:
    if type(value) is not int or not 1 <= value <= high:
        raise ValueError(f"{name}: {value!r}, expected a whole number in 1..{high}")
    return value


def random_walks(
    starts: torch.Tensor, steps: int, reach: float, canvas: int, generator: torch.Generator
) -> torch.Tensor:
    """(N, 2) starts in 0..1 -> (N, steps + 1, 2) in pixels: each next point is the one before, moved by up to
    `reach` / 2 of the canvas along each axis."""
    moves = reach * (torch.rand(len(starts), steps, 2, generator=generator) - 0.5)
    return torch.cat([starts[:, None], moves], 1).cumsum(1) * canvas


def render_samples(samples: Sequence[SynthesisSample], canvas: int) -> torch.Tensor:
    """(n, 3, H, W) of samples with the tensors or fixed tensors points, radii, colors and num_segments."""
    parts = [
        torch.stack([{**sample.fixed, **sample.tensors}[name] for sample in samples])
        for name in ("points", "radii", "colors", "num_segments")
    ]
    return render_strokes(*parts, height=canvas, width=canvas)


def drawing_of(sample: SynthesisSample, canvas: int) -> StrokeDrawing:
    """The strokes of a sample as they are, on the CPU."""
    parts = {
        name: tensor.detach().float().cpu().clone() for name, tensor in {**sample.fixed, **sample.tensors}.items()
    }
    parts["num_segments"] = parts["num_segments"].long()
    parts = {name: parts[name] for name in ("points", "radii", "colors", "num_segments")}
    return StrokeDrawing(**parts, height=canvas, width=canvas)


def drawings_of(loop: SynthesisLoop, canvas: int) -> list[SynthesizedDrawing]:
    """What a loop has made: call after `finish`."""
    return [
        SynthesizedDrawing(
            drawing_of(sample, canvas), sample.seed, loop.value_of(sample), list(sample.losses),
            list(sample.evaluations),
        )
        for sample in loop.samples
    ]  # fmt: skip


def best_of(results: Sequence[SynthesizedDrawing]) -> SynthesizedDrawing:
    """The drawing of the lowest evaluation loss, as among several seeds of one prompt."""
    if not results:
        raise ValueError("results: none, expected drawings")
    return min(results, key=lambda result: result.loss if math.isfinite(result.loss) else math.inf)


__all__ = [
    "MOST_STROKES",
    "SynthesizedDrawing",
    "best_of",
    "checked_count",
    "drawing_of",
    "drawings_of",
    "random_walks",
    "render_samples",
]
