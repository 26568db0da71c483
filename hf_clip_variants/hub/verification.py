"""Checks the weights of a folder or repository: compares them with the hashes in the model card.

safetensors notices a truncated file, but not a flipped bit. The card (`model_cards.model_card`) holds the SHA-256 of
every weight file from the moment it was saved. `hf cache verify` compares with the Hub's checksums instead: those are
taken at the upload, do not show earlier damage, and exist for files on the Hub only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


_CARD = "README.md"


@dataclass(frozen=True)
class FileCheck:
    """The state of one weight file.

    `"ok"`, `"changed"` (another hash), `"missing"`, `"not recorded"` (not in the card), `"not finite"` (as recorded,
    but with NaN or infinite numbers) or `"damaged"` (not a safetensors file).
    """

    file: str
    status: Literal["ok", "changed", "missing", "not recorded", "not finite", "damaged"]
    detail: str = ""


def weight_hashes(folder: str | Path) -> dict[str, str]:
    """File name -> SHA-256 (hex) of each safetensors file in a folder, sorted by name."""
    hashes = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        if path.exists() and not path.is_file():
            raise OSError(f"{path}: not a regular file")  # a device or a pipe would be read for ever
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _local_folder(path_or_id: str | Path, revision: str | None) -> Path:
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path_or_id), revision=revision, allow_patterns=["*.safetensors", _CARD]))


def _fault_inside(path: Path) -> FileCheck | None:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    return FileCheck(path.name, "not finite", name)
    except SafetensorError as error:
        return FileCheck(path.name, "damaged", str(error))
    return None


def verify(path_or_id: str | Path, revision: str | None = None) -> list[FileCheck]:
    """Checks every weight file of a folder or Hub repository against its card, and its numbers for NaN and infinity.

    Raises ValueError when there is no card or it records no hashes (it was not written by this package), OSError when
    a repository cannot be reached.

    Example:

    ```python
    for check in verify("clip-demo/adapters/tip_adapter/2-shot/seed-1"):
        print(check.file, check.status)
    ```
    """
    import yaml
    from huggingface_hub import ModelCard

    folder = _local_folder(path_or_id, revision)
    readme = folder / _CARD
    # A damaged byte in the prose matters to nobody; in a hash it makes a difference below.
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    try:
        recorded = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get("sha256")
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"path_or_id: the front matter of {readme} is no YAML ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(recorded, dict) or not recorded:
        raise ValueError(
            f"path_or_id: {path_or_id} has no hashes to compare with: its {_CARD} records no sha256 of weight files"
            + (f"; `hf cache verify {path_or_id}` compares with the Hub's" if not Path(path_or_id).is_dir() else "")
        )
    found = weight_hashes(folder)
    checks = []
    for name in sorted({*recorded, *found}):
        if name not in found:
            checks.append(FileCheck(name, "missing"))
        elif name not in recorded:
            checks.append(FileCheck(name, "not recorded", found[name]))
        elif found[name] != recorded[name]:
            checks.append(FileCheck(name, "changed", f"sha256 {found[name]}, recorded {recorded[name]}"))
        else:
            checks.append(_fault_inside(folder / name) or FileCheck(name, "ok"))
    return checks


__all__ = ["FileCheck", "verify", "weight_hashes"]
