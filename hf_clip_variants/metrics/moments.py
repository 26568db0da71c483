"""Metrics of what happens when in a video: labels of seconds, steps, moments. Counted over videos, also of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist


class _Counts:
    """Sums that are added up over videos and over ranks."""

    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.counts = torch.zeros(len(self.names), dtype=torch.float64)

    def _add(self, *values: float) -> None:
        self.counts += torch.tensor(values, dtype=torch.float64)

    def all_reduce(self, group: Any = None):
        """The sums of all ranks, on each of them; returns the metric. Nothing on one process."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts, group=group)
        return self


class SecondMetrics(_Counts):
    """Labels of seconds, 0 for background: "frame_accuracy" over all seconds (COIN's), and "foreground_accuracy" over
    those that are labelled.

    >>> metric = SecondMetrics()
    >>> metric.update(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 0]))
    >>> metric.compute()
    {'frame_accuracy': 0.5, 'foreground_accuracy': 0.5}
    """

    names = ("right", "seconds", "right_foreground", "foreground")

    def update(self, predicted: torch.Tensor, labels: torch.Tensor) -> None:
        """A video's labels (T,), as predicted and as they are. ValueError for other shapes."""
        if predicted.dim() != 1 or predicted.shape != labels.shape:
            raise ValueError(f"predicted: got {list(predicted.shape)}, expected {list(labels.shape)}, one a second")
        right, labelled = predicted == labels, labels > 0
        self._add(int(right.sum()), len(right), int((right & labelled).sum()), int(labelled.sum()))

    def compute(self) -> dict[str, float]:
        """NaN where there were no seconds."""
        right, seconds, right_foreground, foreground = self.counts.tolist()
        return {
            "frame_accuracy": _share(right, seconds),
            "foreground_accuracy": _share(right_foreground, foreground),
        }


class StepMetrics(_Counts):
    """Steps of tasks: "step_recall", the share of steps whose second lies in one of the step's spans (CrossTask's);
    take the mean over tasks for the "average recall".

    >>> metric = StepMetrics()
    >>> metric.update([3, 9], [[(2, 5)], [(5, 8), (10, 12)]])
    >>> metric.compute()
    {'step_recall': 0.5}
    """

    names = ("found", "steps")

    def update(self, seconds: Sequence[int], spans: Sequence[Sequence[tuple[float, float]]]) -> None:
        """A video's second of each step, and the spans (start, end) of each; a step without spans does not count."""
        if len(seconds) != len(spans):
            raise ValueError(f"seconds: got {len(seconds)}, expected one for each of {len(spans)} steps")
        there = [(int(second), some) for second, some in zip(seconds, spans, strict=True) if len(some)]
        # Second s is the time from s to s + 1; its middle counts.
        found = sum(any(start <= second + 0.5 < end for start, end in some) for second, some in there)
        self._add(found, len(there))

    def compute(self) -> dict[str, float]:
        """NaN where no step had a span."""
        return {"step_recall": _share(*self.counts.tolist())}


class MomentMetrics(_Counts):
    """Moments found by texts: "rank_at_K", the share of texts whose very moment is among the first K, and "mean_iou",
    of the first one.

    >>> metric = MomentMetrics(ks=(1, 2))
    >>> metric.update([(0, 10), (0, 5), (5, 10)], (0, 5))
    >>> metric.compute()
    {'rank_at_1': 0.0, 'rank_at_2': 1.0, 'mean_iou': 0.5}
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        self.ks = tuple(ks)
        self.names = ("texts", "iou", *map(str, self.ks))
        super().__init__()

    def update(self, moments: Sequence[tuple[float, float]], right: tuple[float, float]) -> None:
        """A text's moments (start, end), best first, and its right one."""
        if not len(moments):
            raise ValueError("moments: got none, expected at least one")
        place = next((place for place, one in enumerate(moments) if tuple(one) == tuple(right)), float("inf"))
        self._add(1, temporal_iou(moments[0], right), *(place < k for k in self.ks))

    def compute(self) -> dict[str, float]:
        """NaN where there were no texts."""
        texts, iou, *found = self.counts.tolist()
        return {f"rank_at_{k}": _share(n, texts) for k, n in zip(self.ks, found, strict=True)} | {
            "mean_iou": _share(iou, texts)
        }


def temporal_iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of two spans (start, end): the time that both have, as a share of the time that one of them has.

    >>> temporal_iou((0, 4), (2, 6))
    0.3333333333333333
    """
    both = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    either = one[1] - one[0] + other[1] - other[0] - both
    return both / either if either > 0 else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


__all__ = ["MomentMetrics", "SecondMetrics", "StepMetrics", "temporal_iou"]
