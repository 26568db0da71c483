"""MaPLe's prompts: learned in the text tower, projected into the image tower."""

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts.text_prompts import (
    TextPromptEmbedder,
    TextPromptLayer,
    TextPromptTokenEmbedding,
)
from ..prompts.visual_prompts import VisualPromptHome, VisualPromptLayer
from ..tuner import TunerLayer
from .config import MaPLeConfig


class MaPLeLayer(TunerLayer):
    """What all modules of MaPLe are."""

    merge_refusal = "it adds tokens, which no weight can hold"


class _MaPLeText(MaPLeLayer):
    adapter_layer_names = ("clipv_maple_context", "clipv_maple_text_prompts")


class MaPLePromptEmbedder(_MaPLeText, TextPromptEmbedder):
    """Text side on a classifier."""


class MaPLeTokenEmbedding(_MaPLeText, TextPromptTokenEmbedding):
    """Text side on a plain dual encoder."""


class MaPLeTextLayer(TextPromptLayer, MaPLeLayer):
    """Wraps one text layer of a plain dual encoder."""


class MaPLeVisionHome(VisualPromptHome, MaPLeLayer):
    """Wraps the image tower's embeddings; holds the maps (J, d image, d text) from text prompts to visual ones.

    Args:
        widths: of text and image tower.
        root, text_home: the model and the name of the text side's home in it.
    """

    adapter_layer_names = ("clipv_maple_projection_weight", "clipv_maple_projection_bias")

    def __init__(
        self,
        base_layer: nn.Module,
        anchor: nn.Module,
        has_patch_norm: bool,
        widths: tuple[int, int],
        root: nn.Module,
        text_home: str,
    ):
        super().__init__(base_layer, anchor, has_patch_norm)
        self.widths, self._root, self.text_home_name = widths, (root,), text_home  # the root is not registered
        self.clipv_maple_projection_weight, self.clipv_maple_projection_bias = nn.ParameterDict(), nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: MaPLeConfig) -> None:
        """torch's initial values of a `Linear`: one draw for layer 0, and one that all other layers start from (as in the official code)."""
        text, image = self.widths
        first, others = (nn.Linear(text, image, device=self.adapter_device, dtype=torch.float32) for _ in range(2))
        linears = [first] + [others] * (config.num_projections - 1)
        self.configs[adapter_name] = config
        for parameters, part in (
            (self.clipv_maple_projection_weight, "weight"),
            (self.clipv_maple_projection_bias, "bias"),
        ):
            parameters[adapter_name] = nn.Parameter(
                torch.stack([getattr(linear, part).detach() for linear in linears])
            )

    def prompts_of(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        weight = self.clipv_maple_projection_weight[adapter_name]
        bias = self.clipv_maple_projection_bias[adapter_name]
        place = layer if len(weight) > 1 else 0
        text = self._root[0].get_submodule(self.text_home_name).prompt_of(adapter_name, layer).to(weight.device)
        return F.linear(text, weight[place], bias[place]).expand(batch_size, -1, -1)


class MaPLeVisionLayer(VisualPromptLayer, MaPLeLayer):
    """Wraps one layer of the image tower."""


__all__ = [
    "MaPLeLayer",
    "MaPLePromptEmbedder",
    "MaPLeTextLayer",
    "MaPLeTokenEmbedding",
    "MaPLeVisionHome",
    "MaPLeVisionLayer",
]
