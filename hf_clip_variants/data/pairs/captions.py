"""Captions that lie beside images: a text file for each, a table of all (`metadata.csv`), COCO's JSON."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...modeling.decoding.opening import read_regular
from ..images.names import IMAGE_EXTENSIONS
from ..tables import decode_text, open_table, read_json_lines


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

METADATA = ("metadata.csv", "metadata.jsonl")


def table_of_texts(file: Path, image_column: str | None) -> datasets.Dataset:
    """A table of image paths and texts (.csv, .tsv, .jsonl), in memory. All values of .csv and .tsv are text."""
    import datasets
    import pyarrow

    if file.suffix.lower() == ".jsonl":
        return datasets.Dataset.from_list(read_json_lines(file), on_mixed_types="use_json")
    table = open_table(file, image_column, ("image", "text"))
    named = [(at, name) for at, name in enumerate(table.columns) if name]
    rows, parts = table.rows(), []
    while part := [values for _, values in islice(rows, 100_000)]:  # Arrow takes a fraction of the memory of lists
        parts.append(pyarrow.table({name: [values[at].strip() for values in part] for at, name in named}))
    return datasets.Dataset(pyarrow.concat_tables(parts))


def text_files(folder: Path) -> datasets.Dataset | None:
    """`image` (path below the folder) and `text` (the lines of the .txt file of the same name) of all images that have
    one, at any depth; None if no image has one.

    Images without, or with an empty one, are left out; a warning says how many.
    """
    import datasets

    images, texts = [], {}
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            path = Path(top, name)
            if path.suffix.lower() == ".txt":
                texts[path.with_suffix("")] = path
            elif path.suffix.lower() in IMAGE_EXTENSIONS and not name.startswith("."):
                images.append(path)
    if not any(image.with_suffix("") in texts for image in images):
        return None
    columns: dict[str, list[Any]] = {"image": [], "text": []}
    for image in images:
        lines = _lines(texts.get(image.with_suffix("")))
        if lines:
            columns["image"].append(image.relative_to(folder).as_posix())
            columns["text"].append(lines)
    left_out = len(images) - len(columns["image"])
    if left_out:
        logger.warning(
            "%s: %d of %d images are left out: no text in a .txt file of the same name", folder, left_out, len(images)
        )
    return datasets.Dataset.from_dict(columns)


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = decode_text(read_regular(file))
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None
    return [line for line in text.replace("\r", "\n").split("\n") if line.strip()]


def coco_captions(file: Path, image_folder: str | None) -> tuple[datasets.Dataset, str]:
    """`image` and `captions` of all images with captions in a file as COCO's `captions_train2017.json`, and the folder
    of the images.

    Images without captions are left out; a warning says how many.

    Args:
        image_folder: default: found by the file's name (`train2017`) beside the file or beside its folder.

    Raises:
        ValueError: another layout.
        FileNotFoundError: no folder with these images.
    """
    import datasets

    try:
        found = json.loads(decode_text(read_regular(file)))
    except RecursionError:
        raise ValueError(f"{file}: lists in lists, too deep to be read") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None
    try:
        names = {image["id"]: image["file_name"] for image in found["images"]}
        captions: dict[Any, list[str]] = {key: [] for key in names}
        for annotation in found["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: want the layout of COCO's captions: images with id and file_name, annotations with image_id and "
            f"caption (or .jsonl, an object on each line); missing: {error}"
        ) from None
    rows = {names[key]: texts for key, texts in captions.items() if texts}
    if len(rows) < len(names):
        logger.warning("%s: %d of %d images are left out: no caption", file, len(names) - len(rows), len(names))
    folder = image_folder or _coco_folder(file, list(rows)[:100])
    return datasets.Dataset.from_dict({"image": list(rows), "captions": list(rows.values())}), folder


def _coco_folder(file: Path, images: Iterable[str]) -> str:
    split = file.stem.removeprefix("captions_")
    bases = (file.absolute().parent, file.absolute().parent.parent)
    folders = [base / below for base in bases for below in (split, f"images/{split}", "images", "")]
    for folder in folders:
        if any((folder / image).is_file() for image in images):
            return str(folder)
    raise FileNotFoundError(
        f"image_folder: {file} names images that are not in {', '.join(map(str, folders[:3]))}, …; name their folder"
    )
