"""Images and COCO annotations to ViLD's inputs, and its outputs back to boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DetrImageProcessor
from transformers.image_transforms import center_to_corners_format, get_size_with_aspect_ratio
from transformers.image_utils import AnnotationFormat, SizeDict
from transformers.models.detr.image_processing_detr import DetrImageProcessorKwargs

from ..loading_and_saving.configuration_checks import check_image_settings
from .boxes_vild import select_by_objectness, select_detections


class ViLDImageProcessorKwargs(DetrImageProcessorKwargs, total=False):
    """Options, as DETR's."""


class ViLDImageProcessor(DetrImageProcessor):
    r"""
    DETR's image processor with ViLD's settings: the longer side becomes 1024 pixels, ImageNet's mean and standard
    deviation (not CLIP's), padding at the right and the bottom.

    `preprocess(images, annotations=None, return_segmentation_masks=False, return_tensors="pt")` gives `pixel_values`
    (B, 3, H, W), `pixel_mask` (B, H, W) and, with annotations in COCO's format (a dictionary of `image_id` and
    `annotations`, each with `bbox`, `category_id`, `area` and maybe `iscrowd`, `segmentation`), `labels`: of each
    image a dictionary of `class_labels`, `boxes` (centre, width and height), maybe `masks`, …

    Unlike in DETR's, boxes are relative to the image without its padding, as ViLD's `pred_boxes` are; crowds are left
    out with their masks; a segmentation may also be a run-length encoding or an array (H, W); a box that is not
    finite, inverted or without area is an error, unless it only loses its area by being clipped to the image: then its
    object is left out.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants import ViLDImageProcessor

    >>> processor = ViLDImageProcessor(size={"longest_edge": 128, "shortest_edge": 128})
    >>> marks = {"image_id": 7, "annotations": [{"bbox": [8, 0, 16, 20], "category_id": 2, "area": 320, "iscrowd": 0}]}
    >>> batch = processor(Image.new("RGB", (64, 40)), annotations=marks, return_tensors="pt")
    >>> batch.pixel_values.shape, batch.labels[0]["class_labels"].tolist(), batch.labels[0]["boxes"].tolist()
    (torch.Size([1, 3, 80, 128]), [2], [[0.25, 0.25, 0.25, 0.5]])
    ```
    """

    valid_kwargs = ViLDImageProcessorKwargs
    size = {"shortest_edge": 1024, "longest_edge": 1024}

    def __init__(self, **kwargs):
        check_image_settings(kwargs)
        super().__init__(**kwargs)

    def prepare_annotation(
        self,
        image: torch.Tensor,
        target: dict,
        format: AnnotationFormat | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: Any = None,
        input_data_format: Any = None,
    ) -> dict:
        """COCO's annotations of an image (3, H, W) -> labels in pixels."""
        height, width = image.shape[-2:]
        name = f"annotations of image {target.get('image_id')}"
        boxes, classes, areas, masks = [], [], [], []
        for number, one in enumerate(target["annotations"]):
            if one.get("iscrowd"):
                continue
            box = _checked_box(one["bbox"], f"{name}: bbox of object {number}")
            left, top, right, bottom = box
            clipped = [max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)]
            if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
                continue
            boxes.append(clipped)
            classes.append(int(one["category_id"]))
            areas.append(float(one.get("area", (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]))))
            if return_segmentation_masks:
                masks.append(_mask(one.get("segmentation"), height, width, f"{name}: segmentation of {number}"))
        found = {
            "image_id": torch.tensor([int(target["image_id"])], device=image.device),
            "class_labels": torch.tensor(classes, dtype=torch.int64, device=image.device),
            "boxes": torch.tensor(boxes, dtype=torch.float32, device=image.device).reshape(-1, 4),
            "area": torch.tensor(areas, dtype=torch.float32, device=image.device),
            "iscrowd": torch.zeros(len(classes), dtype=torch.int64, device=image.device),
            "orig_size": torch.tensor([height, width], device=image.device),
        }
        if return_segmentation_masks:
            array = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
            found["masks"] = torch.from_numpy(array).to(image.device)
        return found

    def resize(self, image: torch.Tensor, size, resample=None, **kwargs) -> torch.Tensor:
        """As DETR's; an edge has at least one pixel."""
        if size.shortest_edge and size.longest_edge:
            edges = get_size_with_aspect_ratio(tuple(image.shape[-2:]), size.shortest_edge, size.longest_edge)
            height, width = (max(edge, 1) for edge in edges)
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, resample=resample, **kwargs)

    def resize_annotation(self, annotation: dict, orig_size, target_size, threshold: float = 0.5, **kwargs) -> dict:
        """As DETR's, which fails for an image without objects."""
        rows, columns = (new / old for new, old in zip(target_size, orig_size, strict=True))
        found = annotation | {"size": torch.tensor(tuple(target_size))}
        found["boxes"] = annotation["boxes"] * annotation["boxes"].new_tensor([columns, rows, columns, rows])
        found["area"] = annotation["area"] * (rows * columns)
        if "masks" in annotation:
            masks = annotation["masks"][:, None].float()
            if len(masks):
                masks = torch.nn.functional.interpolate(masks, size=tuple(target_size), mode="nearest-exact")
            else:
                masks = masks.new_zeros(0, 1, *target_size)
            found["masks"] = masks[:, 0] > threshold
        return found

    def pad(self, image, padded_size, annotation=None, update_bboxes: bool = True, fill: int = 0):
        """As DETR's; boxes stay relative to the image without padding."""
        return super().pad(image, padded_size, annotation=annotation, update_bboxes=False, fill=fill)

    def post_process_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        nms_threshold: float = 0.5,
        pre_nms: int = 1000,
        max_detections: int = 300,
    ) -> list[dict[str, torch.Tensor]]:
        """The final detections of each image, as the official code selects them: overlaps are suppressed label by
        label.

        Args:
            outputs: a model's, with `logits` and `pred_boxes`. If it has `detections`, those are taken.
            threshold: the smallest score.
            target_sizes: (height, width) of the images; None: boxes are relative (0..1).
            nms_threshold, pre_nms, max_detections: see `select_detections`.

        Returns:
            dictionaries of `scores` (K,), `labels` (K,), `boxes` (K, 4) as x1, y1, x2, y2, and `masks` (K, 28, 28)
            (in 0..1, inside of the box) if `outputs.detections` has any.
        """
        boxes = center_to_corners_format(outputs["pred_boxes"].float())
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], dim=-1)  # rounding
        scores = outputs["logits"].float().sigmoid()
        detections = outputs.get("detections")
        sizes = _sizes(target_sizes, len(boxes))
        found = []
        for i in range(len(boxes)):
            # Overlaps do not depend on the scale of an axis.
            values, labels, kept, rows = (
                select_detections(
                    scores[i],
                    boxes[i],
                    pre_nms=pre_nms,
                    nms_threshold=nms_threshold,
                    score_threshold=threshold,
                    max_detections=max_detections,
                )
                if detections is None
                else _kept(detections, boxes, i, threshold)
            )
            one = {"scores": values, "labels": labels, "boxes": kept}
            if sizes is not None:
                height, width = sizes[i]
                one["boxes"] = kept * kept.new_tensor([width, height, width, height])
            if detections is not None and detections.get("masks") is not None:
                one["masks"] = detections["masks"][i][: len(detections["scores"][i])][rows]
            found.append(one)
        return found

    def post_process_demo_detection(
        self,
        outputs,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]],
        softmax: bool = False,
        temperature: float = 0.01,
        **options: float,
    ) -> list[dict[str, torch.Tensor]]:
        """The detections as the official demo gives them for any vocabulary: boxes by their objectness, and scores
        that are plain cosines, which do not depend on the other labels.

        Args:
            outputs: a model's, called with the proposals of its own network, and with texts of which the first is
                "background".
            target_sizes: (height, width) of the images.
            softmax: scores are the softmax of cosines / `temperature` over texts and background, instead.
            options: of `select_by_objectness`.

        Returns:
            dictionaries of `scores` (K,), `labels` (K,) without the background: label 0 is the second text, `boxes`
            (K, 4), and `regions` (K,).
        """
        texts = outputs["class_embeddings"].float()
        if texts.shape[-2] < 2:
            raise ValueError(f"outputs: {texts.shape[-2]} texts, expected a background and at least one label")
        cosines = outputs["region_embeddings"].float() @ torch.nn.functional.normalize(texts, dim=-1).transpose(-1, -2)
        scores = (cosines / temperature).softmax(dim=-1) if softmax else cosines
        boxes = center_to_corners_format(outputs["pred_boxes"].float())
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], dim=-1)  # rounding
        found = []
        for i, (height, width) in enumerate(_sizes(target_sizes, len(boxes))):
            scaled = boxes[i] * boxes.new_tensor([width, height, width, height])
            chosen = select_by_objectness(scores[i], scaled, outputs["objectness"][i], **options)
            found.append(dict(zip(("scores", "labels", "boxes", "regions"), chosen, strict=True)))
        return found


def _kept(detections, boxes: torch.Tensor, i: int, threshold: float):
    fine = (detections["scores"][i] > threshold) & (detections["labels"][i] >= 0)
    (rows,) = torch.where(fine)
    regions = detections["regions"][i][rows]
    return detections["scores"][i][rows], detections["labels"][i][rows], boxes[i][regions], rows


def _sizes(target_sizes, count: int) -> list[tuple[float, float]] | None:
    if target_sizes is None:
        return None
    sizes = [tuple(map(float, size)) for size in target_sizes]
    if len(sizes) != count:
        raise ValueError(f"target_sizes: {len(sizes)} for {count} images, expected one for each")
    return sizes


def _checked_box(box: Sequence[float], what: str) -> list[float]:
    """x1, y1, x2, y2 of x, y, width, height."""
    numbers = [float(number) for number in box] if isinstance(box, Sequence | np.ndarray | torch.Tensor) else []
    if len(numbers) != 4 or not np.isfinite(numbers).all() or numbers[2] <= 0 or numbers[3] <= 0:
        raise ValueError(f"{what}: {list(box) if numbers else box!r}, expected x, y and a width and height above 0")
    left, top, width, height = numbers
    return [left, top, left + width, top + height]


def _mask(segmentation: Any, height: int, width: int, what: str) -> np.ndarray:
    """(H, W) bool of polygons, a run-length encoding or an array."""
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, str | bytes):
            try:
                from pycocotools import mask as coco
            except ImportError as error:
                raise ImportError(f"{what}: a compressed run-length encoding needs pycocotools") from error
            found = coco.decode({"size": [height, width], "counts": counts}).astype(bool)
        else:
            values = np.arange(len(counts)) % 2 == 1
            if sum(counts) != height * width:
                raise ValueError(f"{what}: {sum(counts)} pixels, the image has {height * width}")
            found = np.repeat(values, counts).reshape(width, height).T
        return found
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list | tuple | Mapping):
        from PIL import Image, ImageDraw

        if not isinstance(segmentation[0], Mapping) and len(segmentation[0]) % 2 == 0 and len(segmentation) != height:
            canvas = Image.new("1", (width, height))
            for polygon in segmentation:
                ImageDraw.Draw(canvas).polygon([float(number) for number in polygon], fill=1)
            return np.asarray(canvas).copy()
    array = np.asarray(segmentation) if segmentation is not None else np.zeros(0)
    if array.shape != (height, width):
        raise ValueError(f"{what}: expected polygons, a run-length encoding, or an array [{height}, {width}]")
    return array.astype(bool)


__all__ = ["ViLDImageProcessor", "ViLDImageProcessorKwargs"]
