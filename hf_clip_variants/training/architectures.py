"""New models with random weights for pre-training, by method and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.images.emoji import embedded_model
from ..modeling.dual_encoders.pretraining import ImageEncoderKind, Pretraining, Scale
from .pretraining_methods import pretraining_methods, pretraining_of


CLIP_TOKENIZER = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Architecture:
    """
    Sizes of the image and the text encoder.

    Args:
        vision: fields of a ViT-like configuration, or with `depths` of `CLIPResNetVisionConfig`.
        text: fields of `CLIPTextConfig`.
        scale: what a method's own parts, such as a head or an audio encoder, have to fit.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    projection_dim: int
    image_size: int = 224
    tokenizer: str = CLIP_TOKENIZER
    scale: Scale = "published"

    @property
    def image_encoder(self) -> ImageEncoderKind:
        return "resnet" if "depths" in self.vision else "vit"


def _transformer(width: int, layers: int, heads: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return {**sizes, "num_hidden_layers": layers, "num_attention_heads": heads}


def _vit(width: int, layers: int, heads: int, patch: int) -> dict[str, int]:
    return {**_transformer(width, layers, heads), "patch_size": patch}


def _resnet(width: int, depths: list[int], heads: int) -> dict[str, Any]:
    return {"hidden_size": 32 * width, "depths": depths, "num_attention_heads": heads}


_EMBEDDED = str(embedded_model())

ARCHITECTURES: dict[str, Architecture] = {
    # For small images, with the embedded model's tokenizer: "tiny" is emoji-clip-tiny, "mini" trains on a CPU.
    "ViT-mini": Architecture(_vit(128, 4, 2, 8), _transformer(128, 2, 2), 128, 64, _EMBEDDED, "mini"),
    "RN-mini": Architecture(_resnet(16, [1, 1, 1, 1], 4), _transformer(128, 2, 2), 128, 64, _EMBEDDED, "mini"),
    "ViT-tiny": Architecture(_vit(192, 8, 3, 8), _transformer(192, 4, 3), 256, 64, _EMBEDDED, "tiny"),
    "RN-tiny": Architecture(_resnet(24, [1, 2, 2, 1], 12), _transformer(192, 4, 3), 256, 64, _EMBEDDED, "tiny"),
    # The published ones.
    "ViT-S/16": Architecture(_vit(384, 12, 12, 16), _transformer(512, 12, 8), 512),
    "ViT-B/32": Architecture(_vit(768, 12, 12, 32), _transformer(512, 12, 8), 512),
    "ViT-B/16": Architecture(_vit(768, 12, 12, 16), _transformer(512, 12, 8), 512),
    "ViT-L/16": Architecture(_vit(1024, 24, 16, 16), _transformer(512, 12, 8), 512),  # SLIP's, with B's text encoder
    "ViT-L/14": Architecture(_vit(1024, 24, 16, 14), _transformer(768, 12, 12), 768),
    "RN50": Architecture(_resnet(64, [3, 4, 6, 3], 32), _transformer(512, 12, 8), 1024),
    "RN101": Architecture(_resnet(64, [3, 4, 23, 3], 32), _transformer(512, 12, 8), 512),
    "RN50x4": Architecture(_resnet(80, [4, 6, 10, 6], 40), _transformer(640, 12, 10), 640, 288),
    "RN50x16": Architecture(_resnet(96, [6, 8, 18, 8], 48), _transformer(768, 12, 12), 768, 384),
    "RN50x64": Architecture(_resnet(128, [3, 15, 36, 10], 64), _transformer(1024, 12, 16), 1024, 448),
}


def fitting_architectures(method: str) -> list[str]:
    """Names of the architectures that a method can be built on."""
    kinds = {kind for each in pretraining_methods()[method] for kind in each.image_encoders}
    return [name for name, sizes in ARCHITECTURES.items() if sizes.image_encoder in kinds]


def pretraining_for(method: str, architecture: str | None = None) -> Pretraining:
    """How `method` is trained on `architecture`, or on a trained model of any.

    Raises:
        ValueError: an unknown method or architecture, or two that do not go together.
    """
    if architecture is None:
        return pretraining_of(method)
    pretraining_of(method)  # the method's name is checked first
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: got {architecture!r}; want one of {', '.join(ARCHITECTURES)}")
    fitting = fitting_architectures(method)
    if architecture not in fitting:
        raise ValueError(f"architecture: got {architecture!r} for {method}; want one of {', '.join(fitting)}")
    return pretraining_of(method, ARCHITECTURES[architecture].image_encoder)


def new_model(
    method: str,
    architecture: str,
    *,
    tokenizer: str | None = None,
    image_size: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """A model with random weights (torch's global generator) and its processor.

    Args:
        method: a name of `pretraining_methods`.
        architecture: one of `ARCHITECTURES`.
        tokenizer: folder or Hub id; default: the architecture's.
        image_size: pixels; default: the architecture's.
        config: further fields of the model's configuration, such as `{"ssl_objective": "byol"}`.

    Raises:
        ValueError: an unknown method or architecture, or two that do not go together.
        OSError: the tokenizer cannot be found.
    """
    from transformers import AutoTokenizer

    pretraining, sizes = pretraining_for(method, architecture), ARCHITECTURES[architecture]
    words = AutoTokenizer.from_pretrained(tokenizer or sizes.tokenizer)
    size = image_size or sizes.image_size
    text = {
        **sizes.text,
        "vocab_size": len(words),
        # transformers writes a huge number where a tokenizer does not say; 77 is CLIP's.
        "max_position_embeddings": words.model_max_length if words.model_max_length < 1000 else 77,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "projection_dim": sizes.projection_dim,
    }
    vision = {**sizes.vision, "image_size": size, "projection_dim": sizes.projection_dim}
    fields = {"text_config": text, "vision_config": vision, "projection_dim": sizes.projection_dim, **(config or {})}
    model = pretraining.new_model(fields, sizes.image_encoder, sizes.scale)
    return model, pretraining.new_processor(size, words)


__all__ = ["ARCHITECTURES", "Architecture", "fitting_architectures", "new_model", "pretraining_for"]
