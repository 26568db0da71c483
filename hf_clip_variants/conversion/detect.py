"""Which format an official checkpoint has: told from its tensors' names, which each format declares."""

import re
from collections.abc import Iterable

from ..modeling.loading_and_saving.checkpoint_format import CheckpointFormat
from ..registry import checkpoint_entries, load_reference
from .checkpoint_reader import printable
from .options import check_format


_SHOWN = 5
# Files of no official code, and what to do with them; formats add their own (`CheckpointFormat.elsewhere`).
_ELSEWHERE = {
    r"vision_model\.": "These are transformers' own names: nothing is to be converted, from_pretrained loads the "
    "folder with its config.json.",
}


def load_format(name: str) -> CheckpointFormat:
    """The descriptor of a format, `ModelFormat` or `AdapterFormat`. ValueError for a method without a converter."""
    check_format(name)
    _, entry = checkpoint_entries()[name]
    return load_reference(entry.descriptor)


def detect_method(names: Iterable[str], origin: str, method: str | None = None) -> str:
    """The format whose files have such names.

    Args:
        names: of the tensors; `""` for a file that is a single tensor.
        origin: the file, for messages.
        method: what the user says it is. It settles what the names leave open, and must not contradict them.

    Raises:
        ValueError: unknown, ambiguous or contradicted; the text shows the first five names and how many there are.
    """
    if method is not None:
        check_format(method)
    names = list(names)
    formats = {name: load_format(name) for name in checkpoint_entries()}
    fitting = [name for name, known in formats.items() if known.signature.fits(names)]
    if method is not None:
        if method in fitting or not fitting:  # the converters are strict, and say what is missing
            return method
        raise ValueError(
            f"method: {method!r} was asked for, but {origin} has the names of {' or '.join(fitting)}: {shown(names)}"
        )
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"method: {origin} could be {' or '.join(fitting)}, say which; it has {shown(names)}")
    hints = dict(_ELSEWHERE)
    for known in formats.values():
        hints |= known.elsewhere
    hint = next((text for pattern, text in hints.items() if any(re.match(pattern, n) for n in names)), "")
    hint = hint or f"Expected the official names of one of {', '.join(formats)}."
    raise ValueError(f"method: {origin} has names of no method known here: {shown(names)}. {hint}")


def shown(names: list[str]) -> str:
    """The first five names and how many there are; names come from files, and are made printable."""
    first = ", ".join(printable(name) or "a tensor without a name" for name in names[:_SHOWN])
    return f"{first}{', …' if len(names) > _SHOWN else ''} ({len(names)} in all)"


__all__ = ["detect_method", "load_format", "shown"]
