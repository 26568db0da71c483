"""IVLP's prompts in both towers."""

import torch
from torch import nn

from ..prompts.initial_vectors import INIT_STD
from ..prompts.text_prompts import (
    TextPromptEmbedder,
    TextPromptLayer,
    TextPromptTokenEmbedding,
)
from ..prompts.visual_prompts import VisualPromptHome, VisualPromptLayer
from ..tuner import TunerLayer
from .config import IVLPConfig


class IVLPLayer(TunerLayer):
    """What all modules of IVLP are."""

    merge_refusal = "it adds tokens, which no weight can hold"


class _IVLPText(IVLPLayer):
    adapter_layer_names = ("clipv_ivlp_context", "clipv_ivlp_text_prompts")


class IVLPPromptEmbedder(_IVLPText, TextPromptEmbedder):
    """Text side on a classifier."""


class IVLPTokenEmbedding(_IVLPText, TextPromptTokenEmbedding):
    """Text side on a plain dual encoder."""


class IVLPTextLayer(TextPromptLayer, IVLPLayer):
    """Wraps one text layer of a plain dual encoder."""


class IVLPVisionHome(VisualPromptHome, IVLPLayer):
    """Wraps the image tower's embeddings; holds the prompts (J, n, d)."""

    adapter_layer_names = ("clipv_ivlp_vision_prompts",)

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, has_patch_norm: bool, width: int):
        super().__init__(base_layer, anchor, has_patch_norm)
        self.width = width
        self.clipv_ivlp_vision_prompts = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: IVLPConfig) -> None:
        shape = (config.vision_depth, config.num_vision_tokens, self.width)
        prompts = torch.empty(shape, dtype=torch.float32, device=self.adapter_device)
        self.configs[adapter_name] = config
        self.clipv_ivlp_vision_prompts[adapter_name] = nn.Parameter(nn.init.normal_(prompts, std=INIT_STD))

    def prompts_of(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        return self.clipv_ivlp_vision_prompts[adapter_name][layer].expand(batch_size, -1, -1)


class IVLPVisionLayer(VisualPromptLayer, IVLPLayer):
    """Wraps one layer of the image tower."""


__all__ = [
    "IVLPLayer",
    "IVLPPromptEmbedder",
    "IVLPTextLayer",
    "IVLPTokenEmbedding",
    "IVLPVisionHome",
    "IVLPVisionLayer",
]
