"""Weighted sums of adapters, for those whose tensors are vectors: PEFT's `add_weighted_adapter`.

    model.add_weighted_adapter(["cats", "dogs"], [0.7, 0.3], "both")

A sum of learned vectors is a vector of the same kind. The sum of the weights of a network is no such thing: the method
says so in `why_no_weighted_sum` of its configuration.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def add_weighted_sum(
    tuner, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str, options: dict
) -> None:
    """See `Tuner.add_weighted_adapter`. All checks come before the model is changed."""
    configs = tuner.peft_config
    if combination_type != "linear" or options:
        got = f"combination_type: got {combination_type!r}" if combination_type != "linear" else ", ".join(options)
        raise ValueError(f"{got}; vectors of adapters have one sum: 'linear', without options")
    if isinstance(adapters, str) or not adapters or (unknown := [name for name in adapters if name not in configs]):
        wrong = repr(adapters) if isinstance(adapters, str) or not adapters else unknown
        raise ValueError(f"adapters: got {wrong}; want a list of {sorted(configs)}")
    if len(weights) != len(adapters) or not all(_is_finite(weight) for weight in weights):
        raise ValueError(f"weights: got {weights}; want a finite number for each of the {len(adapters)} adapters")
    if adapter_name in configs:
        raise ValueError(f"adapter_name: the model has {adapter_name!r} already; want a new name")
    first = configs[adapters[0]]
    for name in adapters:
        _check_summable(name, configs[name], adapters[0], first)

    same = {
        field: getattr(first, field)
        if all(getattr(configs[n], field) == getattr(first, field) for n in adapters)
        else None
        for field in ("class_names", "templates")  # None: those of the classifier as it is
    }
    measured = {"temperature": None, "rejection_threshold": None, "inference_mode": True}
    configs[adapter_name] = dataclasses.replace(first, **same, **measured)
    try:
        tuner.inject_adapter(tuner.model, adapter_name)
    except Exception:
        configs.pop(adapter_name, None)
        raise
    for layer in tuner.model.modules():
        if isinstance(layer, tuner.tuner_layer_cls):
            for kept in map(layer.__getattr__, layer.adapter_layer_names):
                if adapter_name in kept:
                    kept[adapter_name] = _sum([kept[name] for name in adapters], weights)


def _is_finite(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)


def _check_summable(name: str, config, first_name: str, first) -> None:
    """Raises ValueError unless adapter `name` can be part of a sum with the first one."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if type(config) is not type(first):
        raise ValueError(f"adapters: {name!r} is {kind}, {first_name!r} is {first.peft_type.value}; want one kind")
    reason = "it has whole modules of its own (modules_to_save)" if config.modules_to_save else None
    if reason := config.why_no_weighted_sum() or reason:
        raise ValueError(f"adapters: {kind} {name!r} cannot be part of a weighted sum, because {reason}")
    shared = {
        field.name
        for base in type(config).__mro__[1:]
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(first, field.name)
        own = field.name not in shared | config.only_for_training or field.name == "target_modules"
        if own and ours != theirs:
            raise ValueError(
                f"adapters: {first_name!r} and {name!r} differ in {field.name}, {theirs!r} and {ours!r}; want the same"
            )


def _sum(vectors: Sequence[torch.Tensor], weights: Sequence[float]) -> nn.Parameter:
    with torch.no_grad():
        total = sum(weight * vector.double() for weight, vector in zip(weights, vectors, strict=True))
        return nn.Parameter(total.to(vectors[0].dtype), requires_grad=False)


__all__ = ["add_weighted_sum"]
