"""How CLIP with a Vision Transformer is pre-trained: Radford et al. 2021, section 2.5 and table 19."""

from typing import Any

from ..dual_encoders.pretraining import Pretraining


def _new_model(fields: dict[str, Any], image_encoder: str, scale: str) -> Any:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**fields))


CLIP = Pretraining(
    name="clip",
    image_encoders=("vit",),
    new_model=_new_model,
    learning_rate=5e-4,
    small_learning_rate=1e-3,
    weight_decay=0.2,
)


__all__ = ["CLIP"]
