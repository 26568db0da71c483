"""From the labels of a source to class names and indices: which names there are, and what fits none of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .image_set import name_some
from .names import tidy_class_name


logger = logging.getLogger(__name__)

LONGEST_NAME = 1000  # characters of a class name; models read some 300


class UnnamedLabels(ValueError):
    """Integer labels without names, where names are needed.

    Attributes:
        labels (`tuple[int, ...]`): the distinct labels, in order.
    """

    def __init__(self, labels: Sequence[int]):
        self.labels = tuple(labels)
        shown = ", ".join(map(str, self.labels[:8])) + (", …" if len(self.labels) > 8 else "")
        super().__init__(
            f"class_names: the labels are integers ({shown}) without names; give them in label order, as a list, a "
            "mapping or a file (--class-names)"
        )

    @property
    def numbers(self) -> dict[int, str]:
        """Each label named by its number."""
        return {label: str(label) for label in self.labels}


def check_length(name: str, what: str) -> None:
    """ValueError for a name that cannot be one: as long as a lost quote or a wrong column makes them."""
    if len(name) > LONGEST_NAME:
        hint = "; is a quote missing at its end?" if "\n" in name else ""
        raise ValueError(
            f"{what} of {len(name):,} characters, {name[:40]!r}…; want {LONGEST_NAME:,} characters at most{hint}"
        )


def resolve_classes(parts, class_names, clean) -> tuple[tuple[str, ...], dict]:
    """The class names, and label value -> index, from the labels of all splits together.

    Names come from, in this order: the argument, the source's own list (`ClassLabel`), the text of the labels.
    """
    declared = next((part["names"] for part in parts.values() if part["names"] is not None), None)
    values = {v for part in parts.values() for v in part["labels"]} - {None}
    textual = any(isinstance(v, str) for v in values)
    renamed: Mapping[str, str] = {}  # text label -> name
    if isinstance(class_names, Mapping) and (textual or (declared and set(class_names) & set(declared))):
        renamed = {str(label): name for label, name in class_names.items()}
        known = list(declared or ())
        if textual:  # the labels that there are, under their old or new names: a mapping may serve many data sets
            found = {tidy_class_name(value, clean) for value in values if isinstance(value, str)}
            known = [label for label in sorted(renamed) if not found.isdisjoint(_both(label, renamed[label], clean))]
        raw = [renamed[label] for label in known if label in renamed]
        kept = [i for i, label in enumerate(declared or ()) if label in renamed]
        index_of = {label: i for i, label in enumerate(kept)}
    elif isinstance(class_names, Mapping):
        name_of = {_whole(label): name for label, name in class_names.items()}
        raw, index_of = [name_of[k] for k in sorted(name_of)], {k: i for i, k in enumerate(sorted(name_of))}
    elif class_names is not None:
        raw = list(class_names)
        index_of = {i: i for i in range(len(raw))}
    elif declared is not None:
        raw, index_of = list(declared), {i: i for i in range(len(declared))}
    elif textual:
        found = {c for part in parts.values() for c in part.get("classes", ())}
        raw, index_of = sorted(found | values), {}
    else:
        labelled = (part["labels"] for part in parts.values() if set(part["labels"]) != {-1})  # -1: no label is known
        raise UnnamedLabels(sorted({label for labels in labelled for label in labels} - {None}))
    for position, name in enumerate(raw):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"class_names: name {position} is {name!r}; want text that is not blank")
        check_length(name, f"class_names: name {position}")
    names = [tidy_class_name(name, clean) for name in raw]
    if class_names is None:
        marks = next((part["marks"] for part in parts.values() if "marks" in part), [""] * len(names))
        names = [name + mark for name, mark in zip(names, marks, strict=True)]
    owner: dict[str, str] = {}
    for name, before in zip(names, raw, strict=True):
        if name in owner:
            raise ValueError(
                f"class_names: {owner[name]!r} and {before!r} are the same name {name!r}; class names must differ"
            )
        owner[name] = before
    _warn_of_case(names)
    if textual:
        lookup = {name: i for i, name in enumerate(names)}
        text = (value for value in values if isinstance(value, str))
        index_of = {value: lookup.get(tidy_class_name(renamed.get(value, value), clean)) for value in text}
    return tuple(names), index_of


def digits_as_numbers(parts, class_names) -> dict[str, dict[str, Any]]:
    """Labels that are text of digits as integers, if class names are given that are not these digits."""
    labels = [label for part in parts.values() for label in part["labels"]]
    if not labels or not all(isinstance(label, str) and re.fullmatch("-?[0-9]+", label) for label in labels):
        return parts
    values = set(labels)
    if class_names is None:
        shown = name_some(sorted(values), 3)
        logger.warning("labels: all are digits (%s) and are taken as class names; class_names gives them names", shown)
        return parts
    if not isinstance(class_names, Mapping) and values <= set(class_names):
        return parts
    return {split: part | {"labels": [int(label) for label in part["labels"]]} for split, part in parts.items()}


def _both(label: str, name: str, clean: bool) -> set[str]:
    return {tidy_class_name(text, clean) for text in (label, name) if isinstance(text, str)}


def _whole(label: int | str) -> int:
    try:
        return int(label)
    except ValueError:
        raise ValueError(
            f"class_names: got the label {label!r}; the labels are integers, want a mapping from them to names"
        ) from None


def _warn_of_case(names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            logger.warning("class names %r and %r differ by case only: most models read them alike", other, name)


def to_indices(part, names, index_of) -> np.ndarray:
    """Label values -> class indices, int64 (N,)."""
    indices = np.empty(len(part["labels"]), dtype=np.int64)
    for row, value in enumerate(part["labels"]):
        index = index_of.get(value)
        if index is None:
            where = f"class_names: label of images[{row}] ({part['ids'][row]!r})"
            if isinstance(value, str):
                raise ValueError(f"{where}: got {value!r}, which is not among the class names {name_some(names)}")
            hint = "; -1 marks a split without labels" if value == -1 else ""
            hint = (
                "; labels with gaps need class_names={label: name}"
                if isinstance(value, int) and value >= len(names)
                else hint
            )
            raise ValueError(f"{where}: got {value}, which has no class name; want one of {_ranges(index_of)}{hint}")
        indices[row] = index
    return indices


def _ranges(index_of) -> str:
    keys = sorted(index_of)
    return f"0..{len(keys) - 1}" if keys == list(range(len(keys))) else ", ".join(map(str, keys[:8]))


__all__ = ["LONGEST_NAME", "UnnamedLabels", "check_length", "digits_as_numbers", "resolve_classes", "to_indices"]
