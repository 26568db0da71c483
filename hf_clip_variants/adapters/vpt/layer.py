"""VPT's prompts: what they are in each layer, and the modules that put them into the image tower."""

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts.initial_vectors import INIT_STD
from ..prompts.visual_prompts import VisualPromptHome, VisualPromptLayer
from ..tuner import TunerLayer
from .config import VPTConfig


# B images, n prompts a layer, J layers with prompts, q prompt width, d image width


def uniform_patch_bound(patch_size: int, width: int) -> float:
    """The original's initial range: sqrt(6 / (3 patch² + q)).

    >>> uniform_patch_bound(16, 768)
    0.0625
    """
    return (6 / (3 * patch_size**2 + width)) ** 0.5


class VPTLayer(TunerLayer):
    """What all modules of VPT are."""

    adapter_layer_names = ("clipv_vpt_prompts", "clipv_vpt_projection")
    merge_refusal = "it adds tokens, which no weight can hold"


class VPTHome(VisualPromptHome, VPTLayer):
    """Wraps the image tower's embeddings; holds the prompts (J, n, q) and, where q is not the tower's width, their projection.

    Args:
        patch_size, width: of the tower.
    """

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, has_patch_norm: bool, patch_size: int, width: int):
        super().__init__(base_layer, anchor, has_patch_norm)
        self.patch_size, self.width = patch_size, width
        self.clipv_vpt_prompts = nn.ParameterDict()
        self.clipv_vpt_projection = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: VPTConfig) -> None:
        """Makes prompts as `config.init` says."""
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
            projection = nn.Linear(width, self.width, device=self.adapter_device, dtype=torch.float32)
            nn.init.kaiming_normal_(projection.weight, a=0, mode="fan_out")
            self.clipv_vpt_projection[adapter_name] = projection

    def prompts_of(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        prompts = self.clipv_vpt_prompts[adapter_name][layer]
        if adapter_name in self.clipv_vpt_projection:
            prompts = self.clipv_vpt_projection[adapter_name](prompts)
        prompts = prompts.expand(batch_size, -1, -1)
        return F.dropout(prompts, self.configs[adapter_name].dropout, self.training)


class VPTEncoderLayer(VisualPromptLayer, VPTLayer):
    """Wraps one layer of the image tower."""

    adapter_layer_names = ()


__all__ = ["VPTEncoderLayer", "VPTHome", "VPTLayer", "uniform_patch_bound"]
