"""What ViLD returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class ViLDDetections(ModelOutput):
    """
    The final detections of a batch: K = `config.max_detections`, best first. Rows behind the last have score 0.

    Args:
        scores: (B, K).
        labels: (B, K) int64, the label's number; -1 in rows behind the last.
        boxes: (B, K, 4): x1, y1, x2, y2 in pixels of `pixel_values`.
        masks: (B, K, 28, 28) probabilities inside of the box, if they were asked for.
        regions: (B, K) int64, the region that each comes from.
    """

    scores: torch.FloatTensor | None = None
    labels: torch.LongTensor | None = None
    boxes: torch.FloatTensor | None = None
    masks: torch.FloatTensor | None = None
    regions: torch.LongTensor | None = None


@dataclass
class ViLDObjectDetectionOutput(ModelOutput):
    """
    B images, R regions (`config.rpn_post_nms`, or as many as `proposals` has), N labels, D the joint width.

    Args:
        loss: (), if `labels` or `distill_boxes` were given.
        loss_dict: its parts by name, before their weights.
        logits: (B, R, N): `logits.sigmoid()` are the scores of regions and labels, as in OWL-ViT. Very negative for
            regions that are none (`proposals` shorter than R).
        pred_boxes: (B, R, 4): centre, width and height, relative to the image without padding; one box for all labels.
        class_logits: (B, R, 1 + N), the text head's, with the background first; None with `variant="image"`.
        image_logits: (B, R, N), the image head's, with variants `"image"` and `"ensemble"`.
        region_embeddings: (B, R, D), of length 1: of the text head, or of the only one.
        proposals: (B, R, 4) in pixels of `pixel_values`; -1 where there is none.
        objectness: (B, R) in 0..1.
        detections: the final ones, if `output_detections` or `output_masks` was given.
        class_embeddings: (M, D) or (B, M, D), of the texts.
        hidden_states: the ResNet's maps.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    class_logits: torch.FloatTensor | None = None
    image_logits: torch.FloatTensor | None = None
    region_embeddings: torch.FloatTensor | None = None
    proposals: torch.FloatTensor | None = None
    objectness: torch.FloatTensor | None = None
    detections: ViLDDetections | None = None
    class_embeddings: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


__all__ = ["ViLDDetections", "ViLDObjectDetectionOutput"]
