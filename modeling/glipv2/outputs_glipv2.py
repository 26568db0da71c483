"""What GLIPv2 returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from ..glip.outputs_glip import GLIPObjectDetectionOutput


@dataclass
class GLIPv2Detections(ModelOutput):
    """
    The final detections of a batch, best first: K is the largest number of an image. Rows behind the last have score
    0 and label -1.

    Args:
        scores: (B, K).
        labels: (B, K) int64.
        boxes: (B, K, 4): x1, y1, x2, y2 in pixels of `pixel_values`.
        masks: (B, K, 28, 28) probabilities inside of the box.
    """

    scores: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    boxes: torch.FloatTensor | None = None
    masks: torch.FloatTensor | None = None


@dataclass
class GLIPv2ObjectDetectionOutput(GLIPObjectDetectionOutput):
    """
    As GLIP's, and:

    Args:
        mlm_logits: (B, T, V) of the words that may stand at each place, if `mlm_labels` were given.
        detections: the final ones with their masks, if `output_masks` was given.
    """

    mlm_logits: torch.FloatTensor | None = None
    detections: GLIPv2Detections | None = None


__all__ = ["GLIPv2Detections", "GLIPv2ObjectDetectionOutput"]
