"""`open_pairs`: images (and audio) with texts for contrastive training, from disk or as a stream, in one format."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.image_set import explain
from ..images.names import IMAGE_COLUMNS, usual_column


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
        folder (`str`): what relative image paths are relative to.
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
            path = os.path.join(self.folder, path)
        return decode_image(content if content is not None else path, DecodingRules(keep_mode=True))

    def audio(self, row: Mapping[str, Any]) -> bytes | str:
        """The audio file's content, or its path. ValueError if there is none."""
        value = row[self.audio_column]
        content = value.get("bytes") if isinstance(value, Mapping) else None
        path = value.get("path") if isinstance(value, Mapping) else value
        if content is None and not path:
            raise ValueError("no audio in this row (null)")
        return content if content is not None else os.path.join(self.folder, path)

    def describe(self, row: Mapping[str, Any], number: int | str) -> str:
        """A row's name for messages: its path or key where it has one."""
        value = row.get(self.image_column)
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
        name = path or row.get("__key__")
        return f"{self.source} row {number}" + (f" ({name})" if name else "")


def open_pairs(
    source: str | os.PathLike | datasets.Dataset | datasets.IterableDataset,
    *,
    streaming: bool = False,
    split: str = "train",
    image_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    audio_column: str | None = None,
    with_audio: bool = False,
    any_text_column: bool = False,
) -> Pairs:
    """Open images with texts; nothing is decoded yet.

    Args:
        source: one of
            - `.parquet` files: one, several with commas between, a glob, or a folder of them;
            - WebDataset shards, `.tar`: likewise. Always a stream;
            - a `.csv`, `.tsv` or `.jsonl` of image path (relative to the file) and text;
            - a folder of images: with a `metadata.csv` or `.jsonl` beside them, else one sub-folder a class, its
              name being the text;
            - a `datasets.Dataset` or `IterableDataset`, or the id of one on the Hub.
        streaming: read on and on from the first row, without an index and without copying into the cache: for what is
            larger than the disk.
        split: of a Hub data set.
        image_column, text_columns, audio_column: default: found by the usual names. Of several text columns each use
            of a row takes one at random, of a column of lists one entry.
        with_audio: audio is wanted; without a column of it, ValueError.
        any_text_column: one of `text_columns` is enough (for several sources that are read alike).

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: columns that are not there or cannot be told; the message lists those that are.

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
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        dataset, name = source, type(source).__name__
    else:
        name = os.fspath(source)
        dataset, folder = _load(name, streaming, split)
    features = dataset.features
    if features is None:  # a stream that has not been looked at
        dataset = dataset._resolve_features()
        features = dataset.features
    columns = list(features)
    image = _choose("image_column", image_column, (*IMAGE_COLUMNS, *_WEBDATASET_IMAGES), columns, name)
    if "__key__" in columns and any(isinstance(feature, datasets.Audio) for feature in features.values()):
        # datasets encodes them while it reads the shard, which takes torchcodec and a system's FFmpeg.
        raise ValueError(f"source: {name} has audio in tar shards; want it in Parquet files, column `audio`")
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

    for column, kind in ((image, datasets.Image), (audio, datasets.Audio)):
        if column and isinstance(features[column], kind):
            dataset = dataset.cast_column(column, kind(decode=False))
    names = {c: features[c].names for c in text_columns if isinstance(features.get(c), datasets.ClassLabel)}
    numbers = [
        c
        for c in text_columns
        if c not in names and str(getattr(features.get(c), "dtype", "")).startswith(("int", "float"))
    ]
    if numbers:
        raise ValueError(f"text_columns: {numbers[0]!r} of {name} holds numbers without names; want texts")
    return Pairs(dataset, image, tuple(text_columns), audio, names or None, folder, name)


def _load(name: str, streaming: bool, split: str) -> tuple[Any, str]:
    """The data set, and the folder that its image paths are relative to."""
    import datasets

    path = Path(name)
    if path.exists():
        files = [name] if path.is_file() else []
    else:
        listed = name.split(",")
        files = [
            f for part in listed for f in (sorted(glob.glob(part, recursive=True)) if glob.has_magic(part) else [part])
        ]
        if listed == files == [name]:
            files = []
        missing = [f for f in files if not Path(f).is_file()]
        if missing:
            raise FileNotFoundError(f"source: no such file: {missing[0]}")
    if path.is_dir():
        for suffix in (".tar", ".parquet"):
            files = files or sorted(str(p) for p in path.rglob(f"*{suffix}"))
    kinds = {Path(f).suffix.lower() for f in files}
    if len(kinds) > 1:
        raise ValueError(f"source: {name} matches files of several kinds, {', '.join(sorted(kinds))}; want one")
    kind = kinds.pop() if kinds else None
    if kind == ".parquet":
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming), ""
    if kind == ".tar":
        return datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True), ""
    if kind in (".csv", ".tsv", ".jsonl"):
        if len(files) > 1:
            raise ValueError(f"source: {name} matches {len(files)} tables; want one, image paths are relative to it")
        builder, options = ("json", {}) if kind == ".jsonl" else ("csv", {"sep": "\t" if kind == ".tsv" else ","})
        dataset = datasets.load_dataset(builder, data_files=files, split="train", streaming=streaming, **options)
        return dataset, str(Path(files[0]).absolute().parent)
    if path.is_dir():
        return datasets.load_dataset("imagefolder", data_dir=name, split="train", streaming=streaming), ""
    if kind is not None or glob.has_magic(name) or "," in name:
        what = f"files of unknown kind {kind!r}" if kind else "no file"
        raise FileNotFoundError(f"source: {name} matches {what}; want .parquet, .tar, .csv, .tsv, .jsonl or a folder")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or path.suffix:
        raise FileNotFoundError(f"source: no such file or folder: {name}")
    return datasets.load_dataset(name, split=split, streaming=streaming), ""


def _choose(argument: str, wanted: str | None, usual: Sequence[str], columns: Sequence[str], source: str) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise ValueError(f"{argument}: {source} has no column {wanted!r}; it has {', '.join(columns)}")
    found = usual_column(columns, usual)
    if found is None:
        raise ValueError(f"{argument}: cannot tell which of {', '.join(columns)} of {source} it is; name it")
    return found


def unreadable(error: Exception) -> str:
    """One line on why a row cannot be used."""
    return str(error) if isinstance(error, ValueError) else explain(error)
