"""Several labels an image: a classifier's scores as logits of "this class is in the image"."""

import math

import torch
from torch import nn

from .classification_loss import MULTI_LABEL


SOFTENING = 2.0  # of the softmax that the zero-shot default compares classes with
PRESENT_FROM = 0.1  # the share of that softmax from which on a class counts as present


def initial_calibration(num_classes: int, has_logit_bias: bool) -> tuple[float, float, float]:
    """`scale`, `level_scale` and `bias` of a model that has seen no labelled image.

    CLIP was trained to compare texts, so its scores have no zero: the default is log(share / `PRESENT_FROM`) of each
    class's share in a softmax over all classes, softened so that a second object keeps one. It supposes an image with
    at least one of the classes. One class has nothing to be compared with. A model with a logit bias (SigLIP) was
    trained with a sigmoid: its scores stay.
    """
    if has_logit_bias:
        return 1.0, 0.0, 0.0
    if num_classes == 1:
        return 1 / SOFTENING, 0.0, 0.0
    return 1 / SOFTENING, 1 / SOFTENING, -math.log(PRESENT_FROM)


def label_logits(
    scores: torch.Tensor,
    scale: torch.Tensor | float,
    level_scale: torch.Tensor | float,
    bias: torch.Tensor | float,
) -> torch.Tensor:
    """(B, C) logits: scale * scores - level_scale * level + bias.

    `scores` (B, C) are those of the single-label classifier; the level of an image is their soft maximum,
    T logsumexp(scores / T) with T = `SOFTENING`; `bias` is one number or (C,).

    >>> scores = torch.tensor([[20.0, 17.0, 5.0]])
    >>> label_logits(scores, *initial_calibration(3, has_logit_bias=False)).sigmoid().round(decimals=2)
    tensor([[0.8900, 0.6500, 0.0000]])
    """
    values = scores.float()
    level = SOFTENING * torch.logsumexp(values / SOFTENING, dim=1, keepdim=True)
    return (scale * values - level_scale * level + bias).to(scores.dtype)


class LabelCalibration(nn.Module):
    """`label_logits` with trained numbers, and the thresholds of the classes. Part of a classifier whose
    `config.problem_type` is "multi_label_classification"; saved with it, and with adapters (as a module to save)."""

    def __init__(self, num_classes: int, has_logit_bias: bool = False):
        super().__init__()
        self.initial = initial_calibration(num_classes, has_logit_bias)
        scale, level_scale, bias = self.initial
        self.scale = nn.Parameter(torch.tensor(scale))
        self.level_scale = nn.Parameter(torch.tensor(level_scale))
        self.bias = nn.Parameter(torch.full((num_classes,), bias))
        # A class is named where its probability reaches its threshold.
        self.register_buffer("thresholds", torch.full((num_classes,), 0.5))

    def initial_tensors(self) -> dict[str, float]:
        """Name of each tensor -> the value that fills it."""
        return dict(zip(("scale", "level_scale", "bias"), self.initial, strict=True)) | {"thresholds": 0.5}

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return label_logits(scores, self.scale.float(), self.level_scale.float(), self.bias.float())


__all__ = ["MULTI_LABEL", "LabelCalibration", "initial_calibration", "label_logits"]
