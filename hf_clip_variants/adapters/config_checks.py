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
LARGEST_TEXT = 100_000  # characters of a class name, a template, a path
_TEXT_OF_TYPE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}


def check_fields(config: Any) -> None:
    """Raises ValueError that names the field unless every field of a dataclass has a value of its type, finite, and in
    the range of its metadata (`{"range": (smallest, largest)}`, of each number in a list).

    NumPy's and torch's numbers become Python's, whole numbers floats where floats are wanted, tuples and sets lists.
    """
    hints = _hints(type(config))
    for one in fields(config):
        if one.name not in hints:
            continue
        given = getattr(config, one.name)
        value, wanted = _plain(given), hints[one.name]
        if isinstance(value, str) and any(get_origin(kind) is list for kind in _kinds(wanted)):
            raise ValueError(f"{one.name}: {_short(value)} is one string, expected {_words(wanted)}")
        if not _fits(value, wanted):
            raise ValueError(f"{one.name}: {_short(value)} is a {type(value).__name__}, expected {_words(wanted)}")
        if get_origin(wanted) is Literal and value not in get_args(wanted):
            raise ValueError(f"{one.name}: {_short(value)}, expected {_words(wanted)}")
        _check_limits(one.name, value, one.metadata.get("range", (-LARGEST_NUMBER, LARGEST_NUMBER)))
        if type(value) is int and float in _kinds(wanted) and int not in _kinds(wanted):
            value = float(value)
        if value is not given:
            setattr(config, one.name, value)


def described_tensors(config: Any, origin: str) -> dict[str, tuple[int, ...]]:
    """`config.adapter_tensors()`; ValueError that names the fields if they do not fit its method."""
    try:
        return config.adapter_tensors()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{origin}: target_modules {config.target_modules} and backbone_widths {config.backbone_widths} of its "
            f"configuration do not describe this kind of adapter ({type(error).__name__}: {error}); look at "
            f"{shown_fields(config)}"
        ) from error


def shown_fields(config: Any) -> str:
    """The fields of the method itself, its widths and the number of classes: what the tensors' shapes follow from."""
    shared = {one.name for one in fields(type(config).__mro__[1])}
    shared -= {"backbone_widths", "modules_to_save", "target_modules"}
    values = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in shared}
    values |= {"class_names": len(config.class_names or ())}
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _check_limits(name: str, value: Any, limits: tuple[float, float]) -> None:
    """ValueError for numbers that are not finite or not in `limits`, and for texts longer than any real one."""
    if isinstance(value, str):
        if len(value) > LARGEST_TEXT:
            raise ValueError(f"{name}: {_short(value)}, {len(value):,} characters; want {LARGEST_TEXT:,} at most")
        return
    if isinstance(value, Mapping | list):
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        for one in inner:
            _check_limits(name, one, limits)
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {value}, expected finite numbers")
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
    """Numbers of NumPy and torch as Python's, tuples and sets as lists, at any depth; else the value itself."""
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and getattr(value, "ndim", None) == 0:
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, list | tuple):
        plain = [_plain(one) for one in value]
        same = isinstance(value, list) and all(a is b for a, b in zip(plain, value, strict=True))
        return value if same else plain
    if type(value) is dict:
        plain = {_plain(key): _plain(one) for key, one in value.items()}
        return plain if any(plain.get(key) is not one for key, one in value.items()) else value
    return value


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:  # which of them, comes later
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
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write a number of thousands of digits, in a list
        text = f"a {type(value).__name__} of huge numbers"
    return text if len(text) <= 80 else f"{text[:60]}…"


__all__ = ["check_fields", "described_tensors", "shown_fields"]
