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
        wanted = hints[one.name]
        if isinstance(value, str) and any(get_origin(kind) is list for kind in _kinds(wanted)):
            raise ValueError(f"{one.name}: {_short(value)} is one string, expected {_words(wanted)}")
        if not _fits(value, wanted):
            raise ValueError(f"{one.name}: {_short(value)} is a {type(value).__name__}, expected {_words(wanted)}")
        if not _finite(value):
            raise ValueError(f"{one.name}: {_short(value)}, expected finite numbers")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_range(one.name, value, one.metadata.get("range", (-LARGEST_NUMBER, LARGEST_NUMBER)))
        if value is not getattr(config, one.name):
            setattr(config, one.name, value)


def described_tensors(config: Any, origin: str) -> dict[str, tuple[int, ...]]:
    """`config.adapter_tensors()`; ValueError that names the fields if they do not fit its method."""
    try:
        return config.adapter_tensors()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{origin}: target_modules {config.target_modules} and backbone_widths {config.backbone_widths} of its "
            f"configuration do not describe this kind of adapter ({type(error).__name__}: {error})"
        ) from error


def shown_fields(config: Any) -> str:
    """The fields of the method itself, its widths and the number of classes: what the tensors' shapes follow from."""
    shared = {one.name for one in fields(type(config).__mro__[1])}
    shared -= {"backbone_widths", "modules_to_save", "target_modules"}
    values = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in shared}
    values |= {"class_names": len(config.class_names)} if config.class_names else {}
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _check_range(name: str, value: float, limits: tuple[float, float]) -> None:
    low, high = limits
    if low <= value <= high:
        return
    if isinstance(low, int) and isinstance(high, int) and (low, high) != (0, 1):
        wanted = f"a whole number of at {f'least {low}' if value < low else f'most {high}'}"
    else:
        wanted = f"a number between {low:g} and {high:g}"
    raise ValueError(f"{name}: {_short(value)}, expected {wanted}")


def _kinds(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


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
    if origin is Literal:  # which of them, the method says itself
        return any(type(value) is type(one) for one in inner)
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


__all__ = ["check_fields", "described_tensors", "shown_fields"]
