"""Weights of the official SLIP ↔ `SLIPForPreTraining` and `SLIPModel`, for the Vision Transformers of the repository.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`, which strips `module.` and
never builds the `args` beside the weights; this file reads no files. The repository has three kinds of models, which
the names of their weights tell apart:

| classes | has | becomes |
|---|---|---|
| `SLIP_VIT*` | both encoders, SimCLR head | `SLIPForPreTraining`, or `SLIPModel` |
| `CLIP_VIT*` | both encoders | `SLIPModel` |
| `SIMCLR_VIT*` | image encoder, SimCLR head | `ViTModel` by `vit_from_official` |

Names of the image encoder are timm's. Everything but the heads follows from the shapes.
"""

import math
from collections.abc import Mapping

import torch
from transformers import ViTConfig, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..clip.convert_clip import (
    TEXT_SHAPES,
    NameTable,
    attention_heads,
    count_layers,
    infer_text_config,
    layer_names,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
)
from ..loading_and_saving.checkpoint_format import (
    LEARNED_CONTEXT,
    BuiltModel,
    ModelFormat,
    OfficialFile,
    Signature,
)
from .configuration_slip import SLIPConfig
from .modeling_slip import SLIPForPreTraining, SLIPModel


_OF = "SLIP"
_HEAD = "image_mlp."
_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_LAYER: NameTable = {
    f"{official}.{kind}": f"{ours}.{kind}"
    for official, ours in {
        "norm1": "layernorm_before",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items()
    for kind in ("weight", "bias")
}
_LAYER |= {f"attn.qkv.{kind}": tuple(f"attention.{part}_proj.{kind}" for part in "qkv") for kind in ("weight", "bias")}
_POSITIONS, _PATCHES, _MLP = "visual.pos_embed", "visual.patch_embed.proj.weight", "visual.blocks.0.mlp.fc1.weight"
_ENCODER_DIMS = {_POSITIONS: 3, _PATCHES: 4, _MLP: 2}
_HEAD_SHAPES = [_HEAD + "layer1.weight", _HEAD + "layer3.weight"]
# Width -> heads, where they are not 64 wide: ViT-S has 12 of 32.
_VISION_HEADS = {384: 12}
# The image processor's settings that are not CLIP's; 2 is bilinear.
SLIP_IMAGES = {"image_mean": [*IMAGENET_DEFAULT_MEAN], "image_std": [*IMAGENET_DEFAULT_STD], "resample": 2}


def slip_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    with_head: bool = True,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> SLIPModel:
    """A `SLIPForPreTraining` with the weights of an official checkpoint, or a `SLIPModel` where it has no head:
    float32, on the CPU, in eval mode.

    Image features equal the official `encode_image`, text features `encode_text`, for token ids in which the largest
    id ends the text. `SLIPForPreTraining`'s outputs and losses equal the official model's and its SLIPLoss's.

    Args:
        state_dict: names as the repository's classes have them, without `module.`; any float dtype.
        with_head: False leaves the SimCLR head out and gives a `SLIPModel`.
        vision_heads, text_heads: attention heads; default 12 for ViT-S, else `width // 64`.

    Raises:
        ValueError: names or shapes are not those of a SLIP, the checkpoint has no text encoder, or a weight is not
            finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = slip_from_official(read_state_dict("slip_base_100ep.pt"))  # doctest: +SKIP
    """
    config = SLIPConfig(**infer_slip_config(state_dict, vision_heads=vision_heads, text_heads=text_heads))
    with_head = with_head and has_head(state_dict)
    model = (SLIPForPreTraining if with_head else SLIPModel)(config)
    model.load_state_dict(convert_slip_state_dict(state_dict, config, with_head=with_head))
    return model.eval()


def vit_from_official(state_dict: Mapping[str, torch.Tensor], *, vision_heads: int | None = None) -> ViTModel:
    """The image encoder of any of the three kinds, without pooler: `last_hidden_state[:, 0]` is the feature that their
    linear probes take. Arguments and errors as for `slip_from_official`.
    """
    config = ViTConfig(**_infer_vision_config(state_dict, vision_heads))
    weights = {name: tensor for name, tensor in state_dict.items() if name.startswith("visual.")}
    model = ViTModel(config, add_pooling_layer=False)
    table = _vision_names(config.num_hidden_layers, "")
    model.load_state_dict(rename_from_official(weights, table, model.state_dict(), of=_OF))
    return model.eval()


def has_head(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether a checkpoint has a SimCLR head."""
    return any(name.startswith(_HEAD) for name in state_dict)


def infer_slip_config(
    state_dict: Mapping[str, torch.Tensor], *, vision_heads: int | None = None, text_heads: int | None = None
) -> dict:
    """The keyword arguments of `SLIPConfig` that fit an official state dict; sizes of the head are the paper's where
    it has none.

    Arguments as for `slip_from_official`; only shapes are read, so tensors may be on the meta device.

    Raises:
        ValueError: another architecture, a name that the shapes are read from is missing, a patch grid that is not
            square, heads that do not divide the width.
    """
    vision = _infer_vision_config(state_dict, vision_heads)
    if "token_embedding.weight" not in state_dict and has_head(state_dict):
        raise ValueError(
            "SLIP state dict: no text encoder, this is a SIMCLR_VIT: it has no joint space. vit_from_official in "
            "hf_clip_variants.modeling.slip.convert_slip takes its image encoder"
        )
    text = infer_text_config(state_dict, shapes_of(state_dict, TEXT_SHAPES, of=_OF), text_heads)
    config = {"projection_dim": text["projection_dim"], "text_config": text, "vision_config": vision}
    if has_head(state_dict):
        shapes = shapes_of(state_dict, _HEAD_SHAPES, of=_OF)
        config["ssl_mlp_dim"] = shapes[_HEAD_SHAPES[0]][0]
        config["ssl_emb_dim"] = shapes[_HEAD_SHAPES[1]][0]
    return config


def convert_slip_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: SLIPConfig, *, with_head: bool = True
) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict: each of `SLIPForPreTraining(config)` once, no other;
    of `SLIPModel(config)`, and none but the head's besides, if not `with_head`.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    _check_architecture(state_dict)
    if not with_head:
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(_HEAD)}
    with torch.device("meta"):
        expected = (SLIPForPreTraining if with_head else SLIPModel)(config).state_dict()
    return rename_from_official(state_dict, _name_table(config, expected), expected, of=_OF)


def to_official(state_dict: Mapping[str, torch.Tensor], config: SLIPConfig) -> dict[str, torch.Tensor]:
    """The inverse of `convert_slip_state_dict`: the repository's names, dtypes as they are. Gradients and other
    tensors under parameter names are accepted, too: with or without the head, with or without its buffers.

    Raises:
        ValueError: missing names, names that `SLIPForPreTraining(config)` does not have, or an image encoder that is
            no `ViTModel`.
    """
    return rename_to_official(state_dict, _name_table(config, state_dict), of=_OF)


def _name_table(config: SLIPConfig, names: Mapping[str, torch.Tensor]) -> NameTable:
    """Official name -> ours, for a whole model; of the head, what is among `names`."""
    if config.vision_config.model_type != "vit":
        raise ValueError(
            f"vision_config.model_type: {config.vision_config.model_type!r}, expected 'vit': the official code has no "
            "other encoder"
        )
    prefix = "ssl_projector."
    head = {_HEAD + name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    table = {"image_projection": "visual_projection.weight"} | text_names(config.text_config.num_hidden_layers)
    return table | _vision_names(config.vision_config.num_hidden_layers, "vision_model.") | head


def _vision_names(num_layers: int, prefix: str) -> NameTable:
    outer = {"visual." + official: prefix + ours for official, ours in _ENCODER.items()}
    return outer | layer_names("visual.blocks.{i}.", prefix + "layers.{i}.", num_layers, _LAYER)


def _check_architecture(state_dict: Mapping[str, torch.Tensor]):
    for start, what in {
        "visual.transformer.": "CLIP's own image encoder: clip_from_official takes it",
        "visual.layer1.": "a CLIP-ResNet: clip_resnet_from_official takes it",
        "module.": "names with `module.`: hf_clip_variants.conversion.checkpoint_reader.read_state_dict removes it",
    }.items():
        if any(name.startswith(start) for name in state_dict):
            raise ValueError(f"SLIP state dict: {start}…: {what}")


def _infer_vision_config(state_dict: Mapping[str, torch.Tensor], vision_heads: int | None) -> dict:
    _check_architecture(state_dict)
    shapes = shapes_of(state_dict, list(_ENCODER_DIMS), of=_OF, dims=_ENCODER_DIMS)
    width, channels, _, patch = shapes[_PATCHES]
    grid = math.isqrt(max(shapes[_POSITIONS][1] - 1, 0))
    if grid < 1 or grid * grid != shapes[_POSITIONS][1] - 1:
        raise ValueError(
            f"{_POSITIONS}: {shapes[_POSITIONS][1] - 1} patch positions, expected a square number (and one for the "
            "class)"
        )
    return {
        "model_type": "vit",
        "hidden_size": width,
        "intermediate_size": shapes[_MLP][0],
        "num_hidden_layers": count_layers(state_dict, "visual.blocks."),
        "num_attention_heads": attention_heads("vision_heads", vision_heads, width, _PATCHES, _VISION_HEADS),
        "image_size": patch * grid,
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
    }


def _build(official: OfficialFile) -> BuiltModel:
    keep_head = official.options.get("keep_head", False)
    model = slip_from_official(official.weights, with_head=keep_head, **official.heads)
    unused = [] if keep_head else [name for name in official.weights if name.startswith(_HEAD)]
    return BuiltModel(model, unused, SLIP_IMAGES)


CHECKPOINTS = ModelFormat(
    signature=Signature(
        every=(r"visual\.blocks\.\d+\.attn\.qkv\.", r"image_(projection$|mlp\.)"), none=(LEARNED_CONTEXT,)
    ),
    build=_build,
)


__all__ = [
    "CHECKPOINTS",
    "SLIP_IMAGES",
    "convert_slip_state_dict",
    "has_head",
    "infer_slip_config",
    "slip_from_official",
    "to_official",
    "vit_from_official",
]
