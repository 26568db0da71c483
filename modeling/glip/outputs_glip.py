"""What GLIP returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class GLIPObjectDetectionOutput(ModelOutput):
    """
    B images, A anchors of all levels, T tokens. If each image comes with P prompts, a dimension P follows B in
    `logits`, `pred_boxes`, `centerness`, `phrase_map` and `input_ids`.

    Args:
        loss: (), if `labels` were given.
        loss_dict: its parts by name, before their weights.
        logits: (B, A, T) of regions and words.
        pred_boxes: (B, A, 4): centre, width and height, relative to the image without padding.
        centerness: (B, A) logits: how well an anchor is in the middle of its object.
        spatial_shapes: (5, 2), height and width of the levels.
        image_sizes: (B, 2), height and width of the images in `pixel_values` without padding.
        phrase_map: (B, K, T): which tokens each label has, as it was given.
        input_ids: (B, T), as they were given.
        hidden_states: the Swin transformer's maps.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    centerness: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    spatial_shapes: torch.LongTensor | None = None
    image_sizes: torch.LongTensor | None = None
    phrase_map: torch.FloatTensor | None = None
    input_ids: torch.LongTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


__all__ = ["GLIPObjectDetectionOutput"]
