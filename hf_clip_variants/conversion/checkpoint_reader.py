"""Reads tensors from checkpoint files of unknown origin and never runs anything from them. Nothing else may read such
files.

Formats: safetensors; `torch.save` files of both kinds (zip since PyTorch 1.6, and the older stream of pickles);
TorchScript archives (OpenAI's CLIP files), of which only `data.pkl` and `data/*` are read, never `code/`. Neither
`torch.load` (its `weights_only=True` was broken twice: CVE-2025-32434, CVE-2026-24747), nor `torch.jit.load`, nor
`pickle` is used: `restricted_pickle.py` says which names in a file are built, which are dropped and that all others
are refused. There is no fallback to another reader: an attacker could provoke the failure.

Every count, size, offset and stride is checked against the real contents of the file before a tensor is made.
"""

import logging
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from .restricted_pickle import (
    MAX_PICKLE_BYTES,
    MAX_TENSORS,
    PARSE_ERRORS,
    Damaged,
    Global,
    PickleMachine,
    Refused,
    ScriptModule,
    Storage,
    TensorSpec,
    check_nesting,
    printable,
)


__all__ = [
    "Contents",
    "UnsafeCheckpointError",
    "read_checkpoint",
    "read_contents",
    "read_state_dict",
    "unwrap_state_dict",
]

logger = logging.getLogger(__name__)

_MAX_SAFETENSORS_HEADER = 16 << 20
_MAX_ZIP_DIRECTORY = 4 << 20
_MAX_MODULE_ATTRIBUTES = 50_000
_MAX_NAME_LENGTH = 500
_CHUNK = 1 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

# The keys under which training scripts nest the weights, in the order in which they are tried.
_NESTING = ("state_dict", "model_state_dict", "model")
_MAX_NESTING = 4
# Dictionaries of a second network beside those, whose names keep the dictionary's in front.
_BESIDE = ("fusion_model_state_dict",)


class UnsafeCheckpointError(OSError):
    """The file asks for something that weights never need: a function call, or more memory than it holds."""


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint file, as a flat dictionary; nothing in the file is executed.

    Args:
        path: a safetensors file, a `torch.save` file (any suffix: `.pt`, `.pth`, `.pth.tar`, `.ckpt`, `.bin`) or a
            TorchScript archive.

    Returns:
        `{name: tensor}` on the CPU, dtypes as stored, `requires_grad` off. Nesting and wrapper prefixes are removed as
        `unwrap_state_dict` does.

    Raises:
        UnsafeCheckpointError: the file asks for a function that rebuilds no tensor (`refused global os.system`), or
            for more memory than it holds.
        OSError: the file is missing, empty, truncated, damaged or of another kind; the text starts with the path.
        ValueError: the file is sound but holds no state dict.

    Use `read_checkpoint` for files that are not a state dict (a single tensor, a list).

    Example:

        >>> import torch, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "last.pth.tar")
        >>> torch.save({"epoch": 3, "state_dict": {"module.fc.weight": torch.ones(2, 2)}}, path)
        >>> list(read_state_dict(path))
        ['fc.weight']
    """
    with _open(path) as (tree, source):
        chosen = unwrap_state_dict(tree, origin=str(path), never_built=source.inert)
        return {name: source.tensor(spec) for name, spec in chosen.items()}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    Attributes:
        weights: as `read_state_dict` gives them; a file that is a single tensor has it under the name `""`.
        dropped: names of the entries beside them that are no weights.
        never_built: classes of objects in the file, which are never built.
    """

    weights: dict[str, torch.Tensor]
    dropped: list[str] = field(default_factory=list)
    never_built: list[str] = field(default_factory=list)


def read_contents(path: str | Path) -> Contents:
    """`read_state_dict` without a log line: the result lists what was dropped. Also reads files of a single tensor."""
    with _open(path) as (tree, source):
        chosen, dropped = ({"": tree}, []) if _is_tensor(tree) else _unwrap(tree, str(path))
        weights = {name: source.tensor(spec) for name, spec in chosen.items()}
        return Contents(weights, [str(name) for name in dropped], sorted(source.inert))


def read_checkpoint(path: str | Path) -> Any:
    """All tensors, numbers, strings, lists, tuples and dictionaries of a checkpoint file.

    Objects of other kinds are left out of dictionaries and become `None` in lists; numbers as dictionary keys become
    strings. A TorchScript archive gives its parameters and buffers by their dotted names. Raises as `read_state_dict`
    does.
    """
    with _open(path) as (tree, source):
        if source.inert:
            logger.warning("%s: never built: %s", path, _listing(sorted(source.inert)))
        return _plain(tree, source, {})


def unwrap_state_dict(
    checkpoint: Mapping[str, Any], *, origin: str = "checkpoint", never_built: set[str] | frozenset[str] = frozenset()
) -> dict[str, torch.Tensor]:
    """The state dict inside what a training script saved.

    Follows `"state_dict"`, `"model_state_dict"` and `"model"`, strips leading `module.` (DataParallel) and every
    `_orig_mod.` (torch.compile), keeps the tensors and says in one log line what it dropped. A second network's
    dictionary beside these (`"fusion_model_state_dict"`, ActionCLIP's head) is kept under names that start with its
    own. `origin` names the file
    in messages; `never_built` are names to list with the dropped.

    Raises:
        ValueError: no named tensors in `checkpoint`, or two names are equal without their prefixes.
    """
    state_dict, dropped = _unwrap(checkpoint, origin)
    if dropped or never_built:
        objects = f"; never built: {_listing(sorted(never_built))}" if never_built else ""
        logger.warning(
            "%s: kept %d tensors, dropped %s%s", origin, len(state_dict), _listing(dropped) or "nothing else", objects
        )
    return state_dict


def _unwrap(checkpoint: Any, origin: str) -> tuple[dict[str, Any], list]:
    """The state dict, and the names of all other entries."""
    if not isinstance(checkpoint, Mapping):
        kind = "a single tensor" if _is_tensor(checkpoint) else f"a {type(checkpoint).__name__}"
        raise ValueError(f"{origin}: expected a dictionary of named tensors, got {kind}: use read_checkpoint")
    dropped: list[str] = []
    found, beside = checkpoint, {}
    for _ in range(_MAX_NESTING):
        inner = next((key for key in _NESTING if _leads_to_tensors(found.get(key), _MAX_NESTING - 1)), None)
        if inner is None:
            break
        seconds = [key for key in _BESIDE if _leads_to_tensors(found.get(key), 0)]
        beside |= {f"{key}.{_without_wrappers(str(name))}": t for key in seconds for name, t in found[key].items()}
        dropped += [key for key in found if key != inner and key not in seconds]
        found = found[inner]
    state_dict: dict[str, Any] = {}
    for key, value in [*found.items(), *beside.items()]:
        if not _is_tensor(value) or not isinstance(key, str):
            dropped.append(key)
            continue
        name = _without_wrappers(key)
        if name in state_dict:
            raise ValueError(
                f"{origin}: two tensors are named '{printable(name)}' once `module.` and `_orig_mod.` are stripped"
            )
        state_dict[name] = value
    if not state_dict:
        raise ValueError(
            f"{origin}: no state dict found; the top level holds {_listing(list(checkpoint)) or 'nothing'}"
        )
    return state_dict, dropped


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | TensorSpec)


def _leads_to_tensors(value: Any, depth: int) -> bool:
    if not isinstance(value, Mapping):
        return False
    if any(_is_tensor(item) for item in value.values()):
        return True
    return depth > 0 and any(_leads_to_tensors(value.get(key), depth - 1) for key in _NESTING)


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _listing(names: list, limit: int = 10) -> str:
    shown = ", ".join(printable(str(name)) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _plain(value: Any, source: "_Source", built: dict[int, Any]) -> Any:
    """The tree with tensors read. `check_nesting` limits the recursion; `built` keeps shared objects shared."""
    if isinstance(value, TensorSpec):
        return source.tensor(value)
    if isinstance(value, Global | Storage | ScriptModule):
        return None
    if isinstance(value, dict | list | tuple):
        if id(value) not in built:
            if isinstance(value, dict):
                built[id(value)] = {k: _plain(v, source, built) for k, v in value.items() if not isinstance(v, Global)}
            else:
                built[id(value)] = type(value)(_plain(item, source, built) for item in value)
        return built[id(value)]
    return value


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, "_Source"]]:
    """The checked contents of a file, and the source of its tensors, which can be read while the file is open."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, expected a checkpoint file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    if not path.is_file():
        raise OSError(f"{path}: not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise OSError(f"{path}: the file is empty. Re-download it")
    kind = "PyTorch checkpoint"
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            file.seek(0)
            header = int.from_bytes(head[:8], "little")
            if path.suffix == ".safetensors" or head[8:9] == b"{" and header + 8 <= size:
                kind = "safetensors file"
                yield _read_safetensors(path, header), _Source()
            elif head.startswith(b"PK\x03\x04"):
                source = _ZipSource(file, size)
                yield source.tree(), source
            elif head[257:262] == b"ustar":
                raise Refused("refused a tar archive: unpack it and give the checkpoint inside")
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                    source = _LegacySource(buffer, file, size)
                    yield source.tree(), source
    except Refused as error:
        raise UnsafeCheckpointError(f"{error} ({path}); nothing in the file was run") from error
    except Damaged as error:
        raise OSError(
            f"{path}: not a valid {kind} ({error}). Re-download it, or ask its author to save it again"
        ) from error


def _read_safetensors(path: Path, header: int) -> dict[str, torch.Tensor]:
    if _MAX_SAFETENSORS_HEADER < header < path.stat().st_size:
        raise Refused(f"refused a safetensors header of {header} bytes")
    try:
        with safe_open(path, "pt") as file:
            count = len(file.keys())
        if count > MAX_TENSORS:  # empty ones cost nothing in the file, and seconds and gigabytes here
            raise Refused(f"refused {count} tensors, more than {MAX_TENSORS}")
        return load_file(path)
    except (SafetensorError, *PARSE_ERRORS) as error:
        raise Damaged(printable(str(error)) or type(error).__name__) from error


class _Source:
    """Where tensors are read from. For a safetensors file they have been read already."""

    def __init__(self):
        self.inert: set[str] = set()

    def tensor(self, spec: Any) -> torch.Tensor:
        return spec


class _StorageSource(_Source):
    """Tensors as views of byte storages. A storage that several tensors share is read once."""

    def __init__(self, file: Any, size: int):
        super().__init__()
        self.file, self.size = file, size
        self._loaded: dict[str, bytearray] = {}

    def claim(self, storage: Storage) -> None:
        """Called for every storage that the pickle mentions, before memory is allocated."""
        held = self._held_bytes(storage.key)
        if not 0 <= storage.nbytes <= held:
            claimed = f"{storage.numel} elements of {storage.dtype}"
            raise Refused(
                f"refused storage {printable(storage.key)}: claims {printable(claimed)}, the file holds {held} bytes"
            )

    def tensor(self, spec: TensorSpec) -> torch.Tensor:
        if 0 in spec.size:
            return torch.empty(spec.size, dtype=spec.dtype)
        key = spec.storage.key
        if key not in self._loaded:
            self._loaded[key] = self._read_storage(key)
        data = self._loaded[key]
        flat = torch.frombuffer(data, dtype=spec.dtype, count=len(data) // spec.dtype.itemsize)
        return flat.as_strided(spec.size, spec.stride, spec.offset)

    def _held_bytes(self, key: str) -> int:
        raise NotImplementedError

    def _read_storage(self, key: str) -> bytearray:
        raise NotImplementedError


def _read_exactly(stream: Any, count: int) -> bytearray:
    """`count` bytes in one buffer, read in steps, without a second copy of a large storage."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        part = stream.read(min(_CHUNK, count - done))
        if not part:
            raise EOFError(f"{count - done} bytes are missing")
        view[done : done + len(part)] = part
        done += len(part)
    return data


class _BoundedReads:
    """Limits what `zipfile` reads at once: it trusts the size that the file states for its directory."""

    def __init__(self, file: Any, size: int):
        self._file, self._size = file, size
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        count = self._size - self._file.tell() if count is None or count < 0 else count
        if count > _MAX_ZIP_DIRECTORY:
            raise Refused(f"refused a zip directory of {count} bytes")
        return self._file.read(max(count, 0))

    def seekable(self) -> bool:
        return True


class _ZipSource(_StorageSource):
    """`torch.save` since 1.6, and TorchScript: `<name>/data.pkl` and `<name>/data/<key>`. Nothing is extracted."""

    def __init__(self, file: Any, size: int):
        super().__init__(file, size)
        try:
            self._archive = zipfile.ZipFile(_BoundedReads(file, size))
        except (OSError, *PARSE_ERRORS) as error:  # OSError: positions before the file's beginning
            raise Damaged(f"zip archive: {printable(str(error))}") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._archive.infolist():
            if entry.filename in self._entries:
                raise Refused(f"refused a zip archive with two entries {printable(entry.filename)}")
            self._entries[entry.filename] = entry
        roots = [
            name.removesuffix("/data.pkl")
            for name in self._entries
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1:
            raise Damaged(f"a zip archive with {len(roots)} entries <name>/data.pkl, expected one")
        self._root = roots[0]
        self._held: dict[str, int] = {}
        self._held_total = 0

    def tree(self) -> Any:
        order = f"{self._root}/byteorder"
        if order in self._entries and self._read(order, 16) != b"little":
            raise Damaged("not little-endian")
        pickled = self._read(f"{self._root}/data.pkl", MAX_PICKLE_BYTES)
        machine = PickleMachine(pickled, self.claim)
        tree = machine.load()
        if machine.position != len(pickled):
            raise Refused(f"refused {len(pickled) - machine.position} bytes after the end of data.pkl")
        check_nesting(tree)
        self.inert |= machine.inert
        return _flatten_modules(tree)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self._entries.get(name)
        if entry is None:
            raise Damaged(f"entry {printable(name)} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Refused(f"refused the compressed entry {printable(name)}: PyTorch stores data as it is")
        if entry.header_offset + entry.file_size > self.size:
            raise Refused(f"refused entry {printable(name)}: claims {entry.file_size} bytes of a file of {self.size}")
        return entry

    def _read(self, name: str, limit: int) -> bytearray:
        entry = self._entry(name)
        if entry.file_size > limit:
            raise Refused(f"refused entry {printable(name)} of {entry.file_size} bytes, more than {limit}")
        try:
            with self._archive.open(entry) as stream:
                return _read_exactly(stream, entry.file_size)  # zipfile compares the CRC-32 at the last byte
        except (OSError, *PARSE_ERRORS) as error:
            raise Damaged(f"entry {printable(name)}: {printable(str(error))}") from error

    def _held_bytes(self, key: str) -> int:
        if key not in self._held:
            self._held[key] = self._entry(f"{self._root}/data/{key}").file_size
            self._held_total += self._held[key]
            if self._held_total > self.size:  # entries of a hostile archive can overlap
                raise Refused(f"refused storages of {self._held_total} bytes in a file of {self.size}")
        return self._held[key]

    def _read_storage(self, key: str) -> bytearray:
        return self._read(f"{self._root}/data/{key}", self.size)


class _LegacySource(_StorageSource):
    """`torch.save` before 1.6: five pickles (magic, version, machine, object, storage keys), then the storages.

    Each storage is its number of elements, in 8 bytes, and then the elements.
    """

    def __init__(self, buffer: mmap.mmap, file: Any, size: int):
        super().__init__(file, size)
        self._buffer = buffer
        self._storages: dict[str, Storage] = {}
        self._positions: dict[str, int] = {}

    def tree(self) -> Any:
        machine = PickleMachine(self._buffer, self.claim)
        magic = machine.load()
        if type(magic) is not int or magic != _LEGACY_MAGIC:
            raise Damaged("neither a zip archive nor a stream that torch.save wrote")
        if machine.load() != _LEGACY_VERSION:
            raise Damaged("unknown version of torch.save")
        machine_info = machine.load()
        if type(machine_info) is not dict or machine_info.get("little_endian") is not True:
            raise Damaged("not little-endian")
        tree = machine.load()
        keys = machine.load()
        if (
            type(keys) is not list
            or any(type(key) is not str for key in keys)
            or sorted(keys) != sorted(self._storages)
        ):
            raise Damaged("the list of storages does not match the tensors")
        self._locate(keys, machine.position)
        check_nesting(tree)
        self.inert |= machine.inert
        return _flatten_modules(tree)

    def claim(self, storage: Storage) -> None:
        super().claim(storage)
        known = self._storages.setdefault(storage.key, storage)
        if (known.dtype, known.numel) != (storage.dtype, storage.numel):
            raise Refused(f"refused storage {printable(storage.key)}: described twice, differently")

    def _locate(self, keys: list[str], position: int) -> None:
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(self._buffer[position : position + 8], "little", signed=True)
            if count != storage.numel:
                raise Damaged(f"storage {printable(key)} has {count} elements, its tensors say {storage.numel}")
            self._positions[key] = position + 8
            position += 8 + storage.nbytes
        if position != self.size:
            raise Damaged(f"the file has {self.size} bytes, its storages end at {position}")

    def _held_bytes(self, key: str) -> int:
        return self.size  # an upper limit; `_locate` checks exactly when all pickles are read

    def _read_storage(self, key: str) -> bytearray:
        self.file.seek(self._positions[key])
        try:
            return _read_exactly(self.file, self._storages[key].nbytes)
        except EOFError as error:
            raise Damaged(str(error)) from error


def _flatten_modules(tree: Any) -> Any:
    """A TorchScript module as `{dotted name: tensor}`, as `state_dict()` of the running module would name them (plus
    plain tensor attributes)."""
    if not isinstance(tree, ScriptModule):
        return tree
    flat: dict[str, TensorSpec] = {}
    visited = 0
    waiting: list[tuple[str, ScriptModule]] = [("", tree)]
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.state.items():
            visited += 1
            # A few modules that each hold the next one twice have 2^n names.
            if visited > _MAX_MODULE_ATTRIBUTES or len(prefix) + len(name) > _MAX_NAME_LENGTH:
                raise Refused(f"refused modules with more than {_MAX_MODULE_ATTRIBUTES} attributes, or too long names")
            if isinstance(value, ScriptModule):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, TensorSpec):
                flat[prefix + name] = value
    return flat
