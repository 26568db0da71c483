"""The heads of CLIP4Clip that have parameters: layers over the frames of a video, or over a text and frames."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from ..dual_encoders.backbones import unit_norm


# V videos, T frames, D joint width, P pairs


class CLIP4ClipLayers(nn.Module):
    """Transformer layers over sequences (N, L, D) with learned positions; padded places are not seen."""

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


class CLIP4ClipPairScorer(nn.Module):
    """tightTransf: a text's and a video's features, as one sequence through the layers -> one number."""

    def __init__(self, config, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.layers = CLIP4ClipLayers(config)
        self.pooler_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.classifier = nn.Linear(config.hidden_size, 1)

    def hidden_states(self, texts: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(P, D), (P, T, D), (P, T) -> (P, 1 + T, D)."""
        sequence = torch.cat([texts[:, None], frames.to(texts.dtype)], 1)
        return self.layers(sequence, torch.cat([mask.new_ones(len(mask), 1), mask], 1), self.dropout)

    def pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P, 1 + T, D) -> (P, D)."""
        return self.activation(self.pooler(self.pooler_norm(hidden[:, 0])))

    def forward(self, texts: torch.Tensor, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(P, D), (P, T, D), (P, T) -> (P,)."""
        return self.classifier(self.pooled(self.hidden_states(texts, frames, mask)))[:, 0]


def masked_mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(V, T, D) -> (V, D), the mean of the frames that are there, each of unit norm first."""
    weights = mask.to(features.dtype)[..., None]
    return (unit_norm(features) * weights).sum(1) / weights.sum(1).clamp(min=1)


def with_neighbours(pixels: torch.Tensor) -> torch.Tensor:
    """(V, T, 3, H, W) -> (V, T, 9, H, W): the frame before, the frame, the frame after; zeros where there is none.

    A convolution over these with a kernel (D, 9, p, p) is the official one over time with a kernel (D, 3, 3, p, p).
    """
    empty = torch.zeros_like(pixels[:, :1])
    before, after = torch.cat([empty, pixels[:, :-1]], 1), torch.cat([pixels[:, 1:], empty], 1)
    return torch.cat([before, pixels, after], 2)


__all__ = ["CLIP4ClipLayers", "CLIP4ClipPairScorer", "masked_mean", "with_neighbours"]
