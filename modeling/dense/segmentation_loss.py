"""The loss of a label map."""

import torch
import torch.nn.functional as F

from ..dual_encoders.forward_checks import can_be_read


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    auxiliary_logits: torch.Tensor | None = None,
    auxiliary_weight: float = 0.4,
) -> torch.Tensor:
    """() cross-entropy, the mean over all pixels of the batch whose label is not `ignore_index`.

    Logits of another size than the labels are resized to it (bilinear, corners not aligned). Where no pixel counts,
    the loss is 0 and has gradients of 0. Use it instead of `model.loss_function`: under `Trainer` that one divides by
    a count in which pixels of another ignore index than -100 take part; models that call this one have
    `accepts_loss_kwargs = False`.

    Args:
        logits: (B, N, h, w).
        labels: (B, H, W) whole numbers, 0..N-1 or `ignore_index`.
        auxiliary_logits: (B, N, h', w') of a second head; its loss is added, times `auxiliary_weight`.

    Raises:
        ValueError: labels of another shape or type; on a CPU also a label outside 0..N-1.

    >>> logits = torch.zeros(1, 2, 2, 2)
    >>> segmentation_loss(logits, torch.tensor([[[0, 1], [255, 255]]]))
    tensor(0.6931)
    >>> segmentation_loss(logits, torch.full((1, 2, 2), 255))
    tensor(0.)
    """
    labels = checked_labels(logits, labels, ignore_index).to(logits.device)
    loss = _mean_over_valid(logits, labels, ignore_index)
    if auxiliary_logits is not None:
        loss = loss + auxiliary_weight * _mean_over_valid(auxiliary_logits, labels, ignore_index)
    return loss


def _mean_over_valid(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    # The sum over no pixel is 0, with gradients of 0.
    return total / (labels != ignore_index).sum().clamp_min(1)


def checked_labels(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """`labels` as int64. ValueError as `segmentation_loss`. `logits`: (B, N, …)."""
    is_tensor = isinstance(labels, torch.Tensor)
    if not is_tensor or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels: expected whole numbers, got {labels.dtype if is_tensor else type(labels).__name__}")
    if labels.dim() != 3 or len(labels) != len(logits) or not labels.numel():
        raise ValueError(f"labels: expected shape [{len(logits)}, H, W], with pixels, got {list(labels.shape)}")
    labels = labels.long()
    if can_be_read(labels):
        wrong = ((labels < 0) | (labels >= logits.shape[1])) & (labels != ignore_index)
        if wrong.any():
            image, row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"labels: labels[{image}, {row}, {column}] is {int(labels[image, row, column])}, expected "
                f"0..{logits.shape[1] - 1} or {ignore_index} (ignored: semantic_loss_ignore_index); a background "
                "counts where it has a score of its own"
            )
    return labels


__all__ = ["checked_labels", "segmentation_loss"]
