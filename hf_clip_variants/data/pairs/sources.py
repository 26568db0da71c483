"""`open_pairs`: images (and audio) with texts for contrastive training, from disk or as a stream, in one format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...modeling.decoding.opening import check_regular
from ..images.image_set import explain
from ..images.names import IMAGE_COLUMNS, usual_column
from ..images.sources import SPLIT_ALIASES
from ..tables import TABLE_SUFFIXES, decode_text, located
from .captions import METADATA, coco_captions, table_of_texts, text_files
from .shards import open_shards, shard_fields


if TYPE_CHECKING:
    import datasets
    from PIL import Image

TEXT_COLUMNS = ("text", "caption", "captions", "title", "txt", "name", "label", "json")
AUDIO_COLUMNS = ("audio", "sound", "wav", "flac", "ogg", "mp3")
_WEBDATASET_IMAGES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Pairs:
    """Rows of encoded images and their texts.

    Attributes:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): rows as they are stored; images and audio are not
            decoded.
        image_column (`str`), audio_column (`str`, *optional*), text_columns (`tuple[str, ...]`): where things are;
            "json.title" is the entry "title" of the column "json".
        class_names (`dict[str, list[str]]`): of text columns that hold class numbers.
        folder (`str`): what relative paths of images and audio are relative to.
        source (`str`): for messages.
    """

    dataset: Any
    image_column: str
    text_columns: tuple[str, ...]
    audio_column: str | None = None
    class_names: Mapping[str, Sequence[str]] | None = None
    folder: str = ""
    source: str = ""

    @property
    def is_stream(self) -> bool:
        return not hasattr(self.dataset, "__len__")

    def texts(self, row: Mapping[str, Any]) -> list[list[str]]:
        """What each text column offers, without empty strings and empty columns. ValueError if that is nothing."""
        found = []
        for column in self.text_columns:
            value: Any = row
            for part in column.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if self.class_names and column in self.class_names and isinstance(value, int):
                value = self.class_names[column][value]
            values = value if isinstance(value, list | tuple) else [value]
            values = [decode_text(v) if isinstance(v, bytes) else v for v in values]
            kept = [" ".join(v.split()) for v in values if isinstance(v, str) and v.strip()]
            if kept:
                found.append(kept)
        if not found:
            raise ValueError(f"no text in {', '.join(self.text_columns)}")
        return found

    def image(self, row: Mapping[str, Any]) -> Image.Image:
        """The image, upright, 8 bits, alpha kept. ValueError on an unreadable one."""
        from ...modeling.decoding.image_decoding import DecodingRules, decode_image

        value = row[self.image_column]
        content = value.get("bytes") if isinstance(value, Mapping) else None
        path = value.get("path") if isinstance(value, Mapping) else value
        if content is None and not path:
            raise ValueError("no image in this row (null)")
        if content is None and "://" not in path:
            path = located(self.folder, path)
        return decode_image(content if content is not None else path, DecodingRules(keep_mode=True))

    def audio(self, row: Mapping[str, Any]) -> bytes | str:
        """The audio file's content, or its path. ValueError if there is none."""
        value = row[self.audio_column]
        content = value.get("bytes") if isinstance(value, Mapping) else None
        path = value.get("path") if isinstance(value, Mapping) else value
        if content is None and not path:
            raise ValueError("no audio in this row (null)")
        return content if content is not None else located(self.folder, path)

    def describe(self, row: Mapping[str, Any], number: int | str) -> str:
        """A row's name for messages: its path or key where it has one."""
        value = row.get(self.image_column)
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
        name = path or row.get("__key__")
        if "__url__" in row:
            name = f"{row['__url__']}: {name}"
        return f"{self.source} row {number}" + (f" ({name})" if name else "")


def open_pairs(
    source: str | os.PathLike | datasets.Dataset | datasets.IterableDataset,
    *,
    streaming: bool = False,
    split: str = "train",
    image_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    audio_column: str | None = None,
    image_folder: str | os.PathLike | None = None,
    with_audio: bool = False,
    any_text_column: bool = False,
) -> Pairs:
    """Open images with texts; nothing is decoded yet.

    Args:
        source: one of
            - `.parquet` files: one, several with commas between, a glob, or a folder of them;
            - WebDataset shards, `.tar`: likewise. Always a stream. Samples without image or text are left out, and a
              warning says how many of each shard;
            - a `.csv`, `.tsv` or `.jsonl` of image path and text. Values of the first two are text, "7" and "None"
              too; without a header line, image path and text in this order;
            - a `.json` as COCO's `captions_train2017.json`; the images' folder is found beside it;
            - a folder of images: with a `metadata.csv` or `.jsonl` beside them; else with a `.txt` of the same name
              beside each, at any depth, of whose lines each is a text (images without are left out, with a warning);
              else one sub-folder a class, its name being the text;
            - a `datasets.Dataset` or `IterableDataset`, or the id of one on the Hub.
        streaming: read on and on from the first row, without an index and without copying into the cache: for what is
            larger than the disk. (Tables and the folders' texts are in memory either way, the images are not.)
        split: of a Hub data set, or of a folder with a sub-folder for each.
        image_column, text_columns, audio_column: default: found by the usual names. Of several text columns each use
            of a row takes one at random, of a column of lists one entry.
        image_folder: what relative paths are relative to. Default: the folder of the table.
        with_audio: audio is wanted; without a column of it, ValueError.
        any_text_column: one of `text_columns` is enough (for several sources that are read alike).

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: columns that are not there or cannot be told; the message lists those that are. What is wrong in a
            table, with file and line. Later, while a shard is read: a damaged one, by name.

    Example:

    ```python
    >>> import glob
    >>> from hf_clip_variants.data.images import emoji
    >>> pairs = open_pairs(emoji.FOLDER / "notov1.parquet", text_columns=["name", "tags"])
    >>> pairs.texts(pairs.dataset[0])[0]
    ['hot dog']
    ```
    """
    import datasets

    folder = ""
    shards: list[str] = []
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        dataset, name = source, type(source).__name__
    else:
        name = os.fspath(source)
        kind, files = _find(name)
        if kind == ".tar":
            shards = files
        else:
            dataset, folder = _load(name, kind, files, streaming, split, image_column, image_folder)
    features: Mapping[str, Any] = {}
    if shards:
        columns = shard_fields(shards)
    else:
        if dataset.features is None:  # a stream that has not been looked at
            dataset = dataset._resolve_features()
        features = dataset.features
        columns = list(features)
    image = _choose("image_column", image_column, (*IMAGE_COLUMNS, *_WEBDATASET_IMAGES), columns, name)
    audio = None
    if with_audio or audio_column:
        audio = _choose("audio_column", audio_column, AUDIO_COLUMNS, columns, name)
    if text_columns:
        if any_text_column:
            text_columns = [c for c in text_columns if c.partition(".")[0] in columns] or text_columns
        for column in text_columns:
            _choose("text_columns", column.partition(".")[0], (), columns, name)
    else:
        text_columns = [_choose("text_columns", None, TEXT_COLUMNS, [c for c in columns if c != image], name)]
    if shards:
        # A shard may hold images of several kinds.
        images = [image, *(c for c in columns if c in _WEBDATASET_IMAGES and c != image and not image_column)]
        dataset = open_shards(shards, images, [c.partition(".")[0] for c in text_columns], audio)

    for column, kind in ((image, datasets.Image), (audio, datasets.Audio)):
        if column and isinstance(features.get(column), kind):
            dataset = dataset.cast_column(column, kind(decode=False))
    names = {c: features[c].names for c in text_columns if isinstance(features.get(c), datasets.ClassLabel)}
    for column in text_columns:
        held = features.get(column)
        if isinstance(held, datasets.Value) and "string" not in held.dtype and held.dtype not in ("binary", "null"):
            what = "numbers" if held.dtype.startswith(("int", "uint", "float")) else held.dtype
            raise ValueError(f"text_columns: {column!r} of {name} holds {what} without names; want texts")
    return Pairs(dataset, image, tuple(text_columns), audio, names or None, os.fspath(image_folder or folder), name)


def _find(name: str) -> tuple[str | None, list[str]]:
    """The suffix and the files that a source names; no files for a folder of images or a data set on the Hub."""
    path = Path(name)
    if path.exists():
        if not path.is_dir():
            check_regular(path)
        files = [name] if path.is_file() else []
    else:
        listed = name.split(",")
        files = [
            f for part in listed for f in (sorted(glob.glob(part, recursive=True)) if glob.has_magic(part) else [part])
        ]
        if listed == files == [name]:
            files = []
        missing = [f for f in files if not Path(f).exists()]
        if missing:
            raise FileNotFoundError(f"source: no such file: {missing[0]}")
        for file in files:
            check_regular(file)
    if path.is_dir():
        for suffix in (".tar", ".parquet"):
            files = files or sorted(str(p) for p in path.rglob(f"*{suffix}"))
        for file in files:
            check_regular(file)
    kinds = {Path(f).suffix.lower() for f in files}
    if len(kinds) > 1:
        raise ValueError(f"source: {name} matches files of several kinds, {', '.join(sorted(kinds))}; want one")
    return (kinds.pop() if kinds else None), files


def _load(
    name: str,
    kind: str | None,
    files: list[str],
    streaming: bool,
    split: str,
    image_column: str | None,
    image_folder: str | os.PathLike | None,
) -> tuple[Any, str]:
    """The data set, and the folder that its image paths are relative to."""
    import datasets
    import pyarrow

    if kind == ".parquet":
        folders = {str(Path(f).absolute().parent) for f in files}
        try:
            dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
        except (pyarrow.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
            raise ValueError(f"{name}: not readable as Parquet: {error.__cause__ or error}") from error
        return dataset, folders.pop() if len(folders) == 1 else ""
    if kind in (*TABLE_SUFFIXES, ".jsonl", ".json"):
        if len(files) > 1:
            raise ValueError(f"source: {name} matches {len(files)} tables; want one, image paths are relative to it")
        file = Path(files[0])
        if kind == ".json":
            dataset, folder = coco_captions(file, os.fspath(image_folder) if image_folder else None)
        else:
            dataset, folder = table_of_texts(file, image_column), str(file.absolute().parent)
        return _streamed(dataset, streaming), folder
    if Path(name).is_dir():
        dataset, folder = _folder_of_texts(Path(name), split, image_column)
        if dataset is not None:
            return _streamed(dataset, streaming), str(folder.absolute())
        return datasets.load_dataset("imagefolder", data_dir=name, split=split, streaming=streaming), ""
    if kind is not None or glob.has_magic(name) or "," in name:
        what = f"files of unknown kind {kind!r}" if kind else "no file"
        raise FileNotFoundError(
            f"source: {name} matches {what}; want .parquet, .tar, .csv, .tsv, .jsonl, COCO's .json or a folder"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or Path(name).suffix:
        raise FileNotFoundError(f"source: no such file or folder: {name}")
    return datasets.load_dataset(name, split=split, streaming=streaming), ""


def _folder_of_texts(top: Path, split: str, image_column: str | None) -> tuple[datasets.Dataset | None, Path]:
    """Images with a table or text files beside them, and the folder of their paths; None for other folders."""
    below = {SPLIT_ALIASES.get(d.name.lower()): d for d in top.iterdir() if d.is_dir() and not d.name.startswith(".")}
    folder = top
    if below and None not in below:  # all sub-folders are splits
        wanted = SPLIT_ALIASES.get(split.lower(), split)
        if wanted not in below:
            raise ValueError(f"split: got {split!r}; {top} has {', '.join(sorted(d.name for d in below.values()))}")
        folder = below[wanted]
    metadata = next((path for d in (folder, top) for file in METADATA if (path := d / file).is_file()), None)
    if metadata is None:
        return text_files(folder), folder
    dataset = table_of_texts(metadata, image_column)
    if metadata.parent != folder and "file_name" in dataset.column_names:  # one table for all splits
        paths = [Path(str(path).replace("\\", "/")) for path in dataset["file_name"]]
        dataset = dataset.select([row for row, path in enumerate(paths) if path.parts[:1] == (folder.name,)])
    return dataset, metadata.parent


def _streamed(dataset: datasets.Dataset, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    # Shards for loader workers and processes; 64 divide evenly among 2, 4, 8, …
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if streaming else dataset


def _choose(argument: str, wanted: str | None, usual: Sequence[str], columns: Sequence[str], source: str) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise ValueError(f"{argument}: {source} has no column {wanted!r}; it has {', '.join(columns)}")
    if not columns:
        raise ValueError(
            f"{argument}: {source} has images only; want a .txt of the same name beside each, a metadata.csv or a "
            "sub-folder for each class"
        )
    found = usual_column(columns, usual)
    if found is None:
        raise ValueError(f"{argument}: cannot tell which of {', '.join(columns)} of {source} it is; name it")
    return found


def unreadable(error: Exception) -> str:
    """One line on why a row cannot be used."""
    return str(error) if isinstance(error, ValueError) else explain(error)
