"""Configuration of SLIP: two towers, a joint space, and the self-supervision that trains the image tower besides."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPTextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..loading_and_saving.checkpoints import LARGEST, check_range, check_tower_types, without_kernels


OBJECTIVES = ("simclr", "moco_v3", "byol", "simsiam")
WITH_PREDICTOR = ("moco_v3", "byol", "simsiam")
WITH_MOMENTUM = ("moco_v3", "byol")

# Image models of transformers without parts of which their configuration says where they come from: some fetch what a nested
# backbone names, and a file must not choose that.
IMAGE_TOWERS = (
    "vit", "deit", "vit_msn", "beit", "dinov2", "dinov2_with_registers", "swin", "swinv2", "convnext", "convnextv2", "resnet", "regnet",
    "clip_vision_model", "siglip_vision_model", CLIPResNetVisionConfig.model_type,
)  # fmt: skip

_EPS = 1e-6  # of the layer norms of timm's Vision Transformer; transformers' default is another
_SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12},  # 12 heads as in MoCo v3, not 6
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}


@strict
class SLIPConfig(PreTrainedConfig):
    r"""
    SLIP: CLIP with a self-supervised loss on two augmented views of each picture. Fields sit where `CLIPConfig` has them;
    the defaults are ViT-B/16 with SimCLR, and `SLIPConfig.of_size` gives the three of the paper. Those that start with
    `ssl_`, and `clip_gather`, matter to [`SLIPForPreTraining`] only.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text tower.
        vision_config (`dict` or a configuration of an image model):
            The image tower: `ViTConfig` by default (with `layer_norm_eps` 1e-6, where none is given), `CLIPVisionConfig`,
            [`CLIPResNetVisionConfig`] or another of `IMAGE_TOWERS`. A dictionary says which by its `model_type`. The tower's feature is its pooled output; its first token where there is none.
        projection_dim (`int`, defaults to 512):
            Width of the joint space of pictures and texts.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Logarithm of the initial temperature's inverse, ln(1 / 0.07).
        initializer_factor (`float`, defaults to 1.0):
            Scales the standard deviation of the initial projections; for tests.
        clip_gather (`str`, defaults to `"exact"`):
            On several processes: `"exact"` gives the gradient of one process with all pairs; `"slip"` that of the official
            code, in which the other side's embeddings are constants and each rank's loss is that of its own rows.
        ssl_objective (`str`, defaults to `"simclr"`):
            `"simclr"` (the paper's choice), `"moco_v3"`, `"byol"` or `"simsiam"` (which the paper compares).
        ssl_mlp_dim (`int`, defaults to 4096):
            Hidden width of the projection head, and of the predictor (not in SimCLR).
        ssl_emb_dim (`int`, defaults to 256):
            Width of what the projection head gives out.
        ssl_temperature (`float`, *optional*):
            Cosines are divided by it (SimCLR, MoCo v3). Default: 0.1, and 0.2 for MoCo v3.
        ssl_scale (`float`, defaults to 1.0):
            Weight of the self-supervised loss; the CLIP loss has 1. With 0 the views are not looked at: plain CLIP.
        ssl_momentum (`float`, defaults to 0.99):
            MoCo v3 and BYOL: how much of the momentum encoder stays in the first step; grows to 1 along a cosine.

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
            elif (
                kind == CLIPResNetVisionConfig.model_type
            ):  # which AutoConfig does not know where only the code travelled
                self.vision_config = CLIPResNetVisionConfig(**self.vision_config)
        if self.ssl_temperature is None:
            self.ssl_temperature = 0.2 if self.ssl_objective == "moco_v3" else 0.1
        super().__post_init__(**kwargs)

    @classmethod
    def of_size(cls, size: str, **kwargs) -> "SLIPConfig":
        """The paper's ViT-S/16 (`"small"`), ViT-B/16 (`"base"`) or ViT-L/16 (`"large"`); `kwargs`: other fields."""
        if size not in _SIZES:
            raise ValueError(f"size: {size!r}, expected one of {', '.join(_SIZES)}")
        tower = _SIZES[size] | {"intermediate_size": 4 * _SIZES[size]["hidden_size"]}
        return cls(vision_config=tower | kwargs.pop("vision_config", {}), **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file does not choose what code runs: the caller chooses attention kernels, and the
        towers are CLIP's and an image model that transformers or this package knows.
        """
        check_tower_types(config_dict, {"text_config": ("clip_text_model", "clip")})
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @property
    def feature_dim(self) -> int:
        """Width of what the image tower gives out, before the projection into the joint space and the projection head."""
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

    def validate_towers(self):
        for part in ("text_config", "vision_config"):
            tower = getattr(self, part)
            if not isinstance(tower, PreTrainedConfig):
                continue  # still a dict: the base class turns it into a configuration
            names = ("vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size")
            names += ("num_attention_heads", "num_hidden_layers", "image_size", "patch_size")
            sizes = [name for name in names if isinstance(getattr(tower, name, None), int)]
            check_range(tower, f"{part}.", sizes)
            if {"hidden_size", "num_attention_heads"} <= set(sizes) and tower.hidden_size % tower.num_attention_heads:
                raise ValueError(
                    f"{part}.num_attention_heads: {tower.num_attention_heads} does not divide hidden_size "
                    f"({tower.hidden_size})"
                )
            if {"image_size", "patch_size"} <= set(sizes) and tower.patch_size > tower.image_size:
                raise ValueError(
                    f"{part}.patch_size: {tower.patch_size} is larger than image_size ({tower.image_size})"
                )
        vision = self.vision_config
        if not isinstance(vision, PreTrainedConfig):
            return
        if vision.model_type not in IMAGE_TOWERS:
            raise ValueError(
                f"vision_config.model_type: {vision.model_type!r}, expected an image tower: {', '.join(IMAGE_TOWERS)}"
            )
        if not 0 < self.feature_dim <= LARGEST:
            raise ValueError(f"vision_config: features of width {self.feature_dim}, expected 1..{LARGEST}")


__all__ = ["IMAGE_TOWERS", "OBJECTIVES", "WITH_MOMENTUM", "WITH_PREDICTOR", "SLIPConfig"]
