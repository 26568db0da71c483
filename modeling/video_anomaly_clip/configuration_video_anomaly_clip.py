"""Configuration of VideoAnomalyClip: a CLIP's configuration, classes, layers over time, weights of the losses."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

from ..loading_and_saving.configuration_checks import check_encoder_types, check_range, checked, without_kernels


@checked
@strict
class VideoAnomalyClipConfig(CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and what is around it. The
    defaults are the official ones for UCF-Crime.

    The classes are `id2label`; one of them, `normal_id`, is no anomaly.

    Args:
        normal_id (`int`, defaults to 0):
            The class of videos and frames without an anomaly; written by `set_anomalies`.
        prompt_length (`int`, defaults to 0):
            Tokens of the classes' prompts; written by `set_anomalies`. 0: no classes are set.
        num_context_tokens (`int`, defaults to 8):
            Learned vectors before each class name, of each class its own.
        num_segments (`int`, defaults to 32), segment_length (`int`, defaults to 16):
            The grid that the layers over time see: segments, and consecutive frames in each. A video of another length
            than their product is cut into several grids.
        num_topk (`int`, defaults to 3), num_bottomk (`int`, defaults to 3):
            Segments of a training video that count as most and as least abnormal.
        selection_dropout_topk (`float`, defaults to 0.7), selection_dropout_bottomk (`float`, defaults to 0.7):
            Share of segments that a training step leaves out of that choice. Equal ones share their mask.
        temporal_hidden_size (`int`, defaults to 256), temporal_num_layers (`int`, defaults to 1):
            Width and depth of the axial transformer.
        temporal_num_heads (`int`, defaults to 8), temporal_head_dim (`int`, *optional*):
            Its attention heads and their width; default: `temporal_hidden_size / temporal_num_heads`.
        temporal_mlp_ratio (`int`, defaults to 4):
            Inner width of its convolutions, as a multiple of `temporal_hidden_size`.
        concat_features (`bool`, defaults to `False`):
            Whether the layers over time also see the logits of the anomalies.
        weight_dir_abnormal, weight_dir_normal, weight_topk_abnormal, weight_bottomk_abnormal, weight_topk_normal
        (`float`, default to 1), weight_smooth (`float`, defaults to 8e-4), weight_sparse (`float`, defaults to 8e-3):
            What the terms of the loss are multiplied by.
        freeze_clip (`bool`, defaults to `True`):
            Of CLIP only the text projection trains, as in the paper.
        allow_zero_centroid (`bool`, defaults to `False`):
            Run without a centroid of normal frames, as if it were zero. Otherwise that is an error.
        decision_threshold (`float`, defaults to 0.5):
            Frames with this score or more are abnormal, for segments.
        frame_stride (`int`, defaults to 1):
            The pipeline looks at every so many frames.
        windows_per_pass (`int`, defaults to 16):
            Grids of a long video that go through the layers at once; bounds memory.

    Example:

    ```python
    >>> from hf_clip_variants import VideoAnomalyClipConfig

    >>> config = VideoAnomalyClipConfig(temporal_num_layers=2)
    >>> config.projection_dim, config.num_segments * config.segment_length
    (512, 512)
    ```
    """

    model_type = "clipv-video_anomaly_clip"
    keys_to_ignore_at_inference = ["loss_dict", "topk_abnormal", "topk_normal", "bottomk_abnormal", "text_features"]
    keys_to_ignore_at_inference += ["video_features", "vision_model_output"]

    normal_id: int = 0
    prompt_length: int = 0
    num_context_tokens: int = 8
    num_segments: int = 32
    segment_length: int = 16
    num_topk: int = 3
    num_bottomk: int = 3
    selection_dropout_topk: float | int = 0.7
    selection_dropout_bottomk: float | int = 0.7
    temporal_hidden_size: int = 256
    temporal_num_layers: int = 1
    temporal_num_heads: int = 8
    temporal_head_dim: int | None = None
    temporal_mlp_ratio: int = 4
    concat_features: bool = False
    weight_dir_abnormal: float | int = 1.0
    weight_dir_normal: float | int = 1.0
    weight_topk_abnormal: float | int = 1.0
    weight_bottomk_abnormal: float | int = 1.0
    weight_topk_normal: float | int = 1.0
    weight_smooth: float | int = 8e-4
    weight_sparse: float | int = 8e-3
    freeze_clip: bool = True
    allow_zero_centroid: bool = False
    decision_threshold: float | int = 0.5
    frame_stride: int = 1
    windows_per_pass: int = 16

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file does not choose what code runs, and encoders are CLIP's."""
        parts = {"text_config": ("clip_text_model", "clip"), "vision_config": ("clip_vision_model", "clip")}
        check_encoder_types(config_dict, parts)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a plain CLIP's configuration is one of ours without classes."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type not in (cls.model_type, "clip"):
            raise ValueError(
                f"model_type: {model_type!r}, expected 'clip' or {cls.model_type!r}: other encoders do not fit"
            )
        return config_dict | {"model_type": cls.model_type}, kwargs

    @property
    def frames_per_window(self) -> int:
        """Frames of one grid."""
        return self.num_segments * self.segment_length

    @property
    def anomaly_ids(self) -> list[int]:
        """The classes that are anomalies, in order."""
        return [label for label in range(self.num_labels) if label != self.normal_id]

    def validate_classes(self):
        if self.num_labels < 2:
            raise ValueError(f"num_labels: {self.num_labels}, expected at least 2: normal and an anomaly")
        if not 0 <= self.normal_id < self.num_labels:
            raise ValueError(f"normal_id: {self.normal_id}, expected a class 0..{self.num_labels - 1}")
        if self.prompt_length and self.prompt_length < self.num_context_tokens + 3:
            raise ValueError(
                f"prompt_length: {self.prompt_length}, expected 0 (no classes) or at least "
                f"{self.num_context_tokens + 3}: start, {self.num_context_tokens} context tokens "
                "(num_context_tokens), a name, end"
            )
        positions = getattr(self.text_config, "max_position_embeddings", None)
        if positions is not None and self.prompt_length > positions:
            raise ValueError(
                f"prompt_length: {self.prompt_length}, the text encoder takes {positions} tokens "
                "(text_config.max_position_embeddings)"
            )

    def validate_numbers(self):
        names = ("num_context_tokens", "num_segments", "segment_length", "num_topk", "num_bottomk", "frame_stride")
        names += ("temporal_hidden_size", "temporal_num_layers", "temporal_num_heads", "temporal_mlp_ratio")
        check_range(self, "", (*names, "windows_per_pass"))
        for name in ("num_topk", "num_bottomk"):
            if getattr(self, name) > self.num_segments:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at most num_segments ({self.num_segments})")
        for name in ("selection_dropout_topk", "selection_dropout_bottomk"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number in 0..1, without 1")
        if not 0 <= self.decision_threshold <= 1:
            raise ValueError(f"decision_threshold: {self.decision_threshold}, expected a number in 0..1")
        if self.prompt_length < 0:
            raise ValueError(f"prompt_length: {self.prompt_length}, expected a number >= 0")
        for name in self.loss_weights():
            if getattr(self, f"weight_{name}") < 0:
                raise ValueError(f"weight_{name}: {getattr(self, f'weight_{name}')}, expected a number >= 0")
        if self.temporal_head_dim is None and self.temporal_hidden_size % self.temporal_num_heads:
            raise ValueError(
                f"temporal_num_heads: {self.temporal_num_heads} does not divide temporal_hidden_size "
                f"({self.temporal_hidden_size})"
            )
        if self.temporal_head_dim is not None:
            check_range(self, "", ("temporal_head_dim",))

    def loss_weights(self) -> dict[str, float]:
        """Term of the loss -> what it is multiplied by."""
        names = ("dir_abnormal", "dir_normal", "topk_abnormal", "bottomk_abnormal", "topk_normal", "smooth", "sparse")
        return {name: float(getattr(self, f"weight_{name}")) for name in names}


__all__ = ["VideoAnomalyClipConfig"]
