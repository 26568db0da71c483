"""`load_multi_label_images`: images with several labels each, or none, from the sources of `load_images`."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .class_labels import digits_as_numbers, resolve_classes
from .image_set import ImageSet, name_some
from .names import IMAGE_COLUMNS, LABEL_COLUMNS, usual_column
from .sources import Columns, _check_readable, _choose_split, _kind, _pick, _read


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

SEPARATORS = "|;,"  # in a cell with several labels; the first of them that occurs in the column


class MultiLabelImageSet(ImageSet):
    """Images with several labels each: an [`ImageSet`] whose `labels` are (N, C).

    The column `label` of `dataset` holds a list of C booleans. Made by `load_multi_label_images`.
    """

    @cached_property
    def labels(self) -> np.ndarray:
        """1 where the class is in the image, else 0; float32, shape (N, C). Read-only."""
        labels = np.asarray(self.dataset["label"][:], dtype=np.float32).reshape(len(self), len(self.class_names))
        labels.setflags(write=False)
        return labels

    def select_classes(self, classes: Sequence[int]) -> MultiLabelImageSet:
        """All images, with the labels of `classes` only, which become columns 0, 1, … in the order given."""
        classes = [int(c) for c in classes]
        if len(set(classes)) != len(classes) or not all(0 <= c < len(self.class_names) for c in classes):
            raise ValueError(f"classes: got {classes[:8]}; want distinct indices in 0..{len(self.class_names) - 1}")
        return _with_labels(self, self.labels[:, classes], [self.class_names[c] for c in classes])

    def align_classes(self, class_names: Sequence[str], what: str = "images") -> MultiLabelImageSet:
        """The same images with the columns of `class_names`, matched by name; 0 where no image has the class.

        ValueError, which names `what`, if images have other labels.
        """
        column = {name: index for index, name in enumerate(self.class_names)}
        used = [name for name, count in zip(self.class_names, self.labels.sum(0), strict=True) if count]
        unknown = [name for name in used if name not in set(class_names)]
        if unknown:
            raise ValueError(
                f"{what}: {len(unknown)} of {len(used)} classes are not among the {len(class_names)} of the model: "
                f"{name_some(unknown)}; it has {name_some(class_names)}"
            )
        labels = np.zeros((len(self), len(class_names)), dtype=np.float32)
        for index, name in enumerate(class_names):
            if name in column:
                labels[:, index] = self.labels[:, column[name]]
        return _with_labels(self, labels, class_names)

    def _label_texts(self) -> Iterable[str]:
        return (" ".join(map(str, np.flatnonzero(row))) for row in self.labels)


def load_multi_label_images(
    source: str | os.PathLike | Sequence[str | os.PathLike] | datasets.Dataset | datasets.DatasetDict,
    split: str | None = None,
    *,
    image_column: str | None = None,
    label_columns: str | Sequence[str] | None = None,
    separator: str | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    clean_class_names: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    verify: bool = True,
    name: str | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> MultiLabelImageSet:
    """Read images that have several labels each. An image may have none.

    Args:
        source: a Parquet or CSV file, a `datasets.Dataset` and so on, as in `load_images`. Labels are a column of
            lists (class labels, text or integers), a column of text with a separator (`cat|dog`), or a column of 0 and
            1 for each class. Sources with one label an image, such as folders of classes, are read as they are.
        split, image_column, class_names, clean_class_names, on_error, verify, name, revision, progress: as in
            `load_images`. With a column of 0 and 1 for each class, the class names are those of the columns.
        label_columns (`str` or `list[str]`, *optional*): the column of lists or of text, or the columns of 0 and 1.
            Default: the only column of lists; a column with a usual name (`labels`, `label`, `category`, …); all
            columns that hold nothing but 0 and 1.
        separator (`str`, *optional*): between the labels in a cell of text. Default: the first of `|`, `;` and `,`
            that occurs in the column.

    Returns:
        [`MultiLabelImageSet`]; classes are the same in every split of one source.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: no images, no labels, unknown labels, columns other than described, unreadable images.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from hf_clip_variants.data import load_images, load_multi_label_images
    >>> pictures = [load_images("emoji:notov1").image(row) for row in range(3)]
    >>> tagged = Dataset.from_dict({"image": pictures, "tags": ["food|round", "food", ""]})
    >>> images = load_multi_label_images(tagged, label_columns="tags")
    >>> images.class_names, images.labels.tolist()
    (('food', 'round'), [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    ```
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: got {on_error!r}; want 'raise' or 'skip'")
    if isinstance(source, list | tuple) and len(source) > 1 and not all(str(s).endswith(".parquet") for s in source):
        raise ValueError(f"source: got {len(source)} sources; want one, or several Parquet files")
    what = source if isinstance(source, str) else type(source).__name__
    labels = label_columns if label_columns is None or isinstance(label_columns, str) else list(label_columns)
    gather = partial(_gather_labels, image=image_column, labels=labels, separator=separator)
    parts = _read(source, Columns(image_column, None, gather), name, revision)
    parts = {s: p | {"labels": [_as_list(row) for row in p["labels"]]} for s, p in parts.items()}
    chosen = _choose_split(parts, split, what)
    part = parts[chosen]

    flat = {s: p | {"labels": [label for row in p["labels"] for label in row]} for s, p in parts.items()}
    flat = digits_as_numbers(flat, class_names)
    if not any(p["labels"] for p in flat.values()) and class_names is None and part["names"] is None:
        raise ValueError(f"{what}: no image has a label; want some, or class names")
    names, index_of = resolve_classes(flat, class_names, clean_class_names)
    matrix = _matrix(part, flat[chosen]["labels"], names, index_of)
    images = MultiLabelImageSet(
        part["dataset"], names, part["ids"], split=chosen or None, available_splits=tuple(n for n in parts if n)
    )
    images = _with_labels(images, matrix, names)
    if images.available_splits:
        arguments = {
            "image_column": image_column,
            "label_columns": label_columns,
            "separator": separator,
            "class_names": class_names,
            "clean_class_names": clean_class_names,
            "on_error": on_error,
            "verify": verify,
            "name": name,
            "revision": revision,
            "progress": progress,
        }
        images = replace(images, load_split=functools.partial(load_multi_label_images, source, **arguments))
    if verify:
        images = _check_readable(images, on_error, progress)
    if not len(images):
        raise ValueError(f"{what}: no images in split {chosen!r}" if chosen else f"{what}: no images")
    return images


def _as_list(labels: Any) -> list:
    """Of one row: lists as they are, nothing as no label, and one label as a list of it (folders of classes)."""
    if labels is None:
        return []
    return labels if isinstance(labels, list) else [int(labels) if isinstance(labels, np.integer) else labels]


def _with_labels(images: MultiLabelImageSet, labels: np.ndarray, class_names: Sequence[str]) -> MultiLabelImageSet:
    from datasets import List, Value

    dataset = images.dataset
    if "label" in dataset.column_names:
        dataset = dataset.remove_columns("label")
    feature = List(Value("bool"), length=len(class_names))
    dataset = dataset.add_column("label", list(labels.astype(bool)), feature=feature)
    return replace(images, dataset=dataset, class_names=tuple(class_names))


def _matrix(part: Mapping[str, Any], labels: Sequence, names: Sequence[str], index_of: Mapping) -> np.ndarray:
    """(N, C) float32 of 0 and 1. `labels` are those of `part["labels"]`, all rows in one list."""
    matrix, rest = np.zeros((len(part["labels"]), len(names)), dtype=np.float32), iter(labels)
    for row, written in enumerate(part["labels"]):
        for label in (next(rest) for _ in written):
            index = index_of.get(label)
            if index is None:
                raise ValueError(
                    f"label of images[{row}] ({part['ids'][row]!r}): got {label!r}, which is not among the class "
                    f"names {name_some(names)}"
                )
            matrix[row, index] = 1
    return matrix


# ---------------------------------------------------------------------------------------------- columns of a data set


def _gather_labels(
    dataset: datasets.Dataset, image: str | None, labels: str | list[str] | None, separator: str | None
) -> tuple[datasets.Dataset, Columns]:
    """The data set with its image column and a column of lists of labels, in the way that `load_images` reads it."""
    features, dataset = dataset.features, dataset.with_format(None)
    kinds = {column: _kind(feature) for column, feature in features.items()}
    shown = "columns " + ", ".join(f"{column}: {kind}" for column, kind in kinds.items())
    pictures = [column for column, kind in kinds.items() if kind in ("image", "binary")]
    if image is None and len(pictures) == 1:
        image = pictures[0]
    image = _pick(pictures or list(features), image, IMAGE_COLUMNS, "image_column", shown, list(features))
    others = [column for column in features if column != image]
    unknown = [column for column in ([labels] if isinstance(labels, str) else labels or ()) if column not in others]
    if unknown:
        raise ValueError(f"label_columns: got {name_some(unknown)}; {shown}")
    if labels is None:
        labels = _find_labels(dataset, others, kinds, shown)
    if isinstance(labels, str):
        lists, feature = _lists_of(dataset, labels, kinds[labels], separator, shown)
    else:
        lists, feature = _lists_of_columns(dataset, labels)
    kept = dataset.select_columns([image])
    column = "labels" if image != "labels" else "labels of images"
    return kept.add_column(column, lists, feature=feature), Columns(image, column)


def _find_labels(dataset, others: list[str], kinds: Mapping[str, str], shown: str) -> str | list[str]:
    lists = [column for column in others if kinds[column].startswith("lists of")]
    usual = usual_column(lists or others, LABEL_COLUMNS)
    if len(lists) == 1 or usual is not None:
        return lists[0] if len(lists) == 1 else usual
    columns = [column for column in others if _is_zero_or_one(dataset, column, kinds[column])]
    if not columns:
        raise ValueError(
            f"label_columns: cannot tell where the labels are; want a column of lists, one of text such as cat|dog, "
            f"or one of 0 and 1 for each class; {shown}"
        )
    left_out = [column for column in others if column not in columns]
    if left_out:
        logger.warning("%d columns of 0 and 1 are the classes; not read: %s", len(columns), name_some(left_out))
    return columns


def _is_zero_or_one(dataset, column: str, kind: str) -> bool:
    return kind in ("integer", "text", "float32", "float64") and {*dataset.unique(column)} <= {0, 1, "0", "1"}


def _lists_of(dataset, column: str, kind: str, separator: str | None, shown: str) -> tuple[list, Any]:
    from datasets import List, Value

    values, feature = dataset[column][:], dataset.features[column]
    if kind.startswith("lists of"):
        inner = feature.feature
        if kind.removeprefix("lists of ") not in ("class label", "text", "integer"):
            raise ValueError(f"label_columns: {column!r} holds {kind}; want lists of class labels, text or integers")
        return values, List(inner)
    if kind == "text":
        cells = [cell or "" for cell in values]
        separator = separator or next((s for s in SEPARATORS if any(s in cell for cell in cells)), SEPARATORS[0])
        return [[label.strip() for label in c.split(separator) if label.strip()] for c in cells], List(Value("string"))
    if kind in ("class label", "integer"):
        return [[] if value is None else [value] for value in values], List(feature)
    raise ValueError(f"label_columns: {column!r} holds {kind}; want lists, text, or 0 and 1 for each class ({shown})")


def _lists_of_columns(dataset, columns: list[str]) -> tuple[list, Any]:
    from datasets import ClassLabel, List

    rows: list[list[int]] = [[] for _ in range(len(dataset))]
    for index, column in enumerate(columns):
        for row, value in enumerate(dataset[column][:]):
            if value not in (0, 1, "0", "1"):
                raise ValueError(f"label_columns: row {row} of {column!r} holds {value!r}; want 0 or 1")
            if int(value):
                rows[row].append(index)
    return rows, List(ClassLabel(names=columns))


__all__ = ["SEPARATORS", "MultiLabelImageSet", "load_multi_label_images"]
