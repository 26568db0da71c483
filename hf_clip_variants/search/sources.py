"""What an index is made of: the pictures, videos and sounds below a folder, or in a column of a table or data set."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.images.folders import walk
from ..data.images.names import count_left_out, is_image_name, left_out_suffix
from ..data.images.sources import names_of_rows, read_parquet
from ..data.saved_datasets import is_saved_dataset, load_saved_dataset
from ..data.videos import is_video_name
from ..files.content_hashes import hash_of_bytes
from ..modeling.decoding.opening import check_regular, read_regular


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

KINDS = ("image", "video", "audio")
AUDIO_EXTENSIONS = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .caf .w64".split())
_HASHED_AT_ONCE = 1 << 22  # bytes
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Entry:
    """
    A file, or a row of a table, as it is now.

    Args:
        path: its name in the index: below the folder, or as the table names the row.
        kind: image, video or audio. By the name of a file, so that an animated GIF is an image here.
        size, modified: bytes, and nanoseconds since 1970 (0 for rows): another value means that it may have changed.
        content: a hash; "" for files, which are not read yet.
    """

    path: str
    kind: str
    size: int
    modified: int
    content: str = ""


def kind_of_name(name: str) -> str | None:
    """The kind of a file by its extension; None for what no index holds.

    >>> [kind_of_name(name) for name in ("a.JPG", "a.mp4", "a.ogg", "a.txt", ".a.jpg")]
    ['image', 'video', 'audio', None, None]
    """
    if is_image_name(name):
        return "image"
    if os.path.basename(name).startswith("."):
        return None
    if is_video_name(name):
        return "video"
    return "audio" if os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS else None


def kind_of_content(head: bytes) -> str:
    """The kind of a file by its first 16 bytes; "image" for what is nothing else.

    >>> kind_of_content(b"OggS"), kind_of_content(b"\\x00\\x00\\x00\\x20ftypisom"), kind_of_content(b"\\x89PNG")
    ('audio', 'video', 'image')
    """
    if head[:4] in (b"OggS", b"fLaC", b"FORM", b"caff", b".snd") or head[:3] == b"ID3":
        return "audio"
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE" or re.match(rb"\xff[\xe0-\xff][^\xff]", head):
        return "audio"
    if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "video"
    return "video" if head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") else "image"


class FolderSource:
    """Files below a folder, links followed as everywhere in this package."""

    column = split = None

    def __init__(self, folder: str | os.PathLike):
        self.name = os.path.abspath(os.path.expanduser(folder))

    def entries(self, kinds: Collection[str], apart_from: str | os.PathLike) -> tuple[list[Entry], list[list[str]]]:
        """All files of these kinds, sorted by path, and `[path, why not]` of those that cannot be in an index.

        Args:
            kinds: others are left out, with a warning that counts them.
            apart_from: a folder that is not looked into, the index itself.
        """
        found, refused, left_out, other = [], [], Counter(), Counter()
        skipped = os.path.realpath(apart_from)
        for place, names in walk(Path(self.name)):
            if os.path.realpath(place) == skipped or os.path.realpath(place).startswith(skipped + os.sep):
                continue
            for name in names:
                path = os.path.join(place, name)
                kind = kind_of_name(name)
                if kind is None:
                    left_out.update(filter(None, [left_out_suffix(name)]))
                    continue
                if kind not in kinds:
                    other[kind] += 1
                    continue
                shown = Path(os.path.relpath(path, self.name)).as_posix()
                try:
                    if any(0xD800 <= ord(character) <= 0xDFFF for character in shown):
                        raise OSError("the file name is not valid UTF-8; rename it")
                    check_regular(path)
                    about = os.stat(path)
                    found.append(Entry(shown, kind, about.st_size, about.st_mtime_ns))
                except OSError as error:
                    refused.append([shown, _why(error)])
        if left_out:
            logger.warning("%s: left out %s", self.name, count_left_out(left_out))
        for kind, count in sorted(other.items()):
            logger.warning("%s: left out %d %s files, the model takes %s", self.name, count, kind, " and ".join(kinds))
        return sorted(found, key=lambda entry: entry.path), sorted(refused)

    def location(self, path: str) -> str:
        return os.path.join(self.name, *path.split("/"))

    def file(self, path: str) -> str:
        """What decoders of videos take."""
        return self.location(path)

    def content(self, path: str) -> bytes:
        return read_regular(self.location(path))

    def hash_of(self, path: str) -> str:
        from ..files.content_hashes import hash_of_files

        check_regular(self.location(path))
        return hash_of_files([Path(self.location(path))], _HASHED_AT_ONCE)


class TableSource:
    """A column of images, videos, sounds or their bytes, in Parquet files or a data set."""

    def __init__(self, name: str, parts: dict[str, datasets.Dataset], column: str | None, split: str | None):
        self.name, self.split = name, split
        if split is not None:
            if split not in parts:
                raise ValueError(f"split: got {split!r}; {name} has {', '.join(map(repr, parts)) or 'none'}")
            parts = {split: parts[split]}
        first = next(iter(parts.values()))
        self.column = _media_column(name, first, column)
        self._rows: dict[str, tuple[datasets.Dataset, int]] = {}
        for part, rows in parts.items():
            undecoded = _undecoded(rows.select_columns([self.column]), self.column)
            for row, path in enumerate(names_of_rows(undecoded, self.column, part)):
                path = path if path not in self._rows else f"{part}/{row}"
                self._rows[path] = undecoded, row

    def entries(self, kinds: Collection[str], apart_from: str | os.PathLike = "") -> tuple[list[Entry], list]:
        found, refused, other = [], [], Counter()
        for path in self._rows:
            try:
                content = self.content(path)
            except (OSError, ValueError) as error:
                refused.append([path, _why(error)])
                continue
            kind = kind_of_content(content[:16])
            if kind in kinds:
                found.append(Entry(path, kind, len(content), 0, hash_of_bytes(content)))
            else:
                other[kind] += 1
        for kind, count in sorted(other.items()):
            logger.warning("%s: left out %d %s rows, the model takes %s", self.name, count, kind, " and ".join(kinds))
        return sorted(found, key=lambda entry: entry.path), sorted(refused)

    def location(self, path: str) -> None:
        """A row has no file of its own."""
        return None

    def file(self, path: str) -> bytes:
        return self.content(path)

    def content(self, path: str) -> bytes:
        if path not in self._rows:
            raise FileNotFoundError("no such row")
        rows, row = self._rows[path]
        value = rows[row][self.column]
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else value["path"]
        if value is None:
            raise OSError("nothing in this row (null)")
        return read_regular(value) if isinstance(value, str) else value

    def hash_of(self, path: str) -> str:
        return hash_of_bytes(self.content(path))


Source = FolderSource | TableSource


def open_source(
    source: str | os.PathLike | Sequence[str | os.PathLike] | Any,
    column: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Source:
    """What is to be indexed.

    Args:
        source: a folder of files (links are followed); a folder that `datasets.save_to_disk` wrote; a Parquet file, a
            list or a glob of them, or a folder with nothing else; a `datasets.Dataset`; else the id of a data set on
            the Hub.
        column: of the pictures, videos or sounds in a table. Default: the only one of its type.
        split: of a data set. Default: all.

    Raises:
        OSError: no such file, folder or data set. ValueError: no column of media, or several.
    """
    import datasets

    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        parts = dict(source) if isinstance(source, datasets.DatasetDict) else {"row": source}
        return TableSource("a data set in memory", parts, column, split)
    many = list(source) if isinstance(source, list | tuple) else [source]
    if not many or not all(isinstance(one, str | os.PathLike) and os.fspath(one) for one in many):
        raise ValueError(f"source: got {source!r:.100}; want a folder, Parquet files, a data set or its id on the Hub")
    if isinstance(source, list | tuple):
        return _of_parquet([Path(os.path.expanduser(one)) for one in source], column, split)
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        if is_saved_dataset(path):
            loaded = load_saved_dataset(path)
            parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {path.name: loaded}
            return TableSource(os.path.abspath(path), parts, column, split)
        tables = _only_tables(path)
        found = _of_parquet(tables, column, split) if tables else FolderSource(path)
        found.name = os.path.abspath(path)
        if isinstance(found, FolderSource) and (column or split):
            raise ValueError(f"{'column' if column else 'split'}: {source} is a folder of files, which has none")
        return found
    if path.exists():
        if path.suffix.lower() != ".parquet":
            raise ValueError(f"source: {source} is a {path.suffix or 'nameless'} file; want a folder or .parquet")
        return _of_parquet([path], column, split)
    if glob.has_magic(str(source)):
        files = sorted(map(Path, glob.glob(os.path.expanduser(source), recursive=True)))
        if not files:
            raise FileNotFoundError(f"source: no file matches {source}")
        found = _of_parquet(files, column, split)
        found.name = os.path.abspath(source)
        return found
    if not _HUB_ID.fullmatch(str(source)) or path.suffix.lower() == ".parquet":
        raise FileNotFoundError(f"source: no such file or folder: {source}")
    try:
        loaded = datasets.load_dataset(str(source), revision=revision)
    except Exception as error:  # datasets raises a dozen kinds, from ConnectionError to its own
        raise FileNotFoundError(
            f"source: {str(source)!r} is no file or folder here, and as a Hub data set it could not be loaded: {error}"
        ) from error
    return TableSource(str(source), dict(loaded), column, split)


def _of_parquet(files: Sequence[Path], column: str | None, split: str | None) -> TableSource:
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"source: no such file: {file}")
        check_regular(file)
    parts = {}
    for file in files:  # their stems tell them apart
        parts[file.stem if file.stem not in parts else str(file)] = read_parquet([file])
    return TableSource(os.path.abspath(files[0]), parts, column, split)


def _only_tables(folder: Path) -> list[Path]:
    """The Parquet files below a folder, if it has those and nothing that an index holds."""
    tables: list[Path] = []
    for place, names in walk(folder):
        if any(kind_of_name(name) for name in names):
            return []
        tables += [Path(place, name) for name in names if name.lower().endswith(".parquet")]
    return sorted(tables)


def _media_column(name: str, rows: datasets.Dataset, column: str | None) -> str:
    """The column that is named, or the only one of images, videos, sounds or bytes."""
    typed = [column for column, feature in rows.features.items() if _is_media(feature)]
    shown = ", ".join(map(repr, rows.features))
    if column is not None:
        if column not in typed:
            raise ValueError(f"column: got {column!r}; want one that holds media: {', '.join(typed) or shown}")
        return column
    if len(typed) != 1:
        held = f"several that hold media: {', '.join(typed)}" if typed else f"none that holds media; it has {shown}"
        raise ValueError(f"column: {name} has {held}; name one")
    return typed[0]


def _is_media(feature: Any) -> bool:
    from datasets import Audio, Image, Value, Video

    if isinstance(feature, dict):
        return {"bytes", "path"} <= set(feature)
    is_bytes = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    return is_bytes or isinstance(feature, Image | Audio | Video)


def _undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    from datasets import Audio, Image, Video

    feature = rows.features[column]
    if isinstance(feature, Image | Video):
        rows = rows.cast_column(column, type(feature)(decode=False))
    elif isinstance(feature, Audio):
        rows = rows.cast_column(column, Audio(decode=False))
    return rows.with_format(None)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return re.sub(r"^'.*' (?=is )", "", " ".join(str(error).split())) or type(error).__name__


def digest_of(values: Iterator[str] | Sequence[str]) -> str:
    """The first 32 hex digits of the SHA-256 of texts, in this order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{len(value)} {value}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


__all__ = [
    "AUDIO_EXTENSIONS",
    "KINDS",
    "Entry",
    "FolderSource",
    "Source",
    "TableSource",
    "digest_of",
    "kind_of_content",
    "kind_of_name",
    "open_source",
]
