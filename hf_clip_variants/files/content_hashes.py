"""Files told apart by what is in them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path


def hash_of_files(files: Sequence[Path], block: int = 1 << 22) -> str:
    """The first 32 hex digits of the SHA-256 of the files' sizes and contents, in this order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while piece := file.read(block):
                digest.update(piece)
    return digest.hexdigest()[:32]


def hash_of_bytes(content: bytes) -> str:
    """That of one file with this content."""
    digest = hashlib.sha256(f"{len(content)}\n".encode())
    digest.update(content)
    return digest.hexdigest()[:32]


__all__ = ["hash_of_bytes", "hash_of_files"]
