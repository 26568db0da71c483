"""Which groups are background: the official rule with one threshold, and the same with a threshold of each class.

Shapes: B images or windows, G groups, N labels (without the background). A group is background as a whole: its best
score among the labels does not reach a threshold.
"""

import math
from collections.abc import Mapping, Sequence

import torch


def resolve_thresholds(
    thresholds: float | Mapping[str, float] | Sequence[float] | torch.Tensor,
    labels: Sequence[str] | None = None,
    default: float | None = None,
) -> float | torch.Tensor:
    """One number where all labels have the same threshold, else (N,) float32.

    Args:
        thresholds: a number; label -> number; or N numbers, in the order of the labels.
        labels: N label names; needed for a mapping.
        default: of labels that a mapping does not name; None: all must be there.

    Raises:
        ValueError: a label is unknown or missing, another number of thresholds, one that is not finite.

    Example:
        >>> resolve_thresholds({"cat": 0.9, "dog": 0.8}, ["dog", "cat"])
        tensor([0.8000, 0.9000])
        >>> resolve_thresholds([0.95, 0.95])
        0.95
    """
    if isinstance(thresholds, Mapping):
        if labels is None:
            raise ValueError("labels: None; want the label names, since the thresholds are given by name")
        unknown = [name for name in thresholds if name not in labels]
        missing = [name for name in labels if name not in thresholds]
        if unknown:
            raise ValueError(f"thresholds: {unknown[0]!r} is none of the labels {list(labels)}")
        if missing and default is None:
            raise ValueError(f"thresholds: none for {missing[0]!r}; want one for each of {list(labels)}")
        values = [float(thresholds.get(name, default)) for name in labels]
    elif isinstance(thresholds, torch.Tensor):
        values = thresholds.detach().flatten().tolist() if thresholds.dim() else [thresholds.item()]
    elif isinstance(thresholds, Sequence) and not isinstance(thresholds, str):
        values = [float(value) for value in thresholds]
    else:
        values = [float(thresholds)]
    several = isinstance(thresholds, Mapping | Sequence) or (
        isinstance(thresholds, torch.Tensor) and thresholds.dim() > 0
    )
    if several and labels is not None and len(values) != len(labels):
        raise ValueError(f"thresholds: got {len(values)} for {len(labels)} labels; want one for each")
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"thresholds: got {values}; want finite numbers")
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=torch.float32)


def background_groups(scores: torch.Tensor, thresholds: float | torch.Tensor, never_all: bool = True) -> torch.Tensor:
    """Which groups are background, (B, G) bool.

    One threshold t, the official rule: a group is background where its best score is below min(t, the best score of
    all its image's groups): the best group is always foreground, also if it has no pixels.
    Thresholds (N,): where its best score is below the threshold of the label that has it. If that holds for all
    groups of an image, the one with the smallest deficit is foreground.

    Equal thresholds of all labels give what one threshold gives.

    Args:
        scores: (B, G, N) or (G, N), in 0..1.
        thresholds: a number, a tensor of one element, or (N,).
        never_all: keep the best group; False compares with the thresholds alone.

    Raises:
        ValueError: shapes that do not fit.

    Paper: "GroupViT: Semantic Segmentation Emerges from Text Supervision", https://arxiv.org/abs/2202.11094, section
    4.1; thresholds of each label are ours.

    Example:
        >>> scores = torch.tensor([[0.9, 0.0], [0.2, 0.6], [0.3, 0.1]])
        >>> background_groups(scores, 0.7)
        tensor([False,  True,  True])
        >>> background_groups(scores, torch.tensor([0.7, 0.5]))
        tensor([False, False,  True])
        >>> background_groups(scores, 0.95)  # never all
        tensor([False,  True,  True])
    """
    if scores.dim() not in (2, 3) or not scores.shape[-1]:
        raise ValueError(f"scores: shape {tuple(scores.shape)}; want (B, G, N) or (G, N) with at least one label")
    best, label = scores.max(-1)
    if not isinstance(thresholds, torch.Tensor) or thresholds.numel() == 1:
        limit = torch.as_tensor(thresholds, dtype=best.dtype, device=best.device).reshape(())
        if never_all:
            limit = torch.minimum(limit, best.amax(-1, keepdim=True))
        return best < limit
    if thresholds.shape != scores.shape[-1:]:
        raise ValueError(
            f"thresholds: shape {tuple(thresholds.shape)} for {scores.shape[-1]} labels; want a number or one for each"
        )
    thresholds = thresholds.to(best.device, best.dtype)
    below = best < thresholds[label]
    if not never_all:
        return below
    # float64: two scores far below a threshold must not end at the same deficit. Where all thresholds are equal, the
    # order of the deficits is that of the scores, and this is the official rule.
    wide = best.dtype if best.device.type == "mps" else torch.float64
    deficit = thresholds[label].to(wide) - best.to(wide)
    return below & (deficit > deficit.amin(-1, keepdim=True))


__all__ = ["background_groups", "resolve_thresholds"]
