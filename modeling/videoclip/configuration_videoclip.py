"""Configuration of VideoCLIP: two BERTs, the network that sees the video, and how long videos and texts are."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..loading_and_saving.configuration_checks import (
    LARGEST,
    check_encoder_types,
    check_range,
    checked,
    without_kernels,
)


DIRECTIONS = ("both", "text_to_video", "video_to_text")
NUM_BLOCKS, NUM_WIDTHS = 9, 6
# Of the inception blocks 3b to 5c: the point branch, reduced and full width of two branches with 3 x 3 x 3
# convolutions, and the pooled branch.
_BLOCK_WIDTHS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
_KINDS = {
    "text_config": ("bert",),
    "video_config": ("clipv-videoclip_video",),
    "vision_config": ("clipv-videoclip_vision",),
}


@checked
@strict
class VideoCLIPVisionConfig(PreTrainedConfig):
    r"""
    Sizes of S3D-G, the network that makes one vector of each second of video; part of a [`VideoCLIPConfig`].

    Args:
        image_size (`int`, defaults to 224): height and width of a frame; even.
        frames_per_second (`int`, defaults to 30): frames of a second, which are seen together; even.
        stem_width (`int`, defaults to 64), conv_width (`int`, defaults to 192): channels before the first block.
        block_widths (`list[list[int]]`, *optional*):
            Six channel numbers of each of the nine inception blocks: the point branch; the narrow and the full width
            of two branches with 3 x 3 x 3 convolutions; the pooled branch. By default those of HowTo100M's S3D.
        projection_dim (`int`, defaults to 512): width of a second's vector.
        batch_norm_eps (`float`, defaults to 1e-5).
    """

    model_type = "clipv-videoclip_vision"
    base_config_key = "vision_config"

    image_size: int = 224
    frames_per_second: int = 30
    stem_width: int = 64
    conv_width: int = 192
    block_widths: list[list[int]] | list[tuple[int, ...]] | tuple[tuple[int, ...], ...] = _BLOCK_WIDTHS
    projection_dim: int = 512
    batch_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.block_widths = [list(widths) for widths in self.block_widths]

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs."""
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @property
    def hidden_size(self) -> int:
        """Channels of the last map."""
        point, _, first, _, second, pooled = self.block_widths[-1]
        return point + first + second + pooled

    def validate_numbers(self):
        check_range(self, "", ("image_size", "frames_per_second", "stem_width", "conv_width", "projection_dim"))
        for name in ("image_size", "frames_per_second"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name}: {getattr(self, name)}, expected an even number")

    def validate_blocks(self):
        widths = self.block_widths
        right = len(widths) == NUM_BLOCKS and all(len(one) == NUM_WIDTHS for one in widths)
        if not right or any(not 0 < width <= LARGEST for one in widths for width in one):
            raise ValueError(
                f"block_widths: {str(widths)[:80]}, expected {NUM_WIDTHS} numbers > 0 of each of {NUM_BLOCKS} blocks"
            )


@checked
@strict
class VideoCLIPVideoConfig(BertConfig):
    r"""
    The video encoder, a BERT; part of a [`VideoCLIPConfig`]. Arguments are those of `BertConfig`.

    Args:
        num_hidden_layers (`int`, defaults to 6).
    """

    model_type = "clipv-videoclip_video"
    base_config_key = "video_config"

    num_hidden_layers: int = 6

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs."""
        return super().from_dict(without_kernels(config_dict), **kwargs)


@checked
@strict
class VideoCLIPConfig(PreTrainedConfig):
    r"""
    Configuration of VideoCLIP. The defaults are the paper's.

    Args:
        text_config (`dict` or `BertConfig`): the text encoder, by default BERT base with its 12 layers.
        video_config (`dict` or [`VideoCLIPVideoConfig`]):
            The video encoder: by default the text encoder's sizes, with half as many layers. Both must be of one
            width.
        vision_config (`dict` or [`VideoCLIPVisionConfig`]): sizes of S3D-G, which makes features of frames.
        use_s3d (`bool`, defaults to `True`):
            The model holds S3D-G and takes frames, too. Without it, features of each second only; the official
            checkpoints are so.
        train_s3d (`bool`, defaults to `False`): S3D-G trains, too; the paper's does not.
        feature_size (`int`, defaults to 512): width of a second's features.
        normalize_features (`bool`, defaults to `True`):
            The features of each second are brought to unit length first, as the official extractor does, whose
            features the released model was trained with. `False`: they are taken as they are.
        max_video_length (`int`, defaults to 32): seconds that the video encoder sees at most.
        max_text_length (`int`, defaults to 63): tokens of a text at most, with [CLS] and [SEP].
        window_stride (`int`, defaults to 16): seconds from one window to the next in longer videos.
        cls_token_id, sep_token_id (`int`, default to 101 and 102): tokens around the video; bert-base-uncased's.
        loss_direction (`str`, defaults to `"both"`):
            `"both"`: the sum of the cross-entropies in both directions, the paper's pre-training; `"text_to_video"`
            (its fine-tuning for retrieval) or `"video_to_text"`: one of them.

    Example:

    ```python
    >>> from hf_clip_variants import VideoCLIPConfig

    >>> config = VideoCLIPConfig()
    >>> config.text_config.num_hidden_layers, config.video_config.num_hidden_layers, config.vision_config.hidden_size
    (12, 6, 1024)
    ```
    """

    model_type = "clipv-videoclip"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
        "video_config": VideoCLIPVideoConfig,
        "vision_config": VideoCLIPVisionConfig,
    }
    keys_to_ignore_at_inference = ["text_embeds", "video_embeds", "video_hidden_states"]
    keys_to_ignore_at_inference += ["text_model_output", "video_model_output"]

    text_config: dict | BertConfig | None = None
    video_config: dict | VideoCLIPVideoConfig | None = None
    vision_config: dict | VideoCLIPVisionConfig | None = None
    use_s3d: bool = True
    train_s3d: bool = False
    feature_size: int = 512
    normalize_features: bool = True
    max_video_length: int = 32
    max_text_length: int = 63
    window_stride: int = 16
    cls_token_id: int = 101
    sep_token_id: int = 102
    loss_direction: str = "both"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_encoder_types({part: getattr(self, part) for part in _KINDS}, _KINDS)
        if self.text_config is None or isinstance(self.text_config, dict):
            given = {name: value for name, value in (self.text_config or {}).items() if name != "model_type"}
            self.text_config = BertConfig(**given)
        if self.video_config is None:
            self.video_config = self._default_video()
        super().__post_init__(**kwargs)

    def _default_video(self) -> dict:
        """The text encoder's sizes; half of its layers."""
        text = self.text_config
        names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
        names += ("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size")
        names += ("layer_norm_eps", "pad_token_id")
        return {name: getattr(text, name) for name in names} | {
            "num_hidden_layers": max(1, text.num_hidden_layers // 2)
        }

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: the parts are two BERTs and our S3D-G."""
        check_encoder_types(config_dict, _KINDS)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The parts' configurations, for `check_values`."""
        return {
            "text_config": BertConfig,
            "video_config": VideoCLIPVideoConfig,
            "vision_config": VideoCLIPVisionConfig,
        }

    @property
    def hidden_size(self) -> int:
        """Of videos' and texts' vectors, which are compared."""
        return self.text_config.hidden_size

    def validate_numbers(self):
        check_range(self, "", ("feature_size", "max_video_length", "max_text_length", "window_stride"))
        if self.max_text_length < 3:
            raise ValueError(f"max_text_length: {self.max_text_length}, expected at least 3: [CLS], a token, [SEP]")
        if self.window_stride > self.max_video_length:
            raise ValueError(
                f"window_stride: {self.window_stride}, expected at most max_video_length ({self.max_video_length}): "
                "seconds between windows would not be seen"
            )
        if self.loss_direction not in DIRECTIONS:
            raise ValueError(f"loss_direction: {self.loss_direction!r}, expected one of {', '.join(DIRECTIONS)}")

    def validate_parts(self):
        text, video, vision = self.text_config, self.video_config, self.vision_config
        if not (hasattr(text, "hidden_size") and hasattr(video, "hidden_size") and hasattr(vision, "block_widths")):
            return  # still dictionaries
        for part in (text, video):
            if part.is_decoder or part.add_cross_attention:
                raise ValueError("text_config, video_config: got a decoder, expected encoders (is_decoder=False)")
        if text.hidden_size != video.hidden_size:
            raise ValueError(
                f"video_config.hidden_size: {video.hidden_size}, expected {text.hidden_size}, the text "
                "encoder's (text_config.hidden_size)"
            )
        if video.max_position_embeddings < self.max_video_length + 2:
            raise ValueError(
                f"video_config.max_position_embeddings: {video.max_position_embeddings}, expected at least "
                f"{self.max_video_length + 2} for max_video_length={self.max_video_length}"
            )
        if text.max_position_embeddings < self.max_text_length:
            raise ValueError(
                f"text_config.max_position_embeddings: {text.max_position_embeddings}, expected at least "
                f"{self.max_text_length} (max_text_length)"
            )
        for name in ("cls_token_id", "sep_token_id"):
            if not 0 <= getattr(self, name) < video.vocab_size:
                raise ValueError(
                    f"{name}: {getattr(self, name)}, expected 0..{video.vocab_size - 1} (video_config.vocab_size)"
                )
        if self.use_s3d and vision.projection_dim != self.feature_size:
            raise ValueError(
                f"vision_config.projection_dim: {vision.projection_dim}, expected {self.feature_size} (feature_size)"
            )


__all__ = ["DIRECTIONS", "VideoCLIPConfig", "VideoCLIPVideoConfig", "VideoCLIPVisionConfig"]
