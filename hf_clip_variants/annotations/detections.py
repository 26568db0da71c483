"""Boxes, masks, classes and scores of one image, in the form that `supervision` has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..optional_dependencies import require
from .masks import mask_box


# K objects or regions, H x W pixels


@dataclass(eq=False)
class Detections:
    """K objects or regions of one image, with the fields of `supervision.Detections`.

    Attributes:
        xyxy (`np.ndarray`): (K, 4) float32: left, top, right, bottom in pixels; right and bottom are the first ones
            outside, so right - left is the width.
        mask (`np.ndarray`, *optional*): (K, H, W) bool.
        confidence (`np.ndarray`, *optional*): (K,) float32.
        class_id (`np.ndarray`, *optional*): (K,) int64.
        data (`dict`): more arrays of K values; `data["class_name"]` holds names.

    Raises:
        ValueError: arrays of other shapes.

    Example:

    ```python
    >>> found = Detections.from_label_map(np.array([[0, 0, 2], [0, 0, 2]]), {0: "sky", 2: "cat"})
    >>> found.xyxy.tolist(), found.data["class_name"].tolist()
    ([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 2.0]], ['sky', 'cat'])
    ```
    """

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    data: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        self.xyxy = np.asarray(self.xyxy, dtype=np.float32).reshape(-1, 4)
        count = len(self.xyxy)
        self.mask = None if self.mask is None else np.asarray(self.mask, dtype=bool)
        self.confidence = None if self.confidence is None else np.asarray(self.confidence, dtype=np.float32)
        self.class_id = None if self.class_id is None else np.asarray(self.class_id, dtype=np.int64)
        self.data = {name: np.asarray(values) for name, values in self.data.items()}
        for name, values in {**self.data, **{n: getattr(self, n) for n in ("mask", "confidence", "class_id")}}.items():
            wanted = 3 if name == "mask" else 1
            if values is not None and (len(values) != count or (values.ndim != wanted and name not in self.data)):
                raise ValueError(f"{name}: got shape {values.shape} beside {count} boxes; want one for each")

    def __len__(self) -> int:
        return len(self.xyxy)

    @classmethod
    def from_masks(
        cls,
        masks: Sequence[np.ndarray] | np.ndarray,
        class_id: Sequence[int],
        class_names: Sequence[str],
        confidence: Sequence[float] | None = None,
        size: tuple[int, int] = (0, 0),
    ) -> Detections:
        """From masks (K, H, W); boxes are drawn around them. `size` (H, W) is for an image without any."""
        stacked = np.stack([np.asarray(mask, dtype=bool) for mask in masks]) if len(masks) else np.zeros((0, *size))
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(mask_box, stacked.astype(bool))]
        names = np.array(list(class_names), dtype=str) if len(class_names) else np.zeros(0, dtype=str)
        scores = None if confidence is None else np.asarray(confidence, dtype=np.float32)
        return cls(np.array(boxes).reshape(-1, 4), stacked, scores, np.asarray(class_id), {"class_name": names})

    @classmethod
    def from_boxes(
        cls,
        found: Mapping[str, Any],
        class_names: Sequence[str],
        size: tuple[int, int] | None = None,
        threshold: float = 0.0,
    ) -> Detections:
        """From what `post_process_grounded_object_detection` gives for one image: `scores`, `labels`, `boxes` and
        maybe `masks` (K, m, m), which are inside of the boxes.

        Args:
            class_names: name of each label.
            size: (H, W) of the image, for masks; without it they are left out.
            threshold: boxes with a lower score are left out.
        """
        scores = found["scores"].float()
        kept = scores >= threshold
        labels, boxes, masks = found["labels"][kept], found["boxes"][kept].float(), None
        if size is not None and "masks" in found:
            from ..modeling.detection.instance_masks import whole_masks

            masks = np.zeros((len(labels), *map(int, size)), dtype=bool)
            for place, mask in enumerate(whole_masks(found["masks"][kept], boxes, size)):
                masks[place] = mask.numpy()
        names = np.array([class_names[label] for label in labels.tolist()], dtype=str)
        return cls(boxes.numpy(), masks, scores[kept].numpy(), labels.numpy(), {"class_name": names})

    @classmethod
    def from_label_map(
        cls,
        label_map: np.ndarray,
        names: Mapping[int, str] | Sequence[str],
        scores: Mapping[int, float] | None = None,
        leave_out: Iterable[int] = (),
    ) -> Detections:
        """One region for each label of a label map (H, W) that is in `names`, in the order of labels.

        Args:
            label_map: integers; labels that are not in `names` (255: ignored) are left out.
            names: name of each label.
            scores: score of each label.
            leave_out: labels without a region, such as a background.
        """
        named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        left_out = set(leave_out)
        labels = [int(label) for label in np.unique(label_map) if int(label) in named and int(label) not in left_out]
        masks = [label_map == label for label in labels]
        confidence = None if scores is None else [scores[label] for label in labels]
        return cls.from_masks(masks, labels, [named[n] for n in labels], confidence, label_map.shape)

    @classmethod
    def from_segments(
        cls,
        segments: Sequence[Mapping[str, Any]],
        label2id: Mapping[str, int] | None = None,
        size: tuple[int, int] = (0, 0),
    ) -> Detections:
        """From what a segmentation pipeline returns: dicts with label, score (or None) and mask (PIL image or array).

        Args:
            segments: of one image.
            label2id: numbers of the labels; default: 0, 1, … in order of their first appearance.
            size: (H, W), for an image without segments.
        """
        names = [segment["label"] for segment in segments]
        numbers = label2id or {name: number for number, name in enumerate(dict.fromkeys(names))}
        scores = [segment["score"] for segment in segments]
        known = None if any(score is None for score in scores) else scores
        masks = [np.asarray(segment["mask"]) > 0 for segment in segments]
        return cls.from_masks(masks, [numbers[name] for name in names], names, known, size)

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`, for its annotators, trackers and exports.

        Raises:
            ImportError: supervision is not installed.
        """
        supervision = require("supervision", "to_supervision()")
        return supervision.Detections(
            xyxy=self.xyxy,
            mask=self.mask,
            confidence=self.confidence,
            class_id=None if self.class_id is None else self.class_id.astype(int),
            data=dict(self.data),
        )


__all__ = ["Detections"]
