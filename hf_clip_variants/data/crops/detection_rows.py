"""Images with objects, proposals and the teacher's embeddings as batches for a detector's training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageOps

from ...annotations.masks import rle_to_mask
from .crop_embeddings import CropEmbeddings
from .proposals import Proposals


_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


class DetectionRows(torch.utils.data.Dataset):
    """
    Rows for `Trainer`, with `DetectionCollator`: an image, its objects in COCO's format, its proposals.

    Args:
        images: N PIL images by number.
        annotations: of each image its objects: dictionaries of `bbox` (x, y, width, height), `category_id`, `area` and
            maybe `segmentation`, `iscrowd`. Leave the novel classes' out in training.
        crops: proposals and the teacher's embeddings, for distillation.
        proposals: boxes that replace the model's own proposals.
        flip: mirror half of the images, with all their boxes. The teacher's embeddings stay those of the original, as
            officially. Which ones is a function of (seed, epoch, index). Images whose caption says left or right are
            never mirrored.
        seed: any integer from 0.
        captions: of each image a sentence, or None.
    """

    def __init__(
        self,
        images: Sequence[Any],
        annotations: Sequence[Sequence[Mapping[str, Any]]],
        crops: CropEmbeddings | None = None,
        proposals: Proposals | None = None,
        flip: bool = False,
        seed: int = 0,
        captions: Sequence[str | None] | None = None,
    ):
        lists = {"annotations": annotations, "crops": crops, "proposals": proposals, "captions": captions}
        for name, given in lists.items():
            if given is not None and len(given) != len(images):
                raise ValueError(f"{name}: of {len(given)} images, images has {len(images)}")
        self.images, self.annotations, self.crops, self.proposals = images, annotations, crops, proposals
        self.flip, self.seed, self.captions = flip, int(seed), captions
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index].convert("RGB")
        annotations = [dict(one) for one in self.annotations[index]]
        # `draw`: from which whatever else is drawn for this row follows.
        row: dict[str, Any] = {"image_id": index, "draw": (self.seed, int(self._epoch), index)}
        caption = None if self.captions is None else self.captions[index]
        if caption is not None:
            row["caption"] = caption
        if self.crops is not None:
            row["distill_boxes"] = self.crops.proposals[index][0].clone()
            row["distill_embeddings"] = self.crops[index]
        if self.proposals is not None:
            row["proposals"] = self.proposals[index][0].clone()
        draw = np.random.default_rng(row["draw"])
        if self.flip and not _SIDES.search(caption or "") and draw.random() < 0.5:
            image, annotations = ImageOps.mirror(image), [_mirrored(one, image.size) for one in annotations]
            for name in ("distill_boxes", "proposals"):
                if name in row:
                    boxes = row[name]
                    row[name] = torch.stack(
                        [image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], dim=1
                    )
        return row | {"image": image, "annotations": annotations}


def _mirrored(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    width, height = size
    left, top, wide, high = annotation["bbox"]
    annotation["bbox"] = [width - left - wide, top, wide, high]
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        annotation["segmentation"] = rle_to_mask(segmentation)[:, ::-1]
    elif isinstance(segmentation, np.ndarray) or (
        segmentation and (len(segmentation), len(segmentation[0])) == (height, width)
    ):
        annotation["segmentation"] = np.asarray(segmentation)[:, ::-1]
    elif segmentation:
        annotation["segmentation"] = [
            [number if place % 2 else width - number for place, number in enumerate(polygon)]
            for polygon in segmentation
        ]
    return annotation


class DetectionCollator:
    """
    Rows of [`DetectionRows`] -> what the model takes, as `data_collator` of `Trainer` (with
    `remove_unused_columns=False`).

    Args:
        image_processor: the model's.
        masks: whether `labels` have masks; annotations then need a `segmentation`.
        count: at most so many proposals of an image are distilled; which ones is drawn with torch's generator.
    """

    def __init__(self, image_processor: Any, masks: bool = False, count: int | None = None):
        self.image_processor = getattr(image_processor, "image_processor", image_processor)
        self.masks, self.count = masks, count

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        marks = [{"image_id": row["image_id"], "annotations": row["annotations"]} for row in rows]
        inputs = self.image_processor(
            [row["image"] for row in rows],
            annotations=marks,
            return_segmentation_masks=self.masks,
            return_tensors="pt",
        )
        batch = {name: inputs[name] for name in ("pixel_values", "pixel_mask")}
        batch["labels"] = [dict(one) for one in inputs["labels"]]
        scales = [
            torch.tensor([mask.any(dim=0).sum() / row["image"].width, mask.any(dim=1).sum() / row["image"].height])
            for mask, row in zip(inputs["pixel_mask"], rows, strict=True)
        ]
        if "proposals" in rows[0]:
            boxes = [row["proposals"] * scale.repeat(2) for row, scale in zip(rows, scales, strict=True)]
            batch["proposals"] = _padded(boxes, -1.0)
        if "distill_boxes" in rows[0]:
            chosen = [self._chosen(len(row["distill_boxes"])) for row in rows]
            boxes = [r["distill_boxes"][c] * s.repeat(2) for r, c, s in zip(rows, chosen, scales, strict=True)]
            batch["distill_boxes"] = _padded(boxes, -1.0)
            batch["distill_embeddings"] = _padded(
                [row["distill_embeddings"][c] for row, c in zip(rows, chosen, strict=True)], 0.0
            )
        return batch

    def _chosen(self, count: int) -> torch.Tensor:
        if self.count is None or count <= self.count:
            return torch.arange(count)
        return torch.randperm(count)[: self.count].sort().values


def _padded(parts: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)


def scenes_as_rows(scenes: Any, labels: Callable[[int], int | None], masks: bool = False) -> tuple[list, list]:
    """Images, and annotations of `DetectionRows`, of a data set of `make_scenes`.

    `labels`: category -> label, or None for objects that are left out (novel classes in training).
    """
    from ..scenes.scenes import instance_masks

    annotations = []
    for row in scenes:
        objects, found = row["objects"], []
        visible = instance_masks(row) if masks else None
        for i, (box, category, area) in enumerate(
            zip(objects["bbox"], objects["category"], objects["area"], strict=True)
        ):
            label = labels(category)
            if label is not None:
                one = {"bbox": list(box), "category_id": label, "area": area, "iscrowd": 0}
                found.append(one | ({"segmentation": visible[i]} if masks else {}))
        annotations.append(found)
    return list(scenes["image"]), annotations


__all__ = ["DetectionCollator", "DetectionRows", "scenes_as_rows"]
