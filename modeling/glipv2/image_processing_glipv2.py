"""Images and COCO annotations to GLIPv2's inputs, and its outputs back to boxes and masks."""

from collections.abc import Sequence
from typing import Any

import torch

from ..detection.image_processing_detection import check_target_sizes
from ..glip.image_processing_glip import GLIPImageProcessor, GLIPImageProcessorKwargs


class GLIPv2ImageProcessorKwargs(GLIPImageProcessorKwargs, total=False):
    """Options, as DETR's."""


class GLIPv2ImageProcessor(GLIPImageProcessor):
    r"""
    GLIP's image processor, whose detections may have masks. `return_segmentation_masks=True` reads the masks of
    annotations.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants import GLIPv2ImageProcessor

    >>> GLIPv2ImageProcessor()(Image.new("RGB", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 800, 1066])
    ```
    """

    valid_kwargs = GLIPv2ImageProcessorKwargs

    def post_process_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        **options: Any,
    ) -> list[dict[str, torch.Tensor]]:
        """As GLIP's. With masks (`output_masks`), the model has selected the detections already, with GLIP's default
        `options`; dictionaries then also have `masks` (N, 28, 28), probabilities inside of the box.

        Raises:
            ValueError: as GLIP's; `options` for detections that were selected already.
        """
        detections = outputs.get("detections")
        if detections is None:
            return super().post_process_object_detection(outputs, threshold, target_sizes, **options)
        if options:
            raise ValueError(
                f"{next(iter(options))}: given, but with masks the model has selected the detections; expected "
                "threshold and target_sizes alone, or outputs without output_masks"
            )
        wanted = check_target_sizes(target_sizes, len(detections["scores"]))
        found = []
        for i, (height, width) in enumerate(outputs["image_sizes"].tolist()):
            fine = (detections["scores"][i] > threshold) & (detections["labels"][i] >= 0)
            one = {name: detections[name][i][fine] for name in ("scores", "labels", "boxes", "masks")}
            if wanted is not None:
                scale = (wanted[i][1] / width, wanted[i][0] / height) * 2
                one["boxes"] = one["boxes"] * one["boxes"].new_tensor(scale)
            found.append(one)
        return found


__all__ = ["GLIPv2ImageProcessor", "GLIPv2ImageProcessorKwargs"]
