"""Weights of OFA-Sys/Chinese-CLIP ↔ transformers' `ChineseCLIPModel`, for the models with a Vision Transformer.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict` (which removes `module.`);
this file reads no files. The image encoder is OpenAI's and converts as in `clip/convert_clip.py`. Everything but the
number of attention heads follows from the shapes: heads are 64 wide, in the ViT-H image encoder 80.

Training with flash attention saves other names (`attn.Wqkv` in the image encoder, `attention.self.Wqkv` and
`attention.self.out_proj` in the text encoder); both kinds are read, `to_official` writes the usual one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
)

from ..clip.convert_clip import (
    VISION_SHAPES,
    NameTable,
    attention_heads,
    count_layers,
    fail_if_any,
    infer_vision_config,
    layer_names,
    rename_from_official,
    rename_to_official,
    shapes_of,
    vision_names,
)
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature


_NAME = "Chinese-CLIP"
_TOKENIZER = "OFA-Sys/chinese-clip-vit-base-patch16"
_POOLER = "bert.pooler."
_WORDS = "bert.embeddings.word_embeddings.weight"
_POSITIONS = "bert.embeddings.position_embeddings.weight"
_TYPES = "bert.embeddings.token_type_embeddings.weight"
_BLOCK = "bert.encoder.layer.{i}."
_HIDDEN = _BLOCK.format(i=0) + "intermediate.dense.weight"
_EMBEDDINGS = {
    name: name.replace("bert.", "text_model.", 1)
    for name in (_WORDS, _POSITIONS, _TYPES, "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias")
}
_OUTER = {"logit_scale": "logit_scale", "text_projection": "text_projection.weight"} | _EMBEDDINGS
_SAME_IN_BOTH = {
    f"{part}.{kind}": f"{part}.{kind}"
    for part in ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    for kind in ("weight", "bias")
}
_QKV = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
_LAYER = _SAME_IN_BOTH | {
    f"{part}.{kind}": f"{part}.{kind}" for part in (*_QKV, "attention.output.dense") for kind in ("weight", "bias")
}
_FLASH_LAYER = _SAME_IN_BOTH | {
    name: ours
    for kind in ("weight", "bias")
    for name, ours in {
        f"attention.self.Wqkv.{kind}": tuple(f"{part}.{kind}" for part in _QKV),
        f"attention.self.out_proj.{kind}": f"attention.output.dense.{kind}",
    }.items()
}


def chinese_clip_from_official(
    state_dict: Mapping[str, torch.Tensor], *, text_heads: int | None = None, vision_heads: int | None = None
) -> ChineseCLIPModel:
    """A `ChineseCLIPModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Image features equal the official `encode_image`, text features `encode_text`, if the text comes with its attention
    mask.

    Args:
        state_dict: the names of `clip_cn_*.pt` or of a training run with flash attention, any float dtype. A BERT
            pooler in it is unused, as officially.
        text_heads, vision_heads: attention heads; default `width // 64`, 16 for an image encoder of width 1280
            (ViT-H).

    Raises:
        ValueError: names or shapes are not those of a Chinese-CLIP with a Vision Transformer, or a weight is not
            finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = chinese_clip_from_official(read_state_dict("clip_cn_vit-b-16.pt"))  # doctest: +SKIP
    """
    config = ChineseCLIPConfig(
        **infer_chinese_clip_config(state_dict, text_heads=text_heads, vision_heads=vision_heads)
    )
    weights = convert_chinese_clip_state_dict(state_dict, config)
    model = ChineseCLIPModel(config)
    model.load_state_dict(weights)
    return model.eval()


def infer_chinese_clip_config(
    state_dict: Mapping[str, torch.Tensor], *, text_heads: int | None = None, vision_heads: int | None = None
) -> dict:
    """The keyword arguments of `ChineseCLIPConfig` (`text_config`, `vision_config`, `projection_dim`) that fit an
    official state dict.

    Arguments as for `chinese_clip_from_official`; only shapes are read, so tensors may be on the meta device.

    Raises:
        ValueError: the image encoder is a CLIP-ResNet, a name that the shapes are read from is missing, a patch grid
            that is not square, heads that do not divide the width.
    """
    weights = _usual_names(state_dict)
    shapes = shapes_of(weights, [*VISION_SHAPES, _WORDS, _POSITIONS, _TYPES, _HIDDEN, "text_projection"], of=_NAME)
    vocab_size, text_width = shapes[_WORDS]
    projection_dim = shapes["text_projection"][1]
    return {
        "projection_dim": projection_dim,
        "text_config": {
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": shapes[_HIDDEN][0],
            "num_hidden_layers": count_layers(weights, "bert.encoder.layer."),
            "num_attention_heads": attention_heads("text_heads", text_heads, text_width, _WORDS),
            "max_position_embeddings": shapes[_POSITIONS][0],
            "type_vocab_size": shapes[_TYPES][0],
        },
        "vision_config": infer_vision_config(weights, shapes, vision_heads) | {"projection_dim": projection_dim},
    }


def convert_chinese_clip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: ChineseCLIPConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under `ChineseCLIPModel`'s names, in float32. Strict: every weight of
    `ChineseCLIPModel(config)` once, no other.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    with torch.device("meta"):
        expected = ChineseCLIPModel(config).state_dict()
    weights = _usual_names(state_dict)
    flash = any(".attention.self.Wqkv." in name for name in weights)
    return rename_from_official(weights, _name_table(config, _FLASH_LAYER if flash else _LAYER), expected, of=_NAME)


def to_official(state_dict: Mapping[str, torch.Tensor], config: ChineseCLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of `convert_chinese_clip_state_dict`: `ChineseCLIPModel`'s weights under the official names, dtypes
    as they are.

    Raises:
        ValueError: missing names, or names that `ChineseCLIPModel(config)` does not have.
    """
    return rename_to_official(state_dict, _name_table(config, _LAYER), of=_NAME)


def _name_table(config: ChineseCLIPConfig, text_layer: NameTable) -> NameTable:
    """All official names of a model, each with its one or three names here."""
    depth = config.text_config.num_hidden_layers
    text = layer_names(_BLOCK, "text_model.encoder.layer.{i}.", depth, text_layer)
    return _OUTER | text | vision_names(config.vision_config.num_hidden_layers)


def _usual_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without BERT's pooler, and the image encoder's attention as `torch.nn.MultiheadAttention` names it.
    A CLIP-ResNet is refused here, by name.
    """
    if any(name.startswith("visual.layer1.") for name in state_dict):
        raise ValueError(
            f"{_NAME} state dict: the image encoder is a CLIP-ResNet (visual.layer1…, as in clip_cn_rn50.pt), which "
            "ChineseCLIPModel does not have: take a ViT checkpoint"
        )
    names = {
        name: name.replace(".attn.Wqkv.", ".attn.in_proj_") for name in state_dict if not name.startswith(_POOLER)
    }
    twice = [name for name, usual in names.items() if usual != name and usual in names]
    fail_if_any("also there as attn.in_proj_", twice, _NAME)
    return {usual: state_dict[name] for name, usual in names.items()}


def _build(official: OfficialFile) -> BuiltModel:
    model = chinese_clip_from_official(official.weights, **official.heads)
    return BuiltModel(model, unused=[name for name in official.weights if name.startswith(_POOLER)])


def _load_tokenizer(source: str | Path | None):
    """The official tokenizer, from the Hub; or one from a folder, a Hub id or the official code's `vocab.txt`."""
    if source is not None and str(source).endswith(".txt"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"tokenizer: {source} does not exist")
        return BertTokenizer(str(source))
    try:
        return AutoTokenizer.from_pretrained(source or _TOKENIZER)
    except (OSError, ValueError, TypeError) as error:
        if source is not None:
            raise
        raise OSError(
            f"tokenizer: {_TOKENIZER} is neither cached nor reachable; give cn_clip/clip/vocab.txt of the official "
            "code (--tokenizer), or 'none'"
        ) from error


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    """Its preprocessing resizes to a square and does not crop."""
    size = {"height": image_size, "width": image_size}
    image_processor = ChineseCLIPImageProcessor(size=size, do_center_crop=False)
    return image_processor if tokenizer is None else ChineseCLIPProcessor(image_processor, tokenizer)


def _zero_padding(model: ChineseCLIPModel) -> None:
    """transformers 5.23 zeroes the padding token's embedding on loading; it is masked everywhere."""
    model.text_model.embeddings.word_embeddings.weight.data[model.config.text_config.pad_token_id] = 0


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"visual\.", r"bert\.")),
    build=_build,
    load_tokenizer=_load_tokenizer,
    special_tokens=("pad_token_id",),
    max_text_length=52,
    make_processor=_make_processor,
    prompts=("猫的照片", "一张图", "海滩上的两只狗"),
    before_comparing=_zero_padding,
)
