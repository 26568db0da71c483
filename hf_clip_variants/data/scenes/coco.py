"""Scenes as COCO has them: a folder of images and one annotation file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...annotations.coco import CocoDocument
from ...annotations.detections import Detections
from ...annotations.label_maps import label_map_png
from ...annotations.masks import MaskFormat
from ...files.atomic_writes import staged_folder
from .scenes import instance_masks, label_map_names


if TYPE_CHECKING:
    import datasets


def export_coco(scenes: datasets.Dataset, folder: str | os.PathLike, masks: MaskFormat = "polygons") -> Path:
    """Writes scenes as a COCO data set: `annotations.json`, `images/000000.png`, …, `label_maps/000000.png`, ….

    Category c + 1 is class c, as in the label maps. Beside COCO's fields, images have "caption" and annotations
    "tokens_positive" (`[[start, end]]`: where the caption names the object), as grounding sets on COCO's images have.

    Args:
        scenes: from `make_scenes`.
        folder: written in one step; it must not exist, or be empty.
        masks: "polygons", "rle" or "compressed_rle"; all are exact.

    Returns:
        The annotation file.

    Raises:
        FileExistsError: the folder holds something.
    """
    from datasets import Image

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"folder: {folder} exists and is not empty; want a new one")
    names = label_map_names(scenes)
    document = CocoDocument(dict(list(enumerate(names))[1:]), masks, {"description": "Scenes of pasted emoji"})
    encoded = scenes.cast_column("image", Image(decode=False))
    with staged_folder(folder) as stage:
        (stage / "images").mkdir()
        (stage / "label_maps").mkdir()
        for number, row in enumerate(encoded):
            name, label_map = f"{number:06}.png", row["label_map"]
            (stage / "images" / name).write_bytes(row["image"]["bytes"])
            (stage / "label_maps" / name).write_bytes(label_map_png(np.asarray(label_map), names))
            categories, phrases = row["objects"]["category"], row["phrases"]
            spans: list[list[list[int]]] = [[] for _ in categories]
            for start, end, objects in zip(phrases["start"], phrases["end"], phrases["objects"], strict=True):
                for one in objects:
                    spans[one].append([start, end])
            found = Detections.from_masks(
                instance_masks(row), [c + 1 for c in categories], [names[c + 1] for c in categories]
            )
            document.add(
                name,
                label_map.size[::-1],
                found,
                {"caption": row["caption"]},
                [{"tokens_positive": span} for span in spans],
            )
        document.save(stage / "annotations.json")
    return folder / "annotations.json"


__all__ = ["export_coco"]
