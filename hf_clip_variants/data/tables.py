"""Tables of text (CSV, TSV, JSON lines): encoding, separator and header are found; every value of a CSV stays text.

What is not clear is an error with the file and the line, as it stands in an editor. (pandas guesses types and missing
values: the captions "7" and "None" would become a number and nothing.)
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..modeling.decoding.opening import open_regular
from .csv_cells import is_ours, unescape_cell
from .images.names import IMAGE_COLUMNS, IMAGE_EXTENSIONS


TABLE_SUFFIXES = (".csv", ".tsv")
_SEPARATORS = {"\t": "a tab", ";": "a semicolon", ",": "a comma", "|": "a vertical bar"}
_LOOK_AT = 100  # rows that tell the separator
# The mark of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Table:
    """A CSV or TSV file whose columns are known. Made by [`open_table`].

    Attributes:
        file (`Path`)
        columns (`tuple[str, ...]`): names of the columns.
        separator (`str`): between values.
        has_header (`bool`): the first line holds the names.
    """

    file: Path
    columns: tuple[str, ...]
    separator: str
    has_header: bool

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line in which the row begins, a value for each column). ValueError on a row with more or fewer values."""
        for line, values in islice(_records(self.file, self.separator), int(self.has_header), None):
            if len(values) != len(self.columns):
                raise ValueError(
                    f"{self.file}, line {line}: got {len(values)} values, {values}; want one for each of "
                    f"{list(self.columns)}. A value with {_SEPARATORS[self.separator]} in it stands in quotes"
                )
            yield line, [unescape_cell(value) for value in values] if is_ours(self.columns) else values


def open_table(file: str | os.PathLike, image_column: str | Sequence[str] | None, names: Sequence[str]) -> Table:
    """Find out how a table of paths is written, of images or other files: its separator, whatever the suffix, and its
    columns.

    Text is UTF-8, or what its byte order mark says.

    Args:
        image_column: where the paths are, if the user says so; or what the column may be called.
        names: of the columns of a table without a header, which begins with an image path.

    Raises:
        ValueError: an empty table, one without any separator, one that several separators fit, two columns of one
            name, text that is not UTF-8, quotes that do not match. Every message names file and line.

    Example:

    ```python
    >>> import os, tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "captions.csv"
    >>> _ = file.write_text("image;caption\\n1.png;a cat, asleep\\n2.png;7\\n")
    >>> table = open_table(file, None, ("image", "text"))
    >>> table.columns, list(table.rows())
    (('image', 'caption'), [(2, ['1.png', 'a cat, asleep']), (3, ['2.png', '7'])])
    ```
    """
    file = Path(file)
    # A limit of the process; its default is 128 KiB, and a caption may be longer.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    known = [image_column] if isinstance(image_column, str | None) else image_column
    separator, line, first = _separator(file, {*IMAGE_COLUMNS, *known}, names)
    columns = [value.strip() for value in first]
    has_header = not _is_image_name(first[0])
    if not has_header:
        if len(first) > len(names):
            raise ValueError(
                f"{file}, line {line}: got {len(first)} values, {first}; want {', '.join(names)}, or a line of column "
                f"names above. A value with {_SEPARATORS[separator]} in it stands in quotes"
            )
        columns = list(names[: len(first)])
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice:
        raise ValueError(f"{file}, line {line}: there are several columns {twice!r}; want each name once")
    table = Table(file, tuple(columns), separator, has_header)
    if next(table.rows(), None) is None:
        raise ValueError(f"{file}: only a line of column names, {columns}; want rows below it")
    return table


def _separator(file: Path, image_columns: set[str | None], names: Sequence[str]) -> tuple[str, int, list[str]]:
    """The separator, and line and values of the first row.

    It is the one that gives a first row with an image column or an image path, and of several such ones the only one
    with rows of equal length.
    """
    found: dict[str, list[tuple[int, list[str]]]] = {}  # separator -> the first rows, where they have several values
    wrong = None
    for separator in _SEPARATORS:
        rows = []
        try:
            for row in islice(_records(file, separator), _LOOK_AT):
                rows.append(row)  # the rows before an error stay
        except _QuoteError as error:  # perhaps the wrong separator
            wrong = wrong or error
            rows.append((0, []))  # of another length
        if not rows:
            raise ValueError(f"{file}: the file is empty; want lines of {', '.join(names)}")
        if len(rows[0][1]) >= 2:
            found[separator] = rows
    if not found:
        raise wrong or ValueError(
            f"{file}, line {rows[0][0]}: got one value only; want {', '.join(names)} with a comma, a tab or a "
            "semicolon between"
        )
    known = [separator for separator, rows in found.items() if _tells_columns(rows[0][1], image_columns)]
    even = [separator for separator in known if len({len(values) for _, values in found[separator]}) == 1]
    fitting = even or known
    line = next(iter(found.values()))[0][0]
    if len(fitting) > 1:
        both = " and ".join(_SEPARATORS[separator] for separator in fitting)
        raise ValueError(
            f"{file}, line {line}: cannot tell what separates the values, {both} would; put values in quotes"
        )
    separator = fitting[0] if fitting else max(found, key=lambda separator: len(found[separator][0][1]))
    return separator, *found[separator][0]


def _tells_columns(first: Sequence[str], image_columns: set[str | None]) -> bool:
    """Whether a first row is one of column names with an image column, or begins with an image path."""
    names = [value.strip() for value in first]
    return _is_image_name(names[0]) or any(name in image_columns or name.lower() in IMAGE_COLUMNS for name in names)


def read_json_lines(file: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, one a line, all with the same keys (None where a line has no such key).

    Raises:
        ValueError: naming file and line: not JSON, not an object, text that is not UTF-8.
    """
    file = Path(file)
    rows = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_each_key_once)
            json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON: {error.msg} at character {error.colno}") from None
        except UnicodeEncodeError:
            raise ValueError(
                f"{file}, line {number}: half of a surrogate pair (\\ud800 to \\udfff); want text"
            ) from None
        except RecursionError:
            raise ValueError(f"{file}, line {number}: lists in lists, too deep to be read") from None
        except ValueError as error:  # a key twice, a number of thousands of digits
            raise ValueError(f"{file}, line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: got {line.strip()[:80]}; want an object, {{…}}, on each line")
        rows.append(row)
    if not rows:
        raise ValueError(f"{file}: the file is empty; want a JSON object on each line")
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"several keys {next(key for key in keys if keys.count(key) > 1)!r}; want each name once")
    return found


def decode_text(content: bytes) -> str:
    """Text in UTF-8, or in what its byte order mark says.

    Raises:
        ValueError: another encoding; the message names line and byte, not the file.

    Example:

    ```python
    >>> decode_text("Bär".encode("utf-16"))
    'Bär'
    >>> decode_text("ein\\nBär".encode("cp1252"))
    Traceback (most recent call last):
    ValueError: line 2: byte 0xE4 is not UTF-8; save it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)
    ```
    """
    encoding = _encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, "replace")
        line = 1 + len(re.findall(r"\r\n|\r|\n", before))
        told = encoding.removesuffix("-sig").upper()
        raise ValueError(
            f"line {line}: byte 0x{content[error.start]:02X} is not {told}; save it as UTF-8 "
            "(iconv -f WINDOWS-1252 -t UTF-8)"
        ) from None


def located(folder: str | os.PathLike, written: str) -> str:
    r"""Where the file is that a table in `folder` names; a path written on Windows is read anywhere.

    >>> located("/data", "cats\\1.png") if os.sep == "/" else "/data/cats/1.png"
    '/data/cats/1.png'
    """
    path = os.path.join(folder, written)
    # Elsewhere than on Windows "\" may be part of a file's name: such a file comes first.
    if os.sep == "/" and "\\" in written and not os.path.exists(path):
        return os.path.join(folder, written.replace("\\", "/"))
    return path


# ---------------------------------------------------------------------------------------------------------- reading


class _QuoteError(ValueError):
    """Quotes that do not match, read with this separator."""


def _records(file: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line in which the row begins, values) of all rows that are not blank; the header is one."""
    reader = csv.reader(_lines(file), delimiter=separator, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise _QuoteError(
                f"{file}, line {line}: quotes do not match ({error}). Want a value with quotes in it in quotes, its "
                "own quotes doubled"
            ) from None
        if values is None:
            return
        if any(value.strip() for value in values):
            yield line, values


def _lines(file: Path) -> Iterator[str]:
    r"""Lines with their ends, of \n, \r or \r\n and nothing else: U+2028 and U+0085 are text."""
    with open_regular(file) as stream:
        encoding = _encoding(stream.read(4))
    with io.TextIOWrapper(open_regular(file), encoding=encoding, newline="") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if "\0" in line:
                    raise ValueError(
                        f"{file}, line {number}: a NUL byte; want text (UTF-16 needs a byte order mark at its start)"
                    )
                yield line
        except UnicodeDecodeError:  # of a block that is read ahead: find the line
            try:
                decode_text(file.read_bytes())
            except ValueError as error:
                raise ValueError(f"{file}, {error}") from None
            raise


def _encoding(content: bytes) -> str:
    return next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")


def _is_image_name(value: str) -> bool:
    return Path(value.strip()).suffix.lower() in IMAGE_EXTENSIONS
