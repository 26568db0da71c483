"""Several sources of labelled images read as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


Parts = Mapping[str, Mapping[str, Any]]  # split -> what `sources._read` gives; "" without splits


def join_sources(names: Sequence[str], sources: Sequence[Parts]) -> dict[str, dict[str, Any]]:
    """The parts of all sources, split by split: images one after the other, classes matched by name.

    A source without splits counts as training images where another one has splits. Ids get the source's name in front.

    Args:
        names: of the sources, as the user wrote them.
        sources: their parts.

    Raises:
        ValueError: integer labels without names: nothing says that they mean the same in every source.
    """
    import datasets

    if any(split for parts in sources for split in parts):
        sources = [{split or "train": part for split, part in parts.items()} for parts in sources]
    every = [part for parts in sources for part in parts.values()]
    declared = every[0]["names"]
    if any(part["names"] != declared for part in every):
        declared = None
    fronts = _distinct([Path(name.rstrip("/")).name or name for name in names])
    joined: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(split for parts in sources for split in parts):
        members = [(n, f, parts[split]) for n, f, parts in zip(names, fronts, sources, strict=True) if split in parts]
        labels = [part["labels"] if declared else _as_text(name, part) for name, _, part in members]
        joined[split] = {
            "dataset": datasets.concatenate_datasets([part["dataset"] for *_, part in members]),
            "labels": [label for found in labels for label in found],
            "names": declared,
            "ids": tuple(f"{front}/{one}" for _, front, part in members for one in part["ids"]),
        }
        if declared is None:
            joined[split]["classes"] = sorted({c for part in every for c in part.get("classes", ())})
    return joined


def _as_text(name: str, part: Mapping[str, Any]) -> list[str]:
    if part["names"] is not None:
        return [part["names"][label] for label in part["labels"]]
    if not all(isinstance(label, str) for label in part["labels"]):
        raise ValueError(f"class_names: {name} has integer labels without names; joined sources want names")
    return list(part["labels"])


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{place}-{name}" for place, name in enumerate(names, start=1)]


__all__ = ["join_sources"]
