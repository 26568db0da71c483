"""The axial transformer of VideoAnomalyClip: attention over segments and over the frames of a segment.

Ho et al. 2019, "Axial Attention in Multidimensional Transformers", https://arxiv.org/abs/1912.12180, in the reversible
form of Gomez et al. 2017 that the official code takes. It runs as a plain network here: the same numbers and
gradients, with activation checkpointing to save memory.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward


# G grids, E width, S segments, L frames of a segment

_STD_EPS = 1e-5


class AxialAttention(nn.Module):
    """Self-attention along one axis of (G, E, S, L), with a layer norm before it."""

    def __init__(self, config, axis: int):
        super().__init__()
        width, heads = config.temporal_hidden_size, config.temporal_num_heads
        inner = (config.temporal_head_dim or width // heads) * heads
        self.config, self.axis, self.num_heads = config, axis, heads
        self.is_causal, self.scaling, self.num_key_value_groups = False, (inner // heads) ** -0.5, 1
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        lines = grid.movedim(1, -1).movedim(self.axis - 1, -2)  # (G, other axis, this axis, E)
        hidden = self.norm(lines.flatten(0, 1))

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, (key, value) = self.to_q(hidden), self.to_kv(hidden).chunk(2, dim=-1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, heads(query), heads(key), heads(value), None, scaling=self.scaling, dropout=0.0)
        mixed = self.to_out(mixed.reshape(*hidden.shape[:-1], -1)).unflatten(0, lines.shape[:2])
        return mixed.movedim(-2, self.axis - 1).movedim(-1, 1)


class ChannelNorm(nn.Module):
    """(G, E, S, L) of mean 0 and deviation 1 over E. The small number is added to the deviation, not the variance."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        wide = grid.float()
        deviation = wide.var(dim=1, unbiased=False, keepdim=True).sqrt()
        normal = ((wide - wide.mean(dim=1, keepdim=True)) / (deviation + _STD_EPS)).to(grid.dtype)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class AxialConvolution(nn.Module):
    """Two 3 x 3 convolutions over segments and frames, with a norm before them."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.expand = nn.Conv2d(width, ratio * width, 3, padding=1)
        self.activation = nn.LeakyReLU()
        self.reduce = nn.Conv2d(ratio * width, width, 3, padding=1)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.activation(self.expand(self.norm(grid))))


class AxialLayer(GradientCheckpointingLayer):
    """Two reversible steps over two streams: attention over segments and over frames, then convolutions."""

    def __init__(self, config):
        super().__init__()
        width, ratio = config.temporal_hidden_size, config.temporal_mlp_ratio
        self.segment_attention, self.frame_attention = AxialAttention(config, 2), AxialAttention(config, 3)
        self.first_convolution, self.second_convolution = (AxialConvolution(width, ratio) for _ in range(2))

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = first + self.segment_attention(second)
        second = second + self.frame_attention(first)
        first = first + self.first_convolution(second)
        second = second + self.second_convolution(first)
        return first, second


class AxialTransformer(nn.Module):
    """(G, E, S, L) -> (G, E, S, L), with learned positions of segments and of frames."""

    def __init__(self, config):
        super().__init__()
        width = config.temporal_hidden_size
        self.segment_positions = nn.Parameter(torch.empty(1, width, config.num_segments, 1))
        self.frame_positions = nn.Parameter(torch.empty(1, width, 1, config.segment_length))
        self.layers = nn.ModuleList([AxialLayer(config) for _ in range(config.temporal_num_layers)])

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        first = second = grid + self.segment_positions + self.frame_positions
        for layer in self.layers:
            first, second = layer(first, second)
        return (first + second) / 2


class AnomalyScorer(nn.Module):
    """Grids of frames (G, S * L, D) -> one number a frame (G, S * L), whose sigmoid is the score."""

    def __init__(self, config):
        super().__init__()
        inputs = config.projection_dim + (config.num_labels - 1 if config.concat_features else 0)
        self.shape = (config.num_segments, config.segment_length)
        self.projection = nn.Linear(inputs, config.temporal_hidden_size)
        self.transformer = AxialTransformer(config)
        self.norm = nn.LayerNorm(config.temporal_hidden_size)
        self.classifier = nn.Linear(config.temporal_hidden_size, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        grid = self.projection(frames).unflatten(1, self.shape).movedim(-1, 1)
        hidden = self.transformer(grid).movedim(1, -1).flatten(1, 2)
        return self.classifier(self.norm(hidden))[..., 0]


__all__ = ["AnomalyScorer", "AxialAttention", "AxialTransformer", "ChannelNorm"]
