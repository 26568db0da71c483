"""Configuration of SLIP: an image and a text encoder, their joint space, and the self-supervised loss on images."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPTextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..loading_and_saving.configuration_checks import (
    LARGEST,
    check_encoder_types,
    check_range,
    checked,
    without_kernels,
)


OBJECTIVES = ("simclr", "moco_v3", "byol", "simsiam")
WITH_PREDICTOR = ("moco_v3", "byol", "simsiam")
WITH_MOMENTUM = ("moco_v3", "byol")

# Image models of transformers that build all of their parts themselves. Others (DPT, timm wrappers) download a nested
# backbone that their configuration names; a config.json from the Hub must not choose what is downloaded.
IMAGE_ENCODERS = (
    "vit",
    "deit",
    "vit_msn",
    "beit",
    "dinov2",
    "dinov2_with_registers",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "resnet",
    "regnet",
    "clip_vision_model",
    "siglip_vision_model",
    CLIPResNetVisionConfig.model_type,
)

_EPS = 1e-6  # epsilon of the layer norms in timm's Vision Transformer; transformers' default is 1e-12
_SIZES = {
    # 12 heads of width 32, as in MoCo v3's ViT-S; timm's ViT-S has 6 of width 64.
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}


@checked
@strict
class SLIPConfig(PreTrainedConfig):
    r"""
    Configuration of SLIP: CLIP with a self-supervised loss on two augmented views of each image. Fields have the names
    and places that `CLIPConfig` gives them. The defaults are ViT-B/16 with SimCLR; `SLIPConfig.of_size` returns the
    three sizes of the paper. Only [`SLIPForPreTraining`] reads `clip_gather` and the fields that start with `ssl_`.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text encoder.
        vision_config (`dict` or a configuration of an image model):
            The image encoder: `ViTConfig` by default (with `layer_norm_eps` 1e-6 unless given), `CLIPVisionConfig`,
            [`CLIPResNetVisionConfig`] or another of `IMAGE_ENCODERS`. In a dictionary, `model_type` chooses. The
            feature of an image is the encoder's pooled output, or its first token if the encoder does not pool.
        projection_dim (`int`, defaults to 512):
            Width of the joint space of images and texts.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Logarithm of the initial logit scale: ln(1 / 0.07), the inverse of a temperature of 0.07.
        initializer_factor (`float`, defaults to 1.0):
            Scales the standard deviation of the initial projections; for tests.
        clip_gather (`str`, defaults to `"exact"`):
            Gradient of the CLIP loss on several processes. `"exact"`: that of one process with all pairs. `"slip"`:
            that of the official code, which treats the gathered embeddings as constants and computes each rank's loss
            on its own rows only.
        ssl_objective (`str`, defaults to `"simclr"`):
            `"simclr"` (the paper's choice), `"moco_v3"`, `"byol"` or `"simsiam"` (compared in the paper).
        ssl_mlp_dim (`int`, defaults to 4096):
            Hidden width of the projection head and of the predictor (SimCLR has no predictor).
        ssl_emb_dim (`int`, defaults to 256):
            Output width of the projection head.
        ssl_temperature (`float`, *optional*):
            SimCLR and MoCo v3 divide cosine similarities by it. Default: 0.2 for MoCo v3, else 0.1.
        ssl_scale (`float`, defaults to 1.0):
            Weight of the self-supervised loss; the CLIP loss has weight 1. 0 trains with the CLIP loss alone and
            ignores the views.
        ssl_momentum (`float`, defaults to 0.99):
            MoCo v3 and BYOL: momentum m of the first update, copy <- m copy + (1 - m) weight. It grows to 1 along a
            cosine during training.

    Example:

    ```python
    >>> from hf_clip_variants import SLIPConfig

    >>> config = SLIPConfig.of_size("small", ssl_objective="moco_v3")
    >>> config.vision_config.hidden_size, config.vision_config.num_attention_heads, config.ssl_temperature
    (384, 12, 0.2)
    >>> SLIPConfig(vision_config={"model_type": "clipv-clip_resnet_vision"}).feature_dim
    1024
    ```
    """

    model_type = "clipv-slip"
    sub_configs_defaults = {
        "text_config": CLIPTextConfig,
        "vision_config": SubConfigSpec(AutoConfig, model_type="vit", init_kwargs={"layer_norm_eps": _EPS}),
    }
    keys_to_ignore_at_inference = ["text_model_output", "vision_model_output"]

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    clip_gather: str = "exact"
    ssl_objective: str = "simclr"
    ssl_mlp_dim: int = 4096
    ssl_emb_dim: int = 256
    ssl_temperature: float | int | None = None
    ssl_scale: float | int = 1.0
    ssl_momentum: float | int = 0.99

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = {"projection_dim": self.projection_dim} | (self.text_config or {})
        if isinstance(self.vision_config, dict):
            kind = self.vision_config.get("model_type", "vit")
            if kind not in (*CONFIG_MAPPING, CLIPResNetVisionConfig.model_type):
                raise ValueError(
                    f"vision_config.model_type: {kind!r}, expected 'vit' or another image model of transformers"
                )
            if kind == "vit":
                self.vision_config = {"layer_norm_eps": _EPS} | self.vision_config
            elif kind == CLIPResNetVisionConfig.model_type:
                # AutoConfig does not know this type where the code was loaded from the Hub without this package.
                self.vision_config = CLIPResNetVisionConfig(**self.vision_config)
        if self.ssl_temperature is None:
            self.ssl_temperature = 0.2 if self.ssl_objective == "moco_v3" else 0.1
        super().__post_init__(**kwargs)

    @classmethod
    def of_size(cls, size: str, **kwargs) -> "SLIPConfig":
        """The paper's ViT-S/16 (`"small"`), ViT-B/16 (`"base"`) or ViT-L/16 (`"large"`); `kwargs` are further fields.

        Raises:
            ValueError: `size` is none of the three.
        """
        if size not in _SIZES:
            raise ValueError(f"size: {size!r}, expected one of {', '.join(_SIZES)}")
        vision_config = _SIZES[size] | {"intermediate_size": 4 * _SIZES[size]["hidden_size"]}
        return cls(vision_config=vision_config | kwargs.pop("vision_config", {}), **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        the text encoder is CLIP's, and the image encoder is one of `IMAGE_ENCODERS`.
        """
        check_encoder_types(config_dict, {"text_config": ("clip_text_model", "clip")})
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The encoders' configurations, for `check_values`."""
        vision = values.get("vision_config")
        kind = vision.get("model_type", "vit") if isinstance(vision, dict) else "vit"
        if kind == CLIPResNetVisionConfig.model_type:
            return {"text_config": CLIPTextConfig, "vision_config": CLIPResNetVisionConfig}
        known = isinstance(kind, str) and kind in IMAGE_ENCODERS
        return {"text_config": CLIPTextConfig} | ({"vision_config": CONFIG_MAPPING[kind]} if known else {})

    @property
    def feature_dim(self) -> int:
        """Width of the image encoder's feature, the input of the image projection and of the projection head."""
        vision = self.vision_config
        if vision.model_type == CLIPResNetVisionConfig.model_type:
            return vision.projection_dim
        return vision.hidden_sizes[-1] if hasattr(vision, "hidden_sizes") else vision.hidden_size

    def validate_objective(self):
        for name, allowed in (("ssl_objective", OBJECTIVES), ("clip_gather", ("exact", "slip"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r}, expected one of {', '.join(allowed)}")

    def validate_sizes(self):
        check_range(self, "", ("projection_dim", "ssl_mlp_dim", "ssl_emb_dim"))
        for name in ("logit_scale_init_value", "initializer_factor"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)}, expected a finite number")
        if self.ssl_temperature is not None and not 0 < self.ssl_temperature < math.inf:
            raise ValueError(f"ssl_temperature: {self.ssl_temperature}, expected a number > 0")
        if not 0 <= self.ssl_scale < math.inf:
            raise ValueError(f"ssl_scale: {self.ssl_scale}, expected a number >= 0")
        if not 0 <= self.ssl_momentum <= 1:
            raise ValueError(f"ssl_momentum: {self.ssl_momentum}, expected a number in 0..1")

    def validate_encoders(self):
        for part in ("text_config", "vision_config"):
            encoder = getattr(self, part)
            if not isinstance(encoder, PreTrainedConfig):
                continue  # still a dict: the base class has not converted it yet
            # Image models have different fields; those that are present are checked.
            names = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size")
            names += ("num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
            sizes = [name for name in names if isinstance(getattr(encoder, name, None), int)]
            check_range(encoder, f"{part}.", sizes)
            if {"hidden_size", "num_attention_heads"} <= set(
                sizes
            ) and encoder.hidden_size % encoder.num_attention_heads:
                raise ValueError(
                    f"{part}.num_attention_heads: {encoder.num_attention_heads} does not divide hidden_size "
                    f"({encoder.hidden_size})"
                )
            if {"image_size", "patch_size"} <= set(sizes) and encoder.patch_size > encoder.image_size:
                raise ValueError(
                    f"{part}.patch_size: {encoder.patch_size} is larger than image_size ({encoder.image_size})"
                )
        vision = self.vision_config
        if not isinstance(vision, PreTrainedConfig):
            return
        if vision.model_type not in IMAGE_ENCODERS:
            raise ValueError(
                f"vision_config.model_type: {vision.model_type!r}, expected an image encoder: "
                f"{', '.join(IMAGE_ENCODERS)}"
            )
        if not 0 < self.feature_dim <= LARGEST:
            raise ValueError(f"vision_config: features of width {self.feature_dim}, expected 1..{LARGEST}")


__all__ = ["IMAGE_ENCODERS", "OBJECTIVES", "WITH_MOMENTUM", "WITH_PREDICTOR", "SLIPConfig"]
