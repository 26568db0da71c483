"""Sources with names, as commands and scripts take them. Imports no library."""

from collections.abc import Iterable
from pathlib import Path


def parse_test_data(arguments: Iterable[str], argument: str = "test_data") -> dict[str, str]:
    """`["3d=emoji:fluent3d", "pets/test"]` -> `{"3d": "emoji:fluent3d", "test": "pets/test"}`.

    ValueError, which names `argument`, for an empty name or source and for a name that is given twice.

    >>> parse_test_data(["emoji:notov1"])
    {'notov1': 'emoji:notov1'}
    """
    sources: dict[str, str] = {}
    for text in arguments:
        name, equals, source = text.partition("=")
        if not equals:
            name, source = Path(text.rpartition(":")[2]).stem, text
        if not name.strip() or not source.strip():
            raise ValueError(f"{argument}: got {text!r}; want NAME=SOURCE or SOURCE")
        if name in sources:
            raise ValueError(f"{argument}: the name {name!r} is given twice; write NAME=SOURCE with names that differ")
        sources[name.strip()] = source.strip()
    return sources


__all__ = ["parse_test_data"]
