"""IVLP's prompts in both encoders."""

import torch
from torch import nn

from ..prompts.initial_vectors import INIT_STD
from ..prompts.text_prompts import (
    TextPromptEmbedder,
    TextPromptLayer,
    TextPromptTokenEmbedding,
)
from ..prompts.visual_prompts import VisualPromptLayer, VisualPromptParameters
from ..tuner import TunerLayer
from .config import IVLPConfig


class IVLPLayer(TunerLayer):
    """Base class of all IVLP layers, by which the tuner recognises them."""

    merge_refusal = "it adds tokens, which no weight matrix can represent"


class _IVLPText(IVLPLayer):
    # Deviation: the prompts of all deeper layers are one tensor (J - 1, n, d); the official code has one per block.
    adapter_layer_names = ("clipv_ivlp_context", "clipv_ivlp_text_prompts")


class IVLPPromptEmbedder(_IVLPText, TextPromptEmbedder):
    """Text prompts on a `CLIPClassifier`."""


class IVLPTokenEmbedding(_IVLPText, TextPromptTokenEmbedding):
    """Text prompts of layer 0 on a plain dual encoder, and the tensors of all layers."""


class IVLPTextLayer(TextPromptLayer, IVLPLayer):
    """Text prompts of one deeper layer on a plain dual encoder."""


class IVLPVisualPromptParameters(VisualPromptParameters, IVLPLayer):
    """Wraps the image encoder's embeddings; holds the prompts (J, n, d)."""

    adapter_layer_names = ("clipv_ivlp_vision_prompts",)

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, has_patch_norm: bool, width: int):
        super().__init__(base_layer, anchor, has_patch_norm)
        self.width = width
        self.clipv_ivlp_vision_prompts = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: IVLPConfig) -> None:
        """Creates the prompts, N(0, 0.02²) in float32."""
        shape = (config.vision_depth, config.num_vision_tokens, self.width)
        prompts = torch.empty(shape, dtype=torch.float32, device=self.adapter_device)
        self.configs[adapter_name] = config
        self.clipv_ivlp_vision_prompts[adapter_name] = nn.Parameter(nn.init.normal_(prompts, std=INIT_STD))

    def layer_prompts(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        return self.clipv_ivlp_vision_prompts[adapter_name][layer].expand(batch_size, -1, -1)


class IVLPVisionLayer(VisualPromptLayer, IVLPLayer):
    """Wraps one layer of the image encoder."""


__all__ = [
    "IVLPLayer",
    "IVLPPromptEmbedder",
    "IVLPTextLayer",
    "IVLPTokenEmbedding",
    "IVLPVisionLayer",
    "IVLPVisualPromptParameters",
]
