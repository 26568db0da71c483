"""CLIP-Adapter's bottleneck and residual blend, and the layer that applies them to features."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..tuner import TunerLayer
from .config import CLIPAdapterConfig


def bottleneck(features: torch.Tensor, down: torch.Tensor, up: torch.Tensor, output_relu: bool = True) -> torch.Tensor:
    """The adapter A(f) of Gao et al. 2021, section 3.2: ReLU(f Wd) Wu.

    Deviation: like the official code, it applies a second ReLU to the result, unless `output_relu` is False.

    Args:
        features: (..., D), not normalised.
        down: (D // reduction, D).
        up: (D, D // reduction).

    Returns:
        (..., D).
    """
    adapted = F.linear(F.relu(F.linear(features, down)), up)
    return F.relu(adapted) if output_relu else adapted


def blend(features: torch.Tensor, adapted: torch.Tensor, ratio: float | torch.Tensor) -> torch.Tensor:
    """ratio * adapted + (1 - ratio) * features; (..., D) each.

    `torch.lerp` returns exactly `features` at ratio 0 and exactly `adapted` at ratio 1.

    >>> blend(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 0.25)
    tensor([0.7500, 0.5000])
    """
    return torch.lerp(features, adapted, ratio)


class CLIPAdapterLayer(TunerLayer):
    """Wraps a projection `nn.Linear` of a `CLIPModel`, or a `FeatureAdapter` of a `CLIPClassifier`.

    Args:
        base_layer, anchor: see `TunerLayer`.
        modality: "image" or "text", for the ratio.
    """

    adapter_layer_names = ("clipv_clip_adapter_down", "clipv_clip_adapter_up", "clipv_clip_adapter_ratio_logit")
    merge_refusal = "its bottleneck is not linear (ReLU)"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module, modality: str):
        super().__init__(base_layer, anchor)
        self.modality = modality
        # One dictionary per Linear. Inside a Sequential, PEFT would not remove the adapter's name from saved keys.
        self.clipv_clip_adapter_down = nn.ModuleDict()
        self.clipv_clip_adapter_up = nn.ModuleDict()
        self.clipv_clip_adapter_ratio_logit = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: CLIPAdapterConfig) -> None:
        """Creates the bottleneck in float32, with the initial values of `nn.Linear`."""
        width = config.backbone_widths["joint width"]
        hidden = config.hidden_width(width)
        options = {"bias": False, "device": self.adapter_device, "dtype": torch.float32}
        self.configs[adapter_name] = config
        self.clipv_clip_adapter_down[adapter_name] = nn.Linear(width, hidden, **options)
        self.clipv_clip_adapter_up[adapter_name] = nn.Linear(hidden, width, **options)
        if config.learnable_ratio:
            ratio = config.ratio_of(self.modality)
            # The sigmoid of this parameter is the ratio, so that it stays between 0 and 1.
            logit = torch.tensor(math.log(ratio / (1 - ratio)), device=self.adapter_device)
            self.clipv_clip_adapter_ratio_logit[adapter_name] = nn.Parameter(logit)

    def forward(self, *args, **kwargs) -> torch.Tensor:
        features = self.base_layer(*args, **kwargs)
        name = self.active_name()
        if name is None:
            return features
        config = self.configs[name]  # read in every forward pass: the ratio may have been changed
        down, up = self.clipv_clip_adapter_down[name].weight, self.clipv_clip_adapter_up[name].weight
        ratio = config.ratio_of(self.modality)
        if config.learnable_ratio:
            ratio = self.clipv_clip_adapter_ratio_logit[name].sigmoid()
        inputs = features.to(down.dtype)  # the bottleneck is float32 even if the base is in half precision
        adapted = bottleneck(inputs, down, up, config.output_relu).to(inputs.dtype)  # autocast makes it half precision
        return blend(inputs, adapted, ratio).to(features.dtype)


__all__ = ["CLIPAdapterLayer", "blend", "bottleneck"]
