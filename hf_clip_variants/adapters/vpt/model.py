"""The PEFT tuner of VPT."""

from torch import nn

from hf_clip_variants.modeling.dual_encoders.backbones import CLIPFamily

from ..prompts.visual_prompts import check_position, visual_targets
from ..tuner import Base, Tuner
from .config import VPTConfig
from .layer import VPTEncoderLayer, VPTLayer, VPTPromptParameters


class _ViT(CLIPFamily):
    """A plain vision transformer: `ViTModel` of transformers, alone or inside a model with a head."""

    model_type = "vit"
    vision_embeddings, vision_layers = "embeddings", "layers"
    patch_norm = None

    @classmethod
    def widths(cls, config) -> dict[str, int]:
        return {"image width": config.hidden_size, "image layers": config.num_hidden_layers}


class _CLIPVision(CLIPFamily):
    """CLIP's image encoder alone: `CLIPVisionModel`, or `CLIPVisionModelWithProjection`."""

    model_type = "clip_vision_model"
    vision_embeddings, vision_layers = "embeddings", "encoder.layers"

    @classmethod
    def widths(cls, config) -> dict[str, int]:
        return {"image width": config.hidden_size, "image layers": config.num_hidden_layers}


_IMAGE_ENCODERS = {family.model_type: family for family in (_ViT, _CLIPVision)}


class VisionBase(Base):
    """`Base`, or an image encoder alone, because VPT needs no text."""

    def __init__(self, model: nn.Module, peft_type: str):
        config = getattr(model, "config", None)
        family = _IMAGE_ENCODERS.get(getattr(config, "model_type", None))
        if family is None:
            super().__init__(model, peft_type)
            self.vision_config = self.clip.config.vision_config
            return
        self.is_classifier, self.family, self.vision_config = False, family, config
        self.widths = family.widths(config)
        # The encoder is the model itself, or a child of a model with a head. The head is not part of the backbone, so
        # that the fingerprint does not depend on it: each run may start with a new head.
        inside = [name for name, _ in model.named_children() if name in ("vit", "vision_model")]
        self.prefix = f"{inside[0]}." if inside else ""
        self.model, self.clip = model, getattr(model, inside[0]) if inside else model

    def path(self, name: str) -> str:
        return self.prefix + name if hasattr(self, "prefix") else super().path(name)


class VPTModel(Tuner):
    """Created by `get_peft_model(base, VPTConfig(...))`; wraps the image encoder's embeddings and layers.

    `base`: a `CLIPClassifier`, a plain dual encoder whose image encoder is a vision transformer, `CLIPVisionModel`,
    `CLIPVisionModelWithProjection`, `ViTModel` or `ViTForImageClassification`.
    """

    prefix = "clipv_vpt_"
    tuner_layer_cls = VPTLayer
    tensor_widths = ("image width",)
    base_class = VisionBase

    @classmethod
    def targets(cls, config: VPTConfig, base: VisionBase) -> dict[str, nn.Module]:
        names = visual_targets(base, _depth(config, base), config.normalize_first)
        anchor = base.model.get_submodule(names[0])  # the embeddings, which have parameters in every family
        return dict.fromkeys(names, anchor)

    @classmethod
    def fill_config(cls, config: VPTConfig, base: VisionBase) -> None:
        check_position(config.prompt_position, base.family)
        config.prompt_depth = _depth(config, base)

    def _wrap(self, target: nn.Module, name: str, anchor: nn.Module) -> VPTLayer:
        base = self.base_class(self.model, self.__class__.__name__)
        embeddings = base.path(base.family.vision_embeddings)
        if name == embeddings:  # the module that holds the prompts; all other targets are encoder layers
            patch_size, width = base.vision_config.patch_size, base.widths["image width"]
            return VPTPromptParameters(target, anchor, base.family.patch_norm is not None, patch_size, width)
        index, count = int(name.rpartition(".")[2]), base.widths["image layers"]
        return VPTEncoderLayer(target, anchor, self.model, embeddings, index, count)


def _depth(config: VPTConfig, base: Base) -> int:
    return base.widths["image layers"] if config.prompt_depth == "all" else config.prompt_depth


__all__ = ["VPTModel"]
