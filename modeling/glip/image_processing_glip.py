"""Images and COCO annotations to GLIP's inputs, and its outputs back to boxes."""

from collections.abc import Sequence

import torch
from transformers.image_transforms import center_to_corners_format

from ..detection.image_processing_detection import (
    DetectionImageProcessor,
    DetectionImageProcessorKwargs,
    check_selection,
    check_target_sizes,
)
from .boxes_glip import label_scores, select_detections


class GLIPImageProcessorKwargs(DetectionImageProcessorKwargs, total=False):
    """Options, as DETR's."""


class GLIPImageProcessor(DetectionImageProcessor):
    r"""
    DETR's image processor with GLIP's settings: the shorter side becomes 800 pixels, the longer at most 1333. Padding
    is at the right and the bottom.

    Images are RGB. The official code turns them to BGR; here the converter has turned the weights instead.

    `annotations` are in COCO's format (a dictionary of `image_id` and `annotations`, each with `bbox`, `category_id`,
    `area` and maybe `iscrowd`); `category_id` is the number of the name or phrase, from 0. They become `labels`, with
    boxes relative to the image without its padding. Crowds are left out; a box that is not finite, inverted or without
    area is an error.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants.modeling.glip.image_processing_glip import GLIPImageProcessor

    >>> GLIPImageProcessor()(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 800, 1066])
    ```
    """

    valid_kwargs = GLIPImageProcessorKwargs
    size = {"shortest_edge": 800, "longest_edge": 1333}

    def post_process_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        pre_nms: int = 1000,
        max_detections: int = 100,
        rule: str = "mean",
    ) -> list[dict[str, torch.Tensor]]:
        """The final detections of each image, as the official code selects them.

        The labels of several prompts for an image are merged before anything is selected, and numbered in the prompts'
        order.

        Args:
            outputs: a model's that was given `phrase_map`.
            threshold: the smallest final score; the authors show detections from 0.5 on.
            target_sizes: (height, width) of the images; None: boxes are in pixels of `pixel_values`.
            score_threshold, pre_nms, nms_threshold, max_detections: see `select_detections`.
            rule: of `label_scores`.

        Returns:
            dictionaries of `scores` (N,) best first, `labels` (N,), `boxes` (N, 4) as x1, y1, x2, y2.

        Raises:
            ValueError: no `phrase_map`, an unknown `rule`, `target_sizes` of another number of images.
        """
        phrase_map = outputs.get("phrase_map")
        if phrase_map is None:
            raise ValueError("outputs: no phrase_map, give the model the one that the processor made")
        if rule not in ("mean", "max", "power"):
            raise ValueError(f"rule: {rule!r}, expected one of mean, max, power")
        thresholds = {"threshold": threshold, "score_threshold": score_threshold, "nms_threshold": nms_threshold}
        check_selection(thresholds, pre_nms, max_detections)
        wanted_sizes = check_target_sizes(target_sizes, len(phrase_map))
        level_sizes = outputs["spatial_shapes"].prod(dim=1).tolist()
        found = []
        for i, (height, width) in enumerate(outputs["image_sizes"].tolist()):
            parts = [outputs[name][i].float() for name in ("logits", "centerness", "pred_boxes")]
            rows = phrase_map[i]
            if several := rows.dim() == 3:
                of_prompts = [
                    label_scores(logits.sigmoid(), one[(one != 0).any(dim=1)], rule)
                    for logits, one in zip(parts[0], rows, strict=True)
                ]
                scores = torch.cat(of_prompts, dim=1)
                counts = torch.tensor([one.shape[1] for one in of_prompts], device=scores.device)
                prompts = torch.arange(len(counts), device=scores.device).repeat_interleave(counts)
                centerness, boxes = parts[1].t().sigmoid(), parts[2].transpose(0, 1)
            else:
                scores, prompts = label_scores(parts[0].sigmoid(), rows, rule), None
                centerness, boxes = parts[1].sigmoid(), parts[2]
            limits = boxes.new_tensor([width, height, width, height])
            boxes = (center_to_corners_format(boxes) * limits).clamp_min(0).minimum(limits - 1)
            values, labels, boxes, _ = select_detections(
                scores,
                centerness,
                boxes,
                level_sizes,
                score_threshold=score_threshold,
                pre_nms=pre_nms,
                nms_threshold=nms_threshold,
                max_detections=max_detections,
                prompt_of_label=prompts if several else None,
            )
            if wanted_sizes is not None:
                rows_wanted, columns_wanted = wanted_sizes[i]
                scale = (columns_wanted / width, rows_wanted / height) * 2
                boxes = boxes * boxes.new_tensor(scale)
            fine = values > threshold
            found.append({"scores": values[fine], "labels": labels[fine], "boxes": boxes[fine]})
        return found


__all__ = ["GLIPImageProcessor", "GLIPImageProcessorKwargs"]
