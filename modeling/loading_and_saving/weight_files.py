"""Files with weights: what their names and headers say, before anything is read or built.

Exported code has no such file: there, transformers' own errors stand.
"""

import json
import math
import os
import re
from dataclasses import Field, fields, is_dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel


LARGEST_HEADER = 8 * 2**20  # bytes: a hundred times that of a ViT-G
LARGEST_COUNT = 20_000  # tensors of one model
# Weights that a model may have beyond those in its files: new heads, small beside what is loaded.
_NEW_WEIGHTS = 64 * 2**20
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADVICE = "Re-download the checkpoint"
Shapes = dict[str, tuple[int, ...]]


def read_header(path: str | os.PathLike) -> Shapes:
    """Name -> shape of the tensors of a safetensors file, without reading them.

    OSError that names the file if it is empty, truncated or no such file, or has more or longer names than any model.
    """
    size = os.path.getsize(path)

    def fault(why: str) -> OSError:
        return OSError(f"{path}: not a valid safetensors file ({why}). {_ADVICE}")

    with open(path, "rb") as stream:
        start = stream.read(8)
        if len(start) < 8:
            raise fault(f"it has {size} bytes")
        length = int.from_bytes(start, "little")
        if length > size - 8:
            raise fault(f"it should begin with {length:,} bytes of names and has {size:,} in all")
        if length > LARGEST_HEADER:
            raise fault(f"{length:,} bytes of names, a model has {LARGEST_HEADER:,} at most")
        header = stream.read(length)
    try:
        values = json.loads(header)
        values.pop("__metadata__", None)
        shapes = {name: tuple(value["shape"]) for name, value in values.items()}
        ends = [value["data_offsets"][1] for value in values.values()]
        needed = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise fault(f"{type(error).__name__} in its header") from error
    if len(shapes) > LARGEST_COUNT:
        raise fault(f"{len(shapes):,} tensors, a model has {LARGEST_COUNT:,} at most")
    if needed != size:
        raise fault(f"it should have {needed:,} bytes and has {size:,}")
    return shapes


def read_index(path: str | os.PathLike) -> list[Path]:
    """The files that `model.safetensors.index.json` names. OSError that names what is wrong, or the missing file."""
    path = Path(path)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(
            f'{path}: not a list of weights, expected {{"weight_map": {{tensor: file}}}} ({type(error).__name__}). '
            f"{_ADVICE}"
        ) from error
    if not names:
        raise OSError(f"{path}: names no files. {_ADVICE}")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or {"/", "\\"} & set(name):
            raise OSError(f"{path}: {name!r} is not a safetensors file beside it. {_ADVICE}")
        if not (path.parent / name).is_file():
            raise OSError(f"{path.parent / name}: not there, but {path.name} names it. {_ADVICE}")
    return [path.parent / name for name in names]


def check_folder(folder: str | os.PathLike, variant: str | None = None) -> None:
    """OSError unless a folder holds a model that can be loaded, as far as the list of files and their headers say.

    What is not a folder is left to transformers: the id of a repository.
    """
    folder = Path(folder)
    if not folder.is_dir() or not (folder / "config.json").is_file():
        return

    def named(name: str) -> Path:
        stem, dot, rest = name.partition(".")
        return folder / (name if variant is None else f"{stem}.{variant}{dot}{rest}")

    if named(_WEIGHTS).is_file():
        read_header(named(_WEIGHTS))
    elif named(_INDEX).is_file():
        for path in read_index(named(_INDEX)):
            read_header(path)
    elif _pickles(folder) and not any(path.suffix in (".safetensors", ".gguf") for path in folder.iterdir()):
        # transformers' own way for a whole model of its own: PyTorch's reader that runs no code.
        if not any(named(name).is_file() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
            raise OSError(f"{folder}: no {named(_WEIGHTS).name} there{pickle_advice(folder)}")


def _pickles(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))


def is_pickled(folder: Path) -> bool:
    """Whether a folder has pickles, and no safetensors."""
    return folder.is_dir() and bool(_pickles(folder)) and not any(folder.glob("*.safetensors"))


def pickle_advice(folder: Path) -> str:
    """The end of a sentence about a folder that has only pickles."""
    pickles = _pickles(folder)
    return (
        f", {', '.join(pickles)} is damaged or a pickle with more than numbers, which may hold code; want "
        f"{_WEIGHTS}. For an official checkpoint: hf-clip-variants convert {folder / pickles[0]} FOLDER"
    )


class WeightsDoNotFit(ValueError, RuntimeError):
    """A tensor of a file has another shape than the model's. transformers raises RuntimeError for it."""


def check_fit(model: PreTrainedModel, found: Shapes, source: object) -> None:
    """ValueError if a model, built from its configuration and not filled yet, does not fit the weights in its files:
    other shapes, other numbers of layers, or many times as many weights. Names the tensor and the fields that make it.
    """
    prefix = f"{model.base_model_prefix}."
    ours = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name.removeprefix(prefix): shape for name, shape in found.items()}
    for name, shape in ours.items():
        other = theirs.get(name, shape)
        if other != shape:
            raise misfit(model, name, shape, other, source)
    layers, stored = _numbered(ours), _numbered(theirs)
    for place in sorted(layers.keys() & stored.keys()):
        if layers[place] != stored[place]:
            part, config = _part_of(model.config, place)
            found = _counts_behind(config, layers[place], part)
            if not part and not any("layers" in one for one in found):  # perhaps of a part with another name
                inner = {where: one for where, one in _all_parts(config).items() if where}
                more = [text for where, one in inner.items() for text in _counts_behind(one, layers[place], where)]
                found = [text for text in more if "layers" in text] + found + [t for t in more if "layers" not in t]
            asked = " or ".join(found) or f"num_hidden_layers: {layers[place]}"
            raise ValueError(f"{asked}, but the weights in {source} have {stored[place]} layers {place}")
    asked = sum(parameter.numel() for parameter in model.parameters())
    there = sum(math.prod(shape) for shape in found.values())
    if asked > 2 * there + _NEW_WEIGHTS:
        raise ValueError(
            f"{source}: the configuration asks for {asked:,} weights, its files have {there:,}; look at "
            f"{_fields_behind(model.config, '', (), ())}"
        )


def check_before_filling(model: PreTrainedModel, checkpoint_files: list) -> None:
    """`check_fit` for a model on the meta device and the files that will fill it."""
    files = [str(path) for path in checkpoint_files or ()]
    if files and all(path.endswith(".safetensors") for path in files):
        found = {name: shape for path in files for name, shape in read_header(path).items()}
        check_fit(model, found, Path(files[0]).parent)


def misfit(model: PreTrainedModel, name: str, shape: tuple[int, ...], other: tuple[int, ...], source: object):
    """The error about a tensor whose shape is not that of its file."""
    return WeightsDoNotFit(
        f"{source}: {name} has shape {list(other)}, the configuration asks for {list(shape)}; look at "
        f"{_fields_behind(model.config, name, shape, other)}"
    )


def fields_behind_layers(config, names: list[str]) -> str:
    """The end of a sentence about missing weights: how many layers the configuration asks for, if some are missing;
    or else its own numbers and switches, those first that are not as they are by default."""
    parts = dict(_part_of(config, name) for name in names if re.search(r"layers?\.\d+\.", name))
    found = [
        f"{place}num_hidden_layers ({getattr(parts[place], 'num_hidden_layers', None)})" for place in sorted(parts)
    ]
    parts = {"": config} | dict(_part_of(config, name) for name in names)
    own = [
        (
            (getattr(one, f.name) == f.default, not isinstance(f.default, bool)),
            f"{where}{f.name} ({getattr(one, f.name)})",
        )
        for where, one in parts.items()
        for f in _own_fields(one)
        if isinstance(f.default, bool | int)
    ]
    own.sort(key=lambda found: found[0])
    found = found or [text for _, text in own[:12]]
    return f"; look at {', '.join(found)}" if found else ""


def _own_fields(config) -> list[Field]:
    """The fields of a configuration, but not those that every configuration has."""
    shared = {f.name for f in fields(PreTrainedConfig)}
    return [f for f in (fields(config) if is_dataclass(config) else ()) if f.name not in shared]


def _numbered(shapes: Shapes) -> dict[str, int]:
    """`"vision_model.encoder.layers"` -> how many numbered modules it has."""
    found: dict[str, set[str]] = {}
    for name in shapes:
        for match in re.finditer(r"\.(\d+)(?=\.)", name):
            found.setdefault(name[: match.start()], set()).add(match[1])
    return {place: len(numbers) for place, numbers in found.items()}


def _part_of(config, name: str) -> tuple[str, object]:
    """`"vision_config."` and this configuration for a tensor of the image encoder, `"backbone_config."` for one of a
    backbone; "" and the whole one for others."""
    where = ""
    for component in name.split("."):
        for stem in (component, re.sub(r"_(model|encoder)$", "", component)):
            part = getattr(config, f"{stem}_config", None)
            if hasattr(part, "to_dict"):
                where, config = f"{where}{stem}_config.", part
                break
    return where, config


def _all_parts(config, where: str = "") -> dict[str, object]:
    """A configuration and those inside of it, at any depth, by what comes before their fields' names."""
    found = {where: config}
    for name, part in vars(config).items():
        if name.endswith("_config") and hasattr(part, "to_dict"):
            found |= _all_parts(part, f"{where}{name}.")
    return found


def _counts_behind(config, count: int, where: str) -> list[str]:
    """The fields of a configuration that may have asked for so many layers, with their values: the field for layers if
    it has one with this value, or else all of its numbers and lists with it, or else the field for layers."""
    if hasattr(config, "depths"):
        return [f"{where}depths: {config.depths}"]
    values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    values.pop("architectures", None)
    found = [
        name
        for name, value in values.items()
        if (type(value) is int and (value == count or (value == count - 1 and name.endswith("blocks"))))
        or (isinstance(value, list | tuple) and len(value) == count)
    ]
    layers = [name for name in values if name in ("num_hidden_layers", "encoder_layers", "decoder_layers")]
    return [f"{where}{name}: {values[name]}" for name in [name for name in layers if name in found] or found or layers]


def _sizes_of(parts: dict[str, object]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """The whole numbers of configurations, and their lists of depths, by the fields' full names."""
    sizes: dict[str, int] = {}
    lists: dict[str, list[int]] = {}
    for prefix, one in parts.items():
        values = {k: v for k, v in vars(one).items() if not k.startswith("_")}
        sizes |= {prefix + k: v for k, v in values.items() if type(v) is int and "token_id" not in k}
        sizes |= {prefix + k: len(v) for k, v in values.items() if k in ("id2label", "templates") and v}
        lists |= {prefix + k: v for k, v in values.items() if k == "depths"}
    return sizes, lists


_MAIN_SIZES = ("hidden_size", "hidden_sizes", "embed_dim", "embedding_size", "intermediate_size", "projection_dim")
_SHAPES_BEHIND = dict.fromkeys(("patch_size", "image_size", "num_channels"), "patch|position")  # field -> tensors
_SHAPES_BEHIND |= {"neck_hidden_sizes": "neck", "templates": "prompt"}
_SHAPES_BEHIND |= {"channel_multiplier": r"\.(up|mid|down)\.", "window_size": "relative_position"}
_SHAPES_BEHIND |= {"encoded_texts": "embeddings$"}
_SHAPES_BEHIND |= dict.fromkeys(("anchor_ratios", "anchor_scales"), "objectness|proposal|anchor")


def _fields_behind(config, name: str, shape: tuple[int, ...], other: tuple[int, ...]) -> str:
    """The numbers of a configuration that may have made the shape of a tensor: those that are in it and not in the
    file's, or else all."""
    where, part = _part_of(config, name)
    parts = {where: part, "": config} if name else _all_parts(config)
    sizes, lists = _sizes_of(parts)
    new = {size for size, old in zip(shape, other, strict=False) if size != old} if len(shape) == len(other) else ()
    # Factors and switches may be behind any shape; of nested configurations, switches that are not as by default.
    changed = [
        (prefix + f.name, str(getattr(one, f.name))[:60])
        for prefix, one in parts.items()
        for f in _own_fields(one)
        if (
            (isinstance(f.default, bool) and (not prefix or getattr(one, f.name, f.default) != f.default))
            or re.search(r"(reduction|ratio|factor|groups?|head_dim)$", f.name)
            or (f.name in _SHAPES_BEHIND and re.search(_SHAPES_BEHIND[f.name], name))
        )
    ]
    found = {k: v for k, v in (sizes | _sizes_of(_all_parts(config))[0]).items() if v in new} or sizes | lists
    # Numbers of channels are often made of these by a factor.
    changed += [
        (prefix + f.name, str(getattr(one, f.name))[:60])
        for prefix, one in _all_parts(config).items()
        for f in _own_fields(one)
        if f.name == "max_position_embeddings" and "position" in name
    ]
    main = {where + k: v for k, v in vars(part).items() if k in _MAIN_SIZES and v}
    if name.rpartition(".")[2].startswith("layer_"):  # a number for each layer of some part
        inner = {where: getattr(one, "num_hidden_layers", None) for where, one in _all_parts(config).items()}
        main |= {f"{where}num_hidden_layers": count for where, count in inner.items() if count}
    return ", ".join(f"{k} ({v})" for k, v in (found | dict(changed) | main).items())


__all__ = ["WeightsDoNotFit", "check_before_filling", "check_fit", "check_folder", "is_pickled", "misfit"]
__all__ += ["fields_behind_layers", "pickle_advice", "read_header", "read_index"]
