"""Weights of the official ActionCLIP ↔ `ActionCLIPModel`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files. An
official file holds two dictionaries: `model_state_dict`, a CLIP under OpenAI's names, some of them in half precision,
and `fusion_model_state_dict`, the head. The reader puts both in one, the head's with the dictionary's name in front.
Head and visual prompt follow from the names:

| names | |
|---|---|
| `fusion_model_state_dict.transformer.resblocks.` | head Transf |
| `fusion_model_state_dict.transformer.cls_token` | head Transf_cls |
| `fusion_model_state_dict.lstm_visual.` | head LSTM |
| `fusion_model_state_dict.shift.` | head Conv_1D, in the official layout |
| none of these | head meanP |
| `visual.transformer.resblocks.0.net.` | temporal shift |
| `visual.time_embedding` | joint |

Positions that a head does not read (`frame_position_embeddings` of all but Transf) are left out. A file of meanP
without a visual prompt is a CLIP: convert it as one, and use `ActionCLIPModel.from_clip`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..clip.convert_clip import (
    TEXT_SHAPES,
    VISION_SHAPES,
    NameTable,
    count_layers,
    infer_clip_config,
    layer_names,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
    vision_names,
)
from ..loading_and_saving.checkpoint_format import (
    LAYER_PROMPTS,
    LEARNED_CONTEXT,
    TIME_IN_CLIP,
    BuiltModel,
    ModelFormat,
    OfficialFile,
    Signature,
    clip_image_processor,
)
from ..video.example_videos import video_text_outputs, videos_and_texts
from ..video.processing_video import VideoTextProcessor
from ..video.video_processing import CLIPVideoProcessor
from .configuration_actionclip import ActionCLIPConfig
from .modeling_actionclip import ActionCLIPModel


_OF = "ActionCLIP"
_FUSION = "fusion_model_state_dict."
_POSITIONS = _FUSION + "frame_position_embeddings.weight"
_BLOCKS, _LAYERS = _FUSION + "transformer.resblocks.", _FUSION + "transformer.transformer_enc.layers."
_CLASS_TOKEN, _PLACES = _FUSION + "transformer.cls_token", _FUSION + "transformer.pos_embed"
_FIRST_MLP = _LAYERS + "0.linear1.weight"
_TIME = "visual.time_embedding"
_VISUAL, _SHIFTED = "visual.transformer.resblocks.{i}.", "visual.transformer.resblocks.{i}.net."
_LSTM = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
_ENCODER_LAYER = {
    f"{part}.{kind}": f"{part}.{kind}"
    for part in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
    for kind in ("weight", "bias")
} | {f"self_attn.in_proj_{kind}": f"self_attn.in_proj_{kind}" for kind in ("weight", "bias")}


def actionclip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    head_heads: int | None = None,
) -> ActionCLIPModel:
    """An `ActionCLIPModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Args:
        state_dict: both dictionaries in one, see the head of this file; any float dtype.
        vision_heads, text_heads: attention heads of the encoders; default: width / 64.
        head_heads: those of the fusion head; default: the text encoder's in Transf, 8 in Transf_cls.

    Raises:
        ValueError: names or shapes are not those of an ActionCLIP, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = actionclip_from_official(read_state_dict("vit-b-16-8f.pt"))  # doctest: +SKIP
    """
    options = {"vision_heads": vision_heads, "text_heads": text_heads, "head_heads": head_heads}
    config = ActionCLIPConfig(**infer_actionclip_config(state_dict, **options))
    model = ActionCLIPModel(config)
    model.load_state_dict(convert_actionclip_state_dict(state_dict, config))
    return model.eval()


def convert_actionclip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: ActionCLIPConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under `ActionCLIPModel`'s names, in float32. Strict: every weight of
    `ActionCLIPModel(config)` once, and no other but `unused_names`.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    with torch.device("meta"):
        expected = ActionCLIPModel(config).state_dict()
    unused = set(unused_names(state_dict))
    weights = {name: tensor for name, tensor in state_dict.items() if name not in unused}
    return rename_from_official(weights, name_table(config), expected, of=_OF)


def infer_actionclip_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    head_heads: int | None = None,
) -> dict:
    """The keyword arguments of `ActionCLIPConfig` that fit an official state dict; only shapes are read.

    Arguments and errors as for `actionclip_from_official`.
    """
    # Temporal shift wraps each block, which shapes do not show.
    clip = {name.replace(".net.", "."): tensor for name, tensor in state_dict.items() if not name.startswith(_FUSION)}
    shapes_of(clip, [*TEXT_SHAPES, *VISION_SHAPES], of=_OF)
    config = infer_clip_config(clip, vision_heads=vision_heads, text_heads=text_heads)
    head = _head_of(state_dict)
    config |= {"fusion_head": head, "num_fusion_heads": head_heads}
    if _TIME in state_dict:
        frames, _ = shapes_of(state_dict, [_TIME], of=_OF)[_TIME]
        config |= {"visual_prompt": "joint", "num_frames": frames}
    elif any(name.startswith(_SHIFTED.format(i=0)) for name in state_dict):
        config["visual_prompt"] = "shift"
    if head == "Conv_1D":
        config["conv1d_layout"] = "official"
    elif head == "Transf":
        positions, _ = shapes_of(state_dict, [_POSITIONS], of=_OF)[_POSITIONS]
        config |= {"num_fusion_layers": count_layers(state_dict, _BLOCKS), "fusion_positions": positions}
        config |= {"num_frames": min(8, positions)}
    elif head == "Transf_cls":
        shapes = shapes_of(state_dict, [_PLACES, _FIRST_MLP], of=_OF, dims={_PLACES: 3})
        config |= {"num_fusion_layers": count_layers(state_dict, _LAYERS), "num_frames": shapes[_PLACES][1] - 1}
        config["fusion_intermediate_size"] = shapes[_FIRST_MLP][0]
    return config


def _head_of(state_dict: Mapping[str, torch.Tensor]) -> str:
    prefixes = {"Transf": _BLOCKS, "Transf_cls": _CLASS_TOKEN}
    prefixes |= {"LSTM": _FUSION + "lstm_visual.", "Conv_1D": _FUSION + "shift."}
    for head, prefix in prefixes.items():
        if any(name.startswith(prefix) for name in state_dict):
            return head
    return "meanP"


def unused_names(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in an official file that its model does not use; see the head of this file."""
    return [_POSITIONS] if _POSITIONS in state_dict and _head_of(state_dict) != "Transf" else []


def to_official(state_dict: Mapping[str, torch.Tensor], config: ActionCLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion, without names that are not used; dtypes as they are."""
    return rename_to_official(state_dict, name_table(config), of=_OF)


def name_table(config: ActionCLIPConfig) -> NameTable:
    """All official names of a model, each with its one or three names here."""
    depth = config.vision_config.num_hidden_layers
    vision = vision_names(depth)
    if config.visual_prompt == "shift":
        of_blocks = _VISUAL.partition("{")[0]
        vision = {name: ours for name, ours in vision.items() if not name.startswith(of_blocks)}
        vision |= layer_names(_SHIFTED, "vision_model.encoder.layers.{i}.", depth)
    elif config.visual_prompt == "joint":
        vision[_TIME] = "vision_model.embeddings.time_embedding.weight"
    table = {
        name: tuple("clip." + part for part in ours) if isinstance(ours, tuple) else "clip." + ours
        for name, ours in (text_names(config.text_config.num_hidden_layers) | vision).items()
    }
    return table | fusion_names(config)


def fusion_names(config: ActionCLIPConfig) -> NameTable:
    """The part of `name_table` that is the head's."""
    head, depth = config.fusion_head, config.num_fusion_layers
    if head == "LSTM":
        return {f"{_FUSION}lstm_visual.{name}": f"fusion.lstm.{name}" for name in _LSTM}
    if head == "Conv_1D":
        return {_FUSION + "shift.weight": "fusion.conv.weight"}
    if head == "Transf":
        table: NameTable = {_POSITIONS: "fusion.layers.position_embedding.weight"}
        return table | layer_names(_BLOCKS + "{i}.", "fusion.layers.layers.{i}.", depth)
    if head == "Transf_cls":
        ours = "fusion.encoder."
        table = {_CLASS_TOKEN: ours + "class_token", _PLACES: ours + "position_embedding"}
        table |= layer_names(_LAYERS + "{i}.", ours + "encoder.layers.{i}.", depth, _ENCODER_LAYER)
        norm = _FUSION + "transformer.transformer_enc.norm."
        return table | {f"{norm}{kind}": f"{ours}encoder.norm.{kind}" for kind in ("weight", "bias")}
    return {}


def _build(official: OfficialFile) -> BuiltModel:
    model = actionclip_from_official(official.weights, **official.heads)
    if model.config.fusion_head == "Conv_1D":
        official.notes.append("conv1d_layout is official: weights were trained with channels and frames mixed up")
    return BuiltModel(model, unused_names(official.weights), {"num_frames": model.config.num_frames})


def _processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    """Frames as in the official test: the middle of each of `num_frames` parts, a little larger than what is kept."""
    settings = dict(settings)
    sampling = {"sampling_rule": "segments", "num_frames": settings.pop("num_frames", 8)}
    size = {"size": {"shortest_edge": image_size * 256 // 224}}
    videos = CLIPVideoProcessor.from_image_processor(clip_image_processor(image_size, size | settings), **sampling)
    return videos if tokenizer is None else VideoTextProcessor(videos, tokenizer)


CHECKPOINTS = ModelFormat(
    signature=Signature(
        every=(r"visual\.conv1", r"token_embedding", TIME_IN_CLIP), none=(LEARNED_CONTEXT, LAYER_PROMPTS)
    ),
    build=_build,
    outputs=("text_features", "frame_features", "logits_per_video", "logits_per_text"),
    make_processor=_processor,
    example_inputs=videos_and_texts,
    outputs_of=video_text_outputs,
)


__all__ = [
    "CHECKPOINTS",
    "actionclip_from_official",
    "convert_actionclip_state_dict",
    "fusion_names",
    "infer_actionclip_config",
    "name_table",
    "to_official",
    "unused_names",
]
