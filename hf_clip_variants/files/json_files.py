"""JSON files that are replaced as a whole."""

import json
from pathlib import Path
from typing import Any

from .atomic_writes import write_atomically


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step: a reader, and whoever comes after a kill, finds the old text or the new one."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


__all__ = ["write_json"]
