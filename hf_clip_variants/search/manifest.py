"""What the files of an index must hold: an index may have been cut off, edited, or written by something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.content_hashes import hash_of_files
from .sources import KINDS


if TYPE_CHECKING:
    import pyarrow as pa

_MODEL = {"name": str, "type": str, "key": str, "fingerprint": str, "processor": dict}


def content_of(folder: Path) -> str:
    """A hash of the rows that `datasets` saved, and of its descriptions: nothing else shows a changed bit."""
    names = [*sorted(path.name for path in folder.glob("*.arrow")), "state.json", "dataset_info.json"]
    return hash_of_files([folder / name for name in names])


def wrong_field(manifest: dict[str, Any]) -> str | None:
    """What is wrong in `index.json`, in words; None if nothing is."""
    for name, kinds in (
        ("source", str),
        ("column", str | None),
        ("split", str | None),
        ("model", dict),
        ("width", int),
        ("videos", dict),
        ("unreadable", list),
    ):
        if name not in manifest or not isinstance(manifest[name], kinds) or isinstance(manifest[name], bool):
            return f"{name}: got {manifest.get(name)!r:.100}"
    if manifest["column"] is None and not os.path.isabs(manifest["source"]):
        return f"source: got {manifest['source']!r:.100}, no absolute path"
    model, videos = manifest["model"], manifest["videos"]
    for name, kind in _MODEL.items():
        if not isinstance(model.get(name), kind):
            return f"model: {name}: got {model.get(name)!r:.100}"
    if ":" not in model["key"] or not all(isinstance(one, dict) for one in model["processor"].values()):
        return f"model: got {model!r:.200}"
    if not isinstance(manifest.get("content", ""), str):  # older versions did not write it
        return f"content: got {manifest['content']!r:.100}"
    if manifest["width"] < 1:
        return f"width: got {manifest['width']}"
    from .reading import VideoSettings

    try:
        VideoSettings(**videos)
    except (TypeError, ValueError) as error:
        return f"videos: {error}"
    pairs = manifest["unreadable"]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs):
        return "unreadable: got something else than pairs of texts"
    return None


def wrong_columns(table: pa.Table) -> str | None:
    """What is wrong in the rows of an index, in words; None if nothing is. Reads all columns but the vectors.

    Raises:
        pyarrow.ArrowInvalid: buffers that do not fit each other.
    """
    from .building import features

    table.validate(full=True)  # Arrow reads buffers of damaged files past their ends otherwise
    found = table.schema.field("features").type
    for field in features(getattr(found, "list_size", 1)).arrow_schema:
        if field.name not in table.schema.names or table.schema.field(field.name).type != field.type:
            return f"column {field.name}: missing, or not of type {field.type}"
        if field.name not in ("start", "end", "features") and table.column(field.name).null_count:
            return f"column {field.name}: nothing in some rows"
    if not len(table):
        return "no rows"
    kinds = set(table.column("kind").unique().to_pylist())
    if not kinds <= set(KINDS):
        return f"column kind: got {sorted(kinds)!r:.100}"
    return None


__all__ = ["content_of", "wrong_columns", "wrong_field"]
