"""New models with random weights for pre-training, by method and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..data.images.emoji import embedded_model


METHODS = ("clip", "slip", "audioclip")
CLIP_TOKENIZER = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Architecture:
    """Sizes of the towers. `vision` are fields of ViT-like configurations, or with `depths` of `CLIPResNetVisionConfig`."""

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    projection_dim: int
    image_size: int = 224
    tokenizer: str = CLIP_TOKENIZER
    ssl_mlp_dim: int = 4096
    audio: Mapping[str, Any] | None = None  # AudioCLIP's; None: the published tower

    @property
    def is_resnet(self) -> bool:
        return "depths" in self.vision


def _vit(width: int, layers: int, heads: int, patch: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch,
    }  # fmt: skip


def _text(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _resnet(width: int, depths: list[int], heads: int) -> dict[str, Any]:
    return {"hidden_size": 32 * width, "depths": depths, "num_attention_heads": heads}


_EMBEDDED = str(embedded_model())
_SMALL_EAR = {
    "hidden_size": 512,
    "depths": [1, 1, 1, 1],
    "groups": 4,
    "width_per_group": 16,
    "n_fft": 1024,
    "hop_length": 561,
    "win_length": 1024,
}

ARCHITECTURES: dict[str, Architecture] = {
    # For small pictures, with the embedded model's tokenizer: "tiny" is emoji-clip-tiny, "mini" trains on a CPU.
    "ViT-mini": Architecture(_vit(128, 4, 2, 8), _text(128, 2, 2), 128, 64, _EMBEDDED, 512),
    "RN-mini": Architecture(_resnet(16, [1, 1, 1, 1], 4), _text(128, 2, 2), 128, 64, _EMBEDDED, 512, _SMALL_EAR),
    "ViT-tiny": Architecture(_vit(192, 8, 3, 8), _text(192, 4, 3), 256, 64, _EMBEDDED, 1024),
    "RN-tiny": Architecture(_resnet(24, [1, 2, 2, 1], 12), _text(192, 4, 3), 256, 64, _EMBEDDED, 1024, _SMALL_EAR),
    # The published ones.
    "ViT-S/16": Architecture(_vit(384, 12, 12, 16), _text(512, 12, 8), 512),
    "ViT-B/32": Architecture(_vit(768, 12, 12, 32), _text(512, 12, 8), 512),
    "ViT-B/16": Architecture(_vit(768, 12, 12, 16), _text(512, 12, 8), 512),
    "ViT-L/16": Architecture(_vit(1024, 24, 16, 16), _text(512, 12, 8), 512),  # SLIP's, text tower of the smaller ones
    "ViT-L/14": Architecture(_vit(1024, 24, 16, 14), _text(768, 12, 12), 768),
    "RN50": Architecture(_resnet(64, [3, 4, 6, 3], 32), _text(512, 12, 8), 1024),
    "RN101": Architecture(_resnet(64, [3, 4, 23, 3], 32), _text(512, 12, 8), 512),
    "RN50x4": Architecture(_resnet(80, [4, 6, 10, 6], 40), _text(640, 12, 10), 640, 288),
    "RN50x16": Architecture(_resnet(96, [6, 8, 18, 8], 48), _text(768, 12, 12), 768, 384),
    "RN50x64": Architecture(_resnet(128, [3, 15, 36, 10], 64), _text(1024, 12, 16), 1024, 448),
}  # fmt: skip


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
        method: "clip" (`CLIPModel`, or `CLIPResNetModel` for RN…), "slip" (`SLIPForPreTraining`) or "audioclip"
            (`AudioCLIPModel`, RN… only).
        architecture: one of `ARCHITECTURES`.
        tokenizer: folder or Hub id; default: the architecture's.
        image_size: pixels; default: the architecture's.
        config: further fields of the model's configuration, such as `{"ssl_objective": "byol"}`.

    Raises:
        ValueError: an unknown method or architecture, or one that do not go together.
        OSError: the tokenizer cannot be found.
    """
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor

    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; want one of {', '.join(METHODS)}")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: got {architecture!r}; want one of {', '.join(ARCHITECTURES)}")
    sizes, further = ARCHITECTURES[architecture], dict(config or {})
    if method == "audioclip" and not sizes.is_resnet:
        raise ValueError(f"architecture: got {architecture!r} for audioclip; want one of CLIP's ResNets, RN…")
    words = AutoTokenizer.from_pretrained(tokenizer or sizes.tokenizer)
    size = image_size or sizes.image_size
    text = {
        **sizes.text, "vocab_size": len(words), "max_position_embeddings": words.model_max_length if words.model_max_length < 1000 else 77,
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        "projection_dim": sizes.projection_dim,
    }  # fmt: skip
    vision = {**sizes.vision, "image_size": size}
    if method != "slip":  # SLIP has a ViT of its own kind, and puts the projection behind the tower
        vision["projection_dim"] = sizes.projection_dim
    fields = {"text_config": text, "vision_config": vision, "projection_dim": sizes.projection_dim, **further}
    images = image_processor(method, size)

    if method == "audioclip":
        from .. import AudioCLIPConfig, AudioCLIPFeatureExtractor, AudioCLIPModel, AudioCLIPProcessor

        audio = {**(sizes.audio or {}), "projection_dim": sizes.projection_dim}
        model = AudioCLIPModel(AudioCLIPConfig(audio_config=audio, **fields))
        return model, AudioCLIPProcessor(images, words, AudioCLIPFeatureExtractor())
    if method == "slip":
        from .. import SLIPConfig, SLIPForPreTraining

        kind = "clipv-clip_resnet_vision" if sizes.is_resnet else "vit"
        fields["vision_config"] = {**vision, "model_type": kind}
        fields.setdefault("ssl_mlp_dim", sizes.ssl_mlp_dim)
        model = SLIPForPreTraining(SLIPConfig(**fields))
    elif sizes.is_resnet:
        from .. import CLIPResNetConfig, CLIPResNetModel

        model = CLIPResNetModel(CLIPResNetConfig(**fields))
    else:
        model = CLIPModel(CLIPConfig(**fields))
    return model, CLIPProcessor(images, words)


def image_processor(method: str, size: int):
    """SLIP's, bilinear with ImageNet's mean and deviation, or CLIP's, as square pictures of `size` pixels."""
    from transformers import CLIPImageProcessor

    from ..conversion.convert import SLIP_IMAGES

    settings = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    if method == "slip":
        settings |= SLIP_IMAGES
    return CLIPImageProcessor(**settings)
