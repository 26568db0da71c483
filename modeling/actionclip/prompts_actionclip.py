"""Visual prompts of ActionCLIP: where the image encoder (pre- and in-network) and what follows it see time."""

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionEmbeddings

from ..video.temporal_layers import TemporalLayers, masked_mean


# V videos, T frames, N patches of a frame, W width of the image encoder, D joint width


# ---- in-network: temporal shift


class ShiftedCLIPEncoderLayer(CLIPEncoderLayer):
    """A layer of the image encoder whose input, residual included, is shifted over time first."""

    def __init__(self, config, divisor: int):
        super().__init__(config)
        self.divisor = divisor

    def forward(self, hidden_states, attention_mask=None, video_mask=None, **kwargs):
        """(V * T, 1 + N, W), `video_mask` (V, T) -> (V * T, 1 + N, W)."""
        return super().forward(temporal_shift(hidden_states, video_mask, self.divisor), attention_mask, **kwargs)


def temporal_shift(hidden_states: torch.Tensor, video_mask: torch.Tensor, divisor: int = 8) -> torch.Tensor:
    """(V * T, 1 + N, W) -> the same shape: the patches' first W // divisor channels come from the next frame, the next
    W // divisor from the frame before, the others stay; zeros where there is no such frame. Class tokens stay.

    Args:
        video_mask: (V, T), 1 for frames that are there.
        divisor: n_div of the official code.

    Paper: "TSM: Temporal Shift Module for Efficient Video Understanding", https://arxiv.org/abs/1811.08383, section 3.
    """
    size = hidden_states.shape[-1] // divisor
    videos = hidden_states.unflatten(0, video_mask.shape)
    patches = videos[:, :, 1:, : 2 * size] * video_mask[..., None, None].to(hidden_states.dtype)
    empty = torch.zeros_like(patches[:, :1, :, :size])
    after = torch.cat([patches[:, 1:, :, :size], empty], 1)
    before = torch.cat([empty, patches[:, :-1, :, size:]], 1)
    shifted = torch.cat([after, before, videos[:, :, 1:, 2 * size :]], -1)
    return torch.cat([videos[:, :, :1], shifted], 2).flatten(0, 1)


# ---- pre-network: one sequence of all frames


class JointCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """(V, T, 3, H, W) -> (V, 1 + N * T, W): a class token, then of each patch all frames; a frame's patches have its
    time's embedding."""

    def __init__(self, config, num_frames: int):
        super().__init__(config)
        self.time_embedding = nn.Embedding(num_frames, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding=False) -> torch.Tensor:
        videos, frames = pixel_values.shape[:2]
        if frames > self.time_embedding.num_embeddings:
            raise ValueError(
                f"pixel_values_videos: {frames} frames, the model has {self.time_embedding.num_embeddings} embeddings "
                "of time; want fewer frames"
            )
        hidden = super().forward(pixel_values.flatten(0, 1), interpolate_pos_encoding=interpolate_pos_encoding)
        hidden = hidden.unflatten(0, (videos, frames))
        patches = hidden[:, :, 1:] + self.time_embedding.weight[:frames, None].to(hidden.dtype)
        # All frames have the same class token, before a layer has seen them.
        return torch.cat([hidden[:, 0, :1], patches.transpose(1, 2).flatten(1, 2)], 1)


def joint_attention_mask(config, video_mask: torch.Tensor, num_patches: int, width: int, dtype: torch.dtype):
    """Of `JointCLIPVisionEmbeddings`' sequences: patches of frames that are not there are not seen. None: all are."""
    if torch.compiler.is_compiling() or bool(video_mask.all()):
        return None
    of_patches = video_mask[:, None].expand(-1, num_patches, -1).flatten(1)
    mask = torch.cat([video_mask.new_ones(len(video_mask), 1), of_patches], 1)
    like = torch.empty(*mask.shape, width, dtype=dtype, device=mask.device)
    return create_bidirectional_mask(config, inputs_embeds=like, attention_mask=mask.bool())


# ---- post-network: fusion heads


class ActionCLIPFusion(nn.Module):
    """Features of frames (V, T, D), `video_mask` (V, T) -> features of frames after the head (V, T, D), and of videos
    (V, D), not normalised. Frames that are not there count for nothing."""

    def __init__(self, config, layers):
        super().__init__()
        self.head, self.conv1d_layout, width = config.fusion_head, config.conv1d_layout, config.projection_dim
        if self.head == "LSTM":
            self.lstm = nn.LSTM(width, width, batch_first=True)
        elif self.head == "Conv_1D":
            self.conv = ShiftConv1d(width)
        elif self.head == "Transf":
            self.layers = TemporalLayers(layers)
        elif self.head == "Transf_cls":
            self.encoder = ClassTokenEncoder(layers, config.num_frames, config.fusion_dropout)

    def forward(self, features: torch.Tensor, video_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.head == "Transf_cls":
            hidden = self.encoder(features, video_mask)
            return hidden[:, 1:], hidden[:, 0]
        if self.head == "LSTM":
            # Frames that are not there come last: no other one sees them, and they are left out of the mean.
            features = features + self.lstm(features)[0]
        elif self.head == "Conv_1D":
            features = features + self._convolved(features, video_mask)
        elif self.head == "Transf":
            features = features + self.layers(features, video_mask)
        return features, masked_mean(features, video_mask)

    def _convolved(self, features: torch.Tensor, video_mask: torch.Tensor) -> torch.Tensor:
        if self.conv1d_layout == "transposed":
            there = features * video_mask[..., None].to(features.dtype)
            return self.conv(there.transpose(1, 2)).transpose(1, 2)
        if torch.compiler.is_compiling() or bool(video_mask.all()):
            return self._convolved_as_the_official_code(features)
        # What is mixed up depends on the number of frames: videos of each length go by themselves.
        found, lengths = torch.zeros_like(features), video_mask.sum(1)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            found[rows, :length] = self._convolved_as_the_official_code(features[rows, :length])
        return found

    def _convolved_as_the_official_code(self, features: torch.Tensor) -> torch.Tensor:
        """The official code does not transpose (V, T, D) but reads its memory as (V, D, T)."""
        videos, frames, width = features.shape
        return self.conv(features.reshape(videos, width, frames)).transpose(1, 2)


class ShiftConv1d(nn.Conv1d):
    """Each channel by itself over three frames. New ones shift: a quarter of the channels comes from the frame before,
    a quarter from the next one."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1, groups=width, bias=False)


def shift_weights(width: int) -> torch.Tensor:
    """(D, 1, 3): what a new `ShiftConv1d` starts from."""
    weight, quarter = torch.zeros(width, 1, 3), width // 4
    weight[:quarter, 0, 0] = 1
    weight[quarter : width - quarter, 0, 1] = 1
    weight[width - quarter :, 0, 2] = 1
    return weight


class ClassTokenEncoder(nn.Module):
    """Transf_cls: a class token and frames with positions through post-norm layers -> (V, 1 + T, D)."""

    def __init__(self, config, num_frames: int, dropout: float):
        super().__init__()
        width = config.hidden_size
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + num_frames, width))
        layer = nn.TransformerEncoderLayer(
            width, config.num_attention_heads, config.intermediate_size, dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.num_hidden_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )

    def forward(self, features: torch.Tensor, video_mask: torch.Tensor) -> torch.Tensor:
        most = self.position_embedding.shape[1] - 1
        if features.shape[1] > most:
            raise ValueError(
                f"pixel_values_videos: {features.shape[1]} frames, the head has positions of {most}; want fewer frames"
            )
        hidden = torch.cat([self.class_token.expand(len(features), -1, -1), features], 1)
        hidden = hidden + self.position_embedding[:, : hidden.shape[1]]
        absent = torch.cat([video_mask.new_zeros(len(video_mask), 1), 1 - video_mask], 1).bool()
        return self.encoder(hidden, src_key_padding_mask=absent)


__all__ = [
    "ActionCLIPFusion",
    "ClassTokenEncoder",
    "JointCLIPVisionEmbeddings",
    "ShiftConv1d",
    "ShiftedCLIPEncoderLayer",
    "joint_attention_mask",
    "shift_weights",
    "temporal_shift",
]
