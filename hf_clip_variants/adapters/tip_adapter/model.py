"""The PEFT tuner of Tip-Adapter and Tip-Adapter-F, with its cache and its search."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..image_cache import check_labels, full_precision, make_keys
from ..tuner import Base, Tuner, check_class_names
from .config import TipAdapterConfig
from .layer import ALLOW_MISSING, TipAdapterLayer
from .search import TipSearch, search_alpha_beta


if TYPE_CHECKING:
    from hf_clip_variants.data.images.feature_cache import Features


class TipAdapterModel(Tuner):
    """Created by `get_peft_model(classifier, TipAdapterConfig(...))`; wraps the classifier's `logit_head`."""

    prefix = "clipv_tip_adapter_"
    tuner_layer_cls = TipAdapterLayer
    tensor_widths = ("joint width",)

    @classmethod
    def targets(cls, config: TipAdapterConfig, base: Base) -> dict[str, nn.Module]:
        if not base.is_classifier:
            raise ValueError(
                "model: CLIPV_TIP_ADAPTER adds to logits, which a plain CLIPModel computes inside its forward; use "
                "CLIPClassifier.from_pretrained(same_checkpoint, class_names=[...])"
            )
        return {"logit_head": base.family.image_modules(base.clip)[-1]}

    @classmethod
    def fill_config(cls, config: TipAdapterConfig, base: Base) -> None:
        if base.class_names is None:
            raise ValueError("class_names: the classifier has no classes; call set_classes([...]) first")
        if config.num_classes not in (None, len(base.class_names)):
            raise ValueError(f"num_classes: {config.num_classes}, the classifier has {len(base.class_names)} classes")
        config.num_classes = len(base.class_names)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> TipAdapterLayer:
        return TipAdapterLayer(target, anchor)

    def build_cache(
        self,
        features: "torch.Tensor | Features",
        labels: torch.Tensor | None = None,
        adapter_name: str | None = None,
        allow_missing_classes: bool = False,
    ) -> None:
        """`build_cache` of this module, for `peft_model.build_cache(...)`."""
        build_cache(self.model, features, labels, adapter_name, allow_missing_classes)

    def search_hyperparameters(
        self,
        features: "torch.Tensor | Features",
        labels: torch.Tensor | None = None,
        scale: tuple[float, float] = (7, 3),
        steps: tuple[int, int] = (200, 20),
        adapter_name: str | None = None,
    ) -> TipSearch:
        """`search_hyperparameters` of this module, for `peft_model.search_hyperparameters(...)`."""
        return search_hyperparameters(self.model, features, labels, scale, steps, adapter_name)


def _layer_and_name(model: nn.Module, adapter_name: str | None) -> tuple[TipAdapterLayer, str]:
    layer = next((m for m in model.modules() if isinstance(m, TipAdapterLayer)), None)
    if layer is None:
        raise ValueError("model: has no Tip-Adapter; use get_peft_model(classifier, TipAdapterConfig())")
    if adapter_name is None:
        (adapter_name, *others) = [n for n in layer.active_adapters if n in layer.configs] or [None]
        if adapter_name is None or others:
            raise ValueError(f"adapter_name: name one of {sorted(layer.configs)}")
    if adapter_name not in layer.configs:
        raise ValueError(f"adapter_name: {adapter_name!r}, the model has {sorted(layer.configs)}")
    return layer, adapter_name


def _features_and_labels(
    features: "torch.Tensor | Features", labels: torch.Tensor | None, config: TipAdapterConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(features, torch.Tensor):
        if labels is None:
            raise ValueError("labels: None, expected (N,) class indices to go with the tensor of features")
        return features, labels
    if labels is not None:
        raise ValueError("labels: given twice, Features contain labels already")
    if features.class_names and config.class_names is not None:
        check_class_names(config.class_names, list(features.class_names), "the features are of a labelled data set")
    return features.features, features.labels


def build_cache(
    model: nn.Module,
    features: "torch.Tensor | Features",
    labels: torch.Tensor | None = None,
    adapter_name: str | None = None,
    allow_missing_classes: bool = False,
) -> None:
    """Fills an adapter's cache with labelled images. Call it before you create an optimiser.

    Args:
        model: a model with a Tip-Adapter.
        features: *un-normalised* image features, `get_image_features(...).pooler_output`: (N, D), or (V, N, D) for V
            augmented views; or `Features` from `data.images.feature_cache.compute_features`, which contain labels.
        labels: (N,) class indices, with tensors only.
        adapter_name: default: the active one.
        allow_missing_classes: leave classes without an image to zero-shot CLIP instead of raising an error.

    Raises:
        ValueError: shapes or labels that do not fit, non-finite features, or a class without an image.
    """
    layer, adapter_name = _layer_and_name(model, adapter_name)
    config = layer.configs[adapter_name]
    features, labels = _features_and_labels(features, labels, config)
    width = config.backbone_widths["joint width"]
    if (
        features.dim() not in (2, 3)
        or features.shape[-1] != width
        or features.shape[-2] != len(labels)
        or not len(labels)
    ):
        raise ValueError(
            f"features: expected (N, {width}) or (V, N, {width}) with N = {len(labels)} labels, got "
            f"{tuple(features.shape)}"
        )
    if not torch.isfinite(features).all():
        raise ValueError("features: not finite")
    check_labels(labels, config.num_classes, config.class_names, allow_missing_classes, ALLOW_MISSING)
    layer.set_cache(adapter_name, make_keys(features.detach()), labels)


def search_hyperparameters(
    model: nn.Module,
    features: "torch.Tensor | Features",
    labels: torch.Tensor | None = None,
    scale: tuple[float, float] = (7, 3),
    steps: tuple[int, int] = (200, 20),
    adapter_name: str | None = None,
) -> TipSearch:
    """Chooses alpha and beta on *validation* images and writes them into the adapter's configuration.

    Args:
        model: a `CLIPClassifier` with a Tip-Adapter whose cache is filled.
        features: (n, D) un-normalised features of images that are neither in the cache nor in the test set; or
            `Features` of one view.
        labels: (n,) class indices, with tensors only.
        scale: upper ends (excluded) of beta and alpha. The paper's values are in the README.
        steps: numbers of grid points of beta and alpha.
        adapter_name: default: the active one.

    Returns:
        The best pair, its accuracy, and the accuracies of the whole grid.

    Raises:
        ValueError: an empty cache, or shapes or labels that do not fit.
    """
    layer, adapter_name = _layer_and_name(model, adapter_name)
    config, keys = layer.configs[adapter_name], full_precision(layer.clipv_tip_adapter_keys[adapter_name].detach())
    if not len(keys):
        raise ValueError(f"adapter {adapter_name!r} has an empty cache: call build_cache(features, labels)")
    features, labels = _features_and_labels(features, labels, config)
    if features.dim() == 3 and len(features) == 1:  # `Features` of one view: (1, n, D)
        features = features[0]
    if features.dim() != 2 or len(features) != len(labels):
        raise ValueError(
            f"features: expected one view, (n, D) with n = {len(labels)} labels, got {tuple(features.shape)}"
        )
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    features, labels = features.to(keys.device), labels.to(keys.device)
    check_labels(labels, config.num_classes, config.class_names, allow_missing=True)
    # Through the classifier, so that other adapters on it, such as CLIP-Adapter, change the embeddings as usual.
    was_training = classifier.training
    classifier.eval()
    with torch.no_grad():
        image_embeds = torch.cat([classifier(image_features=part).image_embeds for part in features.split(4096)])
        class_embeds = classifier(image_features=features[:1]).text_embeds
    classifier.train(was_training)
    logit_scale = config.logit_scale
    if logit_scale is None:
        logit_scale = float(classifier.family.logit_scale(classifier.clip).detach())
    found = search_alpha_beta(
        image_embeds.to(keys.dtype),
        labels,
        class_embeds.to(keys.dtype),
        keys,
        layer.clipv_tip_adapter_labels[adapter_name],
        logit_scale=logit_scale,
        scale=scale,
        steps=steps,
    )
    config.alpha, config.beta = found.alpha, found.beta
    return found


__all__ = ["TipAdapterModel", "TipSearch", "build_cache", "search_hyperparameters"]
