"""Images with boxes from COCO's json or a data set of `datasets`, for training and testing detectors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..modeling.decoding.image_decoding import DecodingRules, decode_image
from .saved_datasets import is_saved_dataset, load_saved_dataset


_FIELDS = ("bbox", "area", "iscrowd", "segmentation")  # of an object
_FOLDERS = ("", "images", "../images")  # where the images of a json file are tried


class _Files(Sequence):
    """Images of files, decoded when they are asked for."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path = self.paths[index]
        try:
            return decode_image(str(path), DecodingRules())
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
            raise OSError(f"{path}: {error}") from error


class _Column(Sequence):
    """The images of a data set, decoded when they are asked for."""

    def __init__(self, rows: Any, column: str):
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[int(index)][self.column]


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """
    N images and their objects.

    Attributes:
        images: N PIL images by number.
        annotations: of each image its objects: dictionaries of `bbox` (x, y, width, height), `category_id` (from 0),
            `area`, `iscrowd` and maybe `segmentation`.
        class_names: of the labels.
        captions: of each image a sentence or None, where COCO's json has "caption"; objects then may have
            "tokens_positive", the spans of characters ([[start, end], …]) of the phrase that names them.
    """

    images: Sequence[Any]
    annotations: list[list[dict[str, Any]]]
    class_names: list[str]
    captions: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def with_classes(self, names: Sequence[str]) -> DetectionSet:
        """The same with labels that are places in `names`; ValueError for a class that is not among them."""
        if unknown := [name for name in self.class_names if name not in names]:
            raise ValueError(f"classes: {', '.join(map(repr, unknown[:5]))} of the data not among {len(names)} names")
        place = [list(names).index(name) for name in self.class_names]
        marks = [[one | {"category_id": place[one["category_id"]]} for one in row] for row in self.annotations]
        return replace(self, annotations=marks, class_names=list(names))

    def without(self, names: Iterable[str]) -> DetectionSet:
        """Without the boxes of these classes (novel ones in training); the images and labels stay."""
        left_out = {self.class_names.index(name) for name in self._known(names)}
        marks = [[one for one in row if one["category_id"] not in left_out] for row in self.annotations]
        return replace(self, annotations=marks)

    def groups(self, novel: Iterable[str]) -> dict[str, list[int]]:
        """Labels of the groups "base" and "novel", for `DetectionMetrics`; none if nothing is novel."""
        unseen = [self.class_names.index(name) for name in self._known(novel)]
        rest = [label for label in range(len(self.class_names)) if label not in unseen]
        return {"base": rest, "novel": unseen} if unseen else {}

    def _known(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        if unknown := [name for name in names if name not in self.class_names]:
            raise ValueError(f"novel: no class {unknown[0]!r}, want some of {', '.join(self.class_names[:20])}")
        return names

    def target(self, index: int) -> dict[str, Any]:
        """The objects of an image as `DetectionMetrics.add` takes them."""
        rows = self.annotations[index]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (row["bbox"] for row in rows)]
        crowds = [int(row.get("iscrowd", 0)) for row in rows]
        return {"labels": [row["category_id"] for row in rows], "boxes": boxes, "iscrowd": crowds}


def load_detection_set(
    source: str | os.PathLike, images: str | os.PathLike | None = None, split: str | None = None
) -> DetectionSet:
    """Reads a data set.

    Args:
        source: COCO's json; or what `datasets` reads: a Parquet file, a folder of `save_to_disk`, a folder of images
            with a metadata.jsonl, an id on the Hub. Its rows have an image and `objects` with `bbox` (x, y, width,
            height) and `category` (numbers with names in the features, or names).
        images: folder of the images of a json file. Default: its own, or `images` in it or beside it.
        split: of a data set; default "train" where there are several.

    Raises:
        OSError: no such file; a json that is none of COCO's; images that are not there.
        ValueError: no objects, columns that are missing, numbers of boxes and categories that differ.
    """
    path = Path(source)
    if path.suffix.lower() == ".json":
        return _from_coco(path, None if images is None else Path(images))
    if images is not None:
        raise ValueError(f"images: got {images} for {source}; it is for COCO's json")
    return _from_datasets(str(source), split)


def load_grounding_set(source: str | os.PathLike, images: str | os.PathLike | None = None) -> DetectionSet:
    """Reads images with captions whose phrases have boxes: COCO's json with a "caption" of each image and
    "tokens_positive" of each object, as the sets of MDETR and GLIP have them.

    Raises:
        ValueError: an image without a caption, an object without a span, or with one outside of the caption; names it.
        OSError: as `load_detection_set`.
    """
    found = load_detection_set(source, images)
    for i, marks in enumerate(found.annotations):
        caption = None if found.captions is None else found.captions[i]
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{source}: image {i} has no caption")
        for mark in marks:
            spans = mark.get("tokens_positive")
            fine = isinstance(spans, list) and spans and all(_is_span(span, caption) for span in spans)
            if not fine:
                raise ValueError(
                    f"{source}: an object of image {i} has tokens_positive {spans!r}, want [[start, end], …] in "
                    f"0..{len(caption)} of {caption[:80]!r}"
                )
    return found


def _is_span(span: Any, caption: str) -> bool:
    whole = isinstance(span, list) and len(span) == 2 and all(type(one) is int for one in span)
    return whole and 0 <= span[0] < span[1] <= len(caption)


class _Joined(Sequence):
    """One sequence after the other, without reading them."""

    def __init__(self, *parts: Sequence):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Any:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def join_sets(detection: DetectionSet, grounding: DetectionSet) -> DetectionSet:
    """Images of both with their captions, and the class names of the first."""
    texts = [one.captions or [None] * len(one) for one in (detection, grounding)]
    return replace(
        detection,
        images=_Joined(detection.images, grounding.images),
        annotations=[*detection.annotations, *grounding.annotations],
        captions=[*texts[0], *texts[1]],
    )


def _from_coco(path: Path, folder: Path | None) -> DetectionSet:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        images = {row["id"]: row["file_name"] for row in document["images"]}
        captions = [row.get("caption") for row in document["images"]]
        categories = {row["id"]: str(row["name"]) for row in document["categories"]}
        rows = document["annotations"]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{path}: not COCO's json ({type(error).__name__}: {error}); want images, annotations, categories"
        ) from error
    ids = sorted(categories)
    names = [categories[number] for number in ids]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"{path}: {len(names)} categories, {len(set(names))} names; want distinct ones")
    place = {number: label for label, number in enumerate(ids)}
    found: dict[Any, list[dict]] = {number: [] for number in images}
    for row in rows:
        if row.get("image_id") not in found or row.get("category_id") not in place:
            raise ValueError(f"{path}: annotation {row.get('id')} is of an image or a category that is not listed")
        kept = {name: row[name] for name in (*_FIELDS, "tokens_positive") if name in row}
        found[row["image_id"]].append({"iscrowd": 0} | kept | {"category_id": place[row["category_id"]]})
    tried = [folder] if folder is not None else [path.parent / name for name in _FOLDERS]
    files = list(images.values())
    for place_of_images in tried:
        paths = [place_of_images / name for name in files]
        if all(file.is_file() for file in paths):
            texts = captions if any(captions) else None
            return DetectionSet(_Files(paths), list(found.values()), names, texts)
    missing = [name for name in files if not any((one / name).is_file() for one in tried)]
    name = missing[0] if missing else files[0]
    raise FileNotFoundError(f"images: {name} of {path} is not in {' or '.join(str(one) for one in tried)}")


def _from_datasets(source: str, split: str | None) -> DetectionSet:
    import datasets

    if source.endswith(".parquet"):
        rows = datasets.load_dataset("parquet", data_files=source, split="train")
    elif is_saved_dataset(source):
        rows = load_saved_dataset(source)
        rows = rows[split or "train"] if isinstance(rows, datasets.DatasetDict) else rows
    else:
        rows = datasets.load_dataset(source, split=split or "train")
    if missing := {"image", "objects"} - set(rows.column_names):
        raise ValueError(f"{source}: no column {sorted(missing)[0]!r}, got {', '.join(rows.column_names)}")
    objects = rows.select_columns(["objects"])
    listed = [_as_lists(row["objects"], f"{source}: row {i}") for i, row in enumerate(objects)]
    names = _names_of(rows.features["objects"])
    if names is None:
        values = [value for one in listed for value in one["category"]]
        numbers = [value for value in values if isinstance(value, int)]
        names = [f"class {n}" for n in range(max(numbers) + 1)] if numbers else sorted(set(map(str, values)))
    place = {name: label for label, name in enumerate(names)}
    annotations = []
    for one in listed:
        more = {name: one[name] for name in ("area", "iscrowd", "segmentation") if name in one}
        annotations.append(
            [
                {
                    "bbox": list(box),
                    "category_id": category if isinstance(category, int) else place[category],
                    "iscrowd": 0,
                }
                | {name: values[number] for name, values in more.items()}
                for number, (box, category) in enumerate(zip(one["bbox"], one["category"], strict=True))
            ]
        )
    if not names:
        raise ValueError(f"{source}: no objects in {len(rows)} images")
    return DetectionSet(_Column(rows, "image"), annotations, list(names))


def _as_lists(objects: Any, what: str) -> dict[str, list]:
    """A dictionary of lists, also of a list of dictionaries."""
    if not isinstance(objects, Mapping):
        objects = {name: [one[name] for one in objects] for name in (objects[0] if objects else ("bbox", "category"))}
    categories = objects.get("category", objects.get("categories", objects.get("category_id")))
    if categories is None or "bbox" not in objects:
        raise ValueError(f"{what}: objects have {', '.join(objects)}; want bbox and category")
    if len(categories) != len(objects["bbox"]):
        raise ValueError(f"{what}: {len(objects['bbox'])} boxes, {len(categories)} categories")
    return {**objects, "category": list(categories)}


def _names_of(feature: Any) -> list[str] | None:
    """The names of a ClassLabel somewhere in the feature `objects`."""
    if hasattr(feature, "names"):
        return list(feature.names)
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return _names_of(inner)
    if isinstance(feature, Mapping):
        named = [feature[name] for name in ("category", "categories", "category_id") if name in feature]
        return _names_of(named[0]) if named else None
    return _names_of(feature[0]) if isinstance(feature, list) and feature else None


__all__ = ["DetectionSet", "join_sets", "load_detection_set", "load_grounding_set"]
