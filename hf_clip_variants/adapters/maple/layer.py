"""MaPLe's prompts: learned in the text encoder, and projected into the image encoder."""

import torch
import torch.nn.functional as F
from torch import nn

from ..prompts.text_prompts import (
    TextPromptEmbedder,
    TextPromptLayer,
    TextPromptTokenEmbedding,
)
from ..prompts.visual_prompts import VisualPromptLayer, VisualPromptParameters
from ..tuner import TunerLayer
from .config import MaPLeConfig


class MaPLeLayer(TunerLayer):
    """Base class of all MaPLe layers, by which the tuner recognises them."""

    merge_refusal = "it adds tokens, which no weight matrix can represent"


class _MaPLeText(MaPLeLayer):
    # Deviation: the prompts of all deeper layers are one tensor (J - 1, n, d); the official code has one per layer.
    adapter_layer_names = ("clipv_maple_context", "clipv_maple_text_prompts")


class MaPLePromptEmbedder(_MaPLeText, TextPromptEmbedder):
    """Text prompts on a `CLIPClassifier`."""


class MaPLeTokenEmbedding(_MaPLeText, TextPromptTokenEmbedding):
    """Text prompts of layer 0 on a plain dual encoder, and the tensors of all layers."""


class MaPLeTextLayer(TextPromptLayer, MaPLeLayer):
    """Text prompts of one deeper layer on a plain dual encoder."""


class MaPLeVisualPromptParameters(VisualPromptParameters, MaPLeLayer):
    """Wraps the image encoder's embeddings; holds the functions F_k, which map text prompts to visual prompts.

    They are linear with bias: weights (J, dv, dt) and biases (J, dv), or J = 1 with `share_projection`.

    Args:
        base_layer, anchor, has_patch_norm: see `VisualPromptParameters`.
        widths: (dt, dv), widths of the text and the image encoder.
        root: the model.
        text_module_name: name in `root` of the module that holds the text prompts.
    """

    adapter_layer_names = ("clipv_maple_projection_weight", "clipv_maple_projection_bias")

    def __init__(
        self,
        base_layer: nn.Module,
        anchor: nn.Module,
        has_patch_norm: bool,
        widths: tuple[int, int],
        root: nn.Module,
        text_module_name: str,
    ):
        super().__init__(base_layer, anchor, has_patch_norm)
        self.widths, self.text_module_name = widths, text_module_name
        self._root = (root,)  # in a tuple, so that nn.Module does not register it
        self.clipv_maple_projection_weight, self.clipv_maple_projection_bias = nn.ParameterDict(), nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: MaPLeConfig) -> None:
        """Creates the coupling functions in float32, with the initial values of `nn.Linear`.

        As in the official code, layer 0 has its own random values, and all deeper layers start from the same ones.
        """
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

    def layer_prompts(self, adapter_name: str, layer: int, batch_size: int) -> torch.Tensor:
        """(B, n, dv) visual prompts of `layer`: F_k(P_k), section 3.2.3. Gradients reach P_k through them, too."""
        weight = self.clipv_maple_projection_weight[adapter_name]
        bias = self.clipv_maple_projection_bias[adapter_name]
        index = layer if len(weight) > 1 else 0  # one shared function, or one per layer
        text_module = self._root[0].get_submodule(self.text_module_name)
        text_prompts = text_module.layer_prompts(adapter_name, layer).to(weight.device)
        return F.linear(text_prompts, weight[index], bias[index]).expand(batch_size, -1, -1)


class MaPLeVisionLayer(VisualPromptLayer, MaPLeLayer):
    """Wraps one layer of the image encoder."""


__all__ = [
    "MaPLeLayer",
    "MaPLePromptEmbedder",
    "MaPLeTextLayer",
    "MaPLeTokenEmbedding",
    "MaPLeVisionLayer",
    "MaPLeVisualPromptParameters",
]
