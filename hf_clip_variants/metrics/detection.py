"""Average precision of detections as COCO defines it, for all classes and for groups of them (base, novel)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..optional_dependencies import require


@dataclass(kw_only=True)
class DetectionMetrics:
    """
    COCO's average precision (AP) and recall (AR), in 0..1, of detections that are added image by image.

    The same images give the same numbers, in whatever order and on however many processes they were added: with
    `torch.distributed`, each process adds its own and all call `compute`. An image that several processes have added
    (a sampler that fills up the last batch does so) counts once.

    Args:
        num_labels: classes are 0..num_labels - 1.
        groups: name -> classes, such as `{"base": […], "novel": […]}`; a group's AP is the mean over its classes that
            have any object.
        masks: compare masks instead of boxes.
        max_detections: of an image that count (COCO 100, LVIS 300).

    Example:

    ```python
    >>> metrics = DetectionMetrics(num_labels=2, groups={"base": [0], "novel": [1]})
    >>> target = {"labels": [0, 1], "boxes": [[0, 0, 10, 10], [20, 20, 40, 40]]}
    >>> metrics.add(7, {"scores": [0.9], "labels": [0], "boxes": [[0, 0, 10, 10]]}, target)
    >>> found = metrics.compute()
    >>> found["AP"], found["base/AP"], found["novel/AP"]
    (0.5, 1.0, 0.0)
    ```
    """

    num_labels: int
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    masks: bool = False
    max_detections: int = 100
    _images: dict[int, tuple[list[dict], list[dict]]] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        for name, labels in self.groups.items():
            if wrong := [label for label in labels if not 0 <= label < self.num_labels]:
                raise ValueError(f"groups[{name!r}]: {wrong[:5]}, expected classes in 0..{self.num_labels - 1}")

    def add(self, image_id: int, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """The detections and the objects of one image.

        Args:
            image_id: the same on all processes.
            prediction: `scores` (K,), `labels` (K,), `boxes` (K, 4) as x1, y1, x2, y2 in pixels, and `masks` (K, H, W)
                bool if masks are compared.
            target: `labels` (G,), `boxes` (G, 4), maybe `masks` (G, H, W) and `iscrowd` (G,).

        Raises:
            ValueError: lengths that differ, an unknown class, a number that is not finite, an inverted box.
        """
        found = self._rows(prediction, f"prediction of image {image_id}", with_scores=True)
        objects = self._rows(target, f"target of image {image_id}", with_scores=False)
        crowds = np.asarray(target.get("iscrowd", np.zeros(len(objects)))).astype(int).tolist()
        for row, crowd in zip(objects, crowds, strict=True):
            row["iscrowd"] = crowd
        found.sort(key=lambda row: -row["score"])
        self._images[int(image_id)] = found[: self.max_detections], objects

    def _rows(self, values: Mapping[str, Any], what: str, with_scores: bool) -> list[dict]:
        labels = np.asarray(values["labels"]).astype(int).reshape(-1)
        boxes = np.asarray(values["boxes"], dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(values["scores"], dtype=np.float64).reshape(-1) if with_scores else np.ones(len(labels))
        if not len(labels) == len(boxes) == len(scores):
            raise ValueError(f"{what}: {len(labels)} labels, {len(boxes)} boxes, {len(scores)} scores")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_labels:
            raise ValueError(f"{what}: label {labels.max()}, expected 0..{self.num_labels - 1}")
        if not np.isfinite(boxes).all() or not np.isfinite(scores).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError(f"{what}: a box that is not finite or is inverted, expected x1 <= x2 and y1 <= y2")
        masks = [None] * len(labels)
        if self.masks:
            from pycocotools import mask as coco

            arrays = np.asarray(values["masks"]).astype(np.uint8)
            if len(arrays) != len(labels):
                raise ValueError(f"{what}: {len(labels)} labels, {len(arrays)} masks")
            masks = [coco.encode(np.asfortranarray(one)) for one in arrays]
        rows = []
        for label, box, score, mask in zip(labels.tolist(), boxes.tolist(), scores.tolist(), masks, strict=True):
            left, top, right, bottom = box
            row = {"category_id": label + 1, "bbox": [left, top, right - left, bottom - top], "score": score}
            row["area"] = (right - left) * (bottom - top)
            if mask is not None:
                from pycocotools import mask as coco

                row |= {"segmentation": mask, "area": float(coco.area(mask))}
            rows.append(row)
        return rows

    def merged(self) -> dict[int, tuple[list[dict], list[dict]]]:
        """The images of all processes, by their ids."""
        import torch.distributed as dist

        parts = [self._images]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self._images)
        joined = {number: rows for part in reversed(parts) for number, rows in part.items()}
        return dict(sorted(joined.items()))

    def compute(self) -> dict[str, float]:
        """`AP` (IoU 0.5 to 0.95), `AP50`, `AP75`, `AR`, and `<group>/AP`, `<group>/AP50`, `<group>/AR` of each group.

        NaN where no class has an object. Waits for all processes.
        """
        images = self.merged()
        evaluated = _evaluate(images, "segm" if self.masks else "bbox", self.num_labels, self.max_detections)
        precision, recall = evaluated  # (T, R, K), (T, K); -1 where there is no object
        result = _summary("", precision, recall)
        for name, labels in self.groups.items():
            chosen = list(labels)
            result |= _summary(f"{name}/", precision[:, :, chosen], recall[:, chosen])
        return result


def average_recall(
    proposals: Sequence[Any], objects: Sequence[Any], count: int = 100, scores: Sequence[Any] | None = None
) -> float:
    """AR@count of class-agnostic boxes: the mean over IoU 0.5 to 0.95 of the share of objects that are found.

    Args:
        proposals: of each image (R, 4), x1, y1, x2, y2, best first.
        objects: of each image (G, 4).
        count: proposals of an image that count.
        scores: of the proposals (R,); None: by their order.

    >>> average_recall([[[0, 0, 10, 10], [50, 50, 60, 60]]], [[[0, 0, 10, 10], [20, 20, 30, 30]]])
    0.5
    """
    if len(proposals) != len(objects):
        raise ValueError(f"proposals: of {len(proposals)} images, objects of {len(objects)}")
    metrics = DetectionMetrics(num_labels=1, max_detections=count)
    for i, (boxes, wanted) in enumerate(zip(proposals, objects, strict=True)):
        boxes, wanted = (np.asarray(one, dtype=np.float64).reshape(-1, 4) for one in (boxes, wanted))
        values = np.arange(len(boxes), 0, -1) if scores is None else np.asarray(scores[i])
        prediction = {"scores": values, "labels": np.zeros(len(boxes)), "boxes": boxes}
        metrics.add(i, prediction, {"labels": np.zeros(len(wanted)), "boxes": wanted})
    return metrics.compute()["AR"]


def phrase_recall(found: Sequence[Any], objects: Sequence[Any], count: int = 1, threshold: float = 0.5) -> float:
    """R@count of grounding: the share of phrases of which one of the `count` best boxes overlaps one of the objects.

    Args:
        found: of each phrase its boxes (R, 4), x1, y1, x2, y2, best first.
        objects: of each phrase (G, 4), what it speaks of; a phrase of several objects is found with any of them.
        count: boxes of a phrase that count, at least 1.
        threshold: the smallest overlap (IoU).

    Returns:
        in 0..1; NaN without phrases.

    >>> phrase_recall([[[0, 0, 10, 10]], [[50, 50, 60, 60], [20, 20, 30, 29]]], [[[0, 0, 10, 8]], [[20, 20, 30, 30]]])
    0.5
    """
    if len(found) != len(objects):
        raise ValueError(f"found: of {len(found)} phrases, objects of {len(objects)}")
    if count < 1:
        raise ValueError(f"count: {count}, expected a number >= 1")
    hits = []
    for boxes, wanted in zip(found, objects, strict=True):
        boxes, wanted = (np.asarray(one, dtype=np.float64).reshape(-1, 4) for one in (boxes, wanted))
        left, right = boxes[:count, None], wanted[None]
        sides = np.minimum(left[..., 2:], right[..., 2:]) - np.maximum(left[..., :2], right[..., :2])
        shared = sides.clip(0).prod(axis=-1)
        whole = sum((one[..., 2:] - one[..., :2]).prod(axis=-1) for one in (left, right))
        hits.append(bool((shared >= threshold * (whole - shared)).any() and shared.any()))
    return float(np.mean(hits)) if hits else float("nan")


def _summary(prefix: str, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    def mean(values: np.ndarray) -> float:
        known = values[values > -1]
        # pycocotools divides by a sum with an epsilon in it: 1 would be 1 - 2e-16.
        return round(float(known.mean()), 12) if known.size else float("nan")

    result = {f"{prefix}AP": mean(precision), f"{prefix}AP50": mean(precision[0]), f"{prefix}AP75": mean(precision[5])}
    return result | {f"{prefix}AR": mean(recall)}


def _evaluate(images, kind: str, num_labels: int, max_detections: int) -> tuple[np.ndarray, np.ndarray]:
    require("pycocotools", "average precision of detections")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = [], []
    for number, (detections, objects) in images.items():
        truth += [row | {"image_id": number, "id": len(truth) + 1 + i} for i, row in enumerate(objects)]
        found += [row | {"image_id": number, "id": len(found) + 1 + i} for i, row in enumerate(detections)]
    categories = [{"id": label + 1, "name": str(label)} for label in range(num_labels)]
    with contextlib.redirect_stdout(io.StringIO()):
        wanted, given = COCO(), COCO()
        sizes = {row["image_id"]: row["segmentation"]["size"] for row in (*truth, *found) if "segmentation" in row}
        listed = [{"id": n} | dict(zip(("height", "width"), sizes.get(n, (1, 1)), strict=True)) for n in images]
        wanted.dataset = {"images": listed, "annotations": truth, "categories": categories}
        given.dataset = wanted.dataset | {"annotations": found}
        wanted.createIndex()
        given.createIndex()
        evaluation = COCOeval(wanted, given, kind)
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0], evaluation.eval["recall"][:, :, 0, 0]


__all__ = ["DetectionMetrics", "average_recall", "phrase_recall"]
