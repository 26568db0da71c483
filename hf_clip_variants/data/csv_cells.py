"""Lines of CSV files that spreadsheets open: text that begins as a formula is escaped, and read back unescaped.

The rule: a cell of text that begins with =, +, -, @, a tab or a carriage return, or with such a character behind
white space or apostrophes, gets one more apostrophe in front. Numbers of ours stay. Readers take it away again in
tables that this package wrote, and in no other ones; these are told by their column names.
"""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any


_FORMULA = re.compile(r"'*\s*[=+\-@\t\r]")
# Columns of what `predict`, `adapt` and `search` write; others may stand between.
_OURS = (
    {"path", "label", "score", "probability", "error"},
    {"test_set", "image", "class", "zero_shot", "adapted"},
    {"path", "kind", "score", "start", "end"},
)


def escape_cell(value: Any) -> Any:
    """Text as it is written; other values unchanged.

    >>> [escape_cell(value) for value in ("=1+1", "cat", "'-x", "'tis", " @x", -1.5)]
    ["'=1+1", 'cat', "''-x", "'tis", "' @x", -1.5]
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unescape_cell(text: str) -> str:
    """The inverse of `escape_cell`.

    >>> [unescape_cell(text) for text in ("'=1+1", "cat", "''-x", "'tis")]
    ['=1+1', 'cat', "'-x", "'tis"]
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def is_ours(columns: Sequence[str]) -> bool:
    """Whether a table with these columns is one that this package wrote."""
    return any(names <= set(columns) for names in _OURS)


def csv_line(values: Sequence[Any]) -> str:
    """A line of a CSV file with its end, all text escaped."""
    line = io.StringIO()
    # The writer puts values in quotes that hold a part of its line end: of both kinds, then.
    csv.writer(line, lineterminator="\r\n").writerow([escape_cell(value) for value in values])
    return line.getvalue()[:-2] + "\n"


__all__ = ["csv_line", "escape_cell", "is_ours", "unescape_cell"]
