"""Tip-Adapter's cache: keys, votes, logits, and the module that adds them to a classifier's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from ..tuner import TunerLayer
from .config import TipAdapterConfig


# B images, N cached images, C classes, D joint width, V views


def make_keys(features: torch.Tensor) -> torch.Tensor:
    """Cache keys (N, D) of features (N, D), or (V, N, D) of V views: the mean over views of *un-normalised* features, then normalised.

    Float32. Not the mean of normalised features: the official code weighs views by their length.
    """
    features = features.float()
    if features.dim() == 3:
        features = features.mean(dim=0)
    return F.normalize(features, dim=-1)


def sum_by_class(votes: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(N, B) votes and (N,) labels -> (C, B). What the official code does with an (N, C) one-hot matrix."""
    return votes.new_zeros(num_classes, votes.shape[1]).index_add(0, labels, votes)


def cache_logits(
    image_embeds: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, num_classes: int, beta: float
) -> torch.Tensor:
    """exp(-beta * (1 - f k)) summed over the cached images of each class (Zhang et al. 2022, equation 6).

    Args:
        image_embeds: (B, D) of length 1.
        keys: (N, D); of length 1 until they are trained.
        labels: (N,) int64.

    Returns:
        (B, C).

    Example:

    >>> keys, labels = torch.eye(3), torch.tensor([0, 1, 1])
    >>> cache_logits(keys[:1], keys, labels, num_classes=2, beta=5.0)
    tensor([[1.0000, 0.0135]])
    """
    # beta * affinity - beta in one product; images in columns, so that sums by class add whole rows
    exponents = torch.addmm(keys.new_full((), -beta), keys, (beta * image_embeds).t())
    return sum_by_class(exponents.exp(), labels, num_classes).t()


def check_labels(
    labels: torch.Tensor, num_classes: int, class_names: Sequence[str] | None = None, allow_missing: bool = False
) -> None:
    """Raises ValueError for labels outside 0..C-1 and, unless allowed, for classes without a cached image."""
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels: expected integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"labels: {int(outside[0])} is outside 0..{num_classes - 1}")
    absent = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if absent and not allow_missing:
        named = [class_names[i] if class_names else i for i in absent[:5]]
        raise ValueError(
            f"labels: {len(absent)} of {num_classes} classes have no image: {named}; pass allow_missing_classes=True to leave "
            "them to zero-shot CLIP"
        )


class TipAdapterLayer(TunerLayer):
    """Wraps the classifier's `logit_head`."""

    adapter_layer_names = ("clipv_tip_adapter_keys",)
    other_param_names = ("clipv_tip_adapter_labels",)
    merge_refusal = "its cache is compared with every picture"

    def __init__(self, base_layer: nn.Module, anchor: nn.Module):
        super().__init__(base_layer, anchor)
        self.clipv_tip_adapter_keys = nn.ParameterDict()
        self.clipv_tip_adapter_labels = BufferDict(persistent=True)
        self.frozen_peft_weight_names = {}

    def update_layer(self, adapter_name: str, config: TipAdapterConfig) -> None:
        """An empty cache of the configured size, to be filled by `set_cache` or from a checkpoint."""
        self.configs[adapter_name] = config
        size, width, device = config.cache_size or 0, config.backbone_widths["joint width"], self.adapter_device
        self.clipv_tip_adapter_keys[adapter_name] = nn.Parameter(torch.zeros(size, width, device=device))
        self.clipv_tip_adapter_labels[adapter_name] = torch.zeros(size, dtype=torch.int64, device=device)
        if not config.trainable_keys:  # PEFT's word for parameters that stay frozen when their adapter is trained
            self.frozen_peft_weight_names[adapter_name] = ("clipv_tip_adapter_keys",)

    def set_cache(self, adapter_name: str, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Copies keys (N, D) and labels (N,) in; the configuration remembers N. Optimisers made before hold the old keys."""
        old = self.clipv_tip_adapter_keys[adapter_name]
        # Always a copy: keys that are trained must not be those of another adapter or of the caller.
        keys = keys.detach().to(old.device, torch.float32, copy=True).contiguous()
        self.clipv_tip_adapter_keys[adapter_name] = nn.Parameter(keys, requires_grad=old.requires_grad)
        self.clipv_tip_adapter_labels[adapter_name] = labels.detach().to(old.device, torch.int64, copy=True)
        self.configs[adapter_name].cache_size = len(keys)

    def forward(
        self, image_embeds: torch.Tensor, class_embeds: torch.Tensor, logit_scale: torch.Tensor
    ) -> torch.Tensor:
        """(B, D), (C, D) of length 1 and exp(logit_scale) -> (B, C) logits, in the cache's float32."""
        name = self.active_name()
        if name is None:
            return self.base_layer(image_embeds, class_embeds, logit_scale)
        config = self.configs[name]
        keys, labels = self.clipv_tip_adapter_keys[name], self.clipv_tip_adapter_labels[name]
        if not len(keys):
            raise ValueError(f"adapter {name!r} has an empty cache: call build_cache(features, labels)")
        if config.num_classes != len(class_embeds):
            raise ValueError(
                f"adapter {name!r} caches pictures of {config.num_classes} classes, the classifier is asked for {len(class_embeds)}"
            )
        # Logits of 100 have steps of 0.5 in bfloat16, which the votes would get lost in.
        image_embeds, class_embeds = image_embeds.to(keys.dtype), class_embeds.to(keys.dtype)
        scale = logit_scale if config.logit_scale is None else logit_scale.new_tensor(config.logit_scale)
        zero_shot = self.base_layer(image_embeds, class_embeds, scale.to(keys.dtype))
        return zero_shot + config.alpha * cache_logits(image_embeds, keys, labels, config.num_classes, config.beta)


__all__ = ["TipAdapterLayer", "cache_logits", "check_labels", "make_keys", "sum_by_class"]
