"""Files and checkpoints that a kill cannot leave half written: temporary name, flush to disk, rename."""

import contextlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..modeling.loading_and_saving.checkpoints import (
    fsync_file,
    fsync_folder,
    no_space_error,
    staged_folder,
    swap_in,
)


logger = logging.getLogger(__name__)

MARKER = "complete.json"  # the last file written into a checkpoint: all files and their sizes
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@contextlib.contextmanager
def replacing(path: str | os.PathLike, bytes_needed: int | None = None) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write a file to; at the end it replaces `path` in one step.

    At any time, also after a kill, `path` is the whole old file or the whole new one. Its folder is made if missing.
    An exception leaves the old file. For libraries that write to a path; see `write_atomically` for data in memory.

    Raises:
        OSError: the disk is full; names `path` and the bytes needed.
    """
    path = Path(path)
    aside = path.with_name(f".tmp-{path.name[:80]}-{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch(exist_ok=False)
        mode = aside.stat().st_mode  # the umask's; safetensors makes 0600
        yield aside
        aside.chmod(mode)
        fsync_file(aside)
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise (isinstance(error, Exception) and no_space_error(error, path, bytes_needed)) or error from None
    fsync_file(path.parent)


def write_atomically(path: str | os.PathLike, content: str | bytes) -> Path:
    """Writes a file in one step (see `replacing`). OSError names the path if the disk is full.

    Of text, what UTF-8 cannot hold (file names of other bytes) is written as escapes: in JSON, they are read back.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with replacing(path, len(data)) as aside:
        aside.write_bytes(data)
    return Path(path)


def mark_complete(checkpoint: str | os.PathLike) -> None:
    """Writes the marker of a complete checkpoint folder: every file with its size."""
    folder = Path(checkpoint)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes.pop(MARKER, None)
    fsync_folder(folder)
    (folder / MARKER).write_text(json.dumps({"files": sizes}, indent=2) + "\n", encoding="utf-8")


def why_incomplete(checkpoint: str | os.PathLike) -> str | None:
    """None if the checkpoint has its marker and every listed file in full length; otherwise the reason."""
    folder = Path(checkpoint)
    try:
        sizes = dict(json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return f"no {MARKER}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MARKER} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
    return None


def last_complete_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The newest complete `checkpoint-N`, or None. A warning names newer ones that are incomplete."""
    found = [(int(m[1]), p) for p in Path(folder).glob("checkpoint-*") if (m := _CHECKPOINT.fullmatch(p.name))]
    for _, path in sorted(found, reverse=True):
        reason = why_incomplete(path)
        if reason is None:
            return path
        logger.warning("skipping incomplete %s (%s)", path.name, reason)
    return None


__all__ = [
    "MARKER",
    "fsync_folder",
    "last_complete_checkpoint",
    "mark_complete",
    "no_space_error",
    "replacing",
    "staged_folder",
    "swap_in",
    "why_incomplete",
    "write_atomically",
]
