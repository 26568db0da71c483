"""The layer that adds a linear classifier, and cached images' votes, to a classifier's logits."""

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from ..image_cache import cache_logits, check_labels, full_precision
from ..tuner import TunerLayer
from .config import LinearHeadConfig


# Shapes: B images, N cached images, C classes, D joint width


class LinearHeadLayer(TunerLayer):
    """Wraps the classifier's `logit_head`. Holds weight (C, D) and bias (C,), and keys (N, D) with labels (N,)."""

    adapter_layer_names = ("clipv_linear_head_weight", "clipv_linear_head_bias")
    other_param_names = ("clipv_linear_head_keys", "clipv_linear_head_labels")
    merge_refusal = "it adds to logits"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        self.clipv_linear_head_weight = nn.ParameterDict()
        self.clipv_linear_head_bias = nn.ParameterDict()
        self.clipv_linear_head_keys = BufferDict(persistent=True)
        self.clipv_linear_head_labels = BufferDict(persistent=True)
        self.frozen_peft_weight_names = {}

    def update_layer(self, adapter_name: str, config: LinearHeadConfig) -> None:
        """Creates weights of zeros, which change nothing, and a cache of the configured size."""
        self.configs[adapter_name] = config
        width, device = config.backbone_widths["joint width"], self.adapter_device
        weight = torch.zeros(config.num_classes, width, device=device)
        self.clipv_linear_head_weight[adapter_name] = nn.Parameter(weight)
        self.clipv_linear_head_bias[adapter_name] = nn.Parameter(torch.zeros(config.num_classes, device=device))
        if config.cache_size:
            self.clipv_linear_head_keys[adapter_name] = torch.zeros(config.cache_size, width, device=device)
            labels = torch.zeros(config.cache_size, dtype=torch.int64, device=device)
            self.clipv_linear_head_labels[adapter_name] = labels
        if not config.trainable:  # PEFT keeps these parameters frozen when it trains the adapter
            names = ("clipv_linear_head_weight", "clipv_linear_head_bias")
            self.frozen_peft_weight_names[adapter_name] = names

    @torch.no_grad()
    def set_head(self, adapter_name: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Copies weight (C, D) and bias (C,) into the adapter. ValueError for other shapes or non-finite values."""
        pairs = (
            ("weight", self.clipv_linear_head_weight[adapter_name], weight),
            ("bias", self.clipv_linear_head_bias[adapter_name], bias),
        )
        for name, parameter, value in pairs:
            if value.shape != parameter.shape:
                raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{name}: not finite")
        for _, parameter, value in pairs:
            parameter.copy_(value)

    def set_cache(self, adapter_name: str, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Copies keys (N, D) of unit norm and labels (N,) into the cache, and N into the configuration.

        ValueError for other shapes, labels that are not of the classes, or non-finite keys.
        """
        weight, config = self.clipv_linear_head_weight[adapter_name], self.configs[adapter_name]
        expected = (len(labels), config.backbone_widths["joint width"])
        if tuple(keys.shape) != expected:
            raise ValueError(f"keys: got shape {tuple(keys.shape)}, expected {expected} for {len(labels)} labels")
        if not torch.isfinite(keys).all():
            raise ValueError("keys: not finite")
        check_labels(labels, config.num_classes, config.class_names, allow_missing=True)
        self.clipv_linear_head_keys[adapter_name] = keys.detach().to(weight, copy=True).contiguous()
        self.clipv_linear_head_labels[adapter_name] = labels.detach().to(weight.device, torch.int64, copy=True)
        config.cache_size = len(keys)

    def forward(
        self, image_embeds: torch.Tensor, class_embeds: torch.Tensor, logit_scale: torch.Tensor
    ) -> torch.Tensor:
        """Zero-shot logits, plus alpha times the linear classifier's and gamma times the votes, (B, C) float32.

        Args:
            image_embeds: (B, D), unit norm.
            class_embeds: (C, D), unit norm.
            logit_scale: the model's scale after exp.
        """
        name = self.active_name()
        if name is None:
            return self.base_layer(image_embeds, class_embeds, logit_scale)
        config = self.configs[name]
        weight = full_precision(self.clipv_linear_head_weight[name])
        bias = self.clipv_linear_head_bias[name].to(weight.dtype)
        if config.num_classes != len(class_embeds):
            raise ValueError(
                f"adapter {name!r} has weights for {config.num_classes} classes, but the classifier is asked for "
                f"{len(class_embeds)}"
            )
        # float32: what is added may be far smaller than the steps of half precision near 100.
        image_embeds, class_embeds = image_embeds.to(weight.dtype), class_embeds.to(weight.dtype)
        logits = self.base_layer(image_embeds, class_embeds, logit_scale.to(weight.dtype))
        logits = logits + config.alpha * nn.functional.linear(image_embeds, weight, bias)
        if config.cache_size and config.gamma:
            keys, labels = self.clipv_linear_head_keys[name], self.clipv_linear_head_labels[name]
            votes = cache_logits(image_embeds, keys.to(weight.dtype), labels, config.num_classes, config.beta)
            logits = logits + config.gamma * votes
        return logits


__all__ = ["LinearHeadLayer"]
