"""The plain way to depth maps, one cloud and one view at a time: what `projection_pointclip.py` is compared with."""

import torch
from torch.nn import functional as F

from .projection_pointclip import GridSettings, gaussian


def sparse_depth_maps_reference(
    points: torch.Tensor, rotations: torch.Tensor, resolution: int, distance: float
) -> torch.Tensor:
    """As `sparse_depth_maps` of clouds in which all points are there."""
    maps = []
    for cloud in points:
        for rotation in rotations:
            x, y, z = (cloud @ rotation).unbind(-1)
            z = z + distance
            row = torch.ceil((x / (z + 1e-12) + 1) * resolution / 2 - 0.5)
            column = torch.ceil((y / (z + 1e-12) + 1) * resolution / 2 - 0.5)
            inside = (row >= 0) & (row <= resolution - 1) & (column >= 0) & (column <= resolution - 1) & (z >= 0)
            row, column = (side.clamp(0, resolution - 1).long() for side in (row, column))
            weight = inside / (z + 1e-12)
            sums, weights = torch.zeros(resolution, resolution), torch.zeros(resolution, resolution)
            sums.index_put_((row, column), weight * z, accumulate=True)
            weights.index_put_((row, column), weight, accumulate=True)
            maps.append(torch.where(weights > 0, sums / (weights + 1e-12), torch.zeros(())))
    return torch.stack(maps).unflatten(0, (len(points), len(rotations)))


def realistic_depth_maps_reference(
    points: torch.Tensor, rotations: torch.Tensor, settings: GridSettings
) -> torch.Tensor:
    """As `realistic_depth_maps` of clouds in which all points are there, which are not all equal."""
    size, depth, bias = settings.resolution, settings.depth, settings.depth_bias
    (deep, wide), (pad_deep, pad_wide) = settings.pool, settings.pool_padding
    across, along = (torch.tensor(gaussian(*of)) for of in zip(settings.kernel, settings.sigma, strict=True))
    kernel = across[:, None, None] * along[:, None] * along
    maps = []
    for cloud in points:
        for rotation in rotations:
            turned = cloud @ rotation
            low, high = turned.min(0).values, turned.max(0).values
            turned = (turned - (high + low) / 2) / (high - low).max() * 2
            x = torch.ceil((turned[:, 0] * settings.object_ratio + 1) / 2 * size).clamp(1, size - 2).long()
            y = torch.ceil((turned[:, 1] * settings.object_ratio + 1) / 2 * size).clamp(1, size - 2).long()
            z = ((turned[:, 2] + 1) / 2 + bias) / (1 + bias) * (depth - 2)
            index = (torch.ceil(z).long() * size + y) * size + x
            grid = torch.zeros(depth * size * size)
            grid = grid.scatter_reduce(0, index, z.clamp(1, depth - 2), "amax").view(1, 1, depth, size, size)
            grid = grid.transpose(3, 4)
            grid = F.max_pool3d(grid, (deep, wide, wide), 1, (pad_deep, pad_wide, pad_wide))
            grid = F.conv3d(grid, kernel[None, None], padding=[side // 2 for side in kernel.shape])
            flat = grid[0, 0].max(0).values
            maps.append(1 - flat / flat.max())
    return torch.stack(maps).unflatten(0, (len(points), len(rotations)))


__all__ = ["realistic_depth_maps_reference", "sparse_depth_maps_reference"]
