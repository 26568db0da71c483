"""COCO json: images, annotations with masks and boxes, categories; pycocotools reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.atomic_writes import write_atomically
from .detections import Detections
from .masks import MaskFormat, encode_mask


class CocoDocument:
    """Collects images and their regions, then writes one annotation file.

    Args:
        names: name of each category; its number is the key (or the place in a list), as in a label map.
        masks: how masks are written: "polygons" (exact, along the pixels' edges), "rle" or "compressed_rle" (the
            smallest; needs pycocotools).
        info: of the document: description, version, …

    Example:

    ```python
    >>> import numpy as np
    >>> document = CocoDocument({1: "cat"})
    >>> found = Detections.from_label_map(np.array([[0, 1], [0, 1]]), {1: "cat"}, {1: 0.75})
    >>> document.add("photo.jpg", (2, 2), found)
    0
    >>> document.value()["annotations"][0]["segmentation"], document.value()["annotations"][0]["bbox"]
    ([[1, 0, 2, 0, 2, 2, 1, 2]], [1.0, 0.0, 1.0, 2.0])
    ```
    """

    def __init__(
        self,
        names: Mapping[int, str] | Sequence[str],
        masks: MaskFormat = "polygons",
        info: Mapping[str, Any] | None = None,
    ):
        named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        self.masks, self.info = masks, dict(info or {})
        self.categories = [{"id": int(number), "name": name} for number, name in sorted(named.items())]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        found: Detections,
        image: Mapping[str, Any] | None = None,
        fields: Sequence[Mapping[str, Any]] | None = None,
    ) -> int:
        """Adds an image and its regions.

        Args:
            file_name: as it stands in the document.
            size: (height, width).
            found: needs `class_id`; `confidence` becomes "score". Empty masks are left out.
            image: more fields of the image.
            fields: more fields of each annotation.

        Returns:
            The image's id, from 0. Annotations count from 1: pycocotools takes 0 for "no match".
        """
        number = len(self.images)
        height, width = size
        self.images.append(
            {"id": number, "file_name": file_name, "width": int(width), "height": int(height), **(image or {})}
        )
        for place in range(len(found)):
            left, top, right, bottom = (float(value) for value in found.xyxy[place])
            mask = None if found.mask is None else found.mask[place]
            if mask is not None and not mask.any():
                continue
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": number,
                "category_id": int(found.class_id[place]),
                "bbox": [left, top, right - left, bottom - top],
                "area": float((right - left) * (bottom - top)) if mask is None else int(mask.sum()),
                "iscrowd": 0,
            }
            if mask is not None:
                annotation["segmentation"] = encode_mask(mask, self.masks)
            if found.confidence is not None:
                annotation["score"] = round(float(found.confidence[place]), 6)
            self.annotations.append(annotation | dict(fields[place] if fields else {}))
        return number

    def value(self) -> dict[str, Any]:
        """The whole document."""
        return {
            "info": self.info,
            "licenses": [],
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the document, in one step."""
        return write_atomically(path, json.dumps(self.value(), ensure_ascii=False, allow_nan=False) + "\n")


__all__ = ["CocoDocument"]
