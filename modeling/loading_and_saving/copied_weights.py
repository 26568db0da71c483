"""Weights of a model that was trained, put into a part of a new one."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .weight_files import WeightsDoNotFit


def copy_weights(
    part: nn.Module,
    source: nn.Module | Mapping[str, torch.Tensor],
    argument: str = "clip",
    options: Iterable[str] = (),
) -> None:
    """All of a part's weights from a model or a state dict, which has no others.

    Args:
        part: of a new model.
        source: where the weights are.
        argument: that brought `source`.
        options: names of the fields that the new model was given beside it.

    Raises:
        WeightsDoNotFit: (a ValueError) with the argument, the fields and the first weight that is missing, unknown or
            of another shape.
    """
    weights = source.state_dict() if isinstance(source, nn.Module) else dict(source)
    wanted = part.state_dict()
    problem = next((f"{name} is missing" for name in wanted if name not in weights), None)
    problem = problem or next((f"{name} has no place" for name in weights if name not in wanted), None)
    for name, tensor in wanted.items():
        if problem is None and weights[name].shape != tensor.shape:
            problem = f"{name} is {list(weights[name].shape)}, expected {list(tensor.shape)}"
    if problem is not None:
        fields = ", ".join(options)
        raise WeightsDoNotFit(
            f"{argument}: its weights do not fit the new model{' with ' + fields if fields else ''}: {problem}"
        )
    part.load_state_dict(weights)


__all__ = ["copy_weights"]
