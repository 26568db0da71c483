"""Cached images that vote for their classes: keys, votes, and labels that fit."""

from collections.abc import Sequence

import torch

from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm


# Shapes: B images, N cached images, C classes, D joint width, V views


def make_keys(features: torch.Tensor) -> torch.Tensor:
    """Cache keys (N, D) from un-normalised features (N, D), or from those of V views (V, N, D). float32, unit norm.

    A key is the normalised mean over views of *un-normalised* features, as in the official code: a view with a longer
    feature vector has more weight.
    """
    features = features.float()
    if features.dim() == 3:
        features = features.mean(dim=0)
    return unit_norm(features)


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is in float64: votes and biases are smaller than half precision's steps."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sum_by_class(votes: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Sums (N, B) votes over the cached images of each class, given (N,) labels -> (C, B).

    Deviation: the official code multiplies by an (N, C) one-hot matrix. The result is the same.
    """
    return votes.new_zeros(num_classes, votes.shape[1]).index_add(0, labels, votes)


LARGEST_BETA = 1e30  # float32 holds it


def cache_logits(
    image_embeds: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, num_classes: int, beta: float
) -> torch.Tensor:
    """exp(-beta * (1 - f k)), summed over the cached images k of each class (Zhang et al. 2022, section 3.1).

    Args:
        image_embeds: (B, D), unit norm.
        keys: (N, D), unit norm until they are trained.
        labels: (N,) int64.
        num_classes: C.
        beta: sharpness of the votes.

    Returns:
        (B, C).

    Example:

    >>> keys, labels = torch.eye(3), torch.tensor([0, 1, 1])
    >>> cache_logits(keys[:1], keys, labels, num_classes=2, beta=5.0)
    tensor([[1.0000, 0.0135]])
    """
    if not abs(beta) <= LARGEST_BETA:
        raise ValueError(f"beta: {beta:g}, expected a number up to {LARGEST_BETA:g}")
    # beta * affinity - beta in one matrix product. Images are columns, so that sums by class add whole rows.
    exponents = torch.addmm(keys.new_full((), -beta), keys, (beta * image_embeds).t())
    return sum_by_class(exponents.exp(), labels, num_classes).t()


def check_labels(
    labels: torch.Tensor,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    allow_missing: bool = False,
    hint: str = "",
) -> None:
    """Raises ValueError for labels outside 0..C-1 and, unless `allow_missing`, for classes without an image.

    `hint` ends the second message: what may be done instead.
    """
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels: expected integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"labels: {int(outside[0])} is outside 0..{num_classes - 1}")
    absent = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if absent and not allow_missing:
        named = [class_names[i] if class_names else i for i in absent[:5]]
        raise ValueError(f"labels: {len(absent)} of {num_classes} classes have no image: {named}{hint}")


__all__ = ["cache_logits", "check_labels", "full_precision", "make_keys", "sum_by_class"]
