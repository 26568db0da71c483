"""Weights that accelerate keeps elsewhere (main memory, disk) and brings in when a module's `forward` is called.

Between the calls they are on the meta device: they say neither where the module computes nor what they are. Read from
accelerate's hook, `_hf_hook`, without importing accelerate.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if getattr(one, "execution_device", None) is not None:
            yield one


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: its weights' device, or the one that offloaded weights are brought to."""
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    return next((torch.device(hook.execution_device) for m in module.modules() for hook in _hooks(m)), device)


def weight_of(module: nn.Module, name: str) -> torch.Tensor:
    """A module's own parameter, for reading outside of its `forward`; brought in if it is offloaded."""
    weight = getattr(module, name)
    if weight.is_meta:
        for hook in _hooks(module):
            if hook.weights_map is not None:
                return torch.as_tensor(hook.weights_map[name]).to(hook.execution_device, weight.dtype)
    return weight


def offloading_hooks(modules: Sequence[nn.Module]) -> tuple | None:
    """The hooks that hold the offloaded weights of `modules`; () if none is offloaded, None if there are weights on
    the meta device that nobody holds."""
    found = []
    for module in (m for top in modules for m in top.modules()):
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            holders = [hook for hook in _hooks(module) if hook.weights_map is not None]
            if not holders:
                return None
            found += holders
    return tuple(found)


def offloads_buffers(module: nn.Module) -> bool:
    """Whether what is written into a module's own buffers is lost after its `forward`."""
    return any(getattr(hook, "offload", False) and hook.offload_buffers for hook in _hooks(module))


__all__ = ["device_of", "offloading_hooks", "offloads_buffers", "weight_of"]
