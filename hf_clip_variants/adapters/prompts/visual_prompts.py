"""Learned tokens in a vision transformer: the two modules that VPT, IVLP and MaPLe put around its embeddings and its layers.

The module around the embeddings (the home) holds every tensor; those around layers hold none and ask it. Prompts of layer 0 join the
sequence after the position embedding, before or after the tower's first norm; those of layers 1..J-1 replace what stands in their places;
after the last layer they are taken off, so that whatever comes next (pooling heads, dense tokens, mean pooling) sees the patches alone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..tuner import Base, TunerLayer


# B images, N tokens of the image, n prompts a layer, J layers with prompts, d image width

PromptPosition = Literal["end", "after_cls"]


def insert_prompts(hidden: torch.Tensor, prompts: torch.Tensor, position: PromptPosition) -> torch.Tensor:
    """(B, N, d) and (B, n, d) -> (B, N + n, d): prompts at the end, or behind the class token.

    >>> hidden, prompts = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[[9.0]]])
    >>> insert_prompts(hidden, prompts, "after_cls").flatten().tolist()
    [0.0, 9.0, 1.0, 2.0]
    """
    prompts = prompts.to(hidden)
    if position == "end":
        return torch.cat([hidden, prompts], dim=1)
    return torch.cat([hidden[:, :1], prompts, hidden[:, 1:]], dim=1)


def remove_prompts(hidden: torch.Tensor, count: int, position: PromptPosition) -> torch.Tensor:
    """(B, N + n, d) -> (B, N, d), the inverse of `insert_prompts`."""
    if position == "end":
        return hidden[:, : hidden.shape[1] - count]
    return torch.cat([hidden[:, :1], hidden[:, 1 + count :]], dim=1)


def extend_mask(mask: torch.Tensor | None, count: int) -> torch.Tensor | None:
    """A padding mask of N tokens -> of N + n, the new ones seen by all and seeing what all see.

    (B, 1, N, N) bool (True: seen) or additive (0: seen), the same for every query; or (B, N) with 1 for what is seen.

    >>> extend_mask(torch.tensor([[1, 1, 0]]), 2).tolist()
    [[1, 1, 0, 1, 1]]
    """
    if mask is None:
        return None
    if mask.dim() == 2:
        return F.pad(mask, (0, count), value=1)
    seen = True if mask.dtype == torch.bool else 0.0
    mask = torch.cat([mask, mask[:, :, :1].expand(-1, -1, count, -1)], dim=2)
    return F.pad(mask, (0, count), value=seen)


@dataclass(frozen=True)
class VisualPromptShape:
    """How many prompts a layer, in how many layers, where in the sequence, and whether the tower's first norm is applied to the first."""

    count: int
    depth: int
    position: PromptPosition = "end"
    normalize_first: bool = True


class VisualPromptHome(TunerLayer):
    """Wraps a vision tower's embeddings. Subclasses hold tensors and say what the prompts are (`prompts_of`).

    Args:
        base_layer, anchor: see `TunerLayer`.
        has_patch_norm: a norm stands between the embeddings and the first layer: prompts can go in before it.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, has_patch_norm: bool = True):
        super().__init__(base_layer, anchor)
        self.has_patch_norm = has_patch_norm

    @abstractmethod
    def prompts_of(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        """(B, n, d) prompts of `layer`."""

    def shape_of(self, adapter_name: str) -> VisualPromptShape:
        """How many prompts, in how many layers, where: `vision_shape` of the adapter's configuration."""
        return self.configs[adapter_name].vision_shape

    def goes_in_here(self, adapter_name: str) -> bool:
        """Whether the first prompts are normalised with the patches."""
        return self.has_patch_norm and self.shape_of(adapter_name).normalize_first

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = self.base_layer(*args, **kwargs)
        name = self.active_name()
        if name is None or not self.shape_of(name).depth or not self.goes_in_here(name):
            return hidden
        return insert_prompts(hidden, self.prompts_of(name, 0, len(hidden)), self.shape_of(name).position)


class VisualPromptLayer(TunerLayer):
    """Wraps one layer: puts the prompts of the home in before it, or takes them off behind the last. Has no tensors.

    Args:
        base_layer, anchor: see `TunerLayer`.
        root, home: the model and the home's name in it; looked up when needed, because it may be wrapped later.
        index, count: which layer of how many.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, root: nn.Module, home: str, index: int, count: int):
        super().__init__(base_layer, anchor)
        self._root = (root,)  # not registered
        self.home_name, self.index, self.count = home, index, count

    @property
    def home(self) -> VisualPromptHome:
        return self._root[0].get_submodule(self.home_name)

    def update_layer(self, adapter_name: str, config) -> None:
        self.configs[adapter_name] = config

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ):
        name = self.active_name()
        home = self.home
        shape = home.shape_of(name) if name is not None else None
        if shape is None or not shape.depth:
            return self.base_layer(hidden_states, attention_mask, *args, **kwargs)
        first = self.index == 0
        if first and not home.goes_in_here(name):
            hidden_states = insert_prompts(hidden_states, home.prompts_of(name, 0, len(hidden_states)), shape.position)
        elif not first and self.index < shape.depth:
            hidden_states = remove_prompts(hidden_states, shape.count, shape.position)
            prompts = home.prompts_of(name, self.index, len(hidden_states))
            hidden_states = insert_prompts(hidden_states, prompts, shape.position)
        if attention_mask is not None:
            attention_mask = extend_mask(attention_mask, shape.count)
        hidden_states = self.base_layer(hidden_states, attention_mask, *args, **kwargs)
        if self.index == self.count - 1:
            hidden_states = remove_prompts(hidden_states, shape.count, shape.position)
        return hidden_states


def visual_targets(base: Base, depth: int, normalize_first: bool = True) -> list[str]:
    """Names of the modules to wrap for prompts in the first `depth` layers: the embeddings (home) first.

    Raises ValueError for a tower that is no transformer, and for more layers than it has.
    """
    family, layers = base.family, base.widths.get("image layers")
    if depth == 0:
        return []
    if family.vision_layers is None:
        raise ValueError(
            f"model: visual prompts need a vision transformer, and the image tower of {type(base.clip).__name__} is none (model_type "
            f"{family.model_type!r}); use CoOp, CoCoOp, CLIP-Adapter or Tip-Adapter"
        )
    if not 0 < depth <= layers:
        raise ValueError(f"prompt_depth: {depth}, but the image tower has {layers} layers")
    wrapped = {*range(1, depth), layers - 1}
    if family.masks_patches:  # each layer gets the mask
        wrapped = set(range(layers))
    elif family.patch_norm is None or not normalize_first:
        wrapped.add(0)
    return [base.path(family.vision_embeddings)] + [base.path(f"{family.vision_layers}.{i}") for i in sorted(wrapped)]


def visual_home(target_modules: list[str]) -> str:
    """The wrapped module that holds the visual prompts: the image tower's embeddings."""
    (home,) = [name for name in target_modules if name.split(".")[-1] == "embeddings" and "text_model" not in name]
    return home


def check_position(position: str, family) -> None:
    """ValueError for an unknown position, and for "after_cls" where there is no class token."""
    if position not in ("end", "after_cls"):
        raise ValueError(f"prompt_position: {position!r}, expected 'end' or 'after_cls'")
    if position == "after_cls" and not family.has_class_token:
        raise ValueError(
            f"prompt_position: 'after_cls' needs a class token, which {family.model_type!r} does not have; use 'end'"
        )


__all__ = [
    "PromptPosition", "VisualPromptHome", "VisualPromptLayer", "VisualPromptShape", "check_position", "extend_mask", "insert_prompts",
    "remove_prompts", "visual_home", "visual_targets",
]  # fmt: skip
