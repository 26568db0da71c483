"""The loss on which labels an image has, from the loss of the official training (PyTorch-Encoding's
`SegmentationLosses`). Its other parts are `segmentation_loss` in `modeling/dense/`."""

import torch
from torch.nn import functional as F

from ..dense.segmentation_loss import checked_labels


def presence_loss(presence_logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """
    () binary cross-entropy between the sigmoid of `presence_logits` and whether an image has a pixel of the label:
    the mean over images and labels. (Zhang et al. 2018, "Context Encoding for Semantic Segmentation": the semantic
    encoding loss. The official option `--se-loss` of LSeg calls it, and crashes, because its models make no such
    logits.)

    Args:
        presence_logits: (B, N).
        labels: (B, H, W), 0..N-1 or `ignore_index`; of any type of whole numbers.

    Raises:
        ValueError: as `segmentation_loss`.

    Example:

        >>> import torch
        >>> labels = torch.tensor([[[0, 0], [255, 2]]])
        >>> presence_loss(torch.tensor([[9.0, -9.0, 9.0]]), labels) < 0.001
        tensor(True)
    """
    counted = checked_labels(presence_logits, labels, ignore_index).flatten(1)
    valid = counted != ignore_index
    present = torch.zeros_like(presence_logits, dtype=torch.float32)
    present.scatter_add_(1, torch.where(valid, counted, 0), valid.float())
    return F.binary_cross_entropy_with_logits(presence_logits.float(), (present > 0).float())


__all__ = ["presence_loss"]
