"""The layer that holds Tip-Adapter's cache and adds its votes to a classifier's logits."""

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from ..image_cache import cache_logits, full_precision
from ..tuner import TunerLayer
from .config import TipAdapterConfig


# Shapes: B images, N cached images, C classes, D joint width


ALLOW_MISSING = "; pass allow_missing_classes=True to leave them to zero-shot CLIP"


class TipAdapterLayer(TunerLayer):
    """Wraps the classifier's `logit_head` and adds the cache's logits. Holds keys (N, D) and labels (N,)."""

    adapter_layer_names = ("clipv_tip_adapter_keys",)
    other_param_names = ("clipv_tip_adapter_labels",)
    merge_refusal = "its cache is compared with every image"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        self.clipv_tip_adapter_keys = nn.ParameterDict()
        self.clipv_tip_adapter_labels = BufferDict(persistent=True)
        self.frozen_peft_weight_names = {}

    def update_layer(self, adapter_name: str, config: TipAdapterConfig) -> None:
        """Creates a cache of zeros of the configured size. `set_cache` or a checkpoint fills it."""
        self.configs[adapter_name] = config
        size, width, device = config.cache_size or 0, config.backbone_widths["joint width"], self.adapter_device
        self.clipv_tip_adapter_keys[adapter_name] = nn.Parameter(torch.zeros(size, width, device=device))
        self.clipv_tip_adapter_labels[adapter_name] = torch.zeros(size, dtype=torch.int64, device=device)
        if not config.trainable_keys:  # PEFT keeps these parameters frozen when it trains the adapter
            self.frozen_peft_weight_names[adapter_name] = ("clipv_tip_adapter_keys",)

    def set_cache(self, adapter_name: str, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Copies keys (N, D) and labels (N,) into the cache, and N into the configuration.

        The keys become a new parameter. An optimiser that exists already still has the old one.
        """
        old = self.clipv_tip_adapter_keys[adapter_name]
        # Deviation: in the official code trained keys share memory with the cache, so that training Tip-Adapter-F
        # changes the results of Tip-Adapter. Here keys are always a copy.
        keys = keys.detach().to(old.device, old.dtype, copy=True).contiguous()
        self.clipv_tip_adapter_keys[adapter_name] = nn.Parameter(keys, requires_grad=old.requires_grad)
        self.clipv_tip_adapter_labels[adapter_name] = labels.detach().to(old.device, torch.int64, copy=True)
        self.configs[adapter_name].cache_size = len(keys)

    def forward(
        self, image_embeds: torch.Tensor, class_embeds: torch.Tensor, logit_scale: torch.Tensor
    ) -> torch.Tensor:
        """Zero-shot logits plus alpha times the cache's logits, (B, C) float32.

        Args:
            image_embeds: (B, D), unit norm.
            class_embeds: (C, D), unit norm.
            logit_scale: the model's scale after exp; used only if the configuration has none.
        """
        name = self.active_name()
        if name is None:
            return self.base_layer(image_embeds, class_embeds, logit_scale)
        config = self.configs[name]
        keys, labels = full_precision(self.clipv_tip_adapter_keys[name]), self.clipv_tip_adapter_labels[name]
        if not len(keys):
            raise ValueError(f"adapter {name!r} has an empty cache: call build_cache(features, labels)")
        if config.num_classes != len(class_embeds):
            raise ValueError(
                f"adapter {name!r} caches images of {config.num_classes} classes, but the classifier is asked for "
                f"{len(class_embeds)}"
            )
        # Deviation: float32, where the official code uses float16. Near 100, bfloat16 has steps of 0.5 and float16 of
        # 0.06, in which small votes would be lost.
        image_embeds, class_embeds = image_embeds.to(keys.dtype), class_embeds.to(keys.dtype)
        scale = logit_scale if config.logit_scale is None else logit_scale.new_tensor(config.logit_scale)
        zero_shot = self.base_layer(image_embeds, class_embeds, scale.to(keys.dtype))
        return zero_shot + config.alpha * cache_logits(image_embeds, keys, labels, config.num_classes, config.beta)


__all__ = ["TipAdapterLayer"]
