"""Weights of the official LSeg ↔ `LSegForSemanticSegmentation`, for all variants of the repository.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`, which reads Lightning's
`.ckpt` without running what is in it; this file reads no files. A checkpoint holds three models, whose names start
with `clip_pretrained.` (a whole CLIP, of which LSeg uses the text encoder), `pretrained.` (the image encoder) and
`scratch.` (the decoder); Lightning puts `net.` before all of them. The constant 1 / 0.07 is in no file.

Everything follows from names and shapes but these, which have options:

- attention heads: width / 64 in every published model;
- the layers that the decoder reads (`hooks`): 5, 11, 17, 23 of 24 and 2, 5, 8, 11 of 12;
- kind, depth and activation of the block of spatial regularisation, where there is one;
- whether the class token is added or ignored, where it is not projected.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

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
from ..loading_and_saving.example_outputs import class_embedding_outputs
from .configuration_lseg import LSegConfig
from .modeling_lseg import LSegForSemanticSegmentation


_OF = "LSeg"
_WRAPPER, _CLIP, _VIT, _ENCODER, _SCRATCH = "net.", "clip_pretrained.", "pretrained.model.", "pretrained.", "scratch."
# In the file and not used: CLIP's image encoder and temperature, sizes in an archive, the ViT's ImageNet classifier.
_UNUSED = (_CLIP + "visual.", _CLIP + "logit_scale", _VIT + "head.")
_UNUSED += tuple(_CLIP + name for name in ("input_resolution", "context_length", "vocab_size"))
# Batch normalisation's count of batches, which is not used here.
_COUNTER = ".num_batches_tracked"
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_AFFINE = ("weight", "bias")

_VIT_OUTER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_VIT_LAYER: NameTable = {
    f"{official}.{kind}": f"{ours}.{kind}"
    for official, ours in {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items()
    for kind in _AFFINE
}
_VIT_LAYER |= {
    f"attn.qkv.{kind}": tuple(f"attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
    for kind in _AFFINE
}
_VIT_DIMS = {_VIT + "pos_embed": 3, _VIT + "patch_embed.proj.weight": 4, _VIT + "blocks.0.mlp.fc1.weight": 2}
_HEAD = _SCRATCH + "head1.weight"
_FUSION = [f"{_SCRATCH}layer{level}_rn.weight" for level in (1, 2, 3, 4)]
_BLOCK = _SCRATCH + "head_block.depthwise.depthwise."
_STAGES = ["layer1.4.", "layer2.", "layer3.", "layer4."]  # of torchvision's ResNet; its stem is layer1.0 and layer1.1
_STAGE_END = ".0.conv3.weight"


def lseg_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hooks: Sequence[int] | None = None,
    readout: str | None = None,
    head_block: str | None = None,
    block_depth: int | None = None,
    block_activation: str | None = None,
) -> LSegForSemanticSegmentation:
    """An `LSegForSemanticSegmentation` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Its scores equal those of the official `LSegNet`, `LSegNetZS` or `LSegRNNetZS` in float32. (On a GPU, the official
    code rounds pixels to float16 before it compares them; scores then differ by up to 2e-3.)

    Args:
        state_dict: official names, with Lightning's `net.` or without; any float dtype.
        vision_heads, text_heads: attention heads; default `width // 64`.
        hooks: the four layers of the Vision Transformer that the decoder reads, from 0; default: after each quarter.
        readout: `"ignore"` or `"add"`, of a model whose class token is not projected; default `"ignore"`.
        head_block: `"bottleneck"` (the official `arch_option` 1) or `"depthwise"` (2). Needed where the file has a
            block of spatial regularisation.
        block_depth, block_activation: of that block; the official defaults are 0 and `"lrelu"`.

    Raises:
        ValueError: names or shapes are not those of an LSeg, a weight is not finite, or an option is needed or does
            not fit.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = lseg_from_official(read_state_dict("demo_e200.ckpt"))  # doctest: +SKIP
    """
    options = {"vision_heads": vision_heads, "text_heads": text_heads, "hooks": hooks, "readout": readout}
    options |= {"head_block": head_block, "block_depth": block_depth, "block_activation": block_activation}
    config = LSegConfig(**infer_lseg_config(state_dict, **options))
    weights = convert_lseg_state_dict(state_dict, config)
    model = LSegForSemanticSegmentation(config)
    model.load_state_dict(weights)
    return model.eval()


def infer_lseg_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hooks: Sequence[int] | None = None,
    readout: str | None = None,
    head_block: str | None = None,
    block_depth: int | None = None,
    block_activation: str | None = None,
) -> dict[str, Any]:
    """The keyword arguments of `LSegConfig` that fit an official state dict.

    Arguments as for `lseg_from_official`; only shapes are read, so tensors may be on the meta device.

    Raises:
        ValueError: another architecture, a name that the shapes are read from is missing, a patch grid that is not
            square, heads that do not divide the width, an option that is needed or does not fit.
    """
    weights = _native(state_dict)
    shapes = shapes_of(weights, [_HEAD, *_FUSION], of=_OF, dims=dict.fromkeys([_HEAD, *_FUSION], 4))
    text = infer_text_config(weights, shapes_of(weights, TEXT_SHAPES, of=_OF), text_heads)
    config: dict[str, Any] = {
        "projection_dim": shapes[_HEAD][0],
        "fusion_hidden_size": shapes[_HEAD][1],
        "neck_hidden_sizes": [shapes[name][1] for name in _FUSION],
        "text_config": text | {"hidden_act": "quick_gelu"},
    }
    if text["projection_dim"] != shapes[_HEAD][0]:
        raise ValueError(
            f"{_HEAD}: {shapes[_HEAD][0]} channels, but the text encoder projects to {text['projection_dim']}"
        )
    if _ENCODER + "layer1.0.weight" in weights:
        config["vision_config"] = _infer_resnet(weights)
    else:
        config["vision_config"] = _infer_vit(weights, vision_heads)
        projects = any(".0.project.0." in name for name in weights)
        if projects and readout not in (None, "project"):
            raise ValueError(f"readout: {readout!r}, but the file projects the class token")
        config["readout_type"] = "project" if projects else readout or "ignore"
    if hooks is not None:
        config["backbone_out_indices"] = list(hooks)
    return config | _infer_block(weights, head_block, block_depth, block_activation)


def _infer_vit(weights: Mapping[str, torch.Tensor], heads: int | None) -> dict[str, Any]:
    positions, patches, mlp = _VIT_DIMS
    shapes = shapes_of(weights, list(_VIT_DIMS), of=_OF, dims=_VIT_DIMS)
    width, channels, _, patch = shapes[patches]
    grid = math.isqrt(max(shapes[positions][1] - 1, 0))
    if grid < 1 or grid * grid != shapes[positions][1] - 1:
        raise ValueError(
            f"{positions}: {shapes[positions][1] - 1} patch positions, expected a square number (and one for the "
            "class)"
        )
    return {
        "model_type": "dpt",
        "hidden_size": width,
        "intermediate_size": shapes[mlp][0],
        "num_hidden_layers": count_layers(weights, _VIT + "blocks."),
        "num_attention_heads": attention_heads("vision_heads", heads, width, patches),
        "image_size": patch * grid,
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
    }


def _infer_resnet(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stem, ends = _ENCODER + "layer1.0.weight", [_ENCODER + stage.rstrip(".") + _STAGE_END for stage in _STAGES]
    shapes = shapes_of(weights, [stem, *ends], of=_OF, dims=dict.fromkeys([stem, *ends], 4))
    return {
        "model_type": "resnet",
        "num_channels": shapes[stem][1],
        "embedding_size": shapes[stem][0],
        "hidden_sizes": [shapes[name][0] for name in ends],
        "depths": [count_layers(weights, _ENCODER + stage) for stage in _STAGES],
        "image_size": 480,
    }


def _infer_block(weights, kind: str | None, depth: int | None, activation: str | None) -> dict[str, Any]:
    given = {"head_block": kind, "block_depth": depth, "block_activation": activation}
    given = {name: value for name, value in given.items() if value is not None}
    if not any(name.startswith(_BLOCK) for name in weights):
        wrong = [name for name, value in given.items() if value != "none"]
        if wrong:
            raise ValueError(f"{wrong[0]}: {given[wrong[0]]!r}, but the file has no block of spatial regularisation")
        return {}
    if kind not in ("bottleneck", "depthwise"):
        raise ValueError(
            f"head_block: {kind!r}, expected bottleneck (arch_option 1) or depthwise (arch_option 2): the file has "
            "such a block, and its weights do not show which"
        )
    return {"block_depth": 0, "block_activation": "lrelu"} | given


def convert_lseg_state_dict(state_dict: Mapping[str, torch.Tensor], config: LSegConfig) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict: each of `LSegForSemanticSegmentation(config)` once,
    no other but those that LSeg does not use (`unused_names`).

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    weights = _native(state_dict)
    with torch.device("meta"):
        expected = LSegForSemanticSegmentation(config).state_dict()
    table = _name_table(config)
    made = {name: torch.zeros((), dtype=torch.int64) for name in table if name.endswith(_COUNTER)}
    return rename_from_official(made | weights, table, expected, of=_OF)


def to_official(state_dict: Mapping[str, torch.Tensor], config: LSegConfig) -> dict[str, torch.Tensor]:
    """The inverse of `convert_lseg_state_dict`: the repository's names without `net.`, dtypes as they are.

    Raises:
        ValueError: missing names, names that the official model does not have, or an image encoder that it does not
            have.
    """
    text = _text_table(config)
    renamed = rename_to_official(state_dict, _name_table(config), of=_OF)
    return {_CLIP + name if name in text else name: tensor for name, tensor in renamed.items()}


def unused_names(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """The names in an official file that LSeg does not use: CLIP's image encoder, the ImageNet classifier."""
    return [name for name in state_dict if name.removeprefix(_WRAPPER).startswith(_UNUSED)]


def _native(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without `net.`, without what is not used, and with the text encoder under CLIP's names."""
    for start, what in {
        "visual.": "CLIP alone: clip_from_official takes it",
        "module.": "names with `module.`: hf_clip_variants.conversion.checkpoint_reader.read_state_dict removes it",
    }.items():
        if any(name.startswith(start) for name in state_dict):
            raise ValueError(f"LSeg state dict: {start}…: {what}")
    unused = set(unused_names(state_dict))
    names = {name: name.removeprefix(_WRAPPER).removeprefix(_CLIP) for name in state_dict if name not in unused}
    short = list(names.values())
    fail_if_any("twice, with and without a prefix", sorted({name for name in short if short.count(name) > 1}), _OF)
    return {names[name]: state_dict[name] for name in names}


# ---- names


def _text_table(config: LSegConfig) -> NameTable:
    """Without the temperature of CLIP, which LSeg does not use."""
    table = text_names(config.text_config.num_hidden_layers)
    return _below("lseg.", {name: ours for name, ours in table.items() if name != "logit_scale"})


def _below(prefix: str, table: NameTable) -> NameTable:
    """The table with `prefix` before our names."""
    return {
        name: tuple(prefix + part for part in ours) if isinstance(ours, tuple) else prefix + ours
        for name, ours in table.items()
    }


def _name_table(config: LSegConfig) -> NameTable:
    """Official name -> ours, for a whole model."""
    kind = config.vision_config.model_type
    if kind == "dpt":
        encoder = _vit_names(config)
    elif kind == "resnet" and config.vision_config.layer_type == "bottleneck":
        encoder = _resnet_names(config.vision_config)
    else:
        raise ValueError(
            f"vision_config: {kind!r}, expected 'dpt' or a 'resnet' of bottlenecks: the official code has no other "
            "encoder"
        )
    head = {_SCRATCH + f"head1.{kind}": f"lseg.pixel_projection.{kind}" for kind in _AFFINE}
    block = {_BLOCK + kind: f"head_block.conv.{kind}" for kind in _AFFINE} if config.head_block != "none" else {}
    return _text_table(config) | encoder | _fusion_names() | head | block


def _vit_names(config: LSegConfig) -> NameTable:
    """The Vision Transformer, and what makes four maps of its tokens (`act_postprocess1` to `4`)."""
    table = {_VIT + official: "vision_model." + ours for official, ours in _VIT_OUTER.items()}
    layers = config.vision_config.num_hidden_layers
    table |= layer_names(_VIT + "blocks.{i}.", "vision_model.encoder.layer.{i}.", layers, _VIT_LAYER)
    for index, factor in enumerate(config.reassemble_factors):
        official, ours = f"{_ENCODER}act_postprocess{index + 1}.", "neck.reassemble_stage."
        parts = {"3": f"layers.{index}.projection"}
        if factor != 1:
            parts["4"] = f"layers.{index}.resize"
        if config.readout_type == "project":
            parts["0.project.0"] = f"readout_projects.{index}.0"
        table |= {f"{official}{part}.{k}": f"{ours}{name}.{k}" for part, name in parts.items() for k in _AFFINE}
    return _below("lseg.", table)


def _resnet_names(config: PreTrainedConfig) -> NameTable:
    """torchvision's ResNet; `layer1` is the stem (0, 1) and the first stage (4)."""

    def pair(official: str, norm: str, ours: str) -> NameTable:
        table = {f"{official}.weight": f"{ours}.convolution.weight"}
        return table | {f"{norm}.{name}": f"{ours}.normalization.{name}" for name in _NORM}

    table = pair(_ENCODER + "layer1.0", _ENCODER + "layer1.1", "vision_model.embedder.embedder")
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            official = f"{_ENCODER}{_STAGES[stage]}{block}."
            ours = f"vision_model.encoder.stages.{stage}.layers.{block}."
            for index in (1, 2, 3):
                table |= pair(f"{official}conv{index}", f"{official}bn{index}", f"{ours}layer.{index - 1}")
            if block == 0 and (stage or config.embedding_size != config.hidden_sizes[0]):
                table |= pair(f"{official}downsample.0", f"{official}downsample.1", f"{ours}shortcut")
    return _below("lseg.", table)


def _fusion_names() -> NameTable:
    """The decoder. Officially, `refinenet4` is the coarsest; here, it is the first of the fusion layers."""
    table: NameTable = {}
    for level in (1, 2, 3, 4):
        table[f"{_SCRATCH}layer{level}_rn.weight"] = f"neck.convs.{level - 1}.weight"
        official, ours = f"{_SCRATCH}refinenet{level}.", f"neck.fusion_stage.layers.{4 - level}."
        table |= {f"{official}out_conv.{kind}": f"{ours}projection.{kind}" for kind in _AFFINE}
        for unit in (1, 2):
            for index in (1, 2):
                there, here = f"{official}resConfUnit{unit}.", f"{ours}residual_layer{unit}."
                table[f"{there}conv{index}.weight"] = f"{here}convolution{index}.weight"
                table |= {f"{there}bn{index}.{name}": f"{here}batch_norm{index}.{name}" for name in _NORM}
    return _below("lseg.", table)


# ---- the format


def lseg_image_settings(resnet: bool = False) -> dict[str, Any]:
    """Settings of `DenseImageProcessor` for a variant: mean and standard deviation 0.5, but ImageNet's for a ResNet.
    The short edge becomes 480 pixels, as in the official validation, and the shape stays.
    """
    half = [0.5, 0.5, 0.5]
    numbers = {} if resnet else {"image_mean": half, "image_std": half}
    return numbers | {"size": {"shortest_edge": 480, "longest_edge": 2048}, "pad_mode": "edge"}


def _make_processor(image_size: int, tokenizer, settings: Mapping[str, Any]):
    images = DenseImageProcessor(**lseg_image_settings() | dict(settings))
    return images if tokenizer is None else DenseProcessor(images, tokenizer)


def _build(official: OfficialFile) -> BuiltModel:
    names = ("hooks", "readout", "head_block", "block_depth", "block_activation")
    options = {name: official.options[name] for name in names if name in official.options}
    if "hooks" in options:
        options["hooks"] = _numbers(options["hooks"])
    model = lseg_from_official(official.weights, **official.heads, **options)
    config = model.config
    if not config.is_convolutional and "hooks" not in options:
        read = ", ".join(map(str, config.backbone_out_indices))
        official.notes.append(f"the decoder reads layers {read}: the weights do not show it (--hooks)")
    if config.head_block != "none" and "block_depth" not in options:
        official.notes.append("block_depth 0 is assumed: the weights do not show it (--block-depth)")
    official.notes.append("the file has no labels: call set_labels, or give texts with each image")
    settings = lseg_image_settings(config.is_convolutional)
    return BuiltModel(model, unused_names(official.weights), settings)


def _numbers(hooks: str) -> list[int]:
    try:
        return [int(part) for part in str(hooks).split(",")]
    except ValueError as error:
        raise ValueError(f"hooks: {hooks!r}, expected four numbers such as 5,11,17,23") from error


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"(net\.)?scratch\.refinenet1\.", r"(net\.)?clip_pretrained\.")),
    build=_build,
    outputs=("text_features", "logits"),
    make_processor=_make_processor,
    prompts=("dog", "grass", "other"),
    elsewhere={
        r"(model\.)?scratch\.refinenet1\.": "This is a DPT without texts: transformers' DPTForSemanticSegmentation is "
        "made for it."
    },
    outputs_of=class_embedding_outputs,
)


__all__ = [
    "CHECKPOINTS",
    "convert_lseg_state_dict",
    "infer_lseg_config",
    "lseg_from_official",
    "lseg_image_settings",
    "to_official",
    "unused_names",
]
