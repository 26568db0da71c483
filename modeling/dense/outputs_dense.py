"""What models give that segment an image by texts."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput


@dataclass
class PromptableSegmentationOutput(SemanticSegmenterOutput):
    """
    `SemanticSegmenterOutput` and what it came from. B images, N labels (with the background, if it is one of them),
    M texts, D the joint width, h x w the resolution of the features.

    Args:
        loss: (), if `labels` were given.
        logits: (B, N, H, W) at the size of `pixel_values`.
        hidden_states, attentions: as in `SemanticSegmenterOutput`.
        class_embeddings: (M, D) or (B, M, D), of the texts that were scored.
        pixel_embeddings: (B, D, h, w).
        group_maps: the soft assignment of patches to groups, where the method has any.
        background_scores: (B, H, W), the background's channel of `logits`, where it is not a text.
    """

    class_embeddings: torch.FloatTensor | None = None
    pixel_embeddings: torch.FloatTensor | None = None
    group_maps: tuple[torch.FloatTensor, ...] | torch.FloatTensor | None = None
    background_scores: torch.FloatTensor | None = None


__all__ = ["PromptableSegmentationOutput"]
