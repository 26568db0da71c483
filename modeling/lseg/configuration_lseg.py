"""Configuration of LSeg: an image encoder and a DPT decoder whose pixels are compared with CLIP's texts."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPTextConfig, CLIPVisionConfig, DPTConfig, PreTrainedConfig, ResNetConfig
from transformers.configuration_utils import SubConfigSpec

from ..dense.configuration_dense import PromptableSegmentationFields
from ..loading_and_saving.configuration_checks import (
    LARGEST,
    check_encoder_types,
    check_range,
    checked,
    without_kernels,
)


# The image encoders, and their configurations. "dpt" is the plain Vision Transformer inside of transformers' DPT.
IMAGE_ENCODERS = {"dpt": DPTConfig, "resnet": ResNetConfig, "clip_vision_model": CLIPVisionConfig}
STRIDES = (4, 8, 16, 32)  # of the four feature maps that the decoder takes
SIZE_DIVISOR = STRIDES[-1]

_EPS = 1e-6  # epsilon of the layer norms in timm's Vision Transformer; DPTConfig's default is 1e-12
_VIT_L16 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 384,
    "patch_size": 16,
    "layer_norm_eps": _EPS,
}
_VIT_B32 = {"model_type": "dpt", "image_size": 384, "patch_size": 32, "layer_norm_eps": _EPS}
# ResNetConfig has no image size; 480 is that of training and evaluation.
_RESNET101 = {"model_type": "resnet", "depths": [3, 4, 23, 3], "image_size": 480}
# CLIP's text encoders: that of ViT-B/32 is CLIPTextConfig's default.
_RN50X16_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
_VARIANTS: dict[str, dict[str, Any]] = {
    "vitl16": {},
    "vitl16_rn50x16": {"text_config": _RN50X16_TEXT, "projection_dim": 768},
    "vitb32": {"vision_config": _VIT_B32, "neck_hidden_sizes": [96, 192, 384, 768]},
    "resnet101": {"vision_config": _RESNET101},
}


@checked
@strict
class LSegConfig(PromptableSegmentationFields, PreTrainedConfig):
    r"""
    Configuration of LSeg. Fields have the names and places that `CLIPConfig` and `DPTConfig` give them. The defaults
    are the published ViT-L/16 with the text encoder of CLIP's ViT-B/32; `LSegConfig.of_variant` returns the four
    published variants.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text encoder.
        vision_config (`dict` or a configuration of an image encoder):
            `DPTConfig` by default, read as that of a Vision Transformer: its sizes count, its fields of the decoder do
            not (those are below), and `layer_norm_eps` is 1e-6 unless given. Also `ResNetConfig` (the encoder of the
            few-shot experiments) and, which the paper does not have, `CLIPVisionConfig`: CLIP's own image encoder,
            whose checkpoints then load together with the text encoder. In a dictionary, `model_type` chooses.
        projection_dim (`int`, defaults to 512):
            Width of the joint space of pixels and texts: that of the text encoder's projection.
        temperature (`float`, defaults to 0.07):
            Cosine similarities are divided by it. A constant: it is not trained, and not in any checkpoint.
        backbone_out_indices (`list[int]`, *optional*):
            The four layers of the Vision Transformer whose outputs the decoder gets, from 0. Default: after each
            quarter of the layers. A ResNet gives the outputs of its four stages.
        neck_hidden_sizes (`list[int]`, *optional*):
            Channels of the four feature maps of stride 4, 8, 16 and 32. Default: a quarter of the encoder's width,
            half of it, and all of it for two; for a ResNet those of its stages.
        fusion_hidden_size (`int`, defaults to 256):
            Channels inside the decoder.
        readout_type (`"project"`, `"add"` or `"ignore"`, defaults to `"project"`):
            How the class token enters the feature maps: joined to each position and projected, added, or not at all.
        head_block (`"none"`, `"bottleneck"` or `"depthwise"`, defaults to `"none"`):
            Spatial regularisation of the scores before the last upsampling: one 3 x 3 kernel for the map of each label
            (`"depthwise"`), or that plus the maximum over labels (`"bottleneck"`). Both have ten parameters and take
            any labels. The official `arch_option` 0, 2 and 1.
        block_depth (`int`, defaults to 2):
            How often the block is applied, with the same weights; the last time without activation. 0 is the same as
            1, as in the official code.
        block_activation (`"relu"`, `"lrelu"` or `"tanh"`, defaults to `"lrelu"`):
            Activation between two applications of the block; lrelu has slope 0.01.
        use_auxiliary_head (`bool`, defaults to `False`):
            A second, coarser map of scores in training, from the decoder's map of stride 4. Its cross-entropy is added
            to the loss.
        auxiliary_loss_weight (`float`, defaults to 0.2):
            Weight of that cross-entropy.
        presence_loss_weight (`float`, defaults to 0.0):
            Weight of a loss on which labels an image has (`presence_loss`); 0 is none.
        freeze_text_encoder (`bool`, defaults to `True`):
            The text encoder gets no gradients, and stays in eval mode.
        freeze_batch_norm (`bool`, defaults to `False`):
            Keep the running statistics of batch normalisation fixed in training: for batches of one or two images.
        templates, label_texts, synonym_rule, background, …:
            Labels and background, as `set_labels` writes them: see [`PromptableSegmentationFields`]. Without
            templates, the text of a label is the label alone, as in the official code.

    Example:

    ```python
    >>> from hf_clip_variants import LSegConfig

    >>> config = LSegConfig.of_variant("vitb32", head_block="depthwise")
    >>> config.vision_config.patch_size, config.reassemble_factors, config.backbone_out_indices
    (32, [8, 4, 2, 1], [2, 5, 8, 11])
    ```
    """

    model_type = "clipv-lseg"
    sub_configs_defaults = {
        "text_config": CLIPTextConfig,
        "vision_config": SubConfigSpec(AutoConfig, model_type="dpt", init_kwargs=_VIT_L16),
    }

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    temperature: float | int = 0.07
    backbone_out_indices: list[int] | tuple[int, ...] | None = None
    neck_hidden_sizes: list[int] | tuple[int, ...] | None = None
    fusion_hidden_size: int = 256
    readout_type: Literal["project", "add", "ignore"] = "project"
    head_block: Literal["none", "bottleneck", "depthwise"] = "none"
    block_depth: int = 2
    block_activation: Literal["relu", "lrelu", "tanh"] = "lrelu"
    use_auxiliary_head: bool = False
    auxiliary_loss_weight: float | int = 0.2
    presence_loss_weight: float | int = 0.0
    freeze_text_encoder: bool = True
    freeze_batch_norm: bool = False

    def __post_init__(self, **kwargs):
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = {"projection_dim": self.projection_dim} | (self.text_config or {})
        if isinstance(self.vision_config, dict):
            kind = self.vision_config.get("model_type", "dpt")
            _check_encoder(kind, self.vision_config)
            if kind == "dpt":
                self.vision_config = {"layer_norm_eps": _EPS} | self.vision_config
        super().__post_init__(**kwargs)
        vision = self.vision_config
        if self.backbone_out_indices is None and not self.is_convolutional:
            layers = vision.num_hidden_layers
            self.backbone_out_indices = [max(quarter * layers // 4 - 1, 0) for quarter in (1, 2, 3, 4)]
        if self.neck_hidden_sizes is None:
            width = getattr(vision, "hidden_size", 0)
            widths = [max(width // 4, 1), max(width // 2, 1), width, width]
            self.neck_hidden_sizes = list(vision.hidden_sizes) if self.is_convolutional else widths
        self.neck_hidden_sizes = list(self.neck_hidden_sizes)
        if self.backbone_out_indices is not None:
            self.backbone_out_indices = list(self.backbone_out_indices)

    @classmethod
    def of_variant(cls, name: str, **kwargs) -> "LSegConfig":
        """A published variant: `"vitl16"`, `"vitl16_rn50x16"` (the paper's best: text encoder of CLIP's RN50x16),
        `"vitb32"` or `"resnet101"` (few-shot experiments). `kwargs` are further fields.

        Raises:
            ValueError: no such variant.
        """
        if name not in _VARIANTS:
            raise ValueError(f"name: {name!r}, expected one of {', '.join(_VARIANTS)}")
        return cls(**_VARIANTS[name] | kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        the text encoder is CLIP's, and the image encoder is one of `IMAGE_ENCODERS`.
        """
        check_encoder_types(config_dict, {"text_config": ("clip_text_model", "clip")})
        vision = config_dict.get("vision_config")
        if config_dict.get("model_type") == "clip" and isinstance(vision, dict):
            config_dict = config_dict | {"vision_config": {"model_type": "clip_vision_model"} | vision}
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The encoders' configurations, for `check_values`."""
        vision = values.get("vision_config")
        kind = vision.get("model_type", "dpt") if isinstance(vision, dict) else None
        known = isinstance(kind, str) and kind in IMAGE_ENCODERS
        return {"text_config": CLIPTextConfig} | ({"vision_config": IMAGE_ENCODERS[kind]} if known else {})

    @property
    def is_convolutional(self) -> bool:
        """Whether the image encoder is a ResNet, whose feature maps the decoder takes as they are."""
        return self.vision_config.model_type == "resnet"

    @property
    def reassemble_factors(self) -> list[int | float]:
        """By how much the Vision Transformer's grid is enlarged for each of the four feature maps."""
        patch = self.vision_config.patch_size
        return [patch // stride if patch >= stride else patch / stride for stride in STRIDES]

    def neck_config(self) -> DPTConfig:
        """The configuration of transformers' `DPTNeck` that is this model's decoder."""
        sizes = {} if self.is_convolutional else {"hidden_size": self.vision_config.hidden_size}
        return DPTConfig(
            **sizes,
            reassemble_factors=[1, 1, 1, 1] if self.is_convolutional else self.reassemble_factors,
            neck_hidden_sizes=self.neck_hidden_sizes,
            fusion_hidden_size=self.fusion_hidden_size,
            readout_type=self.readout_type,
            use_batch_norm_in_fusion_residual=True,
            use_bias_in_fusion_residual=False,
        )

    def validate_sizes(self):
        if not isinstance(self.text_config, PreTrainedConfig) or not isinstance(self.vision_config, PreTrainedConfig):
            return  # still dicts: the base class has not converted them yet
        check_range(self, "", ("projection_dim", "fusion_hidden_size"))
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
        check_range(self.text_config, "text_config.", (*names, "max_position_embeddings"))
        _check_encoder(self.vision_config.model_type, vars(self.vision_config))
        if not self.is_convolutional:
            check_range(self.vision_config, "vision_config.", (*names[1:], "image_size", "patch_size"))
        for part in ("text_config", "vision_config"):
            width, heads = (getattr(getattr(self, part), n, None) for n in ("hidden_size", "num_attention_heads"))
            if width and heads and width % heads:
                raise ValueError(f"{part}.num_attention_heads: {heads} does not divide hidden_size ({width})")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature}, expected a number > 0")
        for name in ("auxiliary_loss_weight", "presence_loss_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number >= 0")
        if not 0 <= self.block_depth <= 100:
            raise ValueError(f"block_depth: {self.block_depth}, expected a number in 0..100")

    def validate_decoder(self):
        vision = self.vision_config
        if not isinstance(vision, PreTrainedConfig):
            return
        widths = self.neck_hidden_sizes
        if widths is not None and (len(widths) != 4 or not all(0 < width <= LARGEST for width in widths)):
            raise ValueError(f"neck_hidden_sizes: {widths}, expected four numbers of channels in 1..{LARGEST}")
        if self.is_convolutional:
            if len(vision.depths) != 4 or len(vision.hidden_sizes) != 4:
                raise ValueError(f"vision_config.depths: {vision.depths}, expected four stages")
            if widths is not None and list(widths) != list(vision.hidden_sizes):
                raise ValueError(
                    f"neck_hidden_sizes: {widths}, expected those of the ResNet's stages ({vision.hidden_sizes})"
                )
            return
        patch, layers = vision.patch_size, vision.num_hidden_layers
        if patch not in STRIDES:
            raise ValueError(f"vision_config.patch_size: {patch}, expected one of {', '.join(map(str, STRIDES))}")
        if not isinstance(vision.image_size, int) or patch > vision.image_size:
            raise ValueError(f"vision_config.patch_size: {patch} is larger than image_size ({vision.image_size})")
        indices = self.backbone_out_indices
        if indices is not None and (len(indices) != 4 or not all(0 <= index < layers for index in indices)):
            raise ValueError(
                f"backbone_out_indices: {indices}, expected four layers in 0..{layers - 1} "
                f"(vision_config.num_hidden_layers is {layers})"
            )


def _check_encoder(kind: object, values) -> None:
    """ValueError for an image encoder of another kind, and for a DPT that would download a backbone."""
    if kind not in IMAGE_ENCODERS:
        raise ValueError(f"vision_config.model_type: {kind!r}, expected one of {', '.join(IMAGE_ENCODERS)}")
    given = [name for name in ("is_hybrid", "backbone", "backbone_config") if values.get(name)]
    if given:
        raise ValueError(f"vision_config.{given[0]}: given, expected a plain Vision Transformer")


__all__ = ["IMAGE_ENCODERS", "SIZE_DIVISOR", "STRIDES", "LSegConfig"]
