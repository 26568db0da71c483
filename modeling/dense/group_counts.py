"""Pixels of each class in each group of pixels: what grouping is measured and calibrated with."""

import torch
from torch.nn import functional as F


def group_ids(group_maps: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """The group of each pixel, (B, H, W) int64: the soft maps are resized (bilinear) first, then compared.

    Args:
        group_maps: (B, G, h, w), how much a pixel belongs to each group.
        size: H, W; None keeps h, w.

    Example:
        >>> group_ids(torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]), size=(1, 4)).tolist()
        [[[0, 0, 1, 1]]]
    """
    if group_maps.dim() != 4:
        raise ValueError(f"group_maps: shape {tuple(group_maps.shape)}; want (B, G, h, w)")
    if size is not None and tuple(size) != tuple(group_maps.shape[-2:]):
        group_maps = F.interpolate(group_maps.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return group_maps.argmax(1)


def group_class_counts(
    groups: torch.Tensor, labels: torch.Tensor, num_groups: int, num_classes: int, ignore_index: int = 255
) -> torch.Tensor:
    """Pixels of each class in each group of one image, (num_groups, num_classes) int64.

    Args:
        groups: group of each pixel, any shape, int.
        labels: class of each pixel, same shape, int; `ignore_index` counts nowhere.

    Raises:
        ValueError: other shapes; a group or class outside its range.

    Example:
        >>> group_class_counts(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 0, 2, 255]), 2, 3).tolist()
        [[1, 0, 1], [0, 0, 1]]
    """
    if groups.shape != labels.shape:
        raise ValueError(f"labels: shape {tuple(labels.shape)} for groups {tuple(groups.shape)}; want the same")
    kept = labels != ignore_index
    groups, labels = groups[kept].long(), labels[kept].long()
    for name, ids, end in (("groups", groups, num_groups), ("labels", labels, num_classes)):
        if ids.numel() and not (0 <= ids.min() and ids.max() < end):
            raise ValueError(f"{name}: got ids {ids.min()} to {ids.max()}; want 0 to {end - 1}")
    joint = torch.bincount(groups * num_classes + labels, minlength=num_groups * num_classes)
    return joint.reshape(num_groups, num_classes)


__all__ = ["group_class_counts", "group_ids"]
