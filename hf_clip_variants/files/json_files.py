"""JSON files that are replaced in one step."""

import json
from pathlib import Path
from typing import Any

from .atomic_writes import write_atomically


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` in one step: at any time, also after a kill, it holds the whole old text or the whole new
    one."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


__all__ = ["write_json"]
