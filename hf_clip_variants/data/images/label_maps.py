"""`load_label_maps`: images with the class of every pixel, from folders, Parquet, the Hub or `datasets`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...modeling.decoding.image_decoding import decode_image
from ...modeling.decoding.opening import read_regular
from ..saved_datasets import is_saved_dataset, load_saved_dataset
from .image_set import name_some
from .names import IMAGE_COLUMNS, IMAGE_EXTENSIONS, SPLIT_ALIASES, usual_column


if TYPE_CHECKING:
    import datasets
    from PIL import Image


MAP_COLUMNS = ("label_map", "annotation", "segmentation_map", "semantic_map", "mask", "labels", "label")
IMAGE_FOLDERS = ("images", "image", "jpegimages", "img")
MAP_FOLDERS = ("annotations", "label_maps", "labels", "masks", "segmentationclass", "segmentations", "ann")
NAME_FILES = ("class_names.txt", "classes.txt", "labels.txt", "id2label.json", "class_names.json")
BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """N images with label maps. Made by `load_label_maps`.

    Attributes:
        rows: a sequence of rows with an image and a map: a `datasets.Dataset` that does not decode, or pairs of paths.
        class_names (`tuple[str, ...]`): C names; pixel value v is the v-th.
        columns (`tuple[str, str]`): of the image and the map.
        split, available_splits: as in `ImageSet`.
        ignore_index (`int`): the value of pixels that do not count.
    """

    rows: Any
    class_names: tuple[str, ...]
    columns: tuple[str, str] = ("image", "label_map")
    split: str | None = None
    available_splits: tuple[str, ...] = ()
    ignore_index: int = 255

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def background(self) -> int | None:
        """The value of the class that is called "background", in any case; None if there is none."""
        return next((v for v, name in enumerate(self.class_names) if name.lower() == BACKGROUND), None)

    def image(self, index: int) -> Image.Image:
        """RGB; ValueError, with the row's number, if it cannot be read."""
        try:
            return decode_image(_content(self.rows[index][self.columns[0]]))
        except (ValueError, OSError) as error:
            raise ValueError(f"image {index}: {error}") from error

    def label_map(self, index: int) -> np.ndarray:
        """(H, W) int64; ValueError, with the row's number, if it cannot be read or has a value without a name."""
        from PIL import Image

        given = _content(self.rows[index][self.columns[1]])
        try:
            if isinstance(given, bytes):
                given = Image.open(BytesIO(given))
            elif isinstance(given, str | os.PathLike):
                given = Image.open(BytesIO(read_regular(Path(given))))
            values = np.asarray(given)
            if getattr(given, "mode", "L") not in ("1", "L", "P", "I", "I;16", "I;16B") or values.ndim != 2:
                raise ValueError(
                    f"mode {getattr(given, 'mode', None)}, shape {values.shape}; want one number for each pixel"
                )
        except (ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"label map {index}: {error}") from error
        values = values.astype(np.int64)
        wrong = np.unique(values[(values != self.ignore_index) & ((values < 0) | (values >= len(self.class_names)))])
        if len(wrong):
            raise ValueError(
                f"label map {index}: value {wrong[0]} has no name; there are {len(self.class_names)}, "
                f"{name_some(self.class_names)}, and {self.ignore_index} is ignored"
            )
        return values


def load_label_maps(
    source: str | os.PathLike | datasets.Dataset | datasets.DatasetDict,
    split: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | Mapping[int | str, str] | None = None,
    ignore_index: int = 255,
    name: str | None = None,
    revision: str | None = None,
) -> LabelMaps:
    """Read images with label maps.

    Args:
        source: one of
            - a folder with `images/` and `annotations/` (or `masks/`, `label_maps/`, … in any case; splits may lie
              below both, or above them): files of one name belong together, up to the suffix; maps are PNG files whose
              pixels are numbers, also with a palette;
            - a `.parquet` file, a folder of them, a folder of `datasets.save_to_disk`, a `datasets.Dataset` or
              `DatasetDict`, or the id of a data set on the Hub, with an image column and a column of maps.
        split: as in `load_images`; default: the test or validation split where there is one.
        image_column, label_column: default: by the usual names (`image`; `label_map`, `annotation`, `mask`, …).
        class_names: name of each pixel value: a list, or a mapping from value to name. Default: `class_names.txt`,
            `labels.txt` or `id2label.json` of the folder, or the names that `make_scenes` stores.
        ignore_index: the value of pixels that do not count.

    Raises:
        FileNotFoundError: no such source.
        ValueError: no pairs of image and map, no names, no such column or split.
    """
    import datasets

    shown = str(source) if isinstance(source, str | os.PathLike) else "the data set"
    if isinstance(source, datasets.DatasetDict):
        parts: dict[str, Any] = {_canonical(key): value for key, value in source.items()}
    elif isinstance(source, datasets.Dataset):
        parts = {_canonical(str(source.split or "")): source}
    elif Path(source).is_dir():
        parts = _from_folder(Path(source))
        class_names = class_names if class_names is not None else _names_beside(Path(source))
    elif Path(source).is_file():
        if Path(source).suffix != ".parquet":
            raise ValueError(f"source: {source} is no Parquet file; want a folder, Parquet, or a Hub data set")
        parts = {"": datasets.Dataset.from_parquet(str(source))}
    else:
        try:
            loaded = datasets.load_dataset(str(source), name, revision=revision)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise FileNotFoundError(f"source: no file, folder or Hub data set {source}") from error
        parts = {_canonical(key): value for key, value in loaded.items()}
    chosen = _choose(parts, split, shown)
    rows, columns = parts[chosen], ("image", "label_map")
    if isinstance(rows, datasets.Dataset):
        columns = _columns(rows, image_column, label_column, shown)
        class_names = _stored_names(rows, columns[1]) if class_names is None else class_names
        for column in columns:
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        rows = rows.select_columns(list(columns))
    if class_names is None:
        raise ValueError(f"class_names: {shown} has none; want the name of each pixel value, in order")
    found = LabelMaps(rows, (), columns, chosen or None, tuple(part for part in parts if part), ignore_index)
    if not len(found):
        raise ValueError(f"source: no images in {shown}")
    return replace(found, class_names=_in_order(class_names))


def _content(value: Any) -> Any:
    """Bytes or a path out of what `datasets` stores; anything else as it is."""
    if isinstance(value, Mapping):
        return value["bytes"] if value.get("bytes") is not None else value["path"]
    return value


def _canonical(split: str) -> str:
    return SPLIT_ALIASES.get(split.lower(), split)


def _choose(parts: Mapping[str, Any], split: str | None, shown: str) -> str:
    if split is not None:
        wanted = _canonical(split)
        if wanted not in parts or not wanted:
            raise ValueError(f"split: {shown} has {name_some(filter(None, parts)) or 'no splits'}, not {split!r}")
        return wanted
    return next((part for part in ("test", "validation", "train") if part in parts), next(iter(parts)))


def _columns(rows, image_column, label_column, shown) -> tuple[str, str]:
    import datasets

    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    found = []
    for argument, given, usual in (
        ("image_column", image_column, IMAGE_COLUMNS),
        ("label_column", label_column, MAP_COLUMNS),
    ):
        column = given or usual_column([n for n in images if n not in found], usual)
        if column is None or column not in rows.features:
            raise ValueError(
                f"{argument}: {given or 'none given'}; {shown} has the image columns {name_some(images) or 'none'}"
            )
        found.append(column)
    return found[0], found[1]


def _stored_names(rows, map_column: str) -> list[str] | None:
    """Of `make_scenes`: the classes of its objects, after the background."""
    objects = rows.features.get("objects")
    if map_column == "label_map" and isinstance(objects, Mapping) and "category" in objects:
        from ..scenes.scenes import label_map_names

        return label_map_names(rows)
    return None


def _names_beside(folder: Path) -> list[str] | Mapping[str, str] | None:
    for name in NAME_FILES:
        if (folder / name).is_file():
            from ...modeling.dual_encoders.prompts import read_class_names

            return read_class_names(folder / name)
    config = folder / "config.json"  # of a model: id2label
    if config.is_file():
        return json.loads(read_regular(config)).get("id2label")
    return None


def _in_order(names: Sequence[str] | Mapping[int | str, str]) -> tuple[str, ...]:
    if isinstance(names, Mapping):
        by_value = {int(value): name for value, name in names.items()}
        if sorted(by_value) != list(range(len(by_value))):
            raise ValueError(f"class_names: values {sorted(by_value)}; want 0 to {len(by_value) - 1}")
        names = [by_value[value] for value in range(len(by_value))]
    names = tuple(names)
    if not names or not all(isinstance(n, str) and n.strip() for n in names) or len(set(names)) < len(names):
        raise ValueError(f"class_names: got {name_some(map(str, names)) or 'none'}; want different texts")
    return names


# ---- folders


def _from_folder(folder: Path) -> dict[str, Any]:
    import datasets

    if is_saved_dataset(folder):
        loaded = load_saved_dataset(folder)
        if isinstance(loaded, datasets.DatasetDict):
            return {_canonical(key): value for key, value in loaded.items()}
        return {_canonical(str(loaded.split or "")): loaded}
    if any(folder.rglob("*.parquet")):
        loaded = datasets.load_dataset("parquet", data_dir=str(folder))
        return {_canonical(key): value for key, value in loaded.items()}
    parts = _pairs_below(folder)
    for below in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in SPLIT_ALIASES):
        inner = _pairs_below(below)
        parts |= {_canonical(below.name): [pair for pairs in inner.values() for pair in pairs]} if inner else {}
    if not parts:
        raise ValueError(
            f"source: {folder} has no images/ beside annotations/ (or masks/, label_maps/, labels/), and no Parquet"
        )
    return parts


def _pairs_below(folder: Path) -> dict[str, list[dict[str, Path]]]:
    """Split ("" without one) -> rows of a path of the image and one of the map."""
    below = {p.name.lower(): p for p in folder.iterdir() if p.is_dir()}
    images = next((below[name] for name in IMAGE_FOLDERS if name in below), None)
    maps = next((below[name] for name in MAP_FOLDERS if name in below), None)
    if images is None or maps is None:
        return {}
    known = {p.relative_to(maps).with_suffix("").as_posix(): p for p in maps.rglob("*.png")}
    parts: dict[str, list[dict[str, Path]]] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file():
            key = path.relative_to(images).with_suffix("").as_posix()
            if key in known:
                first = key.split("/")[0] if "/" in key else ""
                split = _canonical(first) if first.lower() in SPLIT_ALIASES else ""
                parts.setdefault(split, []).append({"image": path, "label_map": known[key]})
    return parts


__all__ = ["LabelMaps", "load_label_maps"]
