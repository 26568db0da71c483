"""What a classifier's `labels` mean, and its loss. Nothing is remembered from call to call."""

import torch
import torch.nn.functional as F

from ..dual_encoders.tracing import can_be_read
from ..loading_and_saving.optional_modules import needed_module


MULTI_LABEL = "multi_label_classification"  # `config.problem_type`
IGNORED = -100  # transformers' and torch's label of a sample that does not count


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None = None) -> torch.Tensor:
    """() loss of (B, C) logits.

    With None or `"single_label_classification"` it is the cross-entropy, and one class has a loss of 0. `labels` are
    class indices (B,), where -100 leaves a sample out (0 if it leaves all out), or soft labels (B, C), floats whose
    rows sum to 1: mixup, CutMix, smoothed labels. `"multi_label_classification"` is the mean binary cross-entropy with
    (B, C) numbers from 0 to 1, `"regression"` the mean squared error; neither is guessed.

    Raises ValueError for labels of another shape or type, class indices outside 0..C-1, and numbers outside 0..1. Any
    whole numbers are indices (int32, uint8, ...). Labels on an accelerator, and in compiled code, are checked in shape
    and type only: looking at them would wait for the device.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> classification_loss(logits, torch.tensor([0, 1]))
    tensor(0.4100)
    >>> classification_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.4100)
    >>> classification_loss(logits, torch.tensor([0, 2]))
    Traceback (most recent call last):
    ValueError: labels: labels[1] is 2, expected 0..1 (2 classes)
    """
    if not isinstance(labels, torch.Tensor) or labels.dtype == torch.bool or labels.is_complex():
        got = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"labels: expected a tensor of class indices or of floats, got {got}")
    if not len(logits):
        raise ValueError("labels: for no images, expected at least one")
    if problem_type == MULTI_LABEL:
        return multi_label_loss(logits, labels)
    if problem_type == "regression":
        if logits.shape[1] == 1 and labels.dim() == 1:
            labels = labels[:, None]
        _check_shape(labels, logits, "a number for each class (problem_type is 'regression')")
        return F.mse_loss(logits, labels.to(logits))
    if problem_type not in (None, "single_label_classification"):
        raise ValueError(f"problem_type: {problem_type!r} is unknown")
    return _soft_label_loss(logits, labels) if labels.is_floating_point() else _index_loss(logits, labels)


def multi_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """() mean binary cross-entropy of (B, C) logits and (B, C) labels from 0 to 1."""
    _check_shape(labels, logits, f"0 or 1 for each image and class (problem_type is {MULTI_LABEL!r})")
    _check_range(labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))


def _index_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    samples, classes = logits.shape
    if labels.shape != (samples,):
        hint = "; for several labels an image set problem_type to 'multi_label_classification'"
        raise ValueError(
            f"labels: expected class indices of shape [{samples}], got integers of shape {list(labels.shape)}"
            + (hint if labels.shape == logits.shape else "")
        )
    labels = labels.long()
    if can_be_read(labels):
        wrong = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"labels: labels[{row}] is {int(labels[row])}, expected 0..{classes - 1} "
                f"({classes} class{'es' if classes > 1 else ''})"
            )
        if (labels == IGNORED).all():
            return (logits * 0).sum()  # torch divides by their number and returns NaN
        return F.cross_entropy(logits, labels.to(logits.device), ignore_index=IGNORED)
    # The same without looking: where all are ignored, the loss of any class, times 0.
    labels = labels.to(logits.device)
    none = (labels == IGNORED).all()
    return F.cross_entropy(logits, labels.masked_fill(none, 0), ignore_index=IGNORED) * ~none


def _soft_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    _check_shape(labels, logits, "a share for each class (or class indices as integers)")
    _check_range(labels)
    if can_be_read(labels):
        sums = labels.float().sum(dim=1)
        wrong = (sums - 1).abs() > 1e-2  # mixed labels may come in half precision
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"labels: row {row} sums to {float(sums[row]):.4g}, soft labels sum to 1; for several labels an image "
                "set problem_type to 'multi_label_classification'"
            )
    return F.cross_entropy(logits, labels.to(logits))


def _check_shape(labels: torch.Tensor, logits: torch.Tensor, wanted: str) -> None:
    if labels.shape != logits.shape:
        raise ValueError(f"labels: expected shape {list(logits.shape)}, {wanted}, got shape {list(labels.shape)}")


def _check_range(labels: torch.Tensor) -> None:
    if can_be_read(labels):
        wrong = ~((labels >= 0) & (labels <= 1))  # NaN, too
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(f"labels: labels[{row}, {column}] is {float(labels[row, column]):g}, expected 0 to 1")


def label_calibration():
    """The module of this name: code that was exported has it if the classifier is for several labels an image."""
    return needed_module(".label_calibration", __package__, f"problem_type: {MULTI_LABEL!r}")


__all__ = ["IGNORED", "MULTI_LABEL", "classification_loss", "label_calibration", "multi_label_loss"]
