"""Modules that code exported to the Hub leaves at home: checks of what comes in, and what makes work safer or faster.

Where the package is installed, all of them are there. Exported code does without: the errors of transformers and torch
stand, and answers are the same.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Any


def optional_module(name: str, package: str | None = None) -> ModuleType | None:
    """A module, by its full name or relative to `package`; None if there is none of that name."""
    try:
        full = importlib.util.resolve_name(name, package)
    except ImportError:  # in a folder of exported code there are no packages above
        return None
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{full}.".startswith(f"{error.name}."):
            raise  # it is there, and something that it imports is not
        return None


def needed_module(name: str, package: str, wanted: str) -> ModuleType:
    """`optional_module`; without it, ValueError that begins with what needs it (`wanted`)."""
    found = optional_module(name, package)
    if found is None:
        raise ValueError(f"{wanted}: this exported code lacks {name.lstrip('.')}.py; install hf-clip-variants")
    return found


class _Unchecked:
    """In the place of a module of checks: each of its functions only returns its first argument."""

    def __getattr__(self, name: str) -> Any:
        return lambda value=None, *args, **kwargs: value


def optional_checks(name: str, package: str) -> Any:
    """`optional_module` of functions that check something or decorate a class; without it, nothing is checked."""
    return optional_module(name, package) or _Unchecked()


def checkpoint_mixins() -> tuple[type, ...]:
    """What stands before `PreTrainedModel`: loading that is checked, saving all at once (`checkpoints.py`)."""
    found = optional_module(".checkpoints", __package__)
    return () if found is None else (found.CheckedLoading, found.StagedSaving)


__all__ = ["checkpoint_mixins", "needed_module", "optional_checks", "optional_module"]
