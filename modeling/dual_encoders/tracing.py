"""Where code must not ask tensors for their numbers, because a graph is being recorded, or had better not."""

import torch
from torch import nn


def is_traced() -> bool:
    """Whether `torch.export` (and ONNX through it) or `torch.jit.trace` is recording the operations.

    Weights are stand-ins without numbers then, and a batch may have any size: no number may be read from a tensor,
    nothing may be kept from call to call, and `x.shape[0]` is used where `len(x)` would write the size into the graph.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def can_be_read(tensor: torch.Tensor) -> bool:
    """Whether looking at its numbers costs nothing: on a CPU, and no graph is being made."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter)
    return plain and tensor.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


__all__ = ["can_be_read", "is_traced"]
