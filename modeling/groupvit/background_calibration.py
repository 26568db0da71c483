"""Background thresholds of each label from a few images with label maps.

A group counts as its best label where its score reaches that label's threshold, else as background. So a label's own
IoU depends on its own threshold only, and the labels are coupled through the IoU of the background alone: coordinate
ascent over the labels, with all thresholds of one label tried in one pass over its sorted scores.

Class 0 of label maps is the background, class i + 1 is label i.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..dense.group_counts import group_class_counts


SHRINKAGE = 10.0


@dataclass(frozen=True)
class GroupObservations:
    """M groups of labelled images.

    Attributes:
        scores: (M,) float64, the best score of each group.
        labels: (M,) int64, the label that has it.
        counts: (M, N + 1) int64, pixels of each class in the group; column 0 is the background.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def joined(cls, several: Iterable["GroupObservations"]) -> "GroupObservations":
        several = list(several)
        if not several:
            raise ValueError("observations: none; want those of at least one image")
        return cls(*(torch.cat([getattr(one, name) for one in several]) for name in ("scores", "labels", "counts")))


def observe_groups(
    scores: torch.Tensor, groups: torch.Tensor, label_map: torch.Tensor, ignore_index: int = 255
) -> GroupObservations:
    """What one image says: its groups that have labelled pixels.

    Args:
        scores: (G, N) scores of the image's groups, those that thresholds are compared with.
        groups: (H, W) int, the group of each pixel.
        label_map: (H, W) int, 0 background, i + 1 label i, `ignore_index` counts nowhere.

    Raises:
        ValueError: shapes that differ, ids outside their range.
    """
    num_groups, num_labels = scores.shape
    counts = group_class_counts(groups.cpu(), label_map.cpu(), num_groups, num_labels + 1, ignore_index)
    best, label = scores.detach().double().cpu().max(-1)
    used = counts.sum(1) > 0
    return GroupObservations(best[used], label[used], counts[used])


def sum_of_ious(observed: GroupObservations, thresholds: torch.Tensor) -> float:
    """IoU of all labels and of the background, added up, under thresholds (N,): what calibration increases. The plain
    way; `calibrate_thresholds` computes it from running sums. A class in neither map nor prediction adds nothing.
    """
    predicted = torch.where(observed.scores >= thresholds.double()[observed.labels], observed.labels + 1, 0)
    total = 0.0
    for c in range(observed.counts.shape[1]):
        mine = observed.counts[predicted == c]
        inter = int(mine[:, c].sum())
        union = int(observed.counts[:, c].sum()) + int(mine.sum()) - inter
        total += inter / union if union else 0.0
    return total


def calibrate_thresholds(
    observed: GroupObservations, threshold: float, shrinkage: float = SHRINKAGE, passes: int = 3
) -> torch.Tensor:
    """(N,) float32 thresholds with a high mean IoU on the observed groups, drawn towards `threshold`.

    Each label in turn gets the threshold t^ that maximises its own IoU plus the background's, with all others held;
    among equally good ones the nearest to `threshold`, in the middle between two scores. Then
    t = (n t^ + shrinkage * threshold) / (n + shrinkage) for the n groups that the label has won. Labels without a
    group keep `threshold`. O(M log M) for M groups in each pass.

    Args:
        threshold: the one of all labels, to start from.
        shrinkage: in groups; 0 takes t^.
        passes: over all labels; fewer if nothing changes.

    Raises:
        ValueError: a shrinkage below 0, no pass, or a threshold that is not finite.

    Example:
        >>> counts = torch.tensor([[0, 8], [0, 6], [9, 0]])  # two groups of the label, one of the background
        >>> seen = GroupObservations(torch.tensor([0.8, 0.6, 0.4]).double(), torch.tensor([0, 0, 0]), counts)
        >>> calibrate_thresholds(seen, 0.9, shrinkage=0)  # between 0.6 and 0.4
        tensor([0.5000])
        >>> calibrate_thresholds(seen, 0.9, shrinkage=3)
        tensor([0.7000])
    """
    if shrinkage < 0 or passes < 1:
        raise ValueError(f"shrinkage, passes: got {shrinkage} and {passes}; want >= 0 and >= 1")
    if not torch.tensor(threshold).isfinite():
        raise ValueError(f"threshold: got {threshold}; want a finite number")
    scores, counts = observed.scores.double(), observed.counts.double()
    num_labels = counts.shape[1] - 1
    found = torch.full((num_labels,), float(threshold), dtype=torch.float64)
    pixels, totals = counts.sum(1), counts.sum(0)
    columns = []  # of each label, best score first: its scores, pixels of it, of the background and of all
    for label in range(num_labels):
        mine = torch.nonzero(observed.labels == label).flatten()
        mine = mine[scores[mine].argsort(descending=True, stable=True)]
        columns.append((scores[mine], counts[mine, label + 1], counts[mine, 0], pixels[mine]))
    # What is background now, of each label's groups: (pixels of the background, all pixels).
    given_up = torch.zeros(num_labels, 2, dtype=torch.float64)
    for label, (values, _, background, size) in enumerate(columns):
        below = values < found[label]
        given_up[label] = torch.stack([background[below].sum(), size[below].sum()])
    for _ in range(passes):
        before = found.clone()
        for label, (values, own, background, size) in enumerate(columns):
            if not len(values):
                continue
            kept = torch.stack([_running(own), _running(background), _running(size)])  # the first k groups stay
            iou = _ratio(kept[0], totals[label + 1] + kept[2] - kept[0])
            others = given_up.sum(0) - given_up[label]
            right = others[0] + background.sum() - kept[1]
            said = others[1] + size.sum() - kept[2]
            total = iou + _ratio(right, totals[0] + said - right)
            cut = torch.cat([torch.ones(1), (values[1:] != values[:-1]).double(), torch.ones(1)]).bool()
            total[~cut] = -1  # equal scores stay together
            limits = _limits(values, float(threshold))
            best = torch.nonzero(total >= total.max() - 1e-12).flatten()
            k = best[(limits[best] - threshold).abs().argmin()]
            found[label] = limits[k]
            given_up[label] = torch.stack([background.sum() - kept[1][k], size.sum() - kept[2][k]])
        if torch.equal(before, found):
            break
    won = torch.bincount(observed.labels, minlength=num_labels).double()
    shrunk = (won * found + shrinkage * threshold) / (won + shrinkage).clamp_min(1e-12)
    return torch.where(won > 0, shrunk, torch.full_like(found, float(threshold))).float()


def _running(values: torch.Tensor) -> torch.Tensor:
    """Sums of the first 0, 1, … values."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return torch.where(whole > 0, part / whole.clamp_min(1e-300), 0.0)


def _limits(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """The threshold that keeps the first k of the descending scores, for each k: in the middle of its gap, or
    `threshold` itself where it lies in the gap."""
    high = torch.cat([values.new_full((1,), float("inf")), values])
    low = torch.cat([values, values.new_full((1,), -float("inf"))])
    middle = (high + low) / 2
    step = max(1e-3, float(values[0] - values[-1]) / len(values))  # beyond the first and the last score
    middle[0], middle[-1] = values[0] + step, values[-1] - step
    # Group i stays where its score >= t: the gap of k is low < t <= high.
    return torch.where((low < threshold) & (threshold <= high), torch.full_like(middle, threshold), middle)


__all__ = ["GroupObservations", "calibrate_thresholds", "observe_groups", "sum_of_ious"]
