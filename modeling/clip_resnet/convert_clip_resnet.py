"""Weights of OpenAI's and open_clip's CLIP with a ResNet image encoder (RN50 to RN50x64) ↔ `CLIPResNetModel`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no files.
Names inside the image encoder are the official ones, the text encoder converts as in `clip/convert_clip.py`.
Everything but the heads (64 wide in every published model) and the text encoder's activation follows from the shapes.
"""

import math
from collections.abc import Mapping

import torch

from ..clip.convert_clip import (
    TEXT_SHAPES,
    NameTable,
    attention_heads,
    build_from_official,
    count_layers,
    infer_text_config,
    native_names,
    rename_from_official,
    rename_to_official,
    shapes_of,
    text_names,
)
from ..clip.open_clip_config import open_clip_files
from ..loading_and_saving.checkpoint_format import LEARNED_CONTEXT, ModelFormat, Signature
from .configuration_clip_resnet import CLIPResNetConfig
from .modeling_clip_resnet import CLIPResNetModel


_POSITIONS = "visual.attnpool.positional_embedding"
_VISION_SHAPES = ["visual.conv1.weight", "visual.layer1.0.conv1.weight", _POSITIONS]
_STAGES = [f"visual.layer{index}." for index in (1, 2, 3, 4)]
# Batch normalisation's count of batches, which is not used here. Checkpoints before PyTorch 0.4.1 lack it.
_COUNTER = ".num_batches_tracked"


def clip_resnet_from_official(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hidden_act: str = "quick_gelu",
) -> CLIPResNetModel:
    """A `CLIPResNetModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Image features equal the official `encode_image`, text features `encode_text`, for token ids in which the largest
    id ends the text (CLIP's do).

    Args:
        state_dict: OpenAI's or open_clip's names (also with open_clip's `text.` prefix), any float dtype.
        vision_heads, text_heads: heads of the attention pooling and of the text encoder; default `width // 64`.
        hidden_act: of the text encoder; `"quick_gelu"` for OpenAI's weights, `"gelu"` for open_clip's own `RN50` and
            `RN101`. Not visible in the weights.

    Raises:
        ValueError: names or shapes are not those of a CLIP with a ResNet, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = clip_resnet_from_official(read_state_dict("RN50.pt"))  # doctest: +SKIP
    """
    config = CLIPResNetConfig(
        **infer_clip_resnet_config(state_dict, vision_heads=vision_heads, text_heads=text_heads, hidden_act=hidden_act)
    )
    weights = convert_clip_resnet_state_dict(state_dict, config)
    model = CLIPResNetModel(config)
    model.load_state_dict(weights)
    return model.eval()


def infer_clip_resnet_config(
    state_dict: Mapping[str, torch.Tensor],
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hidden_act: str = "quick_gelu",
) -> dict:
    """The keyword arguments of `CLIPResNetConfig` that fit an official state dict.

    Arguments as for `clip_resnet_from_official`; only shapes are read, so tensors may be on the meta device.

    Raises:
        ValueError: another architecture, a name that the shapes are read from is missing, a grid of positions that is
            not square, heads that do not divide the width.
    """
    weights = _resnet(state_dict)
    shapes = shapes_of(weights, _VISION_SHAPES + TEXT_SHAPES)
    positions, hidden_size = shapes[_POSITIONS]
    grid = math.isqrt(max(positions - 1, 0))
    if grid < 1 or grid * grid != positions - 1:
        raise ValueError(
            f"{_POSITIONS}: {positions - 1} pixel positions, expected a square number (and one for the mean)"
        )
    width = shapes["visual.layer1.0.conv1.weight"][0]
    if hidden_size != 32 * width:
        raise ValueError(
            f"{_POSITIONS}: width {hidden_size}, expected 32 times that of visual.layer1.0.conv1 ({width})"
        )
    text = infer_text_config(weights, shapes, text_heads) | {"hidden_act": hidden_act}
    return {
        "projection_dim": text["projection_dim"],
        "text_config": text,
        "vision_config": {
            "hidden_size": hidden_size,
            "depths": [count_layers(weights, stage) for stage in _STAGES],
            "num_attention_heads": attention_heads("vision_heads", vision_heads, hidden_size, _POSITIONS),
            "num_channels": shapes["visual.conv1.weight"][1],
            "image_size": 32 * grid,
            "projection_dim": text["projection_dim"],
        },
    }


def convert_clip_resnet_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: CLIPResNetConfig
) -> dict[str, torch.Tensor]:
    """An official state dict under our names, in float32. Strict: each of `CLIPResNetModel(config)` once, no other.

    `num_batches_tracked` stays an integer, and is 0 where an old checkpoint has none.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
        and how many.
    """
    weights = _resnet(state_dict)
    with torch.device("meta"):
        expected = CLIPResNetModel(config).state_dict()
    table = _name_table(expected, config)
    counters = [name for name in table if name.endswith(_COUNTER)]
    weights = {name: torch.zeros((), dtype=torch.int64) for name in counters} | weights
    return rename_from_official(weights, table, expected, of="CLIP-ResNet")


def to_official(
    state_dict: Mapping[str, torch.Tensor], config: CLIPResNetConfig, *, buffers: bool = True
) -> dict[str, torch.Tensor]:
    """The inverse of `convert_clip_resnet_state_dict`: the names of OpenAI and open_clip, dtypes as they are.

    Args:
        state_dict: of `CLIPResNetModel(config)`.
        buffers: False for what only parameters have, such as gradients.

    Raises:
        ValueError: missing names, or names that `CLIPResNetModel(config)` does not have.
    """
    with torch.device("meta"):
        model = CLIPResNetModel(config)
    expected = model.state_dict() if buffers else dict(model.named_parameters())
    return rename_to_official(state_dict, _name_table(expected, config), of="CLIP-ResNet")


def _name_table(expected: Mapping[str, torch.Tensor], config: CLIPResNetConfig) -> NameTable:
    """Official name -> ours, for the names of a whole model."""
    prefix = "vision_model."
    vision = {"visual." + name.removeprefix(prefix): name for name in expected if name.startswith(prefix)}
    return text_names(config.text_config.num_hidden_layers) | vision


def _resnet(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`native_names` of a checkpoint that `CLIPResNetModel` can hold."""
    if "visual.proj" in state_dict or any(name.startswith("visual.transformer.") for name in state_dict):
        raise ValueError(
            "the image encoder is a Vision Transformer (visual.transformer…): clip_from_official takes it"
        )
    return native_names(state_dict)


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"visual\.layer1\.",), none=(r"bert\.", r"audio\.", LEARNED_CONTEXT)),
    other_files=open_clip_files,
    build=lambda official: build_from_official(official, clip_resnet_from_official, infer_clip_resnet_config),
    adapter_base="clipv-clip_resnet",
    to_official=to_official,
)


__all__ = [
    "CHECKPOINTS",
    "clip_resnet_from_official",
    "convert_clip_resnet_state_dict",
    "infer_clip_resnet_config",
    "to_official",
]
