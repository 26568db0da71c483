"""Checks of adapter configurations that follow from the fields themselves: their types, and ranges in their
metadata."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin


LARGEST_NUMBER = 10**9  # of whole numbers without a range of their own
_TEXT_OF_TYPE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}


def check_fields(config: Any) -> None:
    """Raises ValueError that names the field unless every field of a dataclass has a value of its type, finite, and in
    the range of its metadata (`{"range": (smallest, largest)}`).

    NumPy's and torch's numbers become Python's, tuples and sets lists.
    """
    hints = _hints(type(config))
    for one in fields(config):
        if one.name not in hints:
            continue
        value = _plain(getattr(config, one.name))
        if not _fits(value, hints[one.name]):
            raise ValueError(
                f"{one.name}: got {_short(value)} ({type(value).__name__}), expected {_words(hints[one.name])}"
            )
        if not _finite(value):
            raise ValueError(f"{one.name}: got {_short(value)}, expected finite numbers")
        if isinstance(value, int | float) and not isinstance(value, bool):
            low, high = one.metadata.get("range", (-LARGEST_NUMBER, LARGEST_NUMBER))
            if not low <= value <= high:
                wanted = "a finite number of at least 0" if low == 0 and high >= LARGEST_NUMBER else f"{low}..{high}"
                raise ValueError(f"{one.name}: {_short(value)}, expected {wanted}")
        if value is not getattr(config, one.name):
            setattr(config, one.name, value)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, tuple):
        return list(value)
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    if wanted is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or wanted)


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return all(map(_finite, inner))


def _words(wanted: Any) -> str:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is list:
        return f"a list, each {_words(inner[0])}"
    if origin is dict:
        return f"names, each with {_words(inner[1])}"
    return _TEXT_OF_TYPE.get(wanted, getattr(wanted, "__name__", str(wanted)))


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"


__all__ = ["check_fields"]
