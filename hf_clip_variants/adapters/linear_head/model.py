"""The PEFT tuner of the linear head, and Gaussian discriminant analysis, which needs no training."""

import torch
from torch import nn

from ..image_cache import check_labels, make_keys
from ..tuner import Base, Tuner
from .config import LinearHeadConfig
from .gaussian import gaussian_classifier
from .layer import LinearHeadLayer


class LinearHeadModel(Tuner):
    """Created by `get_peft_model(classifier, LinearHeadConfig(...))`; wraps the classifier's `logit_head`."""

    prefix = "clipv_linear_head_"
    tuner_layer_cls = LinearHeadLayer
    tensor_widths = ("joint width",)

    @classmethod
    def targets(cls, config: LinearHeadConfig, base: Base) -> dict[str, nn.Module]:
        if not base.is_classifier:
            raise ValueError(
                "model: CLIPV_LINEAR_HEAD adds to logits, which a plain CLIPModel computes inside its forward; use "
                "CLIPClassifier.from_pretrained(same_checkpoint, class_names=[...])"
            )
        return {"logit_head": base.family.image_modules(base.clip)[-1]}

    @classmethod
    def fill_config(cls, config: LinearHeadConfig, base: Base) -> None:
        if base.class_names is None:
            raise ValueError("class_names: the classifier has no classes; call set_classes([...]) first")
        if config.num_classes not in (None, len(base.class_names)):
            raise ValueError(f"num_classes: {config.num_classes}, the classifier has {len(base.class_names)} classes")
        config.num_classes = len(base.class_names)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> LinearHeadLayer:
        return LinearHeadLayer(target, anchor)

    def fit_gaussian(self, features: torch.Tensor, labels: torch.Tensor, adapter_name: str | None = None) -> None:
        """Fits w and b to labelled images without training: `gaussian_classifier` of their embeddings.

        Args:
            features: *un-normalised* image features, `get_image_features(...).pooler_output`: (N, D), or (V, N, D) for
                V augmented views.
            labels: (N,) class indices; every class has an image.
            adapter_name: default: the active one.

        Raises:
            ValueError: shapes or labels that do not fit, a class without an image, non-finite features.
        """
        layer = self.head
        name = adapter_name or layer.active_name()
        if name not in layer.configs:
            raise ValueError(f"adapter_name: got {name!r}; want one of {sorted(layer.configs)}")
        config = layer.configs[name]
        check_labels(labels, config.num_classes, config.class_names)
        embeds = make_keys(features.detach())
        if embeds.shape != (len(labels), config.backbone_widths["joint width"]):
            raise ValueError(
                f"features: got {tuple(features.shape)}, expected ({len(labels)}, "
                f"{config.backbone_widths['joint width']}) for {len(labels)} labels"
            )
        if not torch.isfinite(embeds).all():
            raise ValueError("features: not finite")
        layer.set_head(name, *gaussian_classifier(embeds, labels.to(embeds.device), config.num_classes))

    @property
    def head(self) -> LinearHeadLayer:
        """The layer."""
        return next(m for m in self.model.modules() if isinstance(m, LinearHeadLayer))


__all__ = ["LinearHeadModel"]
