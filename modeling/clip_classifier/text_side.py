"""What class features depend on, looked at without walking the tree of modules.

A text encoder of twelve layers has 150 modules and 200 parameters. Walking them takes longer than a training step of a
small adapter, so `TextSide` lists them once, and `is_of` tells from the lists whether they are still all.
"""

from collections.abc import Iterable, Sequence
from weakref import ref

from torch import nn

from .adapter_places import adapters_in, is_adapter_layer


class TextSide:
    """All modules and parameters of `roots`, as they were when it was made.

    It keeps none of them alive: an adapter that is taken off, or a model that is thrown away, frees its memory.
    """

    def __init__(self, roots: Sequence[nn.Module]):
        modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        children, entries = _listed(modules)
        self._roots, self._modules = _references(roots), _references(modules)
        self._children, self._entries = _references(children), _references(entries)
        self._parameters = _references({id(p): p for p in entries if p is not None}.values())
        self._adapter_layers = _references(m for m in modules if is_adapter_layer(m))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of all modules, each once."""
        return _alive(self._parameters)

    def is_of(self, roots: Sequence[nn.Module]) -> bool:
        """Whether `roots` have these modules and parameters, and no others."""
        modules = _alive(self._modules)
        if len(modules) < len(self._modules):
            return False
        pairs = zip((roots, *_listed(modules)), (self._roots, self._children, self._entries), strict=True)
        return all(
            len(now) == len(then)
            and all(one is (None if known is None else known()) for one, known in zip(now, then, strict=True))
            for now, then in pairs
        )

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
        return weights, adapters_in(_alive(self._adapter_layers))


def _listed(modules: Sequence[nn.Module]) -> tuple[list, list]:
    """The children and the entries for parameters of all modules; both may be None."""
    children = [child for module in modules for child in module._modules.values()]
    return children, [entry for module in modules for entry in module._parameters.values()]


def _references(things: Iterable) -> list:
    return [None if thing is None else ref(thing) for thing in things]


def _alive(references: Sequence) -> list:
    return [thing for reference in references if (thing := reference()) is not None]


__all__ = ["TextSide"]
