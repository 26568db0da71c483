"""Accuracy, over all images and by class."""

from __future__ import annotations

import torch


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of right predictions, 0..1. Both (N,); ValueError when N is 0 or they differ in length.

    >>> import torch
    >>> accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    0.6666666666666666
    """
    _check(predicted, labels)
    return int((predicted.cpu() == labels.cpu()).sum()) / len(labels)


def accuracy_by_class(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> list[float | None]:
    """The same for the images of each class; None for a class without images.

    >>> import torch
    >>> accuracy_by_class(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 3)
    [0.5, 1.0, None]
    """
    _check(predicted, labels)
    labels, right = labels.cpu(), predicted.cpu() == labels.cpu()
    count = torch.bincount(labels, minlength=num_classes)
    correct = torch.bincount(labels[right], minlength=num_classes)
    return [c / n if n else None for c, n in zip(correct.tolist(), count.tolist(), strict=True)]


def mean_class_accuracy(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    """The mean of `accuracy_by_class` over the classes that have images: all classes count the same.

    >>> import torch
    >>> mean_class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 3)
    0.75
    """
    measured = [value for value in accuracy_by_class(predicted, labels, num_classes) if value is not None]
    return sum(measured) / len(measured)


def _check(predicted: torch.Tensor, labels: torch.Tensor) -> None:
    if predicted.shape != labels.shape or not len(labels):
        raise ValueError(
            f"predicted: shape {tuple(predicted.shape)} for labels {tuple(labels.shape)}; want one for each, at least "
            "one"
        )


__all__ = ["accuracy", "accuracy_by_class", "mean_class_accuracy"]
