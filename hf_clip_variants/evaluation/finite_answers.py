"""The one check where numbers leave: predictions, features and metrics have no NaN and no infinity."""

from __future__ import annotations

from typing import Any

import torch

from ..modeling.dual_encoders.forward_checks import why_not_finite


def check_answers(values: torch.Tensor, model: torch.nn.Module, name: str = "logits", **inputs: Any) -> None:
    """ValueError that names the cause (input, weight, file, setting) if a model's answers are not finite.

    The cause is looked for only then: a good answer costs one pass over `values`.
    """
    if not bool(values.isfinite().all()):
        raise ValueError(why_not_finite(model, name, **inputs))


__all__ = ["check_answers"]
