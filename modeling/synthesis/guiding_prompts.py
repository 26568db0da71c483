"""What pictures are optimised towards: prompts with weights and stops, and the loss that compares them with views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..dual_encoders.backbones import unit_norm


MOST_PROMPTS = 64
_LARGEST_WEIGHT = 1000.0


# n pictures, V views of each, Q prompts, D joint width


@dataclass(frozen=True)
class Prompt:
    """A text with its weight (negative: away from it) and the loss below which it does not pull any more."""

    text: str
    weight: float = 1.0
    stop: float = -math.inf


def parse_prompts(text: str, what: str = "prompt") -> list[Prompt]:
    r"""
    `"text:weight:stop | text | …"`, VQGAN-CLIP's grammar. Weight and stop may be left out, and a colon that no number
    follows belongs to the text.

    Raises:
        ValueError: no text, a weight of 0 or an absurd one, too many prompts.

    Example:

    ```python
    >>> parse_prompts("a red apple | a worm:-0.5 | 12 o'clock: noon")
    [Prompt(text='a red apple', weight=1.0, stop=-inf), Prompt(text='a worm', weight=-0.5, stop=-inf), Prompt(text="12 o'clock: noon", weight=1.0, stop=-inf)]
    ```
    """  # noqa: E501
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what}: {text!r}, expected a text that is not empty")
    found = []
    for part in text.split("|"):
        words, numbers = part, []
        while len(numbers) < 2 and ":" in words:
            before, _, last = words.rpartition(":")
            try:
                number = float(last)
            except ValueError:
                break
            words, numbers = before, [number, *numbers]
        weight, stop = (*numbers, *(1.0, -math.inf)[len(numbers) :])
        if not words.strip():
            raise ValueError(f"{what}: {part!r} has no text")
        if not 0 < abs(weight) <= _LARGEST_WEIGHT or math.isnan(stop):
            raise ValueError(
                f"{what}: {part.strip()!r}, expected text:weight:stop with a weight that is not 0, at most "
                f"{_LARGEST_WEIGHT:g}"
            )
        found.append(Prompt(words.strip(), weight, stop))
    if len(found) > MOST_PROMPTS:
        raise ValueError(f"{what}: {len(found)} prompts for one picture, expected at most {MOST_PROMPTS}")
    return found


@dataclass
class Goal:
    """Embeddings (Q, D) of one picture's prompts, their weights and stops (Q,)."""

    embeds: torch.Tensor
    weights: torch.Tensor
    stops: torch.Tensor

    @classmethod
    def of(cls, embeds: torch.Tensor, prompts: Sequence[Prompt]) -> "Goal":
        numbers = [[prompt.weight for prompt in prompts], [prompt.stop for prompt in prompts]]
        weights, stops = torch.tensor(numbers, dtype=torch.float32, device=embeds.device)
        return cls(embeds.float(), weights, stops)


def cosine_distance(views: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """(V, D), (Q, D) -> (V, Q): minus the cosine, CLIPDraw's."""
    return -unit_norm(views) @ unit_norm(prompts).T


def spherical_distance(views: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """(V, D), (Q, D) -> (V, Q): half of the squared angle, 2 arcsin(|a - b| / 2)^2, VQGAN-CLIP's. Equal and opposite
    vectors have gradient zero, where the formula has none."""
    apart = (unit_norm(views)[:, None] - unit_norm(prompts)[None]).square().sum(-1)
    usual = (apart > 1e-12) & (apart < 4 - 1e-6)
    angle = torch.where(usual, apart, 1.0).sqrt().div(2).arcsin()
    return 2 * torch.where(usual, angle, torch.where(apart < 1, 0.0, math.pi / 2)).square()


def prompt_losses(
    views: torch.Tensor, goals: Sequence[Goal], distance=cosine_distance, reduction: str = "sum"
) -> torch.Tensor:
    """
    (n, V, D) embeddings of views of n pictures, and a goal of each -> (n,).

    |w| sign(w) d over views and prompts, where a pair whose sign(w) d is at most its prompt's stop counts in the value
    and has no gradient (VQGAN-CLIP's `Prompt`). `reduction`: `"sum"` over both (CLIPDraw), or the `"mean"` over views.
    """
    found = []
    for embeds, goal in zip(views.float(), goals, strict=True):
        signed = goal.weights.sign() * distance(embeds, goal.embeds)
        pulled = torch.where(signed > goal.stops, signed, signed.detach())
        weighted = (goal.weights.abs() * pulled).sum(1)
        found.append(weighted.sum() if reduction == "sum" else weighted.mean())
    return torch.stack(found)


__all__ = ["Goal", "Prompt", "cosine_distance", "parse_prompts", "prompt_losses", "spherical_distance"]
