"""Fingerprints of weights: by which a saved adapter recognises its backbone, and a cache of features its encoder.

All weights are read at each call, so that nothing is ever out of date: 0.5 to 0.8 s for a ViT-L on one core. Each row
of 4,096 numbers (32 bits each, as integers) is multiplied by fixed odd numbers and added up modulo 2^64, and SHA-256
runs over the rows' sums. Another value in one place always gives another sum; several others, or the same values in
another order, give the same one by chance with a probability of 2^-32 at most. It guards against mistakes; against
forgery, compare files by their SHA-256 (`hf-clip-variants verify`).
"""

import base64
import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn


_LANES = 4096  # numbers in a row
# Read at once: stays in the processor's cache, and is too little for torch to start threads, which wait for each other
# on a busy machine.
_ROWS = {"cpu": 8}
_ROWS_ELSEWHERE = 2048
_SAMPLES = 8  # values read from each of three tensors
_RELATIVE_TOLERANCE = 0.02  # more than rounding to bfloat16, less than any other weights of the same shape
_FULL = {"float32"}
_ROUNDED = ("bfloat16", "float16")  # what weights are loaded in to save memory
_SETTINGS = ("attention_heads", "key_value_heads", "hidden_act", "_eps")
_KEPT = 16  # fingerprints in memory
_MEASURED_OR_NAMES = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "id2label"}
_MEASURED_OR_NAMES |= {"label2id", "class_names", "templates", "temperature", "rejection_threshold"}


@dataclass(frozen=True)
class Comparison:
    """Whether a backbone is the one that a fingerprint was taken of.

    Attributes:
        same: False if a difference was found.
        unchecked: what could not be compared, as the end of a sentence; None if everything was.
    """

    same: bool
    unchecked: str | None = None


# ---- which tensors


def _weights(module: nn.Module, with_adapters: bool = False, prefix: str = "", seen: set | None = None) -> Iterator:
    """(name, tensor) of parameters and saved buffers; of layers that PEFT wrapped, the wrapped one's alone.

    Counters of batches are left out: no output depends on them.
    """
    seen = set() if seen is None else seen
    if not with_adapters:
        inside = "original_module" if "modules_to_save" in module._modules else "base_layer"
        wrapped = module._modules.get(inside) if hasattr(type(module), "adapter_layer_names") else None
        if wrapped is not None:
            yield from _weights(wrapped, False, prefix, seen)
            return
    own = [*module._parameters.items()]
    own += [(n, b) for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set]
    for name, tensor in own:
        skipped = name == "num_batches_tracked" or (not with_adapters and name.startswith(("clipv_", "lora_")))
        if tensor is not None and not skipped and id(tensor) not in seen:
            seen.add(id(tensor))
            yield prefix + name, tensor
    for name, child in module._modules.items():
        if child is not None and (with_adapters or not name.startswith(("clipv_", "lora_"))):
            yield from _weights(child, with_adapters, f"{prefix}{name}.", seen)


def _state(model: nn.Module, with_adapters: bool = False) -> dict[str, torch.Tensor]:
    """Name -> tensor, sorted. What accelerate keeps on the disk or in main memory is read from there."""
    state = dict(sorted(_weights(model, with_adapters)))
    if any(tensor.is_meta for tensor in state.values()):
        for place, module in model.named_modules():
            hook = getattr(module, "_hf_hook", None)
            for kept in (getattr(h, "weights_map", None) for h in getattr(hook, "hooks", (hook,))):
                for name, _ in module.named_parameters() if kept is not None else ():
                    full = f"{place}.{name}".lstrip(".").replace(".base_layer", "").replace(".original_module", "")
                    if full in state and state[full].is_meta and name in kept:
                        state[full] = kept[name]
    return state


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The dense tensors that a tensor consists of: one, or those of a quantised or sharded one."""
    if hasattr(tensor, "full_tensor"):  # sharded
        tensor = tensor.full_tensor()
    if _is_wrapped(tensor):
        names, _ = tensor.__tensor_flatten__()
        for inner in names:
            yield from _plain(f"{name}.{inner}", getattr(tensor, inner))
    elif tensor.is_quantized:
        scales = [tensor.q_scale()] if tensor.qscheme() == torch.per_tensor_affine else tensor.q_per_channel_scales()
        yield name, tensor.int_repr()
        yield f"{name}.scale", torch.as_tensor(scales)
    else:
        yield name, tensor.to_dense() if tensor.layout != torch.strided else tensor


def _is_wrapped(tensor: torch.Tensor) -> bool:
    return type(tensor) not in (torch.Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__")


def _kind(tensor: torch.Tensor) -> str:
    """The dtype, or how it is quantised."""
    return type(tensor).__name__ if _is_wrapped(tensor) else str(tensor.dtype).removeprefix("torch.")


# ---- sums over all values


@cache
def _factors(device: torch.device) -> torch.Tensor:
    """(4096,) odd numbers of 64 bits, the same in every version and on every machine."""
    content = bytearray(hashlib.shake_256(b"hf_clip_variants fingerprint v2").digest(8 * _LANES))
    return (torch.frombuffer(content, dtype=torch.int64) | 1).to(device)


def _row_sums(values: torch.Tensor) -> bytes:
    """Of values of any dtype, as 32-bit integers, (N,) -> 8 bytes for each row of 4,096 and for the rest."""
    if values.device.type not in ("cpu", "cuda"):
        values = values.cpu()
    content = values.contiguous()
    if content.storage_offset() * content.element_size() % 4:
        content = content.clone()
    if content.numel() * content.element_size() % 4:
        content = torch.nn.functional.pad(content.view(torch.uint8), (0, -content.nbytes % 4))
    lanes, factors = content.view(torch.int32), _factors(content.device)
    whole = lanes.numel() // _LANES * _LANES
    rows = lanes[:whole].view(-1, _LANES).long()
    sums = torch.mv(rows, factors) if rows.is_cpu else (rows * factors).sum(1)
    rest = (lanes[whole:].long() * factors[: lanes.numel() - whole]).sum()
    return torch.cat([sums, rest[None]]).cpu().numpy().astype("<i8").tobytes()


def _rounded(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not values.is_floating_point() or values.dtype == dtype:
        return values
    rounded = values.to(dtype)
    if (values.dtype, dtype) == (torch.float64, torch.float32) and not torch.equal(rounded.double(), values):
        return values  # no float32 model has these
    return rounded


@torch.no_grad()
def _digest(state: dict[str, torch.Tensor], dtype: torch.dtype | None) -> str:
    """Over names, shapes and all values, which are rounded to `dtype` first; None: as they are, with their dtypes.

    "" if a tensor is not there to be read, or of a kind that cannot be.
    """
    digest = hashlib.sha256()
    try:
        for name, tensor in state.items():
            for part, values in _plain(name, tensor):
                if values.is_meta:
                    return ""
                about = values.dtype if dtype is None or not values.is_floating_point() else ""
                digest.update(f"{part} {tuple(values.shape)} {about}\n".encode())
                size = _LANES * _ROWS.get(values.device.type, _ROWS_ELSEWHERE)
                for chunk in values.detach().reshape(-1).split(size):
                    digest.update(_row_sums(_rounded(chunk, dtype)))
    except Exception:  # a storage that torch's operations do not read; libraries raise anything for it
        return ""
    return digest.hexdigest()[:32]


# ---- fingerprints


def fingerprint(model: nn.Module) -> str:
    """Identifies the weights of a backbone, as one line of text without spaces.

    `v2:shapes:settings:dtypes:float32:bfloat16:float16:samples`: a hash of names and shapes, one of the settings that
    change what the weights compute (heads, activations, epsilons), the dtypes that weights have, a hash of all values
    and two of what they are when they are loaded in bfloat16 and float16, and 24 values. Adapter
    layers around modules are left out, as are modules that are saved with an adapter: it is that of the base weights.
    Empty hashes: weights on the meta device.
    """
    state = _state(model)
    return ":".join(["v2", _shapes(state), _settings(model), _dtypes(state), *_hashes(model, state)])


def _shapes(state: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256("\n".join(f"{n} {tuple(t.shape)}" for n, t in state.items()).encode()).hexdigest()[:16]


def _settings(model: nn.Module) -> str:
    """Of the numbers and names in a configuration that no shape shows. Chosen by name: a field that a later version of
    transformers adds must not make another backbone of the same one."""

    def chosen(values: dict[str, Any]) -> dict[str, Any]:
        parts = {name: chosen(value) for name, value in values.items() if isinstance(value, dict)}
        own = {n: v for n, v in values.items() if str(n).endswith(_SETTINGS) and isinstance(v, int | float | str)}
        return {name: part for name, part in parts.items() if part} | own

    config = getattr(model, "config", None)
    text = json.dumps(chosen(config.to_dict()) if config is not None else {}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dtypes(state: dict[str, torch.Tensor]) -> str:
    """Of all but buffers of whole numbers, which are the same in any dtype that a model is loaded in."""
    counted = (t for t in state.values() if _is_wrapped(t) or t.is_floating_point() or isinstance(t, nn.Parameter))
    return ",".join(sorted(set(map(_kind, counted))))


_known: OrderedDict[str, tuple[str, ...]] = OrderedDict()  # by the hash of all values: what follows from it


def _hashes(model: nn.Module, state: dict[str, torch.Tensor]) -> tuple[str, ...]:
    exact = _digest(state, torch.float32)
    if not exact:
        return "", "", "", _samples(model)
    if exact not in _known:
        _known[exact] = *(_digest(state, getattr(torch, name)) for name in _ROUNDED), _samples(model)
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return exact, *_known[exact]


def compare_backbone(model: nn.Module, recorded: str) -> Comparison:
    """Whether `model` has the weights that the fingerprint `recorded` was taken of, also when they were loaded in
    another dtype.

    Between float32 and bfloat16 or float16, all values are compared as rounded to the lower one. What cannot be
    compared is said in `unchecked`: bfloat16 weights with float16 ones (unless they are equal), quantised weights with
    others, weights on the meta device, fingerprints of an earlier version.

    Raises:
        ValueError: `recorded` is no fingerprint.
    """
    kind, *parts = recorded.split(":") if isinstance(recorded, str) else ("",)
    if kind == "v1" and len(parts) == 2:
        ours = _first_form(model)
        same = ours[0] == parts[0] and _samples_agree(ours[1], parts[1])
        return Comparison(same, f"{_how_many(ours[1], parts[1])}: an earlier version saved it")
    if kind != "v2" or len(parts) != 7:
        raise ValueError(
            f"backbone_fingerprint: got {recorded!r}, want one that this version writes (v1: or v2: and hashes); "
            "upgrade with pip install -U hf-clip-variants"
        )
    shapes, settings, dtypes, exact, *rounded, samples = parts
    state = _state(model)
    if (shapes, settings) != (_shapes(state), _settings(model)):
        return Comparison(False)
    ours = _digest(state, torch.float32)
    if exact and ours == exact:
        return Comparison(True)
    mine, theirs = set(_dtypes(state).split(",")), set(dtypes.split(","))
    if not ours or not exact:
        missing = sum(t.is_meta for t in state.values())
        where = f"{missing} of {len(state)} are not in memory" if missing else "not all of them can be read"
        reason = "not all of them could be read when the adapter was made" if ours else where
        same = _samples_agree(_samples(model), samples)
        return Comparison(same, f"the values of the weights could not be compared: {reason}")
    for name, recorded_hash in zip(_ROUNDED, rounded, strict=True):
        if name in mine | theirs and _digest(state, getattr(torch, name)) == recorded_hash:
            return Comparison(True)
    lower = (mine | theirs) - _FULL
    if mine == theirs or (len(lower) <= 1 and lower <= set(_ROUNDED)):
        return Comparison(False)
    few = _samples(model)
    reason = f"they are {', '.join(sorted(mine))} here and were {', '.join(sorted(theirs))}"
    return Comparison(_samples_agree(few, samples), f"{_how_many(few, samples)}: {reason}")


def _how_many(ours: str, theirs: str) -> str:
    few = "only 24 of the values of the weights could be compared"
    return few if ours and theirs else "no values of the weights could be compared, only their names and shapes"


def features_key(model: nn.Module) -> str:
    """What all features of a model depend on, as a key for a cache: every weight as it is, adapters with their
    settings, and the configuration. Of a model whose weights cannot be read, another one at each call."""
    state = _state(model, with_adapters=True)
    layers = [
        (name, repr(vars(m).get("_active_adapter")), vars(m).get("_disable_adapters"), repr(vars(m).get("scaling")))
        for name, m in model.named_modules()
        if hasattr(type(m), "adapter_layer_names")
    ]
    config = getattr(model, "config", None)
    about = {"config": _computing(config.to_dict()) if config is not None else {}, "adapters": layers}
    text = json.dumps(about, sort_keys=True, default=str)
    settings = hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"v2:{_digest(state, None) or secrets.token_hex(16)}:{settings}"


def _computing(value: Any) -> Any:
    """A configuration without what no feature depends on."""
    if not isinstance(value, dict):
        return value
    return {str(k): _computing(v) for k, v in value.items() if k not in _MEASURED_OR_NAMES}


# ---- a few values: all that fingerprints of the first form have


def _first_form(model: nn.Module) -> tuple[str, str]:
    """Hash of names and shapes, and 24 values."""
    state = _parameters(model)
    shapes = hashlib.sha256("\n".join(f"{n} {tuple(t.shape)}" for n, t in state.items()).encode()).hexdigest()[:16]
    return shapes, _samples(model)


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    state = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in model.named_parameters()
        if not any(part in name for part in ("clipv_", "lora_", ".modules_to_save."))
    }
    return dict(sorted(state.items()))


@torch.no_grad()
def _samples(model: nn.Module) -> str:
    """8 values of each of three matrices; "" where they cannot be read."""
    matrices = [tensor for tensor in _parameters(model).values() if tensor.dim() >= 2]
    if not matrices or any(tensor.is_meta for tensor in matrices):
        return ""
    values = []
    try:
        for tensor in (matrices[0], matrices[len(matrices) // 2], matrices[-1]):
            flat = tensor.detach().reshape(-1)
            index = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
            values.append(flat[index.to(flat.device)].float().cpu())
    except Exception:  # quantised; libraries raise anything
        return ""
    return base64.b64encode(torch.cat(values).numpy().astype("<f4").tobytes()).decode()


def _samples_agree(ours: str, theirs: str) -> bool:
    """Whether two samples are of the same weights, whatever the dtype that they were loaded in; also without one."""
    if not ours or not theirs:
        return True
    try:
        a, b = (torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.float32) for v in (ours, theirs))
    except ValueError:
        raise ValueError(f"backbone_fingerprint: got values {theirs!r}, which are no numbers in base64") from None
    return a.shape == b.shape and bool(((a - b).abs() <= _RELATIVE_TOLERANCE * a.abs().clamp_min(1e-6)).all())


__all__ = ["Comparison", "compare_backbone", "features_key", "fingerprint"]
