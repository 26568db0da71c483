"""What class features depend on, looked at without walking the tree of modules.

A text encoder of twelve layers has 150 modules and 200 parameters. Walking them takes longer than a training step of a
small adapter, so `TextSide` lists them once, and `is_of` tells from the lists whether they are still all.
"""

from collections.abc import Sequence
from operator import is_

from torch import nn


class TextSide:
    """All modules and parameters of `roots`, as they were when it was made.

    Attributes:
        parameters: of all modules, each once.
    """

    def __init__(self, roots: Sequence[nn.Module]):
        self._roots = tuple(roots)
        self._modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._children, self._entries = self._listed()
        self.parameters = list({id(p): p for p in self._entries if p is not None}.values())
        self._adapter_layers = [m for m in self._modules if is_adapter_layer(m)]

    def _listed(self) -> tuple[list, list]:
        children = [child for module in self._modules for child in module._modules.values()]
        return children, [entry for module in self._modules for entry in module._parameters.values()]

    def is_of(self, roots: Sequence[nn.Module]) -> bool:
        """Whether `roots` have these modules and parameters, and no others."""
        pairs = [(tuple(roots), self._roots), *zip(self._listed(), (self._children, self._entries), strict=True)]
        return all(len(now) == len(then) and all(map(is_, now, then)) for now, then in pairs)

    def is_trained(self) -> bool:
        return any(p.requires_grad for p in self.parameters)

    def has_gradients(self) -> bool:
        """Whether an optimizer may be about to change the weights."""
        return any(p.grad is not None for p in self.parameters)

    def is_on_meta(self) -> bool:
        """Whether there are no weights yet, or accelerate keeps some elsewhere."""
        return any(p.is_meta for p in self.parameters)

    def glance(self) -> tuple:
        """Changes whenever `text_state` does, while what that holds is alive: it keeps addresses from being reused."""
        weights = [
            (p.untyped_storage()._cdata, p.storage_offset(), p.dtype, 0 if p.is_inference() else p._version)
            for p in self.parameters
        ]
        return weights, adapters_in(self._adapter_layers)


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether PEFT made it. Told without importing peft, which is slow and optional for inference."""
    return "_disable_adapters" in vars(module) or hasattr(type(module), "_disable_adapters")


def adapters_in(layers: Sequence[nn.Module]) -> tuple:
    """Of each PEFT layer: what is active, switched off and merged."""
    return tuple(
        (str(getattr(m, "_active_adapter", None)), m._disable_adapters, tuple(getattr(m, "merged_adapters", ())))
        for m in layers
    )


def adapters_on(modules: Sequence[nn.Module]) -> tuple:
    """`adapters_in` of all PEFT layers in `modules`."""
    return adapters_in([m for module in modules for m in module.modules() if is_adapter_layer(m)])


__all__ = ["TextSide", "adapters_in", "adapters_on", "is_adapter_layer"]
