"""Weights of the official GroupViT ↔ `GroupViTModel` (and `GroupViTForSemanticSegmentation`, which has the same).

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`, which never builds the
configuration object and the optimiser beside the weights; this file reads no files. Everything but the heads (64 wide
in the published models) follows from the names and shapes. Of the two published files, `group_vit_gcc_yfcc_30e` was
trained with noun prompts and has a temperature for them, `group_vit_gcc_redcap_30e` has none.

Checkpoints of transformers' `GroupViTModel` need no conversion: `from_pretrained` loads them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..clip.convert_clip import (
    TEXT_SHAPES,
    NameTable,
    attention_heads,
    count_layers,
    fail_if_any,
    infer_text_config,
    layer_names,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
)
from ..dense.image_processing_dense import DenseImageProcessor
from ..dense.processing_dense import DenseProcessor
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from .configuration_groupvit import GroupViTConfig, GroupViTVisionConfig
from .modeling_groupvit import GroupViTModel, GroupViTVisionModel


_OF = "GroupViT"
_IMAGE, _TEXT, _COUNTER = "img_encoder.", "text_encoder.", ".num_batches_tracked"
_SCALES = {name: name for name in ("logit_scale", "multi_label_logit_scale")}
_KINDS = ("weight", "bias")
# Convolutions over one position in the files, linear layers here.
_CONVOLUTION = re.compile(r"(img|text)_projector\.linear_(hidden\.0|out)\.weight")


def _both(names: Mapping[str, str]) -> NameTable:
    return {f"{official}.{kind}": f"{ours}.{kind}" for official, ours in names.items() for kind in _KINDS}


_EMBEDDINGS = {"pos_embed": "embeddings.position_embeddings"} | _both(
    {"patch_embed.proj": "embeddings.patch_embeddings.projection", "patch_embed.norm": "embeddings.layernorm"}
    | {"norm": "layernorm"}
)
_LAYER = _both(
    {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    | {name: name for name in ("mlp.fc1", "mlp.fc2")}
)
_LAYER |= {f"attn.qkv.{kind}": tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv") for kind in _KINDS}
_PROJECTIONS = {"img_projector": "visual_projection", "text_projector": "text_projection"}
_PATCHES, _MLP = _IMAGE + "patch_embed.proj.weight", _IMAGE + "layers.0.blocks.0.mlp.fc1.weight"
_POSITIONS = _IMAGE + "pos_embed"
_HIDDEN, _OUT = "img_projector.linear_hidden.0.weight", "img_projector.linear_out.weight"
# The image processor's settings for segmentation: mean and standard deviation as in training, not CLIP's, which
# conversions on the Hub have.
GROUPVIT_IMAGES = {
    "size": {"shortest_edge": 448, "longest_edge": 2048},
    "image_mean": [*IMAGENET_DEFAULT_MEAN],
    "image_std": [*IMAGENET_DEFAULT_STD],
    "resample": 2,
}
GROUPVIT_TEMPLATE = "a photo of a {}."


def groupvit_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> GroupViTModel:
    """A `GroupViTModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Args:
        state_dict: official names, any float dtype.
        vision_heads, text_heads: attention heads; default `width // 64`.

    Raises:
        ValueError: names or shapes are not those of a GroupViT, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = groupvit_from_official(read_state_dict("group_vit_gcc_yfcc_30e.pth"))  # doctest: +SKIP
    """
    values = infer_groupvit_config(state_dict, vision_heads=vision_heads, text_heads=text_heads)
    try:
        config = GroupViTConfig(**values)
    except StrictDataclassError as error:
        raise ValueError(f"{error.__cause__ or error} (inferred from the weights)") from error
    model = GroupViTModel(config)
    model.load_state_dict(convert_groupvit_state_dict(state_dict, config))
    return model.eval()


def vision_from_official(
    state_dict: Mapping[str, torch.Tensor], *, vision_heads: int | None = None
) -> GroupViTVisionModel:
    """The image encoder of an official checkpoint alone; names with or without `img_encoder.`. Arguments and errors as
    for `groupvit_from_official`.
    """
    own = {name: tensor for name, tensor in state_dict.items() if name.startswith(_IMAGE)}
    own = own or {_IMAGE + name: tensor for name, tensor in state_dict.items()}
    dims = {_PATCHES: 4, _POSITIONS: 3}
    shapes = shapes_of(own, [_PATCHES, _POSITIONS, _MLP], of=_OF, dims=dims)
    config = GroupViTVisionConfig(**_vision_config(own, shapes, vision_heads))
    model = GroupViTVisionModel(config)
    model.load_state_dict(rename_from_official(own, _vision_names(config, ""), model.state_dict(), of=_OF))
    return model.eval()


def infer_groupvit_config(
    state_dict: Mapping[str, torch.Tensor], *, vision_heads: int | None = None, text_heads: int | None = None
) -> dict[str, Any]:
    """The keyword arguments of `GroupViTConfig` that fit an official state dict; tensors may be on the meta device.

    Arguments and errors as for `groupvit_from_official`.
    """
    _check_architecture(state_dict)
    dims = {_PATCHES: 4, _POSITIONS: 3, _HIDDEN: 3, _OUT: 3}
    shapes = shapes_of(state_dict, [_PATCHES, _POSITIONS, _MLP, _HIDDEN, _OUT], of=_OF, dims=dims)
    joint = shapes[_OUT][0]
    text = {name.removeprefix(_TEXT): tensor for name, tensor in state_dict.items() if name.startswith(_TEXT)}
    text_shapes = shapes_of(text, [name for name in TEXT_SHAPES if name != "text_projection"], of=_OF)
    text_shapes["text_projection"] = (text_shapes["token_embedding.weight"][1], joint)
    return {
        "projection_dim": joint,
        "projection_intermediate_dim": shapes[_HIDDEN][0],
        "num_noun_prompts": 3 if "multi_label_logit_scale" in state_dict else 0,
        "text_config": infer_text_config(text, text_shapes, text_heads),
        "vision_config": _vision_config(state_dict, shapes, vision_heads),
    }


def convert_groupvit_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: GroupViTConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict: each of `GroupViTModel(config)` once, no other.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    _check_architecture(state_dict)
    with torch.device("meta"):
        expected = GroupViTModel(config).state_dict()
    weights = {name: _without_position(name, tensor) for name, tensor in state_dict.items()}
    return rename_from_official(weights, _name_table(config), expected, of=_OF)


def to_official(
    state_dict: Mapping[str, torch.Tensor], config: GroupViTConfig, *, buffers: bool = True
) -> dict[str, torch.Tensor]:
    """The inverse of `convert_groupvit_state_dict`: official names and shapes, dtypes as they are.

    Args:
        buffers: False for what only parameters have, such as gradients.

    Raises:
        ValueError: missing names, or names that `GroupViTModel(config)` does not have.
    """
    table = _name_table(config)
    if not buffers:
        table = {name: ours for name, ours in table.items() if ".running_" not in name and _COUNTER not in name}
    official = rename_to_official(state_dict, table, of=_OF)
    return {n: tensor[..., None] if _CONVOLUTION.fullmatch(n) else tensor for n, tensor in official.items()}


def _without_position(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[..., 0] if _CONVOLUTION.fullmatch(name) and tensor.dim() == 3 and tensor.shape[-1] == 1 else tensor


def _check_architecture(state_dict: Mapping[str, torch.Tensor]):
    for start, what in {
        "vision_model.": "names of transformers: GroupViTModel.from_pretrained loads such folders",
        "module.": "names with `module.`: hf_clip_variants.conversion.checkpoint_reader.read_state_dict removes it",
        "visual.": "a CLIP: clip_from_official takes it",
    }.items():
        if any(name.startswith(start) for name in state_dict):
            raise ValueError(f"{_OF} state dict: {start}…: {what}")


def _vision_config(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple], heads: int | None) -> dict:
    width, channels, _, patch = shapes[_PATCHES]
    grid = math.isqrt(shapes[_POSITIONS][1])
    if grid * grid != shapes[_POSITIONS][1]:
        raise ValueError(f"{_POSITIONS}: {shapes[_POSITIONS][1]} patch positions, expected a square number")
    depths, tokens, groups, ratios = [], [], [], [0.5, 4.0]
    for stage in range(count_layers(weights, _IMAGE + "layers.")):
        prefix = f"{_IMAGE}layers.{stage}."
        depths.append(count_layers(weights, prefix + "blocks."))
        grouping = any(name.startswith((prefix + "downsample.", prefix + "group_token")) for name in weights)
        if not grouping:
            tokens.append(0)
            groups.append(groups[-1] if groups else 1)  # not read
            continue
        token, mixer = prefix + "group_token", prefix + "downsample.mlp_inter."
        channel = prefix + "downsample.mlp_channels.fc1.weight"
        names = [token, mixer + "fc1.weight", mixer + "fc2.weight", channel]
        found = shapes_of(weights, names, of=_OF, dims={token: 3})
        tokens.append(found[token][1])
        groups.append(found[names[2]][0])
        ratios = [found[names[1]][0] / width, found[channel][0] / width]
    if not any(tokens):
        fail_if_any("missing", [f"{_IMAGE}layers.0.group_token"], _OF)
    return {
        "hidden_size": width,
        "intermediate_size": shapes[_MLP][0],
        "depths": depths,
        "num_group_tokens": tokens,
        "num_output_groups": groups,
        "num_attention_heads": attention_heads("vision_heads", heads, width, _PATCHES),
        "image_size": patch * grid,
        "patch_size": patch,
        "num_channels": channels,
        "assign_mlp_ratio": ratios,
    }


def _name_table(config: GroupViTConfig) -> NameTable:
    """Official name -> ours, for a whole model."""
    text = text_names(config.text_config.num_hidden_layers)
    outside = ("logit_scale", "text_projection")
    table = {_TEXT + name: ours for name, ours in text.items() if name not in outside}
    table |= _vision_names(config.vision_config, "vision_model.")
    for official, ours in _PROJECTIONS.items():
        parts = _both({"linear_hidden.0": "0", "linear_hidden.1": "1", "linear_out": "3"})
        statistics = ("running_mean", "running_var", _COUNTER.lstrip("."))
        parts |= {f"linear_hidden.1.{name}": f"1.{name}" for name in statistics}
        table |= {f"{official}.{name}": f"{ours}.{one}" for name, one in parts.items()}
    return table | {n: ours for n, ours in _SCALES.items() if n == "logit_scale" or config.has_multi_label_scale}


def _vision_names(config: GroupViTVisionConfig, prefix: str) -> NameTable:
    table = {_IMAGE + name: prefix + ours for name, ours in _EMBEDDINGS.items()}
    before = 0
    for stage, (depth, tokens) in enumerate(zip(config.depths, config.num_group_tokens, strict=True)):
        official, ours = f"{_IMAGE}layers.{stage}.", f"{prefix}encoder.stages.{stage}."
        table |= layer_names(official + "blocks.{i}.", ours + "layers.{i}.", depth, _LAYER)
        table |= {official + name: ours + one for name, one in _stage_names(bool(tokens), bool(before)).items()}
        before = tokens
    return table


def _stage_names(has_tokens: bool, has_projector: bool) -> NameTable:
    """Official name -> ours of what a stage has besides its layers."""
    if not has_tokens:
        return {}
    block = ("norm_tokens", "mlp_inter.fc1", "mlp_inter.fc2", "norm_post_tokens", "norm_x", "norm_new_x")
    block += ("mlp_channels.fc1", "mlp_channels.fc2", *(f"assign.{part}" for part in _ASSIGN))
    block += tuple(f"pre_assign_attn.{part}" for part in _CROSS)
    names = {f"downsample.{name}": f"downsample.{name}" for name in block}
    names["downsample.pre_assign_attn.attn.proj"] = "downsample.pre_assign_attn.attn.out_proj"
    if has_projector:
        names |= {f"group_projector.{name}": f"group_projector.{name}" for name in ("0", "1.fc1", "1.fc2")}
    return {"group_token": "group_token"} | _both(names)


_ASSIGN = ("q_proj", "k_proj", "v_proj", "proj")
_CROSS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "norm2", "mlp.fc1", "mlp.fc2", "norm_post")


def _build(official: OfficialFile) -> BuiltModel:
    return BuiltModel(groupvit_from_official(official.weights, **official.heads))


def groupvit_processor(tokenizer=None, **settings: Any) -> DenseProcessor | DenseImageProcessor:
    """The processor of segmentation, or without a tokenizer the image processor; `settings` differ from
    `GROUPVIT_IMAGES`.

    For transformers' checkpoints as well, whose own processors have CLIP's mean and standard deviation, and squares.
    """
    images = DenseImageProcessor(**GROUPVIT_IMAGES | settings)
    return images if tokenizer is None else DenseProcessor(images, tokenizer, templates=GROUPVIT_TEMPLATE)


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    return groupvit_processor(tokenizer, **settings)


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"img_encoder\.layers\.\d+\.group_token", r"text_encoder\.", r"img_projector\.")),
    build=_build,
    make_processor=_make_processor,
)


__all__ = [
    "CHECKPOINTS",
    "GROUPVIT_IMAGES",
    "convert_groupvit_state_dict",
    "groupvit_from_official",
    "groupvit_processor",
    "infer_groupvit_config",
    "to_official",
    "vision_from_official",
]
