"""VPT's prompts: the prompts of each layer, and the modules that insert them into the image encoder."""

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts.initial_vectors import INIT_STD
from ..prompts.visual_prompts import VisualPromptLayer, VisualPromptParameters
from ..tuner import TunerLayer
from .config import VPTConfig


# Shapes: B images, n prompts per layer, J layers with prompts, q width of prompts, d width of the image encoder


def uniform_patch_bound(patch_size: int, width: int) -> float:
    """v of the original's initial values U(-v, v): sqrt(6 / (3 patch² + q)).

    >>> uniform_patch_bound(16, 768)
    0.0625
    """
    return (6 / (3 * patch_size**2 + width)) ** 0.5


class VPTLayer(TunerLayer):
    """Base class of all VPT layers, by which the tuner recognises them."""

    adapter_layer_names = ("clipv_vpt_prompts", "clipv_vpt_projection")
    merge_refusal = "it adds tokens, which no weight matrix can represent"


class VPTPromptParameters(VisualPromptParameters, VPTLayer):
    """Wraps the image encoder's embeddings; holds the prompts (J, n, q), and their projection if q is not d.

    Args:
        base_layer, anchor, has_patch_norm: see `VisualPromptParameters`.
        patch_size: side of the encoder's patches in pixels.
        width: width of the encoder, d.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, has_patch_norm: bool, patch_size: int, width: int):
        super().__init__(base_layer, anchor, has_patch_norm)
        self.patch_size, self.width = patch_size, width
        self.clipv_vpt_prompts = nn.ParameterDict()
        self.clipv_vpt_projection = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: VPTConfig) -> None:
        """Creates prompts with the initial values of `config.init`, and the projection. float32."""
        width = config.projection_dim or self.width
        shape = (config.prompt_depth, config.num_prompt_tokens, width)
        prompts = torch.empty(shape, dtype=torch.float32, device=self.adapter_device)
        if config.init == "normal":
            nn.init.normal_(prompts, std=INIT_STD)
        else:
            bound = uniform_patch_bound(self.patch_size, width)
            nn.init.uniform_(prompts, -bound, bound)
        self.configs[adapter_name] = config
        self.clipv_vpt_prompts[adapter_name] = nn.Parameter(prompts)
        if config.projection_dim is not None:
            # One projection for all layers, with the initial values of the original code (PROJECT).
            projection = nn.Linear(width, self.width, device=self.adapter_device, dtype=torch.float32)
            nn.init.kaiming_normal_(projection.weight, a=0, mode="fan_out")
            self.clipv_vpt_projection[adapter_name] = projection

    def layer_prompts(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        prompts = self.clipv_vpt_prompts[adapter_name][layer]
        if adapter_name in self.clipv_vpt_projection:
            prompts = self.clipv_vpt_projection[adapter_name](prompts)
        prompts = prompts.expand(batch_size, -1, -1)  # before dropout: each image gets a mask of its own
        return F.dropout(prompts, self.configs[adapter_name].dropout, self.training)


class VPTEncoderLayer(VisualPromptLayer, VPTLayer):
    """Wraps one layer of the image encoder."""

    adapter_layer_names = ()


__all__ = ["VPTEncoderLayer", "VPTLayer", "VPTPromptParameters", "uniform_patch_bound"]
