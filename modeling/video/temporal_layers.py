"""Layers over the frames of a video, which heads of several methods have."""

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


# V videos, T frames, D joint width


class TemporalLayers(nn.Module):
    """
    Transformer layers of CLIP over sequences (N, L, D) with learned positions; padded places are not seen.

    Args:
        config: what a `CLIPEncoderLayer` needs, `num_hidden_layers` and `max_position_embeddings`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, features: torch.Tensor, mask: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        length = features.shape[1]
        if length > self.position_embedding.num_embeddings:
            raise ValueError(
                f"pixel_values_videos: a sequence of {length}, the head has {self.position_embedding.num_embeddings} "
                "positions; want fewer frames"
            )
        hidden = features + self.position_embedding.weight[:length].to(features.dtype)
        if dropout:
            hidden = nn.functional.dropout(hidden, dropout, self.training)
        attention_mask = create_bidirectional_mask(self.config, inputs_embeds=hidden, attention_mask=mask.bool())
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return hidden


def masked_mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(V, T, D) -> (V, D), the mean of the frames that are there."""
    weights = mask.to(features.dtype)[..., None]
    return (features * weights).sum(1) / weights.sum(1).clamp(min=1)


__all__ = ["TemporalLayers", "masked_mean"]
