"""From logits to probabilities that hold: a temperature, and the probability below which an image is not named.

Both are measured on labelled images that the model was not fitted to. Logits stay as they are. Imports torch only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


# N images, C classes

# Without images, CLIP's probabilities are taken to be twice too sharp: it is calibrated on what it was trained on, and
# data that somebody adapts to is other data. Images outweigh this quickly: an octave costs one unit of
# log-probability.
PRIOR_TEMPERATURE = 2.0
_OCTAVES = [octave / 2 for octave in range(-4, 13)]  # of temperatures that are tried, around 1
KEPT = 0.95  # share of the right answers that rejecting images is to keep


@dataclass(frozen=True)
class Calibration:
    """What makes a model's scores probabilities.

    Attributes:
        temperature (`float`): logits are divided by it before the softmax.
        rejection_threshold (`float`, *optional*): see [`fit_rejection_threshold`].
    """

    temperature: float
    rejection_threshold: float | None = None


def calibrate(logits: torch.Tensor, labels: torch.Tensor) -> Calibration:
    """Temperature and rejection threshold, measured on labelled images.

    Args:
        logits: (N, C) of images that the model was not fitted to.
        labels: (N,) int64.

    Example:

    >>> logits = torch.eye(2)[[0, 1] * 20] * 9  # 40 images, all of them right
    >>> found = calibrate(logits, logits.argmax(1))
    >>> found.temperature, found.rejection_threshold > 0.9
    (2.0, True)
    """
    temperature = fit_temperature(logits, labels)
    best = (logits.double() / temperature).softmax(dim=1).max(dim=1)
    return Calibration(temperature, fit_rejection_threshold(best.values[best.indices == labels]))


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, prior: float = PRIOR_TEMPERATURE) -> float:
    """The temperature t for which softmax(logits / t) fits labelled images best.

    It minimises the sum of cross-entropies plus |log2(t / prior)|, over powers of √2 from 1/4 to 64: with few images
    it stays near `prior`. This is temperature scaling (Guo et al. 2017) with a prior.

    Args:
        logits: (N, C) of images that the model was not fitted to. -inf is allowed, but not for the label.
        labels: (N,) int64.
        prior: the temperature without images.

    Example:

    >>> fit_temperature(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))  # sure, and half wrong
    4.0
    """
    best, lowest = prior, torch.inf
    for octave in _OCTAVES:
        temperature = 2.0**octave
        loss = F.cross_entropy(logits.double() / temperature, labels, reduction="sum").item()
        loss += abs(octave - torch.tensor(prior).log2().item())
        if loss < lowest:
            best, lowest = temperature, loss
    return best


def fit_rejection_threshold(probabilities: torch.Tensor) -> float | None:
    """The probability below which an image is left without a class, so that 95 % of the right answers are kept.

    It is the k-th smallest of the n given ones with the largest k for which k / (n + 1), the expected share of new
    right answers below it, is at most 5 % (as in conformal prediction). That takes n >= 19: None for fewer. It says
    nothing about images of other classes, of which none was seen.

    Args:
        probabilities: (n,), of the answers that are right, for images that the model was not fitted to.

    Example:

    >>> fit_rejection_threshold(torch.arange(1, 40) / 40)  # the second smallest of 39
    0.05
    """
    place = int((len(probabilities) + 1) * (1 - KEPT) + 1e-9)
    return round(float(probabilities.sort().values[place - 1]), 6) if place else None


__all__ = ["KEPT", "PRIOR_TEMPERATURE", "Calibration", "calibrate", "fit_rejection_threshold", "fit_temperature"]
