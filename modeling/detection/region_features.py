"""Features of regions, from the maps of a feature pyramid. A pure function."""

import math
from collections.abc import Sequence

import torch
from torchvision.ops import roi_align


_CANONICAL = 224  # side in pixels of a region that is read from level 4, of stride 16


def region_features(
    features: Sequence[torch.Tensor],
    boxes: Sequence[torch.Tensor],
    strides: Sequence[int],
    resolution: int,
    aligned: bool = False,
) -> torch.Tensor:
    """Features (K, C, resolution, resolution) of K boxes in all images, image by image.

    Args:
        features: of each level (B, C, h, w).
        boxes: of each of B images, (K_b, 4).
        strides: of the levels, powers of two; level n has stride 2ⁿ. A box of side s is read from level
            floor(log2(s / 224)) + 4, or the nearest that there is.
        aligned: False samples the middle of each bin and takes indices for coordinates, as the official code; True is
            mmdetection's RoIAlign, adaptive and shifted by half a pixel.
    """
    joined, first = torch.cat(list(boxes)).float(), math.log2(strides[0])
    images = torch.cat([joined.new_full((len(one), 1), i) for i, one in enumerate(boxes)])
    sides = (joined[:, 2:] - joined[:, :2]).clamp_min(0).prod(dim=1).sqrt()
    level = (torch.log2(sides / _CANONICAL + 1e-6).floor() + 4 - first).clamp(0, len(strides) - 1).long()
    regions = torch.cat([images, joined], dim=1)
    channels = features[0].shape[1]
    result = features[0].new_zeros(len(joined), channels, resolution, resolution, dtype=torch.float32)
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        (chosen,) = torch.where(level == i)
        pooled = roi_align(
            feature.float(),  # there is no kernel for bfloat16
            regions[chosen],
            resolution,
            spatial_scale=1 / stride,
            sampling_ratio=0 if aligned else 1,
            aligned=aligned,
        )
        result = result.index_put((chosen,), pooled)
    return result.to(features[0].dtype)


__all__ = ["region_features"]
