"""Configuration of ActionCLIP: a dual encoder's configuration, and where the model sees time."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, PreTrainedConfig

from ..loading_and_saving.configuration_checks import check_range, checked
from ..video.video_dual_encoder import VideoDualEncoderFields


VISUAL_PROMPTS = ("none", "shift", "joint")
FUSION_HEADS = ("meanP", "LSTM", "Conv_1D", "Transf", "Transf_cls")
CONV_LAYOUTS = ("transposed", "official")
FROZEN = ("none", "text", "both")


@checked
@strict
class ActionCLIPConfig(VideoDualEncoderFields, CLIPConfig):
    r"""
    A `CLIPConfig` (every field sits where CLIP has it, so a plain CLIP checkpoint loads) and how the model sees time.
    The defaults are the paper's main run: eight frames, and a transformer over their features.

    Args:
        backbone_model_type (`str`, defaults to `"clip"`):
            The family of the dual encoder, one of `modeling/dual_encoders/backbones.py`. Read from the checkpoint that
            is loaded.
        visual_prompt (`str`, defaults to `"none"`):
            What the image encoder knows of time. `"none"`: each frame is encoded by itself. `"shift"`: in front of
            each layer, some channels of the patches come from the next frame and some from the one before. `"joint"`:
            all patches of all frames are one sequence, with an embedding of each frame's time; then `fusion_head` is
            `"meanP"`, as a video is one vector already. The last two need CLIP.
        fusion_head (`str`, defaults to `"Transf"`):
            What makes one vector of the frames' features. `"meanP"`: their mean; no parameters, no order. `"LSTM"`,
            `"Conv_1D"` (each channel over three frames), `"Transf"` (a transformer): added to the features, then the
            mean. `"Transf_cls"`: a transformer whose class token is the answer.
        conv1d_layout (`str`, defaults to `"transposed"`):
            Of Conv_1D. `"official"` repeats the official code, which reads the memory of (frames, channels) as
            (channels, frames), so that both are mixed up: for weights that were trained so. `"transposed"` does what
            is meant.
        num_frames (`int`, defaults to 8):
            Frames of a video: the processor's default. `"joint"` and `"Transf_cls"` take no more.
        num_fusion_layers (`int`, defaults to 6):
            Layers of Transf and Transf_cls.
        num_fusion_heads (`int`, *optional*):
            Attention heads of them. By default those of the text encoder in Transf, 8 in Transf_cls.
        fusion_intermediate_size (`int`, *optional*):
            Inner width of their MLPs. By default 4 times the joint width in Transf, 2048 in Transf_cls.
        fusion_positions (`int`, *optional*):
            Frames that Transf has positions for. By default as many as the text encoder has tokens (77).
        fusion_dropout (`float`, defaults to 0.1):
            Of Transf_cls, in training.
        shift_divisor (`int`, defaults to 8):
            1 / `shift_divisor` of the channels is shifted in each direction.
        score_scale (`float`, *optional*, defaults to 100.0):
            What cosine similarities are multiplied by before the softmax over classes. None: by the trained
            `exp(logit_scale)`, as in training.
        frozen_encoders (`str`, defaults to `"none"`):
            `"text"`: the text encoder does not train (the official `fix_text`). `"both"`: neither encoder does, only
            what was added to them, and `logit_scale`.
        num_class_features, num_class_templates (`int`, defaults to 0):
            Classes, and prompts of each, whose texts are stored in an [`ActionCLIPForVideoClassification`]; written by
            `set_classes`.

    Example:

    ```python
    >>> from hf_clip_variants import ActionCLIPConfig

    >>> config = ActionCLIPConfig(fusion_head="LSTM")
    >>> config.projection_dim, config.visual_prompt, config.num_frames
    (512, 'none', 8)
    ```
    """

    model_type = "clipv-actionclip"
    keys_to_ignore_at_inference = ["text_embeds", "video_embeds", "frame_features"]
    keys_to_ignore_at_inference += ["text_model_output", "vision_model_output", "hidden_states", "attentions"]
    read_first = ("visual_prompt", "fusion_head", "num_frames", "num_fusion_heads", "fusion_positions")

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    backbone_model_type: str = "clip"
    visual_prompt: str = "none"
    fusion_head: str = "Transf"
    conv1d_layout: str = "transposed"
    num_frames: int = 8
    num_fusion_layers: int = 6
    num_fusion_heads: int | None = None
    fusion_intermediate_size: int | None = None
    fusion_positions: int | None = None
    fusion_dropout: float | int = 0.1
    shift_divisor: int = 8
    score_scale: float | int | None = 100.0
    frozen_encoders: str = "none"
    num_class_features: int = 0
    num_class_templates: int = 0

    def __post_init__(self, **kwargs):
        self.make_encoder_configs(kwargs)
        super().__post_init__(**kwargs)
        self.logit_scale_init_value = float(self.logit_scale_init_value)

    def head_layers(self) -> CLIPTextConfig:
        """The layers of Transf and Transf_cls, as CLIP's layers are described. (transformers takes an attribute
        `fusion_config` for a table of kernels.)"""
        width, of_class_token = self.projection_dim, self.fusion_head == "Transf_cls"
        return CLIPTextConfig(
            hidden_size=width,
            intermediate_size=self.fusion_intermediate_size or (2048 if of_class_token else 4 * width),
            num_hidden_layers=self.num_fusion_layers,
            num_attention_heads=self._attention_heads(),
            max_position_embeddings=self.fusion_positions or self.text_config.max_position_embeddings,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-12,  # of Transf, as in the official code
            attention_dropout=0.0,
        )

    def _attention_heads(self) -> int:
        if self.num_fusion_heads is not None or self.fusion_head == "Transf_cls":
            return self.num_fusion_heads or 8
        width, heads = self.projection_dim, self.text_config.num_attention_heads
        return heads if width % heads == 0 else max(1, width // 64)

    def validate_choices(self):
        choices = (("visual_prompt", VISUAL_PROMPTS), ("fusion_head", FUSION_HEADS), ("conv1d_layout", CONV_LAYOUTS))
        for name, known in (*choices, ("frozen_encoders", FROZEN)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if self.visual_prompt != "none" and self.backbone_model_type != "clip":
            raise ValueError(
                f"visual_prompt: {self.visual_prompt!r} with {self.backbone_model_type}, expected 'none': the others "
                "need CLIP"
            )
        if self.visual_prompt == "joint" and self.fusion_head != "meanP":
            raise ValueError(
                f"fusion_head: {self.fusion_head!r} with visual_prompt 'joint', which makes one vector of a video by "
                "itself; want 'meanP'"
            )

    def validate_numbers(self):
        numbers = ["num_frames", "num_fusion_layers", "shift_divisor"]
        optional = ("num_fusion_heads", "fusion_intermediate_size", "fusion_positions")
        check_range(self, "", numbers + [name for name in optional if getattr(self, name) is not None])
        for name in ("num_class_features", "num_class_templates"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number >= 0")
        if (self.num_class_features == 0) != (self.num_class_templates == 0):
            raise ValueError(
                f"num_class_features, num_class_templates: {self.num_class_features}, {self.num_class_templates}, "
                "expected both or neither to be 0"
            )
        if not 0 <= self.fusion_dropout < 1:
            raise ValueError(f"fusion_dropout: {self.fusion_dropout}, expected a number in 0..1, without 1")
        if self.score_scale is not None and not 0 < self.score_scale < float("inf"):
            raise ValueError(f"score_scale: {self.score_scale}, expected a number > 0 or None")

    def validate_fusion(self):
        if not hasattr(self.text_config, "vocab_size") or self.fusion_head not in ("Transf", "Transf_cls"):
            return
        if self.projection_dim % self._attention_heads():
            raise ValueError(
                f"num_fusion_heads: {self._attention_heads()} does not divide {self.projection_dim}, the joint width "
                "(projection_dim)"
            )
        positions = self.fusion_positions or self.text_config.max_position_embeddings
        if self.fusion_head == "Transf" and positions < self.num_frames:
            raise ValueError(
                f"fusion_positions: {positions}, expected at least {self.num_frames} for num_frames={self.num_frames}"
                + ("" if self.fusion_positions else "; it is text_config.max_position_embeddings where not given")
            )

    def validate_shift(self):
        width = getattr(self.vision_config, "hidden_size", None)
        if self.visual_prompt == "shift" and width is not None and width // self.shift_divisor == 0:
            raise ValueError(
                f"shift_divisor: {self.shift_divisor}, expected at most {width}, the image encoder's width"
            )
        if self.visual_prompt == "shift" and self.shift_divisor < 2:
            raise ValueError(f"shift_divisor: {self.shift_divisor}, expected at least 2: it is used in two directions")


__all__ = ["CONV_LAYOUTS", "FROZEN", "FUSION_HEADS", "VISUAL_PROMPTS", "ActionCLIPConfig"]
