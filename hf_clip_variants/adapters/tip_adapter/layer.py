"""Tip-Adapter's cache: keys, votes and logits, and the layer that adds them to a classifier's logits."""

from collections.abc import Sequence

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm

from ..tuner import TunerLayer
from .config import TipAdapterConfig


# Shapes: B images, N cached images, C classes, D joint width, V views


def make_keys(features: torch.Tensor) -> torch.Tensor:
    """Cache keys (N, D) from un-normalised features (N, D), or from those of V views (V, N, D). float32, unit norm.

    A key is the normalised mean over views of *un-normalised* features, as in the official code: a view with a longer
    feature vector has more weight.
    """
    features = features.float()
    if features.dim() == 3:
        features = features.mean(dim=0)
    return unit_norm(features)


def sum_by_class(votes: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Sums (N, B) votes over the cached images of each class, given (N,) labels -> (C, B).

    Deviation: the official code multiplies by an (N, C) one-hot matrix. The result is the same.
    """
    return votes.new_zeros(num_classes, votes.shape[1]).index_add(0, labels, votes)


def cache_logits(
    image_embeds: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor, num_classes: int, beta: float
) -> torch.Tensor:
    """exp(-beta * (1 - f k)), summed over the cached images k of each class (Zhang et al. 2022, section 3.1).

    Args:
        image_embeds: (B, D), unit norm.
        keys: (N, D), unit norm until they are trained.
        labels: (N,) int64.
        num_classes: C.
        beta: sharpness of the votes.

    Returns:
        (B, C).

    Example:

    >>> keys, labels = torch.eye(3), torch.tensor([0, 1, 1])
    >>> cache_logits(keys[:1], keys, labels, num_classes=2, beta=5.0)
    tensor([[1.0000, 0.0135]])
    """
    # beta * affinity - beta in one matrix product. Images are columns, so that sums by class add whole rows.
    exponents = torch.addmm(keys.new_full((), -beta), keys, (beta * image_embeds).t())
    return sum_by_class(exponents.exp(), labels, num_classes).t()


def check_labels(
    labels: torch.Tensor, num_classes: int, class_names: Sequence[str] | None = None, allow_missing: bool = False
) -> None:
    """Raises ValueError for labels outside 0..C-1 and, unless `allow_missing`, for classes without an image."""
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels: expected integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"labels: {int(outside[0])} is outside 0..{num_classes - 1}")
    absent = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if absent and not allow_missing:
        named = [class_names[i] if class_names else i for i in absent[:5]]
        raise ValueError(
            f"labels: {len(absent)} of {num_classes} classes have no image: {named}; pass allow_missing_classes=True "
            "to leave them to zero-shot CLIP"
        )


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
        keys = keys.detach().to(old.device, torch.float32, copy=True).contiguous()
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
        keys, labels = self.clipv_tip_adapter_keys[name], self.clipv_tip_adapter_labels[name]
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


__all__ = ["TipAdapterLayer", "cache_logits", "check_labels", "make_keys", "sum_by_class"]
