"""The heads of CLIP4Clip that have parameters: layers over the frames of a video, or over a text and frames."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..dual_encoders.backbones import unit_norm
from ..video.temporal_layers import TemporalLayers, masked_mean


# V videos, T frames, D joint width, P pairs


class CLIP4ClipPairScorer(nn.Module):
    """tightTransf: a text's and a video's features, as one sequence through the layers -> one number."""

    def __init__(self, config, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.layers = TemporalLayers(config)
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


def unit_masked_mean(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(V, T, D) -> (V, D), the mean of the frames that are there, each of unit norm first."""
    return masked_mean(unit_norm(features), mask)


def with_neighbours(pixels: torch.Tensor) -> torch.Tensor:
    """(V, T, 3, H, W) -> (V, T, 9, H, W): the frame before, the frame, the frame after; zeros where there is none.

    A convolution over these with a kernel (D, 9, p, p) is the official one over time with a kernel (D, 3, 3, p, p).
    """
    empty = torch.zeros_like(pixels[:, :1])
    before, after = torch.cat([empty, pixels[:, :-1]], 1), torch.cat([pixels[:, 1:], empty], 1)
    return torch.cat([before, pixels, after], 2)


__all__ = ["CLIP4ClipPairScorer", "unit_masked_mean", "with_neighbours"]
