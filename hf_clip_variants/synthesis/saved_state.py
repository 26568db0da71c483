"""The state of a loop as one safetensors file, replaced in one step: a kill leaves the old one or the new one."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..files.atomic_writes import write_atomically


FORMAT = "synthesis-state-2"


def save_state(path: str | os.PathLike, state: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Writes nested dictionaries and lists of tensors and JSON values, and what the run was asked for.

    Raises:
        OSError: the disk is full; the file is as it was then.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _without_tensors(state, "", tensors)
    described = {"format": FORMAT, "tree": json.dumps(tree), "settings": json.dumps(settings, sort_keys=True)}
    described["sha256"] = _digest(tensors, described)
    return write_atomically(path, save(tensors, metadata=described))


def load_state(path: str | os.PathLike, settings: dict[str, Any]) -> dict[str, Any]:
    """What `save_state` wrote.

    Raises:
        OSError: it cannot be read, or is damaged.
        ValueError: it is of a run that was asked for something else; names the first settings that differ.
    """
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise OSError(f"{path}: not a valid safetensors file ({error}); remove it to begin anew") from error
    if described.get("format") != FORMAT:
        raise ValueError(f"{path}: no state of a run ({described.get('format')!r}); remove it to begin anew")
    whole = {"tree", "settings"} <= described.keys()
    if not whole or described.pop("sha256", None) != _digest(tensors, described):
        raise OSError(f"{path}: the state of a run, damaged; remove it to begin anew")
    saved, asked = json.loads(described["settings"]), json.loads(json.dumps(settings))
    different = [name for name in sorted({*saved, *asked}) if saved.get(name) != asked.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"--out: {Path(path).parent} holds a run with another {name} ({str(saved.get(name))[:60]}; now "
            f"{str(asked.get(name))[:60]}); choose another folder, or remove this one"
        )
    return _with_tensors(json.loads(described["tree"]), tensors)


def _digest(tensors: dict[str, torch.Tensor], described: dict[str, str]) -> str:
    """Of everything that is in the file: a picture made from a damaged state would be another one."""
    digest = hashlib.sha256(json.dumps([FORMAT, described["tree"], described["settings"]]).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _without_tensors(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON of a nested value; tensors go to `tensors` under their place in it."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        # Pairs: keys of an optimiser's state are numbers.
        return {"pairs": [[key, _without_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_without_tensors(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"state: {name} is {value}, expected a finite number")
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "pairs" in value:
        return {key: _with_tensors(item, tensors) for key, item in value["pairs"]}
    kind = "list" if "list" in value else "tuple"
    items = [_with_tensors(item, tensors) for item in value[kind]]
    return items if kind == "list" else tuple(items)


__all__ = ["load_state", "save_state"]
