"""Images and COCO annotations to ViLD's inputs, and its outputs back to boxes."""

from collections.abc import Sequence

import torch
from transformers.image_transforms import center_to_corners_format

from ..detection.image_processing_detection import (
    DetectionImageProcessor,
    DetectionImageProcessorKwargs,
    check_selection,
    check_target_sizes,
)
from .boxes_vild import select_by_objectness, select_detections


class ViLDImageProcessorKwargs(DetectionImageProcessorKwargs, total=False):
    """Options, as DETR's."""


class ViLDImageProcessor(DetectionImageProcessor):
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
        check_selection({"threshold": threshold, "nms_threshold": nms_threshold}, pre_nms, max_detections)
        boxes = center_to_corners_format(outputs["pred_boxes"].float())
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], dim=-1)  # rounding
        scores = outputs["logits"].float().sigmoid()
        detections = outputs.get("detections")
        sizes = check_target_sizes(target_sizes, len(boxes))
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
        for i, (height, width) in enumerate(check_target_sizes(target_sizes, len(boxes))):
            scaled = boxes[i] * boxes.new_tensor([width, height, width, height])
            chosen = select_by_objectness(scores[i], scaled, outputs["objectness"][i], **options)
            found.append(dict(zip(("scores", "labels", "boxes", "regions"), chosen, strict=True)))
        return found


def _kept(detections, boxes: torch.Tensor, i: int, threshold: float):
    fine = (detections["scores"][i] > threshold) & (detections["labels"][i] >= 0)
    (rows,) = torch.where(fine)
    regions = detections["regions"][i][rows]
    return detections["scores"][i][rows], detections["labels"][i][rows], boxes[i][regions], rows


__all__ = ["ViLDImageProcessor", "ViLDImageProcessorKwargs"]
