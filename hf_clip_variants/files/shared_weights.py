"""A saved model whose weights share their bytes on the disk with the checkpoint that they were read from."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open


if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
_FICLONE = 0x40049409  # Linux: the target shares the source's blocks until one of the two is written to


def save_sharing_weights(model: PreTrainedModel, source: str | os.PathLike, folder: Path) -> bool:
    """`model.save_pretrained(folder)`, without a second copy of the tensors that `source` holds unchanged.

    A file in the Hub's cache is linked: it is stored under its content's name and never written to, and the link stays
    when the cache is emptied. A file of any other folder may be written to in place (`cp` does), so it is shared only
    where the file system can copy on write (btrfs, XFS). Else, and where a tensor of the file is another one in the
    model, everything is written.

    Args:
        model: its `state_dict` is saved.
        source: the checkpoint it was loaded from: folder or Hub id.
        folder: an empty folder.

    Returns:
        Whether bytes are shared.
    """
    file = _weights_of(source)
    state = model.state_dict()
    names = {} if file is None else _unchanged(file, state, model.base_model_prefix)
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    shared = folder / "shared-weights"  # not yet under its own name: saving removes weights that it did not write
    if not names or not _share(file, shared):
        model.save_pretrained(folder)
        return False
    if not rest:
        model.config.save_pretrained(folder)
        os.rename(shared, folder / WEIGHTS)
        return True
    model.save_pretrained(folder, state_dict=rest)
    first, second = (folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    os.rename(shared, first)
    os.rename(folder / WEIGHTS, second)
    places = dict.fromkeys(names.values(), first.name) | dict.fromkeys(rest, second.name)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return True


def _weights_of(source: str | os.PathLike) -> Path | None:
    """The one file with the weights of a checkpoint; None if there is none here, or several."""
    if Path(source).is_dir():
        file = Path(source) / WEIGHTS
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # neither a folder nor an id
        found = try_to_load_from_cache(str(source), WEIGHTS)
        return Path(found) if isinstance(found, str) else None
    return None


def _unchanged(file: Path, state: dict[str, torch.Tensor], prefix: str) -> dict[str, str]:
    """Name in `state` -> name in the file, of all the file's tensors; {} unless each is in `state`, bit for bit."""
    names: dict[str, str] = {}
    with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            ours = name if name in state else f"{prefix}.{name}"
            if ours not in state or ours in names:
                return {}
            there, here = tensors.get_tensor(name), state[ours].cpu()
            if there.dtype != here.dtype or not torch.equal(there, here):
                return {}
            names[ours] = name
        return names
    return {}


def _share(file: Path, target: Path) -> bool:
    """Makes `target` have the bytes of `file` without copying them; False where that is not possible or not safe."""
    blob = file.resolve()
    with contextlib.suppress(OSError):
        if file.is_symlink() and blob.parent.name == "blobs":  # of the Hub's cache
            os.link(blob, target)
            return True
    try:
        import fcntl

        with open(blob, "rb") as source, open(target, "xb") as copy:
            fcntl.ioctl(copy, _FICLONE, source.fileno())
        return True
    except (ImportError, OSError):
        target.unlink(missing_ok=True)
        return False


__all__ = ["save_sharing_weights"]
