"""Learned tokens in the layers of a vision transformer, as VPT, IVLP and MaPLe use them.

Two kinds of modules are wrapped:

- The embeddings. This wrapper, a `VisualPromptParameters`, holds all tensors of the image encoder's prompts.
- Encoder layers. These wrappers, `VisualPromptLayer`, hold no tensors and get the prompts from the first one.

The prompts of layer 0 are inserted after the position embedding, before or after the encoder's first norm. The prompts
of layers 1 to J - 1 replace the tokens at the same positions. The prompts are removed after the last layer, so that
everything that follows (pooling head, dense head, mean over tokens) sees only the class token and the patches.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..tuner import Base, TunerLayer


# Shapes: B images, N tokens of the image, n prompts per layer, J layers with prompts, d width of the image encoder

PromptPosition = Literal["end", "after_cls"]


def insert_prompts(
    hidden: torch.Tensor, prompts: torch.Tensor, position: PromptPosition, dim: int = 1
) -> torch.Tensor:
    """(B, N, d) and (B, n, d) -> (B, N + n, d): prompts at the end, or directly after the class token.

    The result has the dtype of `hidden`. Another `dim` than 1 is for masks, which have tokens elsewhere.

    >>> hidden, prompts = torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[[9.0]]])
    >>> insert_prompts(hidden, prompts, "after_cls").flatten().tolist()
    [0.0, 9.0, 1.0, 2.0]
    """
    prompts = prompts.to(hidden)
    if position == "end":
        return torch.cat([hidden, prompts], dim=dim)
    class_token, others = hidden.tensor_split([1], dim=dim)
    return torch.cat([class_token, prompts, others], dim=dim)


def remove_prompts(hidden: torch.Tensor, count: int, position: PromptPosition) -> torch.Tensor:
    """(B, N + n, d) -> (B, N, d), the inverse of `insert_prompts`."""
    if position == "end":
        return hidden[:, : hidden.shape[1] - count]
    return torch.cat([hidden[:, :1], hidden[:, 1 + count :]], dim=1)


def extend_mask(mask: torch.Tensor | None, count: int, position: PromptPosition = "end") -> torch.Tensor | None:
    """Extends an attention mask from N to N + n tokens. All tokens see the n new ones, which see what all tokens see.

    A relative position bias is such a mask. It is 0 between prompts and all tokens, because prompts have no position.

    Args:
        mask: (B, N) with 1 for visible tokens; or (B, 1, N, N) or (1, heads, N, N) with keys last: bool (True:
            visible) or additive (the dtype's minimum: hidden, the same for every query). None stays None.
        count: n.
        position: where the new tokens are.

    >>> extend_mask(torch.tensor([[1, 1, 0]]), 2).tolist()
    [[1, 1, 0, 1, 1]]
    >>> extend_mask(torch.tensor([[[[0.5, 0.25], [0.0, 0.5]]]]), 1, "after_cls")[0, 0].tolist()
    [[0.5, 0.0, 0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.5]]
    """
    if mask is None:
        return None
    if mask.dim() == 2:
        return insert_prompts(mask, torch.ones_like(mask[:, :1]).expand(-1, count), position)
    # New queries first: what is hidden from query 0 is hidden from all. Then the columns of the new keys.
    first = mask[:, :, :1]
    if mask.dtype != torch.bool:
        first = first.masked_fill(first > torch.finfo(mask.dtype).min / 2, 0)
    mask = insert_prompts(mask, first.expand(-1, -1, count, -1), position, dim=2)
    visible = torch.ones if mask.dtype == torch.bool else torch.zeros
    keys = visible((*mask.shape[:-1], count), dtype=mask.dtype, device=mask.device)
    return insert_prompts(mask, keys, position, dim=3)


@dataclass(frozen=True)
class VisualPromptShape:
    """Where an adapter has visual prompts.

    Attributes:
        count: n, prompts per layer.
        depth: J, layers with prompts of their own; 0 for none.
        position: where they are in the sequence.
        normalize_first: whether the encoder's first norm is applied to the prompts of layer 0.
    """

    count: int
    depth: int
    position: PromptPosition = "end"
    normalize_first: bool = True


class VisualPromptParameters(TunerLayer):
    """Wraps an image encoder's embeddings and holds the tensors of its prompts.

    Subclasses create the tensors and compute the prompts of a layer from them (`layer_prompts`).

    Args:
        base_layer, anchor: see `TunerLayer`.
        has_patch_norm: whether a norm follows the embeddings, before the first layer. Then prompts can be inserted
            before it.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, has_patch_norm: bool = True):
        super().__init__(base_layer, anchor)
        self.has_patch_norm = has_patch_norm

    @abstractmethod
    def layer_prompts(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        """(B, n, d) prompts of `layer`."""

    def shape_of(self, adapter_name: str) -> VisualPromptShape:
        """`vision_shape` of the adapter's configuration."""
        return self.configs[adapter_name].vision_shape

    def inserts_before_first_norm(self, adapter_name: str) -> bool:
        """Whether this module inserts the prompts of layer 0, so that the first norm is applied to them."""
        return self.has_patch_norm and self.shape_of(adapter_name).normalize_first

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = self.base_layer(*args, **kwargs)
        name = self.active_name()
        if name is None or not self.shape_of(name).depth or not self.inserts_before_first_norm(name):
            return hidden
        return insert_prompts(hidden, self.layer_prompts(name, 0, hidden.shape[0]), self.shape_of(name).position)


class VisualPromptLayer(TunerLayer):
    """Wraps one layer of an image encoder: inserts the layer's prompts, or removes them after the last layer.

    It has no tensors.

    Args:
        base_layer, anchor: see `TunerLayer`.
        root: the model.
        prompt_module_name: name in `root` of the `VisualPromptParameters`. It is looked up in every forward pass,
            because that module may be wrapped after this one.
        index, count: index of the layer, and number of layers.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        anchor: nn.Module,
        root: nn.Module,
        prompt_module_name: str,
        index: int,
        count: int,
    ):
        super().__init__(base_layer, anchor)
        self._root = (root,)  # in a tuple, so that nn.Module does not register it
        self.prompt_module_name, self.index, self.count = prompt_module_name, index, count

    @property
    def prompt_module(self) -> VisualPromptParameters:
        return self._root[0].get_submodule(self.prompt_module_name)

    def update_layer(self, adapter_name: str, config) -> None:
        self.configs[adapter_name] = config

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ):
        name = self.active_name()
        prompt_module = self.prompt_module
        shape = prompt_module.shape_of(name) if name is not None else None
        if shape is None or not shape.depth:
            return self.base_layer(hidden_states, attention_mask, *args, **kwargs)
        first = self.index == 0
        if first and not prompt_module.inserts_before_first_norm(name):
            # No norm for the prompts (original VPT), or the encoder has none: the sequence has N tokens here.
            prompts = prompt_module.layer_prompts(name, 0, hidden_states.shape[0])
            hidden_states = insert_prompts(hidden_states, prompts, shape.position)
        elif not first and self.index < shape.depth:
            # VPT-deep (Jia et al. 2022, eq. 7): the outputs of the previous layer at the prompts' positions are
            # discarded, and this layer's own prompts replace them. They get no position embedding and no norm.
            hidden_states = remove_prompts(hidden_states, shape.count, shape.position)
            prompts = prompt_module.layer_prompts(name, self.index, hidden_states.shape[0])
            hidden_states = insert_prompts(hidden_states, prompts, shape.position)
        # Layers from J on keep the outputs at the prompts' positions (eq. 5).
        if attention_mask is not None:
            attention_mask = extend_mask(attention_mask, shape.count, shape.position)
        hidden_states = self.base_layer(hidden_states, attention_mask, *args, **kwargs)
        if self.index == self.count - 1:
            # Deviation: the official codes leave the prompts in the output. See the module's docstring.
            hidden_states = remove_prompts(hidden_states, shape.count, shape.position)
        return hidden_states


def visual_targets(base: Base, depth: int, normalize_first: bool = True) -> list[str]:
    """Names of the modules to wrap for prompts in the first `depth` layers; the embeddings come first.

    Raises:
        ValueError: the image encoder is not a transformer, or has fewer layers.
    """
    family, layers = base.family, base.widths.get("image layers")
    if depth == 0:
        return []
    if family.vision_layers is None:
        raise ValueError(
            f"model: visual prompts need a vision transformer, but the image encoder of {type(base.clip).__name__} "
            f"(model_type {family.model_type!r}) is not one; use an adapter that leaves the "
            "image encoder as it is (hf-clip-variants methods --kind adapter)"
        )
    check_depth_of_encoder(depth, layers)
    # Layers 1 to J - 1 replace prompts and the last layer removes them. All others pass them on, so they need no
    # wrapper, with two exceptions.
    wrapped = {*range(1, depth), layers - 1}
    if family.masks_patches:
        wrapped = set(range(layers))  # each layer gets a mask or a position bias, which has to be extended
    elif family.patch_norm is None or not normalize_first:
        wrapped.add(0)  # layer 0 inserts the prompts itself, after the first norm
    return [base.path(family.vision_embeddings)] + [base.path(f"{family.vision_layers}.{i}") for i in sorted(wrapped)]


def visual_prompt_module(target_modules: list[str]) -> str:
    """Name of the wrapped module that holds the visual prompts: the image encoder's embeddings."""
    (name,) = [name for name in target_modules if name.split(".")[-1] == "embeddings" and "text_model" not in name]
    return name


def check_depth_of_encoder(depth: int, layers: int) -> None:
    """Raises ValueError unless an encoder of `layers` layers can have prompts in the first `depth`."""
    if not 0 < depth <= layers:
        raise ValueError(f"prompt_depth: {depth}, but the image encoder has {layers} layers")


def check_position(position: PromptPosition, family) -> None:
    """Raises ValueError for "after_cls" if the encoder has no class token."""
    if position == "after_cls" and not family.has_class_token:
        raise ValueError(
            f"prompt_position: 'after_cls' needs a class token, which {family.model_type!r} does not have; use 'end'"
        )


__all__ = [
    "PromptPosition",
    "VisualPromptLayer",
    "VisualPromptParameters",
    "VisualPromptShape",
    "check_depth_of_encoder",
    "check_position",
    "extend_mask",
    "insert_prompts",
    "remove_prompts",
    "visual_prompt_module",
    "visual_targets",
]
