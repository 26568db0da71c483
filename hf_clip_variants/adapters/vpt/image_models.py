"""The image models that VPT works on without a text encoder: one small class a kind, known by its `model_type`."""

from torch import nn

from hf_clip_variants.modeling.dual_encoders.backbones import CLIPFamily

from ..prompts.visual_prompts import check_depth_of_encoder, visual_targets
from ..tuner import Base
from .layer import VPTBiasedEncoderLayer, VPTEncoderLayer


class ImageModel(CLIPFamily):
    """`CLIPVisionModel`, or `CLIPVisionModelWithProjection`. The base class of all kinds."""

    model_type = "clip_vision_model"
    inside = "vision_model"  # name of the encoder in a model with a head
    vision_embeddings, vision_layers = "embeddings", "encoder.layers"
    layer_class: type[VPTEncoderLayer] = VPTEncoderLayer
    wraps_stages = False  # whole stages are wrapped; their outputs, unlike those of wrapped layers, have no prompts

    @classmethod
    def widths(cls, config) -> dict[str, int]:
        """`Base.widths`."""
        return {"image width": config.hidden_size, "image layers": config.num_hidden_layers}


class _ViT(ImageModel):
    model_type = inside = "vit"
    vision_layers = "layers"
    patch_norm = None


class _ViTMSN(_ViT):
    model_type = "vit_msn"


class _DeiT(_ViT):
    model_type = inside = "deit"


class _Dinov2(_ViT):
    model_type = inside = "dinov2"
    vision_layers = "encoder.layer"


class _Dinov2WithRegisters(_Dinov2):
    model_type = inside = "dinov2_with_registers"


class _BEiT(_ViT):
    model_type = inside = "beit"
    masks_patches = True  # the attention of every layer has a relative position bias of N x N tokens
    layer_class = VPTBiasedEncoderLayer


class _Swin(_ViT):
    model_type = inside = "swin"
    vision_layers = "encoder.layers"  # stages
    wraps_stages = True

    @classmethod
    def widths(cls, config) -> dict[str, int]:
        stages = {f"stage {i} layers": depth for i, depth in enumerate(config.depths)}
        return {"image width": config.embed_dim, "image layers": sum(config.depths)} | stages


IMAGE_MODELS = {
    kind.model_type: kind for kind in (ImageModel, _ViT, _ViTMSN, _DeiT, _Dinov2, _Dinov2WithRegisters, _BEiT, _Swin)
}


class VisionBase(Base):
    """`Base`, or an image model alone, because VPT needs no text.

    Attributes:
        vision_config: configuration of the image encoder.
        stages: number of layers in each stage of Swin; empty for other encoders.
    """

    def __init__(self, model: nn.Module, peft_type: str):
        config = getattr(model, "config", None)
        family = IMAGE_MODELS.get(getattr(config, "model_type", None))
        self.stages: list[int] = []
        if family is None:
            super().__init__(model, peft_type)
            self.vision_config = self.clip.config.vision_config
            return
        kind = type(model).__name__
        if not family.wraps_stages and kind.endswith(("Backbone", "ForSemanticSegmentation")):
            raise ValueError(
                f"model: {kind} reads the outputs of inner layers, which have {peft_type}'s tokens in them; use the "
                f"model with a classification head or without a head, or LoRA for {kind}"
            )
        self.is_classifier, self.family, self.vision_config = False, family, config
        self.widths = family.widths(config)
        if family.wraps_stages:
            self.stages = list(config.depths)
        # The encoder is the model itself, or a child of a model with a head. The head is not part of the backbone, so
        # that the fingerprint does not depend on it: each run may start with a new head.
        self.model, self.clip = model, getattr(model, family.inside, model)
        self.prefix = f"{family.inside}." if self.clip is not model else ""

    @classmethod
    def works_on(cls) -> str:
        return f"{super().works_on()}, and on image models of the types {', '.join(sorted(IMAGE_MODELS))}"

    def path(self, name: str) -> str:
        return self.prefix + name if hasattr(self, "prefix") else super().path(name)

    def prompt_targets(self, depth: int, normalize_first: bool) -> list[str]:
        """Names of the modules to wrap for prompts in the first `depth` layers.

        Raises:
            ValueError: the image encoder is not a transformer, or has fewer layers.
        """
        if not self.stages:
            return visual_targets(self, depth, normalize_first)
        check_depth_of_encoder(depth, self.widths["image layers"])
        return [self.path(f"{self.family.vision_layers}.{stage}") for stage in range(len(self.stages))]


__all__ = ["IMAGE_MODELS", "ImageModel", "VisionBase"]
