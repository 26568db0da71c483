"""What the shots say about zero-shot CLIP before anything is fitted: how far to trust it, and how strongly to adapt.

Nothing was fitted to the shots yet, so zero-shot CLIP's accuracy and temperature on them are those that it has on
other images of the same kind, even with one image of each class. The strengths of the methods without a validation
split follow from these; they are in units of log-probability and relative to the spread of the embeddings, which
makes them the same for any backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..adapters.image_cache import cache_logits
from ..evaluation.calibration import fit_temperature
from ..evaluation.image_prediction import class_logits


if TYPE_CHECKING:
    from ..data.images.labelled_images import LabelledImages


# N images, C classes, D joint width

# Found on two styles of emoji, with `scripts/adaptation_tasks.py`; not on the styles that it reports on.
VOTE = 20.0  # log-probability of an image that equals the only shot of a class
SHARPNESS = 2.2  # sharpness of votes times the mean distance between classes


@dataclass(frozen=True)
class Evidence:
    """Labelled images as zero-shot CLIP sees them.

    Attributes:
        image_embeds: (N, D), unit norm.
        class_embeds: (C, D), unit norm.
        logits: (N, C) of zero-shot CLIP, at the model's own scale.
        labels: (N,) int64.
    """

    image_embeds: torch.Tensor
    class_embeds: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor

    def select(self, rows: torch.Tensor) -> Evidence:
        return Evidence(self.image_embeds[rows], self.class_embeds, self.logits[rows], self.labels[rows])

    @property
    def num_classes(self) -> int:
        return len(self.class_embeds)

    @cached_property
    def shots(self) -> float:
        """Mean number of images of the classes that have any."""
        return len(self.labels) / len(self.labels.unique())

    @cached_property
    def temperature(self) -> float:
        """That of zero-shot CLIP on these images: high where the class names say little about them."""
        return fit_temperature(self.logits, self.labels)

    @property
    def calibrated(self) -> torch.Tensor:
        """(N, C) zero-shot logits, divided by the temperature."""
        return self.logits / self.temperature

    @cached_property
    def error(self) -> float:
        """Zero-shot CLIP's share of wrong images, by Laplace's rule of succession: (wrong + 1) / (N + 2)."""
        wrong = int((self.logits.argmax(1) != self.labels).sum())
        return (wrong + 1) / (len(self.labels) + 2)

    @cached_property
    def spread(self) -> float:
        """Mean of 1 - cosine over pairs of images of different classes: CLIP models differ much in it."""
        # A sum over pairs is the square of a sum, so no N x N array is made.
        embeds, count = self.image_embeds.double(), torch.bincount(self.labels, minlength=self.num_classes)
        sums = embeds.new_zeros(self.num_classes, embeds.shape[1]).index_add(0, self.labels, embeds)
        pairs = len(embeds) ** 2 - int(count.square().sum())
        cosines = float(sums.sum(0).square().sum() - sums.square().sum())
        return max(1 - cosines / pairs, 1e-3) if pairs else 1.0

    @cached_property
    def answerable(self) -> torch.Tensor:
        """(M,) rows of the images whose class has another one: left out, the others still know their class."""
        return (torch.bincount(self.labels)[self.labels] > 1).nonzero()[:, 0]

    @property
    def beta(self) -> float:
        """Sharpness of the votes of images, exp(-beta (1 - cosine))."""
        return SHARPNESS / self.spread

    @property
    def vote(self) -> float:
        """Weight of a vote: `VOTE` for one shot. The votes of a class are summed, and shots of a class resemble each
        other, so it falls with the square root of the shots."""
        return VOTE / self.shots**0.5

    def leave_one_out_votes(self, beta: float | None = None) -> torch.Tensor:
        """(N, C) votes that each image gets from all the others, summed by class; `beta` instead of the shots'.

        Its own class has one image less there than it will have for a new image, which is made up for: the sum is
        multiplied by n / (n - 1), so its expectation is that of a new image. The only image of a class has 0 for it.
        """
        beta, embeds = self.beta if beta is None else beta, self.image_embeds
        parts = [cache_logits(part, embeds, self.labels, self.num_classes, beta) for part in embeds.split(1024)]
        votes = torch.cat(parts)
        count = torch.bincount(self.labels)[self.labels].to(votes.dtype)
        rows = torch.arange(len(self.labels), device=votes.device)
        others = votes[rows, self.labels] - (-beta * (1 - embeds.square().sum(1))).exp()  # without its own vote
        votes[rows, self.labels] = torch.where(count > 1, others.clamp(min=0) * count / (count - 1).clamp(min=1), 0.0)
        return votes

    def fitted_strength(self, added: torch.Tensor, start: float, cost: float = 4.0) -> float:
        """How strongly to add logits to the calibrated zero-shot logits: from half of `start` to twice as much.

        Not further: an image that is left out may resemble the others less than a test image does, when each shot is
        of another style, and then no strength is too small for it.

        It minimises the sum of cross-entropies of the `answerable` images plus `cost` for every octave away from
        `start`.

        Args:
            added: (N, C) logits of each image from classifiers that were fitted without it.
        """
        rows = self.answerable
        zero_shot, added, labels = self.calibrated[rows], added[rows], self.labels[rows]
        octaves = [-1.0, -0.5, 0.0, 0.5, 1.0]
        strengths = [start * 2**octave for octave in octaves]
        losses = [
            F.cross_entropy(zero_shot + strength * added, labels, reduction="sum").item() + cost * abs(octave)
            for octave, strength in zip(octaves, strengths, strict=True)
        ]
        return strengths[losses.index(min(losses))]


def evidence_of(classifier: torch.nn.Module, images: LabelledImages) -> Evidence:
    """What a classifier without an adapter says about labelled images, in their plain view."""
    output = class_logits(classifier, images)
    return Evidence(output.image_embeds, output.text_embeds, output.logits, images.labels.to(output.logits.device))


__all__ = ["Evidence", "evidence_of"]
