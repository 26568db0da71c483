"""`load_images`: labelled images from folders, Parquet, CSV, the Hub, `datasets`, CoOp's layout, the embedded
emoji."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ...files.content_hashes import hash_of_files
from ...modeling.decoding.opening import check_regular
from ...modeling.dual_encoders.prompts import read_class_names, refuse_set
from ...registry import did_you_mean
from ..saved_datasets import is_saved_dataset, load_saved_dataset
from ..tables import TABLE_SUFFIXES, Table, located, open_table
from .class_labels import check_length, digits_as_numbers, resolve_classes, to_indices
from .folders import read_class_folders
from .image_set import ImageSet, name_some
from .joined_sources import join_sources
from .names import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_ALIASES,
    count_left_out,
    tidy_class_name,
    usual_column,
)
from .video_frames import is_video_name


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

IN_MEMORY_PARQUET_BYTES = 1 << 30  # larger sets go through the memory-mapped cache of `datasets`


class Columns(NamedTuple):
    """The columns of images and labels, None where they are to be found.

    `gather_labels` is for several labels an image (`multi_label.py`): data set -> the same with two columns, and their
    names; the second holds lists of labels.
    """

    image: str | None
    label: str | None
    gather_labels: Callable[[datasets.Dataset], tuple[datasets.Dataset, Columns]] | None = None
    videos: bool = False  # files of videos in folders are read, too


class SeveralLabels(ValueError):
    """Images with several labels, where one each is wanted."""


def load_images(
    source: str | os.PathLike | Sequence[str | os.PathLike] | datasets.Dataset | datasets.DatasetDict,
    split: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: str | os.PathLike | Sequence[str] | Mapping[int | str, str] | None = None,
    clean_class_names: bool = True,
    limit: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    verify: bool = True,
    empty_classes: Literal["raise", "warn"] | None = None,
    name: str | None = None,
    revision: str | None = None,
    progress: bool = True,
    only_classes: Sequence[str] | None = None,
    videos: bool = False,
) -> ImageSet:
    """Read labelled images from any of the usual sources.

    Args:
        source: one of
            - a folder of class sub-folders (images at any depth below), optionally with train/val/test above them;
              `read_class_folders` says what is taken for a split or a class;
            - a `.parquet` file, a list or glob of them, or a folder of them (`train-*.parquet`, … are splits);
            - a `.csv`/`.tsv` of image path (relative to the file), label and, optionally, split; with a header line,
              or without one in just that order; tab, semicolon, comma or bar between them, UTF-8 or UTF-16;
            - a folder written by `datasets.save_to_disk`, a `datasets.Dataset` or `DatasetDict`;
            - `"coop:<folder>"`: one of the benchmark sets as CoOp's DATASETS.md lays them out (`coop_layout.py`);
            - `"emoji"` or `"emoji:<style>[,<style>][@<group>]"`: the embedded set (`load_emoji`); write `./emoji` for
              a folder of that name;
            - otherwise the id of a data set on the Hub (`name` picks its configuration, `revision` its version);
            - a list of any of these, which are joined: classes are matched by name.
        split (`str`, *optional*): "train", "validation" ("val"), "test" or a name of the source's own. Default: the
            train split where there are splits.
        image_column, label_column (`str`, *optional*): default: found by type, then by the usual names.
        class_names: for integer labels: a list (label i is its i-th name), or a mapping from label to name (the labels
            may then have gaps and are renumbered in increasing order). For text labels: a list that fixes their order;
            pass `train.class_names` when reading a test set from another source. Or a mapping that renames them, such
            as `{"n02123045": "tabby"}`. A string is a `.txt` or `.json` file, or names with commas
            (`read_class_names`). Text of digits ("7"), as in a table, is a class name, with a warning, unless
            `class_names` are given and do not hold it.
        clean_class_names (`bool`): "golden_retriever" becomes "golden retriever": underscores to spaces, runs of white
            space to one. Unicode is composed (NFC) in any case. Case is left alone.
        limit (`int`, *optional*): at most so many images, taken evenly over the classes, first ones first.
        on_error: what to do with images that cannot be decoded: "raise" an error that names them, or "skip" them,
            with a warning and the list in `ImageSet.skipped`.
        verify (`bool`): decode every image once now. Without it, a broken image raises an error when it is used.
        empty_classes: what to do about a class without images. Default: "raise" for training images, "warn" for a
            validation or test split.
        progress (`bool`): show a bar while a large set is verified.
        only_classes: leave out images of other classes, and those classes. Names that the source lacks do not matter.
        videos: files of videos in folders and tables are samples, too, each a picture of some of its frames (see
            `ImageSet.videos`); else they are left out.

    Returns:
        [`ImageSet`]; labels are the same in every split of one source.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: no images, fewer than two classes, a class without images, a label out of range, integer labels
            without names (`UnnamedLabels`), no recognisable column, unreadable images. Every message names what was
            wrong.

    Example:

    ```python
    >>> train = load_images("emoji:fluentflat,emojione")
    >>> train.class_names[:3]
    ('hot dog', 'taco', 'burrito')
    ```
    """
    from datasets import ClassLabel

    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: got {on_error!r}; want 'raise' or 'skip'")
    if empty_classes not in (None, "raise", "warn"):
        raise ValueError(f"empty_classes: got {empty_classes!r}; want 'raise', 'warn' or None")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}; want at least 1, or None for all")
    if isinstance(class_names, str | os.PathLike):
        class_names = read_class_names(class_names)
    refuse_set(class_names)
    if class_names is not None:
        class_names = class_names if isinstance(class_names, Mapping) else list(class_names)
        if not class_names:
            raise ValueError("class_names is empty")
    what = os.fspath(source) if isinstance(source, str | os.PathLike) else type(source).__name__
    columns = Columns(image_column, label_column, videos=videos)
    parts = digits_as_numbers(_read(source, columns, name, revision), class_names)
    chosen = _choose_split(parts, split, what)
    part = parts[chosen]

    names, index_of = resolve_classes(parts, class_names, clean_class_names)
    labels = to_indices(part, names, index_of)
    dataset = part["dataset"].add_column("label", labels, feature=ClassLabel(names=list(names)))
    splits = tuple(n for n in parts if n)
    images = ImageSet(dataset, names, part["ids"], split=chosen or None, available_splits=splits)
    if videos and any(is_video_name(path or "") for one in parts.values() for path in _paths(one["dataset"])):
        images = replace(images, videos=True)
    if images.available_splits:
        arguments = {
            "image_column": image_column,
            "label_column": label_column,
            "class_names": class_names,
            "clean_class_names": clean_class_names,
            "limit": limit,
            "on_error": on_error,
            "verify": verify,
            "empty_classes": empty_classes,
            "name": name,
            "revision": revision,
            "progress": progress,
            "only_classes": only_classes,
            "videos": videos,
        }
        images = replace(images, load_split=functools.partial(load_images, source, **arguments))
    if only_classes is not None:
        kept = [index for index, known in enumerate(names) if known in set(only_classes)]
        if not kept:
            raise ValueError(f"only_classes: {what} has none of {name_some(only_classes)}; it has {name_some(names)}")
        images = images.select_classes(kept)
    if limit is not None and limit < len(images):
        images = images.select(_evenly(images.labels, limit))
    if verify:
        images = _check_readable(images, on_error, progress)
    if not len(images):
        raise ValueError(f"{what}: no images in split {chosen!r}" if chosen else f"{what}: no images")
    left_out = {tidy_class_name(name, clean_class_names): count for name, count in part.get("left_out", {}).items()}
    _check_classes(images, what, empty_classes, left_out)
    return images


# ---------------------------------------------------------------------------------------------------------- reading


def _read(source, columns, name, revision) -> dict[str, dict[str, Any]]:
    """split -> {"dataset", "labels", "names", "ids"}; without splits the only key is "".

    "dataset" has the column image only, "labels" is a list, "names" holds the names of a `ClassLabel` or is None. With
    `columns.gather_labels`, "labels" is a list of lists.
    """
    import datasets

    if isinstance(source, datasets.DatasetDict):
        return {_canonical(k): _from_dataset(v, columns, k) for k, v in source.items()}
    if isinstance(source, datasets.Dataset):
        return {"": _from_dataset(source, columns, str(source.split or "row"))}
    if isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise TypeError(
            "source: got a streaming IterableDataset; want a datasets.Dataset (load without streaming=True)"
        )
    if isinstance(source, list | tuple):
        if all(Path(s).suffix.lower() == ".parquet" for s in source):  # splits are told from all names together
            return _from_parquet([Path(s) for s in source], columns)
        if len(source) == 1:
            return _read(source[0], columns, name, revision)
        named = [os.fspath(s) for s in source]
        return join_sources(named, [_read(s, columns, name, revision) for s in named])
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source: got {type(source).__name__}; want a path, a Hub id, a list of Parquet files or a Dataset"
        )
    text = os.fspath(source)
    if re.match(r"emoji($|[:@])", text):
        return _from_emoji(text)
    if text.startswith("coop:"):
        return _from_coop(text)
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        check_regular(path)
    if path.is_dir():
        return _from_folder(path, columns)
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return _from_parquet([path], columns)
        if path.suffix.lower() in TABLE_SUFFIXES:
            return _from_table(path, columns)
        raise ValueError(
            f"source: {text} is a file of unknown kind {path.suffix!r}; want .parquet, .csv, .tsv or a folder"
        )
    if glob.has_magic(text):
        files = sorted(Path(p) for p in glob.glob(text, recursive=True))
        if not files:
            raise FileNotFoundError(f"source: no file matches {text}")
        return _from_parquet(files, columns)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or path.suffix.lower() in (".parquet", *TABLE_SUFFIXES):
        raise FileNotFoundError(f"source: no such file or folder: {text}")
    return _from_hub(text, columns, name, revision)


def _paths(dataset: datasets.Dataset) -> list[str | None]:
    from datasets import Image

    return _paths_of(dataset.cast_column("image", Image(decode=False)), "image")


def _from_emoji(text: str) -> dict[str, dict[str, Any]]:
    from .emoji import load_emoji

    text, at, groups = text.partition("@")
    _, colon, styles = text.partition(":")
    images = load_emoji(_listed(styles) if colon else None, _listed(groups) if at else None)
    names = list(images.class_names)
    return {
        "": {
            "dataset": images.dataset.select_columns("image"),
            "labels": images.labels,
            "names": names,
            "ids": images.ids,
        }
    }


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _from_coop(text: str) -> dict[str, dict[str, Any]]:
    from .coop_layout import read_coop_folder

    parts = {}
    for split, listed in read_coop_folder(text).items():
        part = _from_paths([str(listed.root / path) for path in listed.paths], listed.labels, listed.paths)
        parts[split] = part | {"names": listed.names, "marks": listed.marks}
    return parts


def _from_hub(repo_id, columns, name, revision) -> dict[str, dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(repo_id, name, revision=revision)
    except Exception as error:  # datasets raises a dozen kinds, from ConnectionError to its own
        raise FileNotFoundError(
            f"source: {repo_id!r} is no file or folder here, and as a Hub data set it could not be loaded: {error}"
        ) from error
    return {_canonical(k): _from_dataset(v, columns, k) for k, v in loaded.items()}


def _from_folder(folder: Path, columns) -> dict[str, dict[str, Any]]:
    if is_saved_dataset(folder):
        return _read(load_saved_dataset(folder), columns, None, None)
    try:
        found = read_class_folders(folder, columns.videos)
    except ValueError:
        if parquet := sorted(folder.rglob("*.parquet")):
            return _from_parquet(parquet, columns, folder)
        raise
    every_class = sorted({c for split in found.values() for c in split.files})
    parts = {}
    for split, listed in found.items():
        files = [(c, file) for c in sorted(listed.files) for file in listed.files[c]]
        root = str(listed.root.absolute())
        paths = [os.path.join(root, *file) for _, file in files]
        parts[split] = _from_paths(paths, [c for c, _ in files], ["/".join(file) for _, file in files])
        parts[split]["classes"] = every_class  # an empty folder is a class, too
        parts[split]["left_out"] = listed.left_out
    return parts


def _from_paths(paths: Sequence[str], labels: Sequence, ids: Sequence[str]) -> dict[str, Any]:
    import datasets

    for path in paths:
        if any(0xD800 <= ord(c) <= 0xDFFF for c in path):
            raise ValueError(
                f"{path.encode('utf-8', 'backslashreplace').decode()}: the file name is not valid UTF-8; rename it"
            )
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": list(paths)}, features=features)
    return {"dataset": dataset, "labels": list(labels), "names": None, "ids": tuple(ids)}


def _from_table(path: Path, columns) -> dict[str, dict[str, Any]]:
    table = open_table(path, columns[0], ("path", "label", "split"))
    if columns.gather_labels is not None:
        found = _splits_of_table(table)
        return {s: _from_dataset(rows, columns, s or path.stem, path.parent) for s, rows in found.items()}
    header = list(table.columns)
    image = _pick(header, columns[0], IMAGE_COLUMNS, "image_column", f"{path}: columns {header}")
    label = _pick(header, columns[1], LABEL_COLUMNS, "label_column", f"{path}: columns {header}")
    wanted = [header.index(column) for column in (image, label, *(c for c in header if c == "split"))]
    grouped: dict[str, list[tuple[str, str]]] = {}
    for line, row in table.rows():
        values = [row[at].strip() for at in wanted]
        if not all(values):
            raise ValueError(f"{path}, line {line}: got {row}; want a value for each of {[header[i] for i in wanted]}")
        check_length(values[1], f"{path}, line {line}: a label")
        split = _canonical(values[2]) if len(values) == 3 else ""
        grouped.setdefault(split, []).append((values[0], values[1]))
    parts = {}
    for split, pairs in grouped.items():
        paths = [str(Path(located(path.parent, file)).absolute()) for file, _ in pairs]
        parts[split] = _from_paths(paths, [label for _, label in pairs], [file for file, _ in pairs])
    return parts


def _splits_of_table(table: Table) -> dict[str, datasets.Dataset]:
    """Split -> its rows, all columns as text."""
    import datasets

    at = table.columns.index("split") if "split" in table.columns else None
    grouped: dict[str, list[dict[str, str]]] = {}
    for _, row in table.rows():
        values = {name: value.strip() for name, value in zip(table.columns, row, strict=True) if name}
        split = "" if at is None else _canonical(values.pop("split"))
        grouped.setdefault(split, []).append(values)
    return {split: datasets.Dataset.from_list(rows) for split, rows in grouped.items()}


def _from_parquet(files: Sequence[Path], columns, root: Path | None = None) -> dict[str, dict[str, Any]]:
    if not files:
        raise ValueError("source: got an empty list; want Parquet files")
    grouped: dict[str, list[Path]] = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"source: no such file: {file}")
        check_regular(file)
        shown = file.relative_to(root).as_posix() if root else file.name
        word = (
            re.search(r"(?:^|[-_./])(" + "|".join(SPLIT_ALIASES) + r")(?=[-_./])", shown.lower())
            if len(files) > 1
            else None
        )
        grouped.setdefault(SPLIT_ALIASES[word[1]] if word else "", []).append(file)
    if "" in grouped and len(grouped) > 1:
        raise ValueError(
            f"source: some Parquet files name a split and {name_some(map(str, grouped['']))} do not; pass one kind"
        )
    parts = {}
    for split, members in grouped.items():
        dataset = read_parquet(members)
        parts[split] = _from_dataset(dataset, columns, split or members[0].stem, members[0].parent)
    return parts


def read_parquet(files: Sequence[Path]) -> datasets.Dataset:
    """The rows of Parquet files, all columns. ValueError that names them where they cannot be read."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        for file in files:
            _check_rows(file, pyarrow.parquet.read_metadata(file).num_rows)
        if sum(f.stat().st_size for f in files) <= IN_MEMORY_PARQUET_BYTES:
            tables = [pyarrow.parquet.read_table(f) for f in files]
            return datasets.Dataset(pyarrow.concat_tables(tables, promote_options="default"))
        # `datasets` tells files apart by their names and times, and would give the contents of earlier ones.
        cache = Path(datasets.config.HF_DATASETS_CACHE) / f"content-{hash_of_files(files)}"
        return datasets.Dataset.from_parquet([str(f) for f in files], cache_dir=str(cache))
    except (pyarrow.ArrowException, datasets.exceptions.DatasetGenerationError, OSError) as error:
        raise ValueError(f"{name_some(map(str, files))}: not readable as Parquet: {error}") from error


def _check_rows(file: Path, rows: int) -> None:
    """A column of one value takes no space in the file, but in memory."""
    size = file.stat().st_size
    if rows > 100 * size:
        raise ValueError(f"{file}: {rows:,} rows in {size:,} bytes, which cannot be images")


def _from_dataset(dataset, columns, id_prefix: str, folder: Path | None = None) -> dict[str, Any]:
    from datasets import ClassLabel, Image

    several = columns.gather_labels is not None
    if several:
        dataset, columns = columns.gather_labels(dataset)
    features = dataset.features
    shown = "columns " + ", ".join(f"{k}: {_kind(v)}" for k, v in features.items())
    typed = [k for k, v in features.items() if _kind(v) in ("image", "binary")]
    if columns[0] is None and len(typed) == 1:
        image = typed[0]
    else:
        image = _pick(typed or list(features), columns[0], IMAGE_COLUMNS, "image_column", shown, list(features))
    classlabels = [k for k, v in features.items() if isinstance(v, ClassLabel)]
    if columns[1] is None and len(classlabels) == 1:
        label = classlabels[0]
    else:
        label = _pick([k for k in features if k != image], columns[1], LABEL_COLUMNS, "label_column", shown)
    one = features[label].feature if several else features[label]
    kind = _kind(one)
    if kind.startswith("lists of"):
        raise SeveralLabels(
            f"label_column: {label!r} holds {kind}, several labels an image; want one. For several, `evaluate` "
            "measures and calibrates, and the README of the CLIP classifier shows how to train"
        )
    if kind not in ("class label", "text", "integer"):
        raise ValueError(f"label_column: {label!r} holds {kind}; want class labels, integers or text ({shown})")
    names = list(one.names) if isinstance(one, ClassLabel) else None
    dataset = dataset.with_format(None).select_columns([image, label])
    if dataset._indices is not None:  # a selection: materialise it once, here
        dataset = dataset.flatten_indices()
    labels = dataset[label][:]
    images = dataset.select_columns([image]).rename_columns({image: "image"})
    if _kind(features[image]) == "text":  # paths, relative to the file that lists them
        written = [path or "" for path in images["image"][:]]
        part = _from_paths([str(Path(located(folder or "", p)).absolute()) for p in written], labels, written)
        return part | {"names": names, "ids": _unique_ids(written, id_prefix)}
    if _kind(features[image]) not in ("image", "binary"):
        held = _kind(features[image])
        raise ValueError(f"image_column: {image!r} holds {held}; want images, bytes or paths ({shown})")
    if not isinstance(features[image], Image) or not features[image].decode:
        images = images.cast_column("image", Image())
    ids = names_of_rows(images.cast_column("image", Image(decode=False)), "image", id_prefix)
    return {"dataset": images, "labels": labels, "names": names, "ids": ids}


def names_of_rows(encoded: datasets.Dataset, column: str, prefix: str) -> tuple[str, ...]:
    """The `path` written beside each undecoded image; `prefix/row` where not all have one of their own."""
    return _unique_ids(_paths_of(encoded, column), prefix)


def _paths_of(encoded: datasets.Dataset, column: str) -> list[str | None]:
    """The `path` written beside each undecoded image, without touching the bytes."""
    import pyarrow.compute

    values = encoded.data.column(column)
    has_paths = pyarrow.types.is_struct(values.type)
    return pyarrow.compute.struct_field(values, "path").to_pylist() if has_paths else [None] * len(encoded)


def _unique_ids(paths: Sequence[str | None], prefix: str) -> tuple[str, ...]:
    if all(paths) and len(set(paths)) == len(paths):
        common = os.path.commonpath(paths) if len(paths) > 1 and all(os.path.isabs(p) for p in paths) else ""
        return tuple(os.path.relpath(p, common).replace(os.sep, "/") if common else p for p in paths)
    return tuple(f"{prefix}/{row}" for row in range(len(paths)))


def _kind(feature) -> str:
    from datasets import ClassLabel, Image, LargeList, List, Value

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, ClassLabel):
        return "class label"
    if isinstance(feature, dict) and "bytes" in feature and "path" in feature:
        return "image"
    if isinstance(feature, List | LargeList):
        return f"lists of {_kind(feature.feature)}"
    if isinstance(feature, Value):
        for kind, wanted in (
            ("text", r"(large_)?string.*"),
            ("binary", "(large_)?binary"),
            ("integer", r"u?int\d+|bool"),
        ):
            if re.fullmatch(wanted, feature.dtype):
                return kind
        return feature.dtype
    return type(feature).__name__


def _pick(candidates, given, usual, argument, shown, every=None) -> str:
    if given is not None:
        if given not in (every or candidates):
            near = did_you_mean(given, every or candidates).removesuffix(".")
            raise ValueError(f"{argument}: got {given!r}; {shown}{near}")
        return given
    found = usual_column(candidates, usual)
    alike = [name for name in candidates if found is not None and name.lower() == found.lower()]
    if len(alike) > 1:
        raise ValueError(
            f"{argument}: cannot tell which of the columns {name_some(alike)} it is; name one of the {shown}"
        )
    if found is None:
        raise ValueError(f"{argument}: cannot tell which column it is; name one of the {shown}")
    return found


# ----------------------------------------------------------------------------------------------- splits and classes


def _canonical(split: str) -> str:
    return SPLIT_ALIASES.get(split.lower(), split)


def _choose_split(parts: dict[str, Any], split: str | None, what: str) -> str:
    if split is not None:
        wanted = _canonical(split)
        if wanted not in parts or wanted == "":
            have = name_some(n for n in parts if n) or "no splits"
            raise ValueError(f"split: got {split!r}; {what} has {have}")
        return wanted
    if len(parts) == 1:
        return next(iter(parts))
    if "train" not in parts:
        raise ValueError(f"split: {what} has {name_some(parts)}; name one")
    return "train"


def _evenly(labels: np.ndarray, limit: int) -> np.ndarray:
    """`limit` rows, one class after the other in turn, first rows of each class first; in their original order."""
    # `turn`: the number of each row within its class. Sorting by (turn, label) lets the classes take turns.
    order = np.argsort(labels, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(labels[order])) + 1]
    turn = np.empty(len(labels), dtype=np.int64)
    turn[order] = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return np.sort(np.lexsort((labels, turn))[:limit])


def _check_readable(images: ImageSet, on_error: str, progress: bool) -> ImageSet:
    bad = images.unreadable(progress)
    if not bad:
        return images
    listed = "\n".join(f"  images[{row}] {images.ids[row]!r}: {reason}" for row, reason in bad[:20])
    more = f"\n  … and {len(bad) - 20} more" if len(bad) > 20 else ""
    message = f"{len(bad)} of {len(images)} images cannot be read:\n{listed}{more}"
    if on_error == "raise":
        raise ValueError(f"{message}\nRepair or remove them, or pass on_error='skip'.")
    logger.warning("%s\nThey are left out.", message)
    rows = {row for row, _ in bad}
    kept = images.select([row for row in range(len(images)) if row not in rows])
    return replace(kept, skipped=tuple((images.ids[row], reason) for row, reason in bad))


def _check_classes(images: ImageSet, what: str, empty_classes: str | None, left_out: Mapping[str, Counter]) -> None:
    if len(images.class_names) < 2:
        raise ValueError(f"{what}: one class only ({images.class_names[0]!r}); classification wants at least two")
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    empty = [name for name, count in zip(images.class_names, counts, strict=True) if not count]
    if not empty:
        return
    message = f"{what}: no images for {len(empty)} of {len(counts)} classes: {name_some(empty)}"
    if unread := sum((left_out.get(name, Counter()) for name in empty), Counter()):
        message += f"; left out of them {count_left_out(unread)}"
    if empty_classes == "raise" or (empty_classes is None and images.split in (None, "train")):
        raise ValueError(f"{message}. Add some, remove the class, or pass empty_classes='warn'.")
    logger.warning("%s", message)
