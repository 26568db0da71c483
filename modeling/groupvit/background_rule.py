"""Which groups are background: the official rule with one threshold, and the same with a threshold of each class.

Shapes: B images or windows, G groups, N labels (without the background). A group is background as a whole: its best
score among the labels does not reach a threshold.
"""

import torch

from ..dual_encoders.backbones import unit_norm


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


def nearer_to_vectors(groups: torch.Tensor, classes: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Which groups are background, (B, G) bool: those that are nearer, by cosine, to a background vector than to every
    label. All groups of an image may be.

    Args:
        groups: (B, G, D). classes: (N, D), or (B, N, D). vectors: (K, D). Any length.

    >>> nearer_to_vectors(torch.eye(2)[None], torch.eye(2)[:1], torch.eye(2)[1:])
    tensor([[False,  True]])
    """
    groups, classes, vectors = (unit_norm(one.float()) for one in (groups, classes, vectors))
    return (groups @ vectors.T).amax(-1) > (groups @ classes.transpose(-2, -1)).amax(-1)


__all__ = ["background_groups", "nearer_to_vectors"]
