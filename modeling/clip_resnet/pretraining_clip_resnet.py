"""How CLIP with a ResNet is pre-trained: as CLIP, with batch normalisation in the image encoder."""

from dataclasses import replace
from typing import Any

from ..clip.pretraining_clip import CLIP


def _new_model(fields: dict[str, Any], image_encoder: str, scale: str) -> Any:
    from .configuration_clip_resnet import CLIPResNetConfig
    from .modeling_clip_resnet import CLIPResNetModel

    return CLIPResNetModel(CLIPResNetConfig(**fields))


CLIP_RESNET = replace(CLIP, image_encoders=("resnet",), new_model=_new_model, has_batch_norm=True)


__all__ = ["CLIP_RESNET"]
