"""
The table of methods, with one row per method.

Everything that depends on the list of methods reads it here: registration with transformers' Auto classes and with
PEFT (`registration/`), commands, conversion, few-shot fitting, pre-training, the table in README.md and the contract
tests. Nothing else lists methods by hand. Reading the table imports nothing: classes, functions and descriptors are
references `"module:name"`, relative to `hf_clip_variants`, which `Method.load` and `load_reference` import.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from .adapters import ADAPTERS
from .models import MODELS
from .rows import (
    KINDS,
    CheckpointEntry,
    FewShotEntry,
    Kind,
    KindName,
    Method,
    OfficialCode,
    Option,
    Paper,
    Submodel,
    load_reference,
    split_reference,
)


_METHODS = (*MODELS, *ADAPTERS)


def methods(kind: KindName | None = None) -> list[Method]:
    """
    All methods in the table's order, or those of one kind.

    Example:

    ```python
    >>> import hf_clip_variants

    >>> [method.name for method in hf_clip_variants.methods("adapter")][:5]
    ['tip_adapter', 'linear_head', 'clip_adapter', 'coop', 'cocoop']
    ```
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected {', '.join(map(repr, KINDS))} or None")
    return [row for row in _METHODS if kind in (None, row.kind)]


def method(name: str) -> Method:
    """The row called `name`. Raises `ValueError` with the nearest names when there is none."""
    for row in _METHODS:
        if row.name == name:
            return row
    known = [row.name for row in _METHODS]
    raise ValueError(f"method: {unknown_name(name, known)}")


def few_shot_entries() -> dict[str, FewShotEntry]:
    """Name -> entry, for all ways to fit an adapter to a few labelled images, in the table's order."""
    return {entry.name: entry for row in _METHODS for entry in row.few_shot}


def checkpoint_entries() -> dict[str, tuple[Method, CheckpointEntry]]:
    """Name -> row and entry of every format of official checkpoints, in the table's order. Imports nothing."""
    return {entry.name: (row, entry) for row in _METHODS for entry in row.checkpoints}


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `"; did you mean 'x' or 'y'?"`, or `"."` when nothing is near.

    >>> did_you_mean("tip-adaptr", ["coop", "tip_adapter"])
    "; did you mean 'tip_adapter'?"
    """
    spellings = {name.lower().replace("-", "_"): name for name in known}
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), spellings, n=2)
    return f"; did you mean {' or '.join(repr(spellings[match]) for match in near)}?" if near else "."


def unknown_name(name: Any, known: Iterable[str]) -> str:
    """A message about a name that is none of `known`.

    >>> unknown_name("tip-adaptr", ["coop", "tip_adapter"])
    "unknown 'tip-adaptr'; did you mean 'tip_adapter'? Known: coop, tip_adapter"
    """
    known = list(known)
    return f"unknown {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}"


__all__ = [
    "KINDS",
    "CheckpointEntry",
    "FewShotEntry",
    "Kind",
    "KindName",
    "Method",
    "OfficialCode",
    "Option",
    "Paper",
    "Submodel",
    "checkpoint_entries",
    "did_you_mean",
    "few_shot_entries",
    "load_reference",
    "method",
    "methods",
    "split_reference",
    "unknown_name",
]
