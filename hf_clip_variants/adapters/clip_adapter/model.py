"""The PEFT tuner of CLIP-Adapter."""

from torch import nn

from ..tuner import Base, Tuner
from .config import TARGETS, CLIPAdapterConfig
from .layer import CLIPAdapterLayer


class CLIPAdapterModel(Tuner):
    """Created by `get_peft_model(base, CLIPAdapterConfig(...))`.

    It wraps the feature adapters of a `CLIPClassifier`, or the projections of a plain `CLIPModel`; one or both.
    """

    prefix = "clipv_clip_adapter_"
    tuner_layer_cls = CLIPAdapterLayer
    tensor_widths = ("joint width",)

    @classmethod
    def targets(cls, config: CLIPAdapterConfig, base: Base) -> dict[str, nn.Module]:
        projections = {"image": base.family.visual_projection, "text": base.family.text_projection}
        if not base.is_classifier and (bare := [m for m in config.modalities if projections[m] is None]):
            raise ValueError(
                f"model: CLIPV_CLIP_ADAPTER wraps projections, but {type(base.model).__name__} has none for {bare[0]} "
                "features; use CLIPClassifier"
            )
        anchors = {
            "image": base.family.image_modules(base.clip)[-1],
            "text": base.family.text_modules(base.clip)[-1],
        }
        return {TARGETS[m][0 if base.is_classifier else 1]: anchors[m] for m in config.modalities}

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> CLIPAdapterLayer:
        modality = next(m for m, names in TARGETS.items() if name in names)
        return CLIPAdapterLayer(target, anchor, modality)


__all__ = ["CLIPAdapterModel"]
