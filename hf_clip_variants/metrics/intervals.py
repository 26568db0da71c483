"""Confidence intervals of differences of accuracy on the same images. Imports NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def paired_bootstrap(
    before: Sequence[bool] | np.ndarray,
    after: Sequence[bool] | np.ndarray,
    confidence: float = 0.95,
    samples: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of mean(after) - mean(before), by drawing the images anew with replacement.

    Args:
        before: (N,), whether each image was right.
        after: (N,), or (S, N) for the means over S seeds; the images are drawn, the seeds are not.
        confidence: share of the draws that lie in the interval.
        samples: number of draws.
        seed: of the draws.

    Returns:
        Lower and upper end, 0..1.

    Raises:
        ValueError: no images, or other numbers of images.

    Example:

    >>> low, high = paired_bootstrap([True] * 50 + [False] * 50, [True] * 70 + [False] * 30)
    >>> 0.1 < low < 0.2 < high < 0.3
    True
    """
    before = np.asarray(before, dtype=np.float64)
    after = np.asarray(after, dtype=np.float64)
    if not before.size or after.shape[-1:] != before.shape:
        raise ValueError(
            f"after: got shape {after.shape} for {before.shape} images; want the same images, at least one"
        )
    difference = (after if after.ndim == 1 else after.mean(0)) - before
    # An image's difference has few possible values, and a draw is known by how often each occurs: no N x samples
    # array.
    values, counts = np.unique(difference.round(12), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(before), counts / counts.sum(), size=samples)
    low, high = np.quantile(drawn @ values / len(before), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def gain_text(gain: float, interval: Sequence[float]) -> str:
    """A difference of accuracies and its interval in points.

    >>> gain_text(0.042, (-0.016, 0.1))
    '+4.2 (−1.6 to +10.0)'
    """
    points = [f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−") for value in (gain, *interval)]
    return f"{points[0]} ({points[1]} to {points[2]})"


def may_be_chance(interval: Sequence[float]) -> bool:
    """Whether the interval of a difference includes 0.

    >>> may_be_chance((-0.016, 0.1))
    True
    """
    return interval[0] <= 0 <= interval[1]


__all__ = ["gain_text", "may_be_chance", "paired_bootstrap"]
