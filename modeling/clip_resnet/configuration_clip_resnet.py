"""Configurations of CLIP-ResNet: the image encoder, and the model that joins it to CLIP's text encoder."""

import math
from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ..loading_and_saving.optional_modules import optional_checks


_checks = optional_checks("..loading_and_saving.configuration_checks", __package__)

_REDUCTION = 32  # the last feature map is 32 times smaller than the image and has 32 times the channels of the stem


@_checks.checked
@strict
class CLIPResNetVisionConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of CLIP's ResNet image encoder: a stem of three convolutions, four stages of bottleneck blocks, and
    attention pooling.

    `width`, the number of output channels of the stem, is `hidden_size / 32`; the four stages have 4, 8, 16 and 32
    times as many. The defaults are RN50. The other models of the paper:

    | | `hidden_size` | `depths` | `num_attention_heads` | `image_size` | `projection_dim` |
    |---|---|---|---|---|---|
    | RN101 | 2048 | 3, 4, 23, 3 | 32 | 224 | 512 |
    | RN50x4 | 2560 | 4, 6, 10, 6 | 40 | 288 | 640 |
    | RN50x16 | 3072 | 6, 8, 18, 8 | 48 | 384 | 768 |
    | RN50x64 | 4096 | 3, 15, 36, 10 | 64 | 448 | 1024 |

    Args:
        hidden_size (`int`, defaults to 2048):
            Channels of the last stage, which is also the width of the attention pooling. A multiple of 32.
        depths (`list[int]`, defaults to `[3, 4, 6, 3]`):
            Bottleneck blocks in each of the four stages.
        num_attention_heads (`int`, defaults to 32):
            Heads of the attention pooling; they have 64 channels in every published model.
        num_channels (`int`, defaults to 3):
            Colour channels of the images.
        image_size (`int`, defaults to 224):
            Height and width of the training images in pixels, a multiple of 32. The attention pooling has
            `(image_size / 32)² + 1` positions.
        projection_dim (`int`, defaults to 1024):
            Width of the joint space, which is the output width of the attention pooling.
        freeze_batch_norm (`bool`, defaults to `False`):
            Keep the running statistics of batch normalisation fixed in training, as is usual for fine-tuning with
            small batches. Scales and shifts are trained nevertheless.
        initializer_factor (`float`, defaults to 1.0):
            Scales the standard deviations of the initial weights; for tests.

    Example:

    ```python
    >>> from hf_clip_variants import CLIPResNetVisionConfig

    >>> config = CLIPResNetVisionConfig(hidden_size=2560, depths=[4, 6, 10, 6], num_attention_heads=40, image_size=288)
    >>> config.width, config.stage_names, config.stage_channels
    (80, ['stem', 'stage1', 'stage2', 'stage3', 'stage4'], [80, 320, 640, 1280, 2560])
    ```
    """

    model_type = "clipv-clip_resnet_vision"
    base_config_key = "vision_config"

    hidden_size: int = 2048
    depths: list[int] | tuple[int, ...] = field(default_factory=lambda: [3, 4, 6, 3])
    num_attention_heads: int = 32
    num_channels: int = 3
    image_size: int = 224
    projection_dim: int = 1024
    freeze_batch_norm: bool = False
    initializer_factor: float | int = 1.0

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        self.validate_depths()  # `out_features` is compared with the names of the stages
        self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(len(self.depths)))]
        kwargs.pop("stage_names", None)  # they follow from the depths
        wanted = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        for name, kind in (("out_features", str), ("out_indices", int)):
            values = wanted[name] or []
            if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
                raise ValueError(f"{name}: {values!r}, expected a list of stages, each {kind.__name__}")
        self.set_output_features_output_indices(**wanted)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller."""
        return super().from_dict(_checks.without_kernels(config_dict), **kwargs)

    @property
    def width(self) -> int:
        """Output channels of the stem."""
        return self.hidden_size // _REDUCTION

    @property
    def stage_channels(self) -> list[int]:
        """Channels of the feature maps of `stage_names`."""
        return [self.width, *(self.width * 4 * 2**index for index in range(len(self.depths)))]

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages. `hidden_states` has one entry more: the output of the stem comes first."""
        return len(self.depths)

    @property
    def grid_size(self) -> int:
        """Rows (and columns) of the last feature map for images of `image_size`."""
        return self.image_size // _REDUCTION

    def validate_sizes(self):
        names = ("hidden_size", "num_attention_heads", "num_channels", "image_size", "projection_dim")
        _checks.check_range(self, "", names)
        for name in ("hidden_size", "image_size"):
            if getattr(self, name) % _REDUCTION:
                raise ValueError(f"{name}: {getattr(self, name)} is not a multiple of {_REDUCTION}")
        if self.width < 2:
            raise ValueError(f"hidden_size: {self.hidden_size}, expected at least {2 * _REDUCTION}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: {self.num_attention_heads} does not divide hidden_size ({self.hidden_size})"
            )
        if not (math.isfinite(self.initializer_factor) and self.initializer_factor >= 0):
            raise ValueError(f"initializer_factor: {self.initializer_factor}, expected a number >= 0")

    def validate_depths(self):
        if len(self.depths) != 4 or not all(0 < depth <= 1000 for depth in self.depths):
            raise ValueError(f"depths: {self.depths}, expected four numbers of blocks in 1..1000")


@_checks.checked
@strict
class CLIPResNetConfig(PreTrainedConfig):
    r"""
    Configuration of CLIP with a ResNet image encoder. Fields have the names and places that `CLIPConfig` gives them.
    The defaults are RN50.

    Args:
        text_config (`dict` or `CLIPTextConfig`):
            CLIP's text encoder. Its width is 512 (RN50, RN101), 640 (RN50x4), 768 (RN50x16) or 1024 (RN50x64), with
            heads of width 64.
        vision_config (`dict` or [`CLIPResNetVisionConfig`]):
            The image encoder.
        projection_dim (`int`, defaults to 1024):
            Width of the joint space. `vision_config.projection_dim` must be the same number, and is set to it where it
            is not given.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Logarithm of the initial logit scale: ln(1 / 0.07), the inverse of a temperature of 0.07.
        initializer_factor (`float`, defaults to 1.0):
            Scales the standard deviation of the initial text projection; for tests.

    Example:

    ```python
    >>> from hf_clip_variants import CLIPResNetConfig

    >>> config = CLIPResNetConfig(projection_dim=512, vision_config={"depths": [3, 4, 23, 3]})  # RN101
    >>> config.vision_config.projection_dim, config.text_config.hidden_size
    (512, 512)
    ```
    """

    model_type = "clipv-clip_resnet"
    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": CLIPResNetVisionConfig}
    keys_to_ignore_at_inference = ["text_model_output", "vision_model_output"]

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | CLIPResNetVisionConfig | None = None
    projection_dim: int = 1024
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0

    def __post_init__(self, **kwargs):
        for part in ("text_config", "vision_config"):
            if not isinstance(getattr(self, part), PreTrainedConfig):
                setattr(self, part, {"projection_dim": self.projection_dim} | (getattr(self, part) or {}))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: attention kernels are chosen by the caller,
        and the encoders are the two named below.
        """
        _checks.check_encoder_types(
            config_dict,
            {"text_config": ("clip_text_model", "clip"), "vision_config": (CLIPResNetVisionConfig.model_type,)},
        )
        return super().from_dict(_checks.without_kernels(config_dict), **kwargs)

    def validate_sizes(self):
        text, vision = self.text_config, self.vision_config
        if not isinstance(text, PreTrainedConfig) or not isinstance(vision, PreTrainedConfig):
            return  # still dicts: the base class has not converted them yet
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
        _checks.check_range(text, "text_config.", (*names, "max_position_embeddings"))
        _checks.check_range(self, "", ("projection_dim",))
        if vision.projection_dim != self.projection_dim:
            raise ValueError(
                f"vision_config.projection_dim: {vision.projection_dim}, expected projection_dim "
                f"({self.projection_dim}): the attention pooling projects into the joint space"
            )
        for name in ("logit_scale_init_value", "initializer_factor"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)}, expected a finite number")


__all__ = ["CLIPResNetConfig", "CLIPResNetVisionConfig"]
