"""Weights of the official VQGAN (taming-transformers) ↔ `VQGANModel`.

The state dict comes from `hf_clip_variants.conversion.checkpoint_reader.read_state_dict`; this file reads no weights.
Names are those of transformers' parts, but that levels of the decoder are stored in running order there, and by
resolution in official files. `loss.` (a VGG and a discriminator, half of a file) is left out. Of files in which a
transformer is built on a VQGAN (coco, sflckr, faceshq, drin), `first_stage_model.` is taken. All sizes follow from the
shapes; a `.yaml` of the same name beside the file is compared with them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..clip.convert_clip import NameTable, rename_from_official, rename_to_official, shapes_of
from ..loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, OfficialFile, Signature
from ..loading_and_saving.example_outputs import Tensors, random_images
from .autoencoder_vqgan_clip import VQGANModel
from .configuration_vqgan_clip import VQGANConfig


_OF = "VQGAN"
_NESTED = "first_stage_model."
_LARGEST_YAML = 1 << 20
_CODES = {"vector": "quantize.embedding.weight", "gumbel": "quantize.embed.weight"}
_READ = ["encoder.conv_in.weight", "encoder.conv_out.weight", "quant_conv.weight", "post_quant_conv.weight"]


def vqgan_from_official(state_dict: Mapping[str, torch.Tensor]) -> VQGANModel:
    """A `VQGANModel` with the weights of an official checkpoint: float32, on the CPU, in eval mode.

    Args:
        state_dict: names as the official module has them; any float dtype.

    Raises:
        ValueError: names or shapes are not those of a VQGAN, or a weight is not finite.

    Example:

        >>> from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
        >>> model = vqgan_from_official(read_state_dict("vqgan_imagenet_f16_16384.ckpt"))  # doctest: +SKIP
    """
    config = VQGANConfig(**infer_vqgan_config(state_dict))
    model = VQGANModel(config)
    model.load_state_dict(convert_vqgan_state_dict(state_dict, config))
    return model.eval()


def convert_vqgan_state_dict(state_dict: Mapping[str, torch.Tensor], config: VQGANConfig) -> dict[str, torch.Tensor]:
    """An official state dict under `VQGANModel`'s names, in float32. Strict: every weight of `VQGANModel(config)`
    once, and no other but `unused_names`.

    Raises:
        ValueError: missing or unexpected names, shapes other than `config`'s, NaN or infinite weights: the first five
            and how many.
    """
    with torch.device("meta"):
        expected = VQGANModel(config).state_dict()
    return rename_from_official(_own_names(state_dict), _name_table(config), expected, of=_OF)


def infer_vqgan_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The keyword arguments of `VQGANConfig` that fit an official state dict; only shapes are read.

    Raises:
        ValueError: a name that the shapes are read from is missing; latents with a variance (`double_z`).
    """
    weights = _own_names(state_dict)
    quantizer = "gumbel" if _CODES["gumbel"] in weights else "vector"
    names = [*_READ, _CODES[quantizer]]
    shapes = shapes_of(weights, names, of=_OF, dims=dict.fromkeys(_READ, 4))
    latent, out = shapes["post_quant_conv.weight"][0], shapes["encoder.conv_out.weight"][0]
    if out == 2 * latent:
        raise ValueError(f"{_OF} state dict: the encoder gives mean and variance (double_z), which has no codebook")
    base = shapes["encoder.conv_in.weight"][0]
    levels = _count(weights, "encoder.down.{}.block.0.conv1.weight")
    blocks = _count(weights, "encoder.down.0.block.{}.conv1.weight")
    if not levels or not blocks:
        raise ValueError(f"{_OF} state dict: no names encoder.down.0.block.0., expected levels with blocks")
    channels = [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    if any(width % base for width in channels):
        raise ValueError(f"{_OF} state dict: levels of {channels} channels, expected multiples of {base}")
    count, width = shapes[_CODES[quantizer]]
    return {
        "base_channels": base,
        "channel_multiplier": [channel // base for channel in channels],
        "num_res_blocks": blocks,
        "latent_channels": latent,
        "embed_dim": width,
        "num_embeddings": count,
        "quantizer": quantizer,
        "legacy_loss": True,  # the official class's default
    }


def unused_names(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in an official file that a VQGAN's pictures do not need: the training's loss, and what is built on it."""
    nested = _is_nested(state_dict)
    kept = {_NESTED + name if nested else name for name in _own_names(state_dict)}
    return [name for name in state_dict if name not in kept]


def to_official(state_dict: Mapping[str, torch.Tensor], config: VQGANConfig) -> dict[str, torch.Tensor]:
    """The inverse of the conversion; dtypes as they are."""
    return rename_to_official(state_dict, _name_table(config), of=_OF)


def check_yaml(path: Path, config: VQGANConfig) -> None:
    """Compares an official `.yaml` with what the shapes say.

    Raises:
        ValueError: it is no such file, or says something else; names the field.
        OSError: it cannot be read.
    """
    if path.stat().st_size > _LARGEST_YAML:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, expected a configuration of at most {_LARGEST_YAML}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a valid YAML file ({type(error).__name__})") from error
    params = _params(tree)
    details = params.get("ddconfig")
    if not isinstance(details, Mapping):
        raise ValueError(f"{path}: no model.params.ddconfig, expected the configuration of a VQGAN")
    said = {
        "base_channels": details.get("ch"), "channel_multiplier": details.get("ch_mult"),
        "num_res_blocks": details.get("num_res_blocks"), "latent_channels": details.get("z_channels"),
        "embed_dim": params.get("embed_dim"), "num_embeddings": params.get("n_embed"),
    }  # fmt: skip
    for name, value in said.items():
        value = list(value) if isinstance(value, list | tuple) else value
        if value is not None and value != getattr(config, name):
            raise ValueError(
                f"{path}: {name} is {str(value)[:60]}, but {getattr(config, name)} in the weights: of another file?"
            )


def _params(tree: Any) -> Mapping[str, Any]:
    """`model.params`, or that of the VQGAN which a transformer is built on."""
    for name in ("model", "params"):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    params = tree if isinstance(tree, Mapping) else {}
    below = params.get("first_stage_config")
    return below["params"] if isinstance(below, Mapping) and isinstance(below.get("params"), Mapping) else params


def _is_nested(state_dict: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith(_NESTED) for name in state_dict)


def _own_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the VQGAN, without the prefix of a model that is built on it, and without its loss."""
    if _is_nested(state_dict):
        state_dict = {
            name.removeprefix(_NESTED): tensor for name, tensor in state_dict.items() if name.startswith(_NESTED)
        }
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith("loss.")}


def _count(weights: Mapping[str, torch.Tensor], pattern: str) -> int:
    number = 0
    while pattern.replace("{}", str(number)) in weights:
        number += 1
    return number


def _name_table(config: VQGANConfig) -> NameTable:
    with torch.device("meta"):
        ours = VQGANModel(config).state_dict()
    levels, table = len(config.channel_multiplier), {}
    for name in ours:
        official = name
        if name.startswith("decoder.up."):
            place, _, rest = name.removeprefix("decoder.up.").partition(".")
            official = f"decoder.up.{levels - 1 - int(place)}.{rest}"
        elif name == "quantize.embedding.weight":
            official = _CODES[config.quantizer]
        table[official] = name
    return table


def _yaml_beside(path: Path, options: Mapping[str, Any]) -> list[Path]:
    return [found for found in (path.with_suffix(".yaml"), path.with_suffix(".yml")) if found.is_file()][:1]


def _build(official: OfficialFile) -> BuiltModel:
    model = vqgan_from_official(official.weights)
    for path in official.other_files:
        check_yaml(path, model.config)
    if not official.other_files:
        official.notes.append("no .yaml of this name beside the file: all sizes are from the weights")
    return BuiltModel(model, unused_names(official.weights))


def _example_inputs(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    return {"pixel_values": random_images(2 * model.config.factor).clamp(-1, 1)}


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    output = model(pixel_values=inputs["pixel_values"])
    return {name: output[name] for name in CHECKPOINTS.outputs}


CHECKPOINTS = ModelFormat(
    signature=Signature(every=(r"(first_stage_model\.)?quantize\.embed", r"(first_stage_model\.)?post_quant_conv\.")),
    build=_build,
    outputs=("latents", "reconstruction"),
    other_files=_yaml_beside,
    make_processor=None,
    example_inputs=_example_inputs,
    outputs_of=_outputs_of,
)


__all__ = [
    "CHECKPOINTS",
    "check_yaml",
    "convert_vqgan_state_dict",
    "infer_vqgan_config",
    "to_official",
    "unused_names",
    "vqgan_from_official",
]
