"""JSON files that are replaced in one step, and hashes of JSON-able values."""

import hashlib
import json
from pathlib import Path
from typing import Any

from .atomic_writes import write_atomically


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step: at any time, also after a kill, it holds the whole old text or the whole new
    one."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a JSON-able value, whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace")
    ).hexdigest()[:16]


__all__ = ["digest", "write_json"]
