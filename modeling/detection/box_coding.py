"""Boxes relative to anchors, and clipped to their image. Pure functions.

Boxes are (…, 4) float: x1, y1, x2, y2 in pixels. `offset` is 1 where a width is x2 - x1 + 1, as in official code
that stems from Faster R-CNN, and 0 where it is x2 - x1.
"""

import math
from collections.abc import Sequence

import torch


BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of x, y, width, height; proposals of a two-stage detector have ones
_LARGEST_SHIFT = math.log(1000 / 16)  # of the logarithm of a size


def _centres(boxes: torch.Tensor, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2] + offset
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode_boxes(
    boxes: torch.Tensor, anchors: torch.Tensor, weights: Sequence[float] = BOX_WEIGHTS, offset: float = 1.0
) -> torch.Tensor:
    """(R, 4) boxes relative to (R, 4) anchors: dx, dy, dw, dh, times `weights`. Inverse of `decode_boxes`."""
    (centres, sizes), (anchor_centres, anchor_sizes) = _centres(boxes, offset), _centres(anchors, offset)
    shifts = (centres - anchor_centres) / anchor_sizes
    return torch.cat([shifts, (sizes / anchor_sizes).log()], dim=-1) * boxes.new_tensor(weights)


def decode_boxes(
    codes: torch.Tensor, anchors: torch.Tensor, weights: Sequence[float] = BOX_WEIGHTS, offset: float = 1.0
) -> torch.Tensor:
    """(R, 4) codes and anchors -> boxes. Sizes grow by a factor of 62.5 at most.

    >>> roi = torch.tensor([[2.0, 3.0, 20.0, 25.0]])
    >>> decode_boxes(torch.zeros(1, 4), roi)
    tensor([[ 2.,  3., 20., 25.]])
    """
    codes = codes / codes.new_tensor(weights)
    centres, sizes = _centres(anchors, offset)
    centres = centres + codes[..., :2] * sizes
    sizes = codes[..., 2:].clamp(max=_LARGEST_SHIFT).exp() * sizes
    corners = centres - 0.5 * sizes
    return torch.cat([corners, corners + sizes - offset], dim=-1)


def clip_boxes(boxes: torch.Tensor, size: Sequence[int], offset: float = 1.0) -> torch.Tensor:
    """(…, 4) clipped to an image of (height, width): to 0..width - `offset`."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height]) - offset
    return boxes.clamp(min=0).minimum(limits.clamp_min(0))


__all__ = ["BOX_WEIGHTS", "clip_boxes", "decode_boxes", "encode_boxes"]
