"""Metrics of abnormal frames: AUC and average precision over all frames, and class by class; streamed, over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from .multi_label import average_precision


# T frames of all videos, N classes


class FrameAnomalyMetrics:
    r"""
    Scores of the frames of a whole data set, video by video, and what they are worth.

    All frames of all videos count as one set, as in the papers on UCF-Crime, ShanghaiTech and XD-Violence. Scores are
    kept (4 bytes a frame, and 4 for each class): the results are exact, and the same in any order, in any parts, and
    on any number of processes.

    Args:
        num_labels: N, classes with the normal one.
        normal_id: the class of frames without an anomaly.

    Example:
        >>> metrics = FrameAnomalyMetrics(num_labels=2)
        >>> metrics.update(torch.tensor([0.1, 0.8, 0.4]), torch.tensor([0, 1, 0]))
        >>> metrics.update(torch.tensor([0.3]), torch.tensor([1]))
        >>> found = metrics.compute()
        >>> found["auc"], found["ap"]
        (0.75, 0.8333333333333333)
    """

    def __init__(self, num_labels: int, normal_id: int = 0):
        if num_labels < 2:
            raise ValueError(f"num_labels: {num_labels}, expected at least 2: normal and an anomaly")
        if not 0 <= normal_id < num_labels:
            raise ValueError(f"normal_id: {normal_id}, expected 0..{num_labels - 1}")
        self.num_labels, self.normal_id = num_labels, normal_id
        self.reset()

    def reset(self) -> None:
        self._scores: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._class_probs: list[torch.Tensor] = []

    def update(self, scores: Any, labels: Any, class_probs: Any = None) -> None:
        """Adds the frames of a video, or a part of it.

        Args:
            scores: (T,), how abnormal each is.
            labels: (T,), its class.
            class_probs: (T, N); in all calls or in none. Without them there are no results by class.

        Raises:
            ValueError: other shapes, NaN, labels of no class. Nothing is added then.
        """
        scores, labels = _as_tensor(scores).float(), _as_tensor(labels)
        if scores.dim() != 1 or labels.shape != scores.shape:
            raise ValueError(
                f"scores, labels: shapes {list(scores.shape)}, {list(labels.shape)}, expected one [frames]"
            )
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"labels: numbers of type {labels.dtype}, expected whole numbers")
        wrong = labels[(labels < 0) | (labels >= self.num_labels)]
        if len(wrong):
            raise ValueError(f"labels: got {int(wrong[0])}, expected 0..{self.num_labels - 1}")
        if not scores.isfinite().all():
            raise ValueError("scores: NaN or infinite numbers")
        given = class_probs is not None
        if self._scores and given != bool(self._class_probs):
            raise ValueError("class_probs: got them in some calls only, expected in all or in none")
        if given:
            class_probs = _as_tensor(class_probs).float()
            if class_probs.shape != (len(scores), self.num_labels):
                expected = [len(scores), self.num_labels]
                raise ValueError(f"class_probs: shape {list(class_probs.shape)}, expected {expected}")
            if not class_probs.isfinite().all():
                raise ValueError("class_probs: NaN or infinite numbers")
            self._class_probs.append(class_probs)
        self._scores.append(scores)
        self._labels.append(labels.to(torch.int16))

    def all_gather(self, group: Any = None) -> FrameAnomalyMetrics:
        """Adds the frames of all ranks, on each of them; returns itself. Call it once, after the last video.

        A rank may have none. ValueError where some ranks have class probabilities and others have not.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
            return self
        from ..modeling.losses.rank_exchange import sync_batch_sizes

        device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
        facts = torch.tensor([len(self._scores), len(self._class_probs)], device=device)
        everyone = [torch.empty_like(facts) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, facts, group=group)
        kinds = {bool(probs) for videos, probs in (one.tolist() for one in everyone) if videos}
        if len(kinds) > 1:
            raise ValueError("class_probs: some ranks have them and others have not, expected all or none")
        width = self.num_labels if kinds == {True} else 0
        scores, labels, class_probs = self._frames()
        rows = torch.cat(
            [scores[:, None], class_probs if len(scores) and width else scores.new_zeros(len(scores), width)], 1
        )
        ranks = sync_batch_sizes(rows.to(device), lambda: None, "FrameAnomalyMetrics", group)
        rows = ranks.gather(rows.to(device)).cpu()
        labels = ranks.gather(labels.long()[:, None].to(device)).cpu()[:, 0]
        self.reset()
        if len(rows):
            self.update(rows[:, 0], labels, rows[:, 1:] if width else None)
        return self

    def compute(self) -> dict[str, Any]:
        """Of all frames so far:

        - `auc`, `ap`: area under the ROC curve, and average precision, of scores against "is an anomaly"; None where
          there are no abnormal or no normal frames;
        - `threshold`: the score with the largest difference of true and false positive rate (Youden's J);
        - `mauc`, `map`: the means of `auc_by_class`, `ap_by_class`: of each anomaly's probability against all other
          frames. Anomalies without frames have None there, and do not count;
        - `frames`, `abnormal_frames`.

        Raises:
            ValueError: no frames.
        """
        scores, labels, class_probs = self._frames()
        if not len(scores):
            raise ValueError("scores: no frames, expected at least one update")
        abnormal = labels != self.normal_id
        auc, threshold = roc_auc(scores, abnormal)
        found: dict[str, Any] = {"auc": auc, "ap": _precision(scores, abnormal), "threshold": threshold}
        found |= {"frames": len(scores), "abnormal_frames": int(abnormal.sum())}
        if len(class_probs):
            anomalies = [label for label in range(self.num_labels) if label != self.normal_id]
            of_class = {label: (class_probs[:, label], labels == label) for label in anomalies}
            by_class = {
                "auc": {label: roc_auc(*values)[0] for label, values in of_class.items()},
                "ap": {label: _precision(*values) for label, values in of_class.items()},
            }
            for name, values in by_class.items():
                measured = [value for value in values.values() if value is not None]
                found |= {f"{name}_by_class": values, f"m{name}": sum(measured) / len(measured) if measured else None}
        return found

    def _frames(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not self._scores:
            return torch.zeros(0), torch.zeros(0, dtype=torch.int16), torch.zeros(0, self.num_labels)
        probs = torch.cat(self._class_probs) if self._class_probs else torch.zeros(0, self.num_labels)
        return torch.cat(self._scores), torch.cat(self._labels), probs


def roc_auc(scores: torch.Tensor, positive: torch.Tensor) -> tuple[float | None, float | None]:
    """The area under the ROC curve, and the score with the largest difference of true and false positive rate.

    The chance that a positive has a higher score than a negative; equal ones count half. Counted in whole numbers, so
    the order of frames makes no difference.

    Args:
        scores: (T,), finite. positive: (T,) bool.

    Returns:
        (None, None) where all are positive or none is.

    >>> roc_auc(torch.tensor([0.25, 0.5, 0.5, 0.75]), torch.tensor([False, False, True, True]))
    (0.875, 0.75)
    """
    total, positives = len(scores), int(positive.sum())
    if positives in (0, total):
        return None, None
    values, order = scores.sort(descending=True)
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
    reached = last.nonzero()[:, 0] + 1
    true = positive[order].long().cumsum(0)[last]
    false = reached - true
    before = torch.cat([true.new_zeros(1), true[:-1]])
    area = int((torch.diff(false, prepend=false.new_zeros(1)) * (true + before)).sum())
    negatives = total - positives
    best = int((true * negatives - false * positives).argmax())
    return area / (2 * positives * negatives), float(values[last][best])


def _precision(scores: torch.Tensor, positive: torch.Tensor) -> float | None:
    if bool(positive.all()):
        return None
    return average_precision(scores[:, None], positive[:, None].long())[0]


def _as_tensor(values: Any) -> torch.Tensor:
    tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    return tensor.detach().cpu()


__all__ = ["FrameAnomalyMetrics", "roc_auc"]
