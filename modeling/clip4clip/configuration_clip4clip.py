"""Configuration of CLIP4Clip: a dual encoder's configuration, the head that compares videos with texts, and frames."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig

from ..loading_and_saving.configuration_checks import check_range, checked, without_kernels
from ..video.video_dual_encoder import VideoDualEncoderFields


HEADS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")
PATCHES = ("2d", "3d")
FRAMES_SEEN = 3  # by a 3-D patch: the frame and its neighbours


@checked
@strict
class CLIP4ClipHeadConfig(PreTrainedConfig):
    r"""
    Layers of the heads seqTransf and tightTransf; part of a [`CLIP4ClipConfig`], whose encoders say the sizes that are
    not given.

    Args:
        hidden_size (`int`, defaults to 512): width, that of the joint space.
        intermediate_size (`int`, defaults to 2048): inner width of the MLPs.
        num_hidden_layers (`int`, defaults to 4), num_attention_heads (`int`, defaults to 8).
        max_position_embeddings (`int`, defaults to 77): frames at most; in tightTransf, frames and the text.
        hidden_act (`str`, defaults to `"quick_gelu"`), layer_norm_eps (`float`, defaults to 1e-12).
        attention_dropout (`float`, defaults to 0.0).
    """

    model_type = "clipv-clip4clip_head"
    base_config_key = "head_config"

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-12
    attention_dropout: float | int = 0.0

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs."""
        return super().from_dict(without_kernels(config_dict), **kwargs)


@checked
@strict
class CLIP4ClipConfig(VideoDualEncoderFields, CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and how videos are compared
    with texts. The defaults are the paper's with ViT-B/32 and the head that is best on MSR-VTT's 9k videos.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder, one of `modeling/dual_encoders/backbones.py`. Read from the checkpoint that
            is loaded.
        similarity_head (`str`, defaults to `"seqTransf"`):
            `"meanP"`: the mean of the frames; no parameters, no order. `"seqLSTM"`, `"seqTransf"`: an LSTM or a
            transformer over the frames first. `"tightTransf"`: a transformer over the text and the frames of each
            pair, so that a video has no embedding of its own; CLIP only.
        patch_embedding (`str`, defaults to `"2d"`):
            `"2d"`: each frame is cut into patches, as in CLIP. `"3d"`: a patch also sees the frames before and after;
            CLIP only. `vision_config.num_channels` is then 9.
        head_config (`dict` or `CLIP4ClipHeadConfig`):
            Layers of the heads seqTransf and tightTransf. By default 4 of the joint space's width, with the text
            encoder's number of heads and positions.
        num_frames (`int`, defaults to 12):
            Frames of a video at most: the processor's default.
        head_dropout (`float`, defaults to 0.1):
            Of the embedded pairs in tightTransf, in training.
        frozen_layers (`int`, defaults to 0):
            Layers of each encoder that do not train, with everything before them (embeddings, patches, the first
            norm); -1: everything trains. A 3-D patch embedding always trains.
        pairs_per_tile (`int`, defaults to 1024):
            tightTransf compares so many pairs at once; bounds memory.
        num_class_features (`int`, defaults to 0):
            Classes whose texts are stored in a [`CLIP4ClipForVideoClassification`]; written by `set_classes`.

    Example:

    ```python
    >>> from hf_clip_variants import CLIP4ClipConfig

    >>> config = CLIP4ClipConfig(similarity_head="meanP")
    >>> config.projection_dim, config.head_config.num_hidden_layers, config.num_frames
    (512, 4, 12)
    ```
    """

    model_type = "clipv-clip4clip"
    nested_types = {"head_config": (CLIP4ClipHeadConfig.model_type,)}
    read_first = ("head_config", "similarity_head", "patch_embedding", "num_frames")
    sub_configs_defaults = CLIPConfig.sub_configs_defaults | {"head_config": CLIP4ClipHeadConfig}
    keys_to_ignore_at_inference = ["text_embeds", "video_embeds", "frame_features"]
    keys_to_ignore_at_inference += ["text_model_output", "vision_model_output"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    head_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    similarity_head: str = "seqTransf"
    patch_embedding: str = "2d"
    num_frames: int = 12
    head_dropout: float = 0.1
    frozen_layers: int = 0
    pairs_per_tile: int = 1024
    num_class_features: int = 0

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        if self.patch_embedding == "3d" and self.vision_config.num_channels == 3:
            self.vision_config.num_channels = 3 * FRAMES_SEEN
        if not isinstance(self.head_config, PreTrainedConfig):
            values = {k: v for k, v in (self.head_config or {}).items() if k != "model_type"}
            self.head_config = CLIP4ClipHeadConfig(**self._default_head() | values)
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    def _default_head(self) -> dict:
        width, heads = self.projection_dim, self.text_config.num_attention_heads
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": heads if width % heads == 0 else max(1, width // 64),
            "max_position_embeddings": self.text_config.max_position_embeddings,
        }

    def validate_choices(self):
        for name, known in (("similarity_head", HEADS), ("patch_embedding", PATCHES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r}, expected one of {', '.join(known)}")
        needs_clip = self.similarity_head == "tightTransf" or self.patch_embedding == "3d"
        if needs_clip and self.backbone_model_type != "clip":
            raise ValueError(
                f"similarity_head, patch_embedding: {self.similarity_head}, {self.patch_embedding} with "
                f"{self.backbone_model_type}, expected a loose head and 2d patches: the others need CLIP"
            )

    def validate_numbers(self):
        check_range(self, "", ("num_frames", "pairs_per_tile"))
        if self.num_class_features < 0:
            raise ValueError(f"num_class_features: {self.num_class_features}, expected a number >= 0")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout: {self.head_dropout}, expected a number in 0..1, without 1")
        if self.frozen_layers < -1:
            raise ValueError(f"frozen_layers: {self.frozen_layers}, expected a number of layers, or -1")

    def validate_head(self):
        head = self.head_config
        if not hasattr(head, "hidden_size"):
            return  # still a dict
        if head.hidden_size != self.projection_dim:
            raise ValueError(
                f"head_config.hidden_size: {head.hidden_size}, expected {self.projection_dim}, the joint width "
                "(projection_dim)"
            )
        needed = self.num_frames + (1 if self.similarity_head == "tightTransf" else 0)
        if self.similarity_head in ("seqTransf", "tightTransf") and head.max_position_embeddings < needed:
            raise ValueError(
                f"head_config.max_position_embeddings: {head.max_position_embeddings}, expected at least {needed} for "
                f"num_frames={self.num_frames}"
            )


__all__ = ["FRAMES_SEEN", "HEADS", "PATCHES", "CLIP4ClipConfig", "CLIP4ClipHeadConfig"]
