"""The PEFT tuner of the inter-view adapter."""

from contextlib import contextmanager

from torch import nn

from ..tuner import Base, Tuner
from .config import InterViewAdapterConfig
from .layer import InterViewAdapterLayer


class ManyViews(Base):
    """A model of this package that sees an object from several views: its class says by `fused_views` which module
    takes the features of all of them.

    Attributes:
        fused_views: name of that module.
    """

    def __init__(self, model: nn.Module, peft_type: str):
        place = getattr(model, "fused_views", None)
        if not isinstance(place, str):
            raise ValueError(f"model: {peft_type} works on {self.works_on()}, got {type(model).__name__}")
        self.model, self.clip, self.family = model, model.clip, model.family
        self.is_classifier, self.fused_views = False, place
        self.widths = {"joint width": model.config.projection_dim, "views": model.config.num_views}

    @classmethod
    def works_on(cls) -> str:
        return "models that see an object from several views, whose class has `fused_views`"

    @property
    def class_names(self) -> list[str] | None:
        config = self.model.config
        return [config.id2label[label] for label in range(config.num_labels)] if config.num_class_features else None

    @property
    def templates(self) -> None:
        return None


class InterViewAdapterModel(Tuner):
    """Created by `get_peft_model(base, InterViewAdapterConfig(...))`."""

    prefix = "clipv_inter_view_adapter_"
    tuner_layer_cls = InterViewAdapterLayer
    tensor_widths = ("joint width", "views")
    base_class = ManyViews

    @classmethod
    def targets(cls, config: InterViewAdapterConfig, base: ManyViews) -> dict[str, nn.Module]:
        return {base.fused_views: base.family.image_modules(base.clip)[-1]}

    @classmethod
    def fill_config(cls, config: InterViewAdapterConfig, base: ManyViews) -> None:
        pictures = base.model.config.pictures
        if config.pictures is not None and config.pictures != pictures and not config.allow_other_backbone:
            raise ValueError(
                f"pictures: the adapter was made for {config.pictures}, this model draws {pictures}; load it with the "
                "same projection and views, or pass allow_other_backbone=True"
            )
        config.pictures = config.pictures or pictures

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> InterViewAdapterLayer:
        return InterViewAdapterLayer(target, anchor)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, adapter_names: list[str] | None = None, **kwargs):
        if adapter_names is not None:
            raise ValueError("adapter_names: the objects of a batch share one adapter of this kind; use set_adapter")
        yield


__all__ = ["InterViewAdapterModel", "ManyViews"]
