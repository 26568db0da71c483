"""Weights of the official VideoCLIP, and of HowTo100M's S3D ↔ `VideoCLIPModel`.

The state dicts come from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files.
`checkpoint_best.pt` has the two BERTs and the layers between features and the video encoder, with `mmmodel.` before
each name or without; their poolers and `position_ids` are of no use, and left out. S3D-G (`s3d_howto100m.pth`) is a
file of its own, whose part for texts (`text_module.`) is left out. VideoCLIP's weights are for non-commercial use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..clip.convert_clip import (
    NameTable,
    attention_heads,
    bert_names,
    count_layers,
    rename_from_official,
    rename_to_official,
    shapes_of,
    weight_and_bias,
)
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from ..loading_and_saving.example_outputs import Tensors, processed_texts, random_texts
from ..video.example_videos import video_text_outputs
from .configuration_videoclip import NUM_BLOCKS, VideoCLIPConfig
from .modeling_videoclip import VideoCLIPModel
from .processing_videoclip import videoclip_processor


_OF, _OF_S3D = "VideoCLIP", "S3D"
_WRAPPER = "mmmodel."
_LONGEST_TEXT = 63  # 61 tokens between [CLS] and [SEP]
_VIDEO, _TEXT, _MLP = "video_encoder.bert.", "text_encoder.", "video_encoder.videomlp."
_UNUSED = tuple(f"{bert}{name}" for bert in (_VIDEO, _TEXT) for name in ("pooler.", "embeddings.position_ids"))
_UNUSED_S3D = ("text_module.",)
_BLOCKS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


# ---- names


def _encoder_names(config: VideoCLIPConfig) -> NameTable:
    table = weight_and_bias(f"{_MLP}linear1", "feature_projection.input_layer")
    table |= weight_and_bias(f"{_MLP}LayerNorm", "feature_projection.normalization")
    table |= weight_and_bias(f"{_MLP}linear2", "feature_projection.output_layer")
    table |= bert_names(_VIDEO, "video_model.", config.video_config.num_hidden_layers)
    return table | bert_names(_TEXT, "text_model.", config.text_config.num_hidden_layers)


def convolution_names(official: str, ours: str, number: int = 1) -> NameTable:
    """Of one convolution with its batch norm; `number` is the official one within its block."""
    table: NameTable = {f"{official}.conv{number}.weight": f"{ours}.convolution.weight"}
    return table | {f"{official}.bn{number}.{part}": f"{ours}.normalization.{part}" for part in _NORM}


def separable_names(official: str, ours: str) -> NameTable:
    return convolution_names(official, f"{ours}.spatial") | convolution_names(official, f"{ours}.temporal", 2)


def gate_names(official: str, ours: str) -> NameTable:
    return weight_and_bias(f"{official}.fc", f"{ours}.projection")


def inception_names(official: str, ours: str) -> NameTable:
    table = convolution_names(f"{official}.conv_b0", f"{ours}.point")
    for number in (1, 2):
        table |= convolution_names(f"{official}.conv_b{number}_a", f"{ours}.narrow_{number}")
        table |= separable_names(f"{official}.conv_b{number}_b", f"{ours}.wide_{number}")
    table |= convolution_names(f"{official}.conv_b3_b", f"{ours}.pooled")
    for number in range(4):
        table |= gate_names(f"{official}.gating_b{number}", f"{ours}.gates.{number}")
    return table


def s3d_names() -> NameTable:
    table = convolution_names("conv1", "stem") | convolution_names("conv_2b", "point")
    table |= separable_names("conv_2c", "separable") | gate_names("gating", "gate")
    for number, block in enumerate(_BLOCKS):
        table |= inception_names(f"mixed_{block}", f"blocks.{number}")
    return table | weight_and_bias("fc", "projection")


# ---- both ways


def videoclip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    s3d: Mapping[str, torch.Tensor] | None = None,
    text_heads: int | None = None,
    **fields: Any,
) -> VideoCLIPModel:
    """A `VideoCLIPModel` with official weights: float32, on the CPU, in eval mode.

    Args:
        state_dict: of VideoCLIP.
        s3d: of S3D; None: the model takes features only.
        text_heads: attention heads of both encoders; default: width / 64.
        fields: of `VideoCLIPConfig`, which no weights tell, such as `max_video_length`.

    Raises:
        ValueError: names or shapes are not those of a VideoCLIP or S3D, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = videoclip_from_official(read_state_dict("checkpoint_best.pt"))  # doctest: +SKIP
    """
    values = infer_videoclip_config(state_dict, text_heads=text_heads) | {"use_s3d": s3d is not None}
    if s3d is not None:
        values["vision_config"] = infer_s3d_config(s3d)
    config = VideoCLIPConfig(**values | fields)
    model = VideoCLIPModel(config)
    weights = convert_videoclip_state_dict(state_dict, config)
    model.load_state_dict(weights | ({} if s3d is None else convert_s3d_state_dict(s3d, config)))
    return model.eval()


def convert_videoclip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: VideoCLIPConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under `VideoCLIPModel`'s names, in float32, without S3D-G. Strict: every weight once, and
    no other but `unused_names`.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    unused = set(unused_names(state_dict))
    weights = {name.removeprefix(_WRAPPER): t for name, t in state_dict.items() if name not in unused}
    with torch.device("meta"):
        model = VideoCLIPModel(type(config)(**config.to_dict() | {"use_s3d": False}))
    return rename_from_official(weights, _encoder_names(config), model.state_dict(), of=_OF)


def convert_s3d_state_dict(state_dict: Mapping[str, torch.Tensor], config: VideoCLIPConfig) -> dict[str, torch.Tensor]:
    """The weights of an official S3D under `VideoCLIPModel`'s names, in float32. Strict, as above."""
    with torch.device("meta"):
        expected = VideoCLIPModel(type(config)(**config.to_dict() | {"use_s3d": True})).s3d.state_dict()
    weights = {name: t for name, t in state_dict.items() if not name.startswith(_UNUSED_S3D)}
    found = rename_from_official(weights, s3d_names(), expected, of=_OF_S3D)
    return {f"s3d.{name}": tensor for name, tensor in found.items()}


def unused_names(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in an official file that the model does not use: poolers and numbers of positions."""
    return [name for name in state_dict if name.removeprefix(_WRAPPER).startswith(_UNUSED)]


def infer_videoclip_config(state_dict: Mapping[str, torch.Tensor], *, text_heads: int | None = None) -> dict[str, Any]:
    """The keyword arguments of `VideoCLIPConfig` that fit an official state dict; only shapes are read.

    Arguments and errors as for `videoclip_from_official`.
    """
    weights = {name.removeprefix(_WRAPPER): tensor for name, tensor in state_dict.items()}
    projection = f"{_MLP}linear1.weight"
    sizes = [f"{bert}{name}" for bert in (_VIDEO, _TEXT) for name in ("embeddings.word_embeddings.weight",)]
    shapes = shapes_of(weights, [projection, *sizes], of=_OF)
    parts = {name: _infer_bert(weights, prefix, text_heads) for name, prefix in (("text", _TEXT), ("video", _VIDEO))}
    return {
        "text_config": parts["text"],
        "video_config": parts["video"],
        "feature_size": shapes[projection][1],
        "max_text_length": min(_LONGEST_TEXT, parts["text"]["max_position_embeddings"]),
        "use_s3d": False,
    }


def _infer_bert(weights: Mapping[str, torch.Tensor], prefix: str, heads: int | None) -> dict[str, int]:
    words, positions, types, inner = (
        f"{prefix}{name}.weight"
        for name in (
            "embeddings.word_embeddings",
            "embeddings.position_embeddings",
            "embeddings.token_type_embeddings",
            "encoder.layer.0.intermediate.dense",
        )
    )
    shapes = shapes_of(weights, [words, positions, types, inner], of=_OF)
    return {
        "vocab_size": shapes[words][0],
        "hidden_size": shapes[words][1],
        "max_position_embeddings": shapes[positions][0],
        "type_vocab_size": shapes[types][0],
        "intermediate_size": shapes[inner][0],
        "num_hidden_layers": count_layers(weights, f"{prefix}encoder.layer."),
        "num_attention_heads": attention_heads("text_heads", heads, shapes[words][1], words),
    }


def infer_s3d_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The keyword arguments of `VideoCLIPVisionConfig` that fit an official S3D's state dict."""
    first, second, last = "conv1.conv1.weight", "conv_2c.conv1.weight", "fc.weight"
    parts = ("b0", "b1_a", "b1_b", "b2_a", "b2_b", "b3_b")
    blocks = [[f"mixed_{block}.conv_{part}.conv1.weight" for part in parts] for block in _BLOCKS]
    names = [first, second, *(name for block in blocks for name in block)]
    shapes = shapes_of(state_dict, [*names, last], of=_OF_S3D, dims=dict.fromkeys(names, 5))
    return {
        "stem_width": shapes[first][0],
        "conv_width": shapes[second][0],
        "block_widths": [[shapes[name][0] for name in block] for block in blocks],
        "projection_dim": shapes[last][0],
    }


def to_official(state_dict: Mapping[str, torch.Tensor], config: VideoCLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, without S3D-G and without names that are not used; dtypes as they are."""
    weights = {name: tensor for name, tensor in state_dict.items() if not name.startswith("s3d.")}
    return rename_to_official(weights, _encoder_names(config), of=_OF)


def s3d_to_official(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """S3D-G's weights of a whole model under their official names."""
    weights = {name.removeprefix("s3d."): tensor for name, tensor in state_dict.items() if name.startswith("s3d.")}
    return rename_to_official(weights, s3d_names(), of=_OF_S3D)


# ---- for `convert`


def _s3d_file(path: Path, options: Mapping[str, Any]) -> list[Path]:
    return [Path(options["s3d"])] if "s3d" in options else []


def _build(official: OfficialFile) -> BuiltModel:
    s3d = official.read_weights(official.other_files[0]) if official.other_files else None
    known = {name: official.options[name] for name in ("text_heads",) if name in official.options}
    if seconds := official.options.get("max_video_length"):
        known |= {"max_video_length": seconds, "window_stride": max(1, seconds // 2)}
    model = videoclip_from_official(official.weights, s3d=s3d, **known)
    if s3d is None:
        official.notes.append("without S3D: the model takes features of seconds, not frames (--s3d FILE adds it)")
    dropped = unused_names(official.weights)
    dropped += [name for name in s3d or () if name.startswith(_UNUSED_S3D)]
    return BuiltModel(model, dropped, {"seconds": model.config.max_video_length})


def _load_tokenizer(source):
    return AutoTokenizer.from_pretrained("bert-base-uncased" if source is None else source)


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    return videoclip_processor(tokenizer, image_size, **settings)


def _example_inputs(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    """Features of two videos of three seconds, of noise, and the prompts or random tokens."""
    shape = (2, 3, model.config.feature_size)
    videos = {"video_features": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    texts = random_texts(model.config.text_config) if tokenizer is None else processed_texts(prompts, processor)
    return videos | texts


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(rf"({_WRAPPER})?video_encoder\.videomlp\.", rf"({_WRAPPER})?text_encoder\.")),
    build=_build,
    outputs=("text_features", "video_embeds", "logits_per_video", "logits_per_text"),
    other_files=_s3d_file,
    elsewhere={r"mixed_3b\.conv_b0": "It is S3D, a part of VideoCLIP: convert checkpoint_best.pt with --s3d FILE."},
    load_tokenizer=_load_tokenizer,
    special_tokens=(),
    max_text_length=_LONGEST_TEXT,
    make_processor=_make_processor,
    example_inputs=_example_inputs,
    outputs_of=video_text_outputs,
)

assert len(_BLOCKS) == NUM_BLOCKS


__all__ = [
    "CHECKPOINTS",
    "convert_s3d_state_dict",
    "convert_videoclip_state_dict",
    "infer_s3d_config",
    "infer_videoclip_config",
    "s3d_to_official",
    "to_official",
    "unused_names",
    "videoclip_from_official",
]
