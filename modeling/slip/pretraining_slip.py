"""How SLIP is pre-trained: Mu et al. 2021, section 4; three views of an image, with a head that users do not need."""

from collections.abc import Mapping
from typing import Any

from ..dual_encoders.pretraining import Pretraining, clip_image_processor


# Hidden width of the self-supervised head on small encoders; the configuration's default is the paper's.
_HEAD_WIDTHS = {"mini": {"ssl_mlp_dim": 512}, "tiny": {"ssl_mlp_dim": 1024}}


def _new_model(fields: dict[str, Any], image_encoder: str, scale: str) -> Any:
    from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
    from .configuration_slip import SLIPConfig
    from .modeling_slip import SLIPForPreTraining

    # SLIP's projection is behind the image encoder, not in it, and its ViT is transformers' ViTModel.
    vision = {name: value for name, value in fields["vision_config"].items() if name != "projection_dim"}
    vision["model_type"] = "vit" if image_encoder == "vit" else CLIPResNetVisionConfig.model_type
    return SLIPForPreTraining(SLIPConfig(**_HEAD_WIDTHS.get(scale, {}) | fields | {"vision_config": vision}))


def _new_processor(size: int, tokenizer: Any) -> Any:
    from transformers import CLIPProcessor

    from .convert_slip import SLIP_IMAGES

    return CLIPProcessor(clip_image_processor(size, **SLIP_IMAGES), tokenizer)


def _load(source: str, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """From SLIP with or without its head, or from a CLIP; what the file does not have is new."""
    import torch
    from transformers import AutoProcessor

    from .modeling_slip import SLIPForPreTraining

    model = SLIPForPreTraining.from_pretrained(source, dtype=torch.float32, **fields)
    return model, AutoProcessor.from_pretrained(source)


def _load_for_use(folder: str) -> Any:
    import torch

    from .modeling_slip import SLIPModel

    return SLIPModel.from_pretrained(folder, dtype=torch.float32)


def _extra_views(config: Any) -> tuple[str, ...]:
    return ("pixel_values_aug1", "pixel_values_aug2") if config.ssl_scale else ()


SLIP = Pretraining(
    name="slip",
    image_encoders=("vit", "resnet"),
    new_model=_new_model,
    new_processor=_new_processor,
    load=_load,
    load_for_use=_load_for_use,
    views="two",
    extra_views=_extra_views,
    learning_rate=3e-3,
    small_learning_rate=1e-3,
    weight_decay=0.1,
    has_batch_norm=True,  # of the head
)


__all__ = ["SLIP"]
