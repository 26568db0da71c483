"""VPT's prompts: the prompts of each layer, and the modules that insert them into the image encoder."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts.initial_vectors import INIT_STD
from ..prompts.visual_prompts import VisualPromptLayer, VisualPromptParameters, extend_mask
from ..tuner import TunerLayer
from .config import VPTConfig


# Shapes: B images, n prompts per layer, J layers with prompts, q width of prompts, d width of the image encoder


def uniform_patch_bound(patch_size: int | Sequence[int], width: int) -> float:
    """v of the original's initial values U(-v, v): sqrt(6 / (3 patch² + q)).

    >>> uniform_patch_bound(16, 768)
    0.0625
    """
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return (6 / (3 * patch_height * patch_width + width)) ** 0.5


class VPTLayer(TunerLayer):
    """Base class of all VPT layers, by which the tuner recognises them."""

    adapter_layer_names = ("clipv_vpt_prompts", "clipv_vpt_projection")
    merge_refusal = "it adds tokens, which no weight matrix can represent"


class VPTPrompts(VPTLayer):
    """Holds prompts of J layers (J, n, q), and their projection if q is not d.

    Args:
        base_layer, anchor: see `TunerLayer`.
        patch_size: side of the encoder's patches in pixels, or height and width.
        width: width of the encoder, d.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, *, patch_size: int | Sequence[int], width: int):
        super().__init__(base_layer, anchor)
        self.patch_size, self.width = patch_size, width
        self.clipv_vpt_prompts = nn.ParameterDict()
        self.clipv_vpt_projection = nn.ModuleDict()

    def own_depth(self, config: VPTConfig) -> int:
        """J, the layers whose prompts this module holds."""
        return config.prompt_depth

    def update_layer(self, adapter_name: str, config: VPTConfig) -> None:
        """Creates prompts with the initial values of `config.init`, and the projection. float32."""
        self.configs[adapter_name] = config
        depth, width = self.own_depth(config), config.projection_dim or self.width
        if not depth:
            return
        shape = (depth, config.num_prompt_tokens, width)
        prompts = torch.empty(shape, dtype=torch.float32, device=self.adapter_device)
        if config.init == "normal":
            nn.init.normal_(prompts, std=INIT_STD)
        else:
            bound = uniform_patch_bound(self.patch_size, width)
            nn.init.uniform_(prompts, -bound, bound)
        self.clipv_vpt_prompts[adapter_name] = nn.Parameter(prompts)
        if config.projection_dim is not None:
            # One projection for all layers, with the initial values of the original code (PROJECT).
            projection = nn.Linear(width, self.width, device=self.adapter_device, dtype=torch.float32)
            nn.init.kaiming_normal_(projection.weight, a=0, mode="fan_out")
            self.clipv_vpt_projection[adapter_name] = projection

    def layer_prompts(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        """(B, n, d) prompts of `layer`, float32."""
        prompts = self.clipv_vpt_prompts[adapter_name][layer]
        if adapter_name in self.clipv_vpt_projection:
            prompts = self.clipv_vpt_projection[adapter_name](prompts)
        prompts = prompts.expand(batch_size, -1, -1)  # before dropout: each image gets a mask of its own
        return F.dropout(prompts, self.configs[adapter_name].dropout, self.training)


class VPTPromptParameters(VPTPrompts, VisualPromptParameters):
    """Wraps the image encoder's embeddings, and holds the prompts of all layers.

    Args:
        base_layer, anchor, patch_size, width: see `VPTPrompts`.
        has_patch_norm: see `VisualPromptParameters`.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, *, has_patch_norm: bool, **sizes: Any):
        super().__init__(base_layer, anchor, **sizes)
        self.has_patch_norm = has_patch_norm


class VPTEncoderLayer(VisualPromptLayer, VPTLayer):
    """Wraps one layer of the image encoder."""

    adapter_layer_names = ()


class VPTBiasedEncoderLayer(VPTEncoderLayer):
    """Wraps one layer of BEiT, which may add a relative position bias of its own, (1, heads, N, N), to the attention.

    The bias is computed inside of the layer, so it is extended by a hook on the module that computes it.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        bias = self.base_layer.relative_position_bias  # None if all layers share one, which comes as a mask
        self._hook = bias.register_forward_hook(self._extend_bias) if bias is not None else None

    def _extend_bias(self, module: nn.Module, args: tuple, bias: torch.Tensor) -> torch.Tensor:
        name = self.active_name()
        if name is None:
            return bias
        window_size, interpolate, *_ = args
        if interpolate:
            # It was stretched to the length of the sequence, with the prompts. Without this option it has N x N.
            bias = module.forward(window_size)
        shape = self.prompt_module.shape_of(name)
        return extend_mask(bias, shape.count, shape.position)

    def release(self) -> None:
        """Takes the hook away, when the layer is taken out of the model."""
        if self._hook is not None:
            self._hook.remove()


__all__ = [
    "VPTBiasedEncoderLayer",
    "VPTEncoderLayer",
    "VPTLayer",
    "VPTPromptParameters",
    "VPTPrompts",
    "uniform_patch_bound",
]
