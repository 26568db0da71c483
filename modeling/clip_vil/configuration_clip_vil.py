"""Configuration of CLIP-ViL: a BERT, CLIP's image encoder whose grid it reads, and a decoder for captions."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, CLIPVisionConfig, MBartConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from ..clip_resnet.configuration_clip_resnet import CLIPResNetVisionConfig
from ..loading_and_saving.configuration_checks import (
    LARGEST,
    LARGEST_LAYERS,
    check_encoder_types,
    check_range,
    checked,
    without_kernels,
)


POSITION_RULES = ("resized", "flat")
ENTAILMENT = ("entailment", "neutral", "contradiction")
_RESNET, _VIT = CLIPResNetVisionConfig.model_type, "clip_vision_model"
_KINDS = {"text_config": ("bert",), "vision_config": (_RESNET, _VIT), "decoder_config": ("mbart",)}
# The official captioner: six layers each, 512 wide, pre-norm, dropout 0.1.
_DECODER = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "max_position_embeddings": 512}
_DECODER |= {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "activation_function": "relu"}
_DECODER |= {"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "dropout": 0.1}
_DECODER |= {"forced_eos_token_id": None}  # MBart's 2 would be written at the longest length


@checked
@strict
class ClipViLConfig(PreTrainedConfig):
    r"""
    Configuration of CLIP-ViL. The defaults are the paper's CLIP-ViL_p with an RN50.

    The published image encoders: RN50 (the default), RN50x4 (`ClipViLConfig.rn50x4`), and ViT-B/32
    (`ClipViLConfig.vit_b32`).

    Args:
        text_config (`dict` or `BertConfig`): the BERT that reads words and grid; by default BERT base.
        vision_config (`dict`, [`CLIPResNetVisionConfig`] or `CLIPVisionConfig`):
            CLIP's image encoder; in a dictionary, `model_type` chooses. Of a ResNet the last map is read, before the
            attention pooling; of a Vision Transformer all tokens with the class token, normalised, not projected.
        decoder_config (`dict` or `MBartConfig`):
            The Transformer of [`ClipViLForImageCaptioning`]; other models do not have it. Its vocabulary is that of
            `text_config`.
        use_grid_position (`bool`, defaults to `True`): a ResNet's grid gets learned positions of rows and columns.
        grid_position_size (`int`, defaults to 25): the most rows, and the most columns, that have a position.
        vit_positions (`"resized"` or `"flat"`, defaults to `"resized"`):
            Positions of a Vision Transformer's grid. `"resized"`: CLIP's, bilinearly resized to the grid of the image,
            the class token's kept. `"flat"`: what the official code does, where the resized table is lost: a table
            of `num_flat_positions` new positions, which starts at zero and is given to tokens in their order, whatever
            the shape of the grid.
        num_flat_positions (`int`, defaults to 240): of `"flat"`, without the class token.
        num_visual_tokens_train (`int`, *optional*):
            In training, so many tokens of the grid are drawn for each image; 100 in the paper's pre-training, all in
            its fine-tuning.
        mask_padding (`bool`, defaults to `False`):
            Words do not look at tokens of the grid that hold nothing but the image's padding (`pixel_mask`). The
            published models do look.
        freeze_vision (`bool`, defaults to `False`):
            The image encoder gets no gradients, and stays in eval mode.
        max_text_length (`int`, defaults to 20): the longest text in tokens, with [CLS] and [SEP].
        cls_token_id, sep_token_id (`int`, default to 101 and 102): with which captions begin and end.
        tie_word_embeddings (`bool`, defaults to `True`): masked words are predicted with the word embeddings.
        num_labels, id2label, label2id:
            The answers. The published heads have 3129 for VQA, 9500 in pre-training, 3 for entailment.
        problem_type (`str`, *optional*):
            `"single_label_classification"`: the answers' scores add up to 1 in pipelines; else each is between 0 and
            1, as for soft labels.

    Example:

    ```python
    >>> from hf_clip_variants import ClipViLConfig

    >>> config = ClipViLConfig.rn50x4()
    >>> config.visual_width, config.grid_stride, config.text_config.num_hidden_layers
    (2560, 32, 12)
    ```
    """

    model_type = "clipv-clip_vil"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(AutoConfig, model_type="bert"),
        # A type that transformers knows by itself, as exported code wants; the default below is a ResNet.
        "vision_config": SubConfigSpec(AutoConfig, model_type=_VIT),
        "decoder_config": SubConfigSpec(AutoConfig, model_type="mbart", init_kwargs=_DECODER),
    }
    keys_to_ignore_at_inference = ["vision_output", "language_output", "pooler_output"]

    text_config: dict | BertConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    decoder_config: dict | MBartConfig | None = None
    use_grid_position: bool = True
    grid_position_size: int = 25
    vit_positions: str = "resized"
    num_flat_positions: int = 240
    num_visual_tokens_train: int | None = None
    mask_padding: bool = False
    freeze_vision: bool = False
    max_text_length: int = 20
    cls_token_id: int = 101
    sep_token_id: int = 102
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_encoder_types({part: getattr(self, part) for part in _KINDS}, _KINDS)
        if not isinstance(self.text_config, PreTrainedConfig):
            given = {name: value for name, value in (self.text_config or {}).items() if name != "model_type"}
            self.text_config = BertConfig(**given)
        if not isinstance(self.vision_config, PreTrainedConfig):
            given = dict(self.vision_config or {})
            kind = CLIPVisionConfig if given.pop("model_type", _RESNET) == _VIT else CLIPResNetVisionConfig
            self.vision_config = kind(**given)
        if not isinstance(self.decoder_config, PreTrainedConfig):
            given = {name: value for name, value in (self.decoder_config or {}).items() if name != "model_type"}
            of_text = {"vocab_size": self.text_config.vocab_size, "pad_token_id": self.text_config.pad_token_id}
            self.decoder_config = MBartConfig(**_DECODER | of_text | given)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but a file cannot choose which code runs: the parts are the ones named above."""
        check_encoder_types(config_dict, _KINDS)
        return super().from_dict(without_kernels(config_dict), **kwargs)

    @classmethod
    def part_classes(cls, values) -> dict[str, type]:
        """The parts' configurations, for `check_values`."""
        vision = values.get("vision_config")
        kind = vision.get("model_type") if isinstance(vision, dict) else getattr(vision, "model_type", _RESNET)
        vision_class = CLIPVisionConfig if kind == _VIT else CLIPResNetVisionConfig
        return {"text_config": BertConfig, "vision_config": vision_class, "decoder_config": MBartConfig}

    @classmethod
    def rn50x4(cls, **fields: Any) -> "ClipViLConfig":
        """With the image encoder of the paper's best model."""
        vision = {"hidden_size": 2560, "depths": [4, 6, 10, 6], "num_attention_heads": 40, "image_size": 288}
        return cls(**{"vision_config": vision | {"projection_dim": 640}} | fields)

    @classmethod
    def vit_b32(cls, **fields: Any) -> "ClipViLConfig":
        """With a Vision Transformer of 32 pixels a patch."""
        return cls(**{"vision_config": {"model_type": _VIT}} | fields)

    @property
    def is_resnet(self) -> bool:
        """Whether the grid is a ResNet's."""
        return self.vision_config.model_type == _RESNET

    @property
    def has_class_token(self) -> bool:
        """Whether a token stands before the grid's."""
        return not self.is_resnet

    @property
    def grid_stride(self) -> int:
        """Pixels of a cell of the grid, in each direction."""
        return 32 if self.is_resnet else self.vision_config.patch_size

    @property
    def visual_width(self) -> int:
        """Of a token of the grid, before it is brought to the BERT's."""
        return self.vision_config.hidden_size

    @property
    def hidden_size(self) -> int:
        """The BERT's."""
        return self.text_config.hidden_size

    @property
    def num_attention_heads(self) -> int:
        """The BERT's."""
        return self.text_config.num_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """The BERT's."""
        return self.text_config.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        """The BERT's."""
        return self.text_config.vocab_size

    def validate_numbers(self):
        check_range(self, "", ("grid_position_size", "num_flat_positions", "max_text_length"))
        if self.num_visual_tokens_train is not None:
            check_range(self, "", ("num_visual_tokens_train",))
        if self.vit_positions not in POSITION_RULES:
            raise ValueError(f"vit_positions: {self.vit_positions!r}, expected one of {', '.join(POSITION_RULES)}")
        for name in ("cls_token_id", "sep_token_id"):  # compared with the vocabulary where captions are written
            if not 0 <= getattr(self, name) <= 10 * LARGEST:
                raise ValueError(f"{name}: {getattr(self, name)}, expected the number of a token")
        if self.max_text_length < 3:
            raise ValueError(f"max_text_length: {self.max_text_length}, expected at least 3: [CLS], a token, [SEP]")

    def validate_parts(self):
        text, vision, decoder = self.text_config, self.vision_config, self.decoder_config
        if not all(isinstance(part, PreTrainedConfig) for part in (text, vision, decoder)):
            return  # still dictionaries
        if text.is_decoder or text.add_cross_attention:
            raise ValueError("text_config: got a decoder, expected an encoder (is_decoder=False)")
        if text.type_vocab_size < 1:
            raise ValueError(f"text_config.type_vocab_size: {text.type_vocab_size}, expected at least 1")
        if text.max_position_embeddings < self.max_text_length:
            raise ValueError(
                f"text_config.max_position_embeddings: {text.max_position_embeddings}, expected at least "
                f"{self.max_text_length} (max_text_length)"
            )
        if vision.num_channels != 3:
            raise ValueError(f"vision_config.num_channels: {vision.num_channels}, expected 3: images are RGB")
        padding = text.pad_token_id
        if padding is not None and not 0 <= padding < text.vocab_size:
            raise ValueError(f"text_config.pad_token_id: {padding}, expected 0..{text.vocab_size - 1}, or null")
        if decoder.vocab_size != text.vocab_size:
            raise ValueError(
                f"decoder_config.vocab_size: {decoder.vocab_size}, expected {text.vocab_size}, that of text_config"
            )
        if decoder.max_position_embeddings < self.max_text_length:
            raise ValueError(
                f"decoder_config.max_position_embeddings: {decoder.max_position_embeddings}, expected at least "
                f"{self.max_text_length} (max_text_length)"
            )
        self._check_decoder(decoder)
        for name in ("image_size", "patch_size"):
            if not self.is_resnet and not isinstance(getattr(vision, name), int):
                raise ValueError(f"vision_config.{name}: {getattr(vision, name)}, expected a whole number of pixels")

    @staticmethod
    def _check_decoder(decoder: PreTrainedConfig) -> None:
        """ValueError for sizes that no captioner has: its layers are built one by one, and none is refused."""
        most = {"d_model": 65_536, "max_position_embeddings": LARGEST}
        for part in ("encoder", "decoder"):
            most |= {f"{part}_layers": LARGEST_LAYERS, f"{part}_ffn_dim": LARGEST}
            most |= {f"{part}_attention_heads": 65_536}
        for name, largest in most.items():
            value = getattr(decoder, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                raise ValueError(f"decoder_config.{name}: {value!r}, expected a whole number in 1..{largest}")
        for name in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
            value = getattr(decoder, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"decoder_config.{name}: {value!r}, expected a number in 0..1")
        if not isinstance(decoder.activation_function, str) or decoder.activation_function not in ACT2FN:
            raise ValueError(f"decoder_config.activation_function: {decoder.activation_function!r} is unknown")
        if not isinstance(decoder.init_std, int | float) or not 0 <= decoder.init_std <= 1e6:
            raise ValueError(f"decoder_config.init_std: {decoder.init_std!r}, expected a number >= 0")
        padding = decoder.pad_token_id
        if padding is not None and not 0 <= padding < decoder.vocab_size:
            raise ValueError(f"decoder_config.pad_token_id: {padding}, expected 0..{decoder.vocab_size - 1}, or null")
        for part in ("encoder", "decoder"):
            heads = getattr(decoder, f"{part}_attention_heads")
            if heads < 1 or decoder.d_model % heads:
                raise ValueError(
                    f"decoder_config.{part}_attention_heads: {heads} does not divide d_model ({decoder.d_model})"
                )


__all__ = ["ENTAILMENT", "POSITION_RULES", "ClipViLConfig"]
