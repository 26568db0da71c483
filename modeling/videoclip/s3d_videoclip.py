"""S3D-G as HowTo100M's weights have it: one vector of each second of video.

Papers: "Rethinking Spatiotemporal Feature Learning" (S3D-G), https://arxiv.org/abs/1712.04851; the weights, the first
layer and the vector of 512 numbers are those of "End-to-End Learning of Visual Representations from Uncurated
Instructional Videos", https://arxiv.org/abs/1912.06430. torchvision's `s3d` is another network: no gates, no
space-to-depth, other padding.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_videoclip import VideoCLIPVisionConfig


# B seconds, C channels, T frames, H, W pixels. Pools come before these blocks (kernel, stride).
_POOLS = {0: ((1, 3, 3), (1, 2, 2)), 2: ((3, 3, 3), (2, 2, 2)), 7: ((2, 2, 2), (2, 2, 2))}
_FIRST_POOL = _POOLS[0]


def space_to_depth(video: torch.Tensor) -> torch.Tensor:
    """(B, C, T, H, W), sides even -> (B, 8 C, T/2, H/2, W/2): each 2 x 2 x 2 cube becomes channels; its place (time,
    row, column) counts before the channel."""
    batch, channels, time, height, width = video.shape
    cubes = video.view(batch, channels, time // 2, 2, height // 2, 2, width // 2, 2)
    return cubes.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(batch, 8 * channels, time // 2, height // 2, width // 2)


def same_max_pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    """Of a side n, n / stride rounded up: zeros around, the larger half of them behind, and pooling that takes
    incomplete windows, too. Values are at least 0 here, so that zeros change nothing."""
    padding = []
    for size, step in zip(reversed(kernel), reversed(stride), strict=True):
        missing = max(size - step, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.max_pool3d(F.pad(x, padding), kernel, stride, ceil_mode=True)


class VideoCLIPConvolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], padding, eps: float):
        super().__init__()
        self.convolution = nn.Conv3d(inputs, outputs, kernel, padding=padding, bias=False)
        self.normalization = nn.BatchNorm3d(outputs, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalization(self.convolution(x)).relu()


class VideoCLIPStem(VideoCLIPConvolution):
    """The first layer, on a video whose cubes have become channels. The padding in front is one more than that of a
    convolution which keeps the size, so the first slice of each side is left out."""

    def __init__(self, outputs: int, eps: float):
        super().__init__(24, outputs, (2, 4, 4), (1, 2, 2), eps)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return super().forward(space_to_depth(video))[:, :, 1:, 1:, 1:]


class VideoCLIPSeparableConvolution(nn.Module):
    """3 x 3 x 3 in two steps: within frames, then over time."""

    def __init__(self, inputs: int, outputs: int, eps: float):
        super().__init__()
        self.spatial = VideoCLIPConvolution(inputs, outputs, (1, 3, 3), (0, 1, 1), eps)
        self.temporal = VideoCLIPConvolution(outputs, outputs, (3, 1, 1), (1, 0, 0), eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.temporal(self.spatial(x))


class VideoCLIPGate(nn.Module):
    """Each channel times a number in 0..1 that follows from the means of all channels."""

    def __init__(self, width: int):
        super().__init__()
        self.projection = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(x.mean((2, 3, 4))).sigmoid()[:, :, None, None, None] * x


class VideoCLIPInception(nn.Module):
    """Four branches, each with a gate, side by side. `widths`: as in `VideoCLIPVisionConfig.block_widths`."""

    def __init__(self, inputs: int, widths: list[int], eps: float):
        super().__init__()
        point, narrow_1, wide_1, narrow_2, wide_2, pooled = widths
        one = (1, 1, 1)
        self.point = VideoCLIPConvolution(inputs, point, one, 0, eps)
        self.narrow_1 = VideoCLIPConvolution(inputs, narrow_1, one, 0, eps)
        self.wide_1 = VideoCLIPSeparableConvolution(narrow_1, wide_1, eps)
        self.narrow_2 = VideoCLIPConvolution(inputs, narrow_2, one, 0, eps)
        self.wide_2 = VideoCLIPSeparableConvolution(narrow_2, wide_2, eps)
        self.pooled = VideoCLIPConvolution(inputs, pooled, one, 0, eps)
        self.gates = nn.ModuleList(VideoCLIPGate(width) for width in (point, wide_1, wide_2, pooled))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = (
            self.point(x),
            self.wide_1(self.narrow_1(x)),
            self.wide_2(self.narrow_2(x)),
            self.pooled(around),
        )
        return torch.cat([gate(branch) for gate, branch in zip(self.gates, branches, strict=True)], 1)


class VideoCLIPS3D(nn.Module):
    """(B, 3, T, H, W), values 0..1, sides even -> (B, projection_dim), not normalised."""

    def __init__(self, config: VideoCLIPVisionConfig):
        super().__init__()
        eps, stem, width = config.batch_norm_eps, config.stem_width, config.conv_width
        self.stem = VideoCLIPStem(stem, eps)
        self.point = VideoCLIPConvolution(stem, stem, (1, 1, 1), 0, eps)
        self.separable = VideoCLIPSeparableConvolution(stem, width, eps)
        self.gate = VideoCLIPGate(width)
        blocks = []
        for widths in config.block_widths:
            blocks.append(VideoCLIPInception(width, widths, eps))
            point, _, first, _, second, pooled = widths
            width = point + first + second + pooled
        self.blocks = nn.ModuleList(blocks)
        self.projection = nn.Linear(width, config.projection_dim)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        x = same_max_pool(self.stem(video), *_FIRST_POOL)
        x = self.gate(self.separable(self.point(x)))
        for number, block in enumerate(self.blocks):
            if number in _POOLS:
                x = same_max_pool(x, *_POOLS[number])
            x = block(x)
        return self.projection(x.mean((2, 3, 4)))


__all__ = [
    "VideoCLIPConvolution",
    "VideoCLIPGate",
    "VideoCLIPInception",
    "VideoCLIPS3D",
    "VideoCLIPSeparableConvolution",
    "VideoCLIPStem",
    "same_max_pool",
    "space_to_depth",
]
