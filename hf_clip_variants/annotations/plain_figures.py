"""Figures whose texts are users': names of classes, methods, files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def plain_figures(**settings: Any) -> Iterator[None]:
    """Inside, matplotlib shows each text as it is: "$" begins no formula, which may be none that it knows.

    Args:
        settings: more of matplotlib's, with `__` for the dot: `svg__fonttype="none"`.

    >>> import matplotlib
    >>> with plain_figures(font__size=9):
    ...     matplotlib.rcParams["text.parse_math"], matplotlib.rcParams["font.size"]
    (False, 9.0)
    """
    import matplotlib

    named = {name.replace("__", "."): value for name, value in settings.items()}
    with matplotlib.rc_context({"text.parse_math": False} | named):
        yield


__all__ = ["plain_figures"]
