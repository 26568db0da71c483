"""Configuration of GLIP: a one-stage detector whose classes are the words of a prompt."""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, PreTrainedConfig, SwinConfig
from transformers.configuration_utils import SubConfigSpec

from ..loading_and_saving.configuration_checks import (
    LARGEST,
    check_encoder_types,
    check_range,
    check_stages,
    checked,
    without_kernels,
)


STRIDES = (8, 16, 32, 64, 128)  # of the five levels of the feature pyramid, P3 to P7
STAGES = ("stage2", "stage3", "stage4")  # of the Swin transformer, of which the pyramid is made
_KINDS = {"backbone_config": ("swin",), "text_config": ("bert",)}
_SWIN_TINY = {"drop_path_rate": 0.2}
_SWIN_LARGE = {
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
    "drop_path_rate": 0.4,
}
# Sizes of the released models. GLIP-T (B), (C) and GLIP-T differ in what they were trained on.
_VARIANTS = {
    "glip_tiny_a": {"use_fusion": False},
    "glip_tiny_b": {},
    "glip_tiny_c": {},
    "glip_tiny": {},
    "glip_large": {"backbone_config": _SWIN_LARGE, "head_num_layers": 8},
}


@checked
@strict
class GLIPConfig(PreTrainedConfig):
    r"""
    Configuration of GLIP. The defaults are GLIP-T; `GLIPConfig.of_variant` returns the five released ones,
    `GLIPConfig.tiny` one that trains on a laptop.

    Args:
        backbone_config (`dict` or `SwinConfig`): the Swin transformer under the feature pyramid.
        text_config (`dict` or `BertConfig`):
            The BERT that reads the prompt; the text layers of the head have its sizes, too.
        use_fusion (`bool`, defaults to `True`):
            Deep fusion: image and prompt attend to each other before each layer of the head, and regions are compared
            with the fused words. Without it (GLIP-T (A)), with the words as BERT gives them.
        separate_names (`bool`, defaults to `False`):
            BERT reads each name or phrase as if it stood alone; the model then needs `phrase_map`. Officially it reads
            the whole prompt, so that names change each other. Without fusion, detections then do not depend on how
            names are put into prompts; with it, less than officially.
        hidden_size (`int`, defaults to 256): channels of the pyramid and of the head.
        head_num_layers (`int`, defaults to 6): layers of the head; 8 in GLIP-L.
        fusion_hidden_size, fusion_num_heads (`int`, default to 2048, 8): width and heads of the fusion's attention.
        fusion_dropout (`float`, defaults to 0.1): of its probabilities, in training.
        num_groups (`int`, defaults to 16): of the group norms.
        dynamic_relu_reduction (`int`, defaults to 4): by how much the dynamic ReLU narrows its features.
        anchor_sizes (`list[int]`, defaults to `[64, 128, 256, 512, 1024]`):
            Side in pixels of the one anchor at each place of the five levels, whose strides are 8 to 128.
        drop_block_prob, drop_block_size (`float` and `int`, default to 0.3, 3):
            DropBlock in the pyramid, in training.
        max_text_length (`int`, defaults to 256):
            The longest prompt in tokens. Class lists that are longer become several prompts.
        prior_prob (`float`, defaults to 0.01): the score that a new model gives to everything.
        focal_alpha, focal_gamma (`float`, default to 0.25, 2): of the loss of regions and words.
        box_loss_weight (`float`, defaults to 2).
        num_candidates (`int`, defaults to 9):
            Anchors of each level that may become an object's, the nearest ones (ATSS).
        initializer_range (`float`, defaults to 0.01): standard deviation of new convolutions.

    Example:

    ```python
    >>> from hf_clip_variants.modeling.glip.configuration_glip import GLIPConfig

    >>> config = GLIPConfig.of_variant("glip_large")
    >>> config.backbone_config.depths, config.head_num_layers, config.text_config.hidden_size
    ([2, 2, 18, 2], 8, 768)
    ```
    """

    model_type = "clipv-glip"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AutoConfig, model_type="swin"),
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
    }
    keys_to_ignore_at_inference = ["loss_dict", "spatial_shapes", "image_sizes", "phrase_map", "input_ids"]

    backbone_config: dict | SwinConfig | None = None
    text_config: dict | BertConfig | None = None
    use_fusion: bool = True
    separate_names: bool = False
    hidden_size: int = 256
    head_num_layers: int = 6
    fusion_hidden_size: int = 2048
    fusion_num_heads: int = 8
    fusion_dropout: float | int = 0.1
    num_groups: int = 16
    dynamic_relu_reduction: int = 4
    anchor_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024)
    drop_block_prob: float | int = 0.3
    drop_block_size: int = 3
    max_text_length: int = 256
    prior_prob: float = 0.01
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    box_loss_weight: float | int = 2.0
    num_candidates: int = 9
    initializer_range: float = 0.01

    def __post_init__(self, **kwargs):
        defaults = {"backbone_config": _SWIN_TINY, "text_config": {}}
        for part, values in defaults.items():
            given = getattr(self, part)
            if given is None or isinstance(given, dict):
                given = values | (given or {})
                check_encoder_types({part: given}, _KINDS)
                setattr(self, part, {"model_type": _KINDS[part][0]} | given)
        if isinstance(self.backbone_config, dict):
            check_stages("backbone_config", self.backbone_config, ("depths", "num_heads"))
            self.backbone_config = self.backbone_config | {"out_features": list(STAGES)}
            self.backbone_config.pop("out_indices", None)
        super().__post_init__(**kwargs)
        self.anchor_sizes = list(self.anchor_sizes)

    @classmethod
    def of_variant(cls, name: str, **kwargs) -> "GLIPConfig":
        """A released model: `"glip_tiny_a"`, `"glip_tiny_b"`, `"glip_tiny_c"`, `"glip_tiny"` or `"glip_large"`.
        `kwargs` are further fields. ValueError for another name."""
        if name not in _VARIANTS:
            raise ValueError(f"name: {name!r}, expected one of {', '.join(_VARIANTS)}")
        return cls(**_VARIANTS[name] | kwargs)

    @classmethod
    def tiny(cls, **kwargs) -> "GLIPConfig":
        """About 1 million weights beside the vocabulary, for images of 128 pixels. `kwargs` are further fields."""
        values = {
            "backbone_config": {
                "embed_dim": 24,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 4, 8],
                "window_size": 4,
                "drop_path_rate": 0.0,
            },
            "text_config": {
                "hidden_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 96,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "hidden_size": 48,
            "head_num_layers": 2,
            "fusion_hidden_size": 64,
            "fusion_num_heads": 4,
            "fusion_dropout": 0.0,
            "num_groups": 4,
            "anchor_sizes": [16, 32, 64, 128, 256],
            "drop_block_prob": 0.0,
        }
        return cls(**values | kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        and the parts are a Swin transformer and a BERT."""
        check_encoder_types(config_dict, _KINDS)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The parts' configurations, for `check_values`."""
        return {"backbone_config": SwinConfig, "text_config": BertConfig}

    @property
    def vision_config(self) -> PreTrainedConfig:
        """The image encoder's configuration, under the name that it has in other models."""
        return self.backbone_config

    def validate_numbers(self):
        check_range(self, "", ("hidden_size",))
        names = ("head_num_layers", "fusion_hidden_size", "fusion_num_heads", "num_groups", "dynamic_relu_reduction")
        for name in (*names, "drop_block_size", "max_text_length", "num_candidates"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a whole number in 1..{LARGEST}")
        for name in ("fusion_dropout", "drop_block_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number from 0 to below 1")
        for name in ("prior_prob", "focal_alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number between 0 and 1")
        for name in ("focal_gamma", "box_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number >= 0")
        for name, divisor in (("fusion_hidden_size", "fusion_num_heads"), ("hidden_size", "num_groups")):
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(f"{divisor}: {getattr(self, divisor)} does not divide {name} ({getattr(self, name)})")
        sizes = self.anchor_sizes
        if len(sizes) != len(STRIDES) or not all(1 <= size <= LARGEST for size in sizes):
            raise ValueError(f"anchor_sizes: {sizes}, expected {len(STRIDES)} numbers of pixels")

    def validate_parts(self):
        backbone, text = self.backbone_config, self.text_config
        if isinstance(backbone, PreTrainedConfig):
            if len(backbone.depths) != 4 or len(backbone.num_heads) != 4:
                raise ValueError(
                    f"backbone_config.depths: {backbone.depths}, expected four stages, with their num_heads"
                )
            for i, heads in enumerate(backbone.num_heads):
                if heads < 1 or backbone.embed_dim * 2**i % heads:
                    raise ValueError(f"backbone_config.num_heads: {heads} does not divide {backbone.embed_dim * 2**i}")
            if tuple(backbone.out_features) != STAGES:
                raise ValueError(f"backbone_config.out_features: {backbone.out_features}, expected {list(STAGES)}")
        if isinstance(text, PreTrainedConfig) and text.max_position_embeddings < self.max_text_length:
            raise ValueError(
                f"max_text_length: {self.max_text_length} is above text_config.max_position_embeddings "
                f"({text.max_position_embeddings})"
            )


__all__ = ["STAGES", "STRIDES", "GLIPConfig"]
