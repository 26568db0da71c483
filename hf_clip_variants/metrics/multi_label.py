"""Metrics of several labels an image: average precision by class, F1, the thresholds with the best F1."""

from __future__ import annotations

from typing import Any

import torch


# N images, C classes


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> list[float | None]:
    """Average precision of each class: the mean, over its images, of the precision down to that image's rank.

    As scikit-learn's `average_precision_score`: images with the same score share a rank.

    Args:
        scores: (N, C); the higher, the more likely is the class in the image.
        labels: (N, C) of 0 and 1.

    Returns:
        C numbers in 0..1; None for a class without images.

    Raises:
        ValueError: shapes that differ, no images, NaN, labels other than 0 and 1.

    Example:
        >>> average_precision(torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[1], [0], [1]]))
        [0.8333333333333333]
    """
    scores, present = _checked("scores", scores, labels)
    return [_average_precision(scores[:, c], present[:, c]) for c in range(scores.shape[1])]


def mean_average_precision(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """mAP: the mean of `average_precision` over the classes that have images.

    >>> mean_average_precision(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[1, 0], [0, 1]]))
    1.0
    """
    measured = [value for value in average_precision(scores, labels) if value is not None]
    if not measured:
        raise ValueError("labels: no image has a label; want at least one")
    return sum(measured) / len(measured)


def f1_scores(predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """F1 of predicted labels: harmonic mean of precision and recall.

    Args:
        predicted, labels: (N, C) of 0 and 1.

    Returns:
        "f1_micro": over all pairs of image and class, so frequent classes count more; "f1_macro": the mean of
        "f1_by_class", in which a class that is neither predicted nor present has 0, as in scikit-learn.

    Raises:
        ValueError: shapes that differ, no images, numbers other than 0 and 1.

    Example:
        >>> f1_scores(torch.tensor([[1, 1], [0, 0]]), torch.tensor([[1, 0], [0, 0]]))
        {'f1_micro': 0.6666666666666666, 'f1_macro': 0.5, 'f1_by_class': [1.0, 0.0]}
    """
    found, present = _checked("predicted", predicted, labels)
    found = _zero_or_one("predicted", found)
    right, said, there = (found & present).sum(0), found.sum(0), present.sum(0)
    by_class = _f1(right, said + there).tolist()
    micro = float(_f1(right.sum(), (said + there).sum()))
    return {"f1_micro": micro, "f1_macro": sum(by_class) / len(by_class), "f1_by_class": by_class}


def best_f1_thresholds(probabilities: torch.Tensor, labels: torch.Tensor, least: int = 10) -> torch.Tensor:
    """(C,) thresholds with the highest F1 of each class; a class is predicted where its probability reaches its own.

    Classes with fewer than `least` images, whose own best threshold would be chance, share the one with the highest F1
    over all pairs of image and class. Of equal ones the highest is taken, and it lies halfway to the next probability
    below.

    Args:
        probabilities: (N, C) in 0..1.
        labels: (N, C) of 0 and 1.

    Raises:
        ValueError: as in `average_precision`.

    Example:
        >>> best_f1_thresholds(torch.tensor([[0.9], [0.6], [0.2]]), torch.tensor([[1], [1], [0]]), least=1)
        tensor([0.4000])
    """
    probabilities, present = _checked("probabilities", probabilities, labels)
    shared = _best_threshold(probabilities.flatten(), present.flatten()) if present.any() else 0.5
    own = [
        _best_threshold(probabilities[:, c], present[:, c]) if present[:, c].sum() >= max(least, 1) else shared
        for c in range(probabilities.shape[1])
    ]
    return torch.tensor(own, dtype=torch.float32)


def multi_label_metrics(prediction: Any, threshold: float = 0.5) -> dict[str, float]:
    """`compute_metrics` for `Trainer`: mAP, and F1 of the classes whose sigmoid reaches `threshold`.

    Args:
        prediction (`transformers.EvalPrediction`): logits (N, C), or a tuple that begins with them, and labels (N, C)
            of 0 and 1.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> multi_label_metrics(EvalPrediction(np.array([[2.0, -1.0], [-3.0, 4.0]]), np.array([[1, 0], [0, 1]])))
        {'mAP': 1.0, 'f1_micro': 1.0, 'f1_macro': 1.0}
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    logits, labels = torch.as_tensor(logits).float(), torch.as_tensor(prediction.label_ids)
    f1 = f1_scores(logits.sigmoid() >= threshold, labels)
    return {"mAP": mean_average_precision(logits, labels), "f1_micro": f1["f1_micro"], "f1_macro": f1["f1_macro"]}


def _ranked(scores: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each distinct score, the highest first: the score, how many scores reach it, how many of those are right."""
    order = scores.argsort(descending=True)
    scores, right = scores[order], present[order].cumsum(0)
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    return scores[last], last.nonzero()[:, 0] + 1, right[last]


def _average_precision(scores: torch.Tensor, present: torch.Tensor) -> float | None:
    if not present.any():
        return None
    _, reached, right = _ranked(scores, present)
    gained = torch.diff(right, prepend=right.new_zeros(1))
    return float((gained * (right.double() / reached)).sum() / present.sum())


def _best_threshold(probabilities: torch.Tensor, present: torch.Tensor) -> float:
    values, reached, right = _ranked(probabilities, present)
    best = int(_f1(right, reached + present.sum()).argmax())
    below = values[best + 1] if best + 1 < len(values) else values.new_zeros(())
    return float((values[best] + below) / 2)


def _f1(right: torch.Tensor, said_and_there: torch.Tensor) -> torch.Tensor:
    return 2 * right.double() / said_and_there.clamp(min=1)


def _checked(argument: str, values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if values.shape != labels.shape or values.dim() != 2 or not values.numel():
        raise ValueError(
            f"{argument}: shape {tuple(values.shape)} for labels {tuple(labels.shape)}; want (images, classes) for "
            "both, neither empty"
        )
    values = values.detach().cpu()
    if values.isnan().any():
        raise ValueError(f"{argument}: got NaN; want numbers")
    return values, _zero_or_one("labels", labels.detach().cpu())


def _zero_or_one(argument: str, values: torch.Tensor) -> torch.Tensor:
    wrong = values[(values != 0) & (values != 1)]
    if len(wrong):
        raise ValueError(f"{argument}: got {wrong[0].item():g}; want 0 (absent) or 1 (present)")
    return values.bool()


__all__ = [
    "average_precision",
    "best_f1_thresholds",
    "f1_scores",
    "mean_average_precision",
    "multi_label_metrics",
]
