"""What of a detector is trained: everything, its last layers, or a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..registry import methods


TUNINGS = ("full", "linear_probe", "prompt")
_TASK = "zero-shot-object-detection"


def apply_tuning(
    model: nn.Module, tuning: str, prompt: Mapping[str, Any] | None = None, class_names: Sequence[str] = ()
) -> nn.Module:
    """Freezes what is not trained. Call it before each training, also before one that goes on: it is not saved.

    Args:
        model: a detector of this package.
        tuning: "full": everything that trains by default; "linear_probe": the model's `set_tuning`; "prompt": an
            adapter for the model's task, learned vectors for the tokens of one prompt.
        prompt: `input_ids` (1, T) of all class names, for "prompt".
        class_names: those names.

    Returns:
        the model; for "prompt" a `PeftModel` on it.

    Raises:
        ValueError: another `tuning`, one that the model does not have, or class names that are not one prompt.
    """
    if tuning not in TUNINGS:
        raise ValueError(f"tuning: {tuning!r}, expected one of {', '.join(TUNINGS)}")
    if tuning == "full":
        return model
    name = type(model).__name__
    if tuning == "linear_probe":
        if not hasattr(model, "set_tuning"):
            raise ValueError(f"tuning: {tuning}, which {name} does not have; want full")
        model.set_tuning(tuning)
        return model
    if not hasattr(model, "prompt_encoder") or not prompt:
        raise ValueError(f"tuning: {tuning}, but {name} reads no prompt; want full")
    ids = prompt["input_ids"]
    if ids.dim() != 2 or len(ids) != 1:
        raise ValueError(
            f"tuning: {tuning}, but the {len(class_names)} class names do not fit into one prompt, whose tokens are "
            "learned; want fewer classes, or full"
        )
    from peft import get_peft_model

    row = next(row for row in methods("adapter") if row.task == _TASK)
    config = row.load("config")(prompt_ids=ids[0].tolist(), class_names=list(class_names))
    return get_peft_model(model, config)


__all__ = ["TUNINGS", "apply_tuning"]
