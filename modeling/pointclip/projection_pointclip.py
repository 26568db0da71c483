"""Depth maps of point clouds: PointCLIP's sparse perspective projection and PointCLIP V2's realistic one.

Papers: "PointCLIP: Point Cloud Understanding by CLIP", https://arxiv.org/abs/2112.02413, section 3.1; "PointCLIP V2:
Prompting CLIP and GPT for Powerful 3D Open-world Learning", https://arxiv.org/abs/2211.11682, section 3.2.

Both are plain arithmetic without weights, on any device, for all clouds and views of a batch, and differentiable in
the points: in the depths that pixels get, not in which pixel a point falls into. The plain way, a cloud and a view at
a time, is in `projection_reference_pointclip.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..dual_encoders.tracing import can_be_read


# B clouds, N points, V views, P pairs of a cloud and a view, R pixels of a side, D cells of depth

_EPS = 1e-12
_CELLS_AT_ONCE = 2**19  # floats of a grid: what fits into a processor's cache
_POINTS_AT_ONCE = 2**21
_PIXELS_AT_ONCE = 2**20  # of maps that are written to at random places, twice


@dataclass(frozen=True)
class GridSettings:
    """How the realistic projection makes a picture. The defaults are those of classification.

    Args:
        resolution: cells of the grid's sides, R.
        depth: cells of its depth, D.
        object_ratio: part of the side that the cloud's largest extent takes.
        depth_bias: how far the nearest point stays away from depth 0, as a part of the cloud's extent.
        pool: cells in depth and in the image that a point is spread over; `pool_padding` beside them.
        kernel, sigma: of the Gaussian that smooths, in depth and in the image; odd sizes.
        last_point_wins: in a cell with several points; False: the one with the largest depth value.
    """

    resolution: int = 112
    depth: int = 8
    object_ratio: float = 0.8
    depth_bias: float = 0.2
    pool: tuple[int, int] = (1, 7)
    pool_padding: tuple[int, int] = (0, 2)
    kernel: tuple[int, int] = (1, 3)
    sigma: tuple[float, float] = (1.0, 3.0)
    last_point_wins: bool = False

    @property
    def image_size(self) -> int:
        """Pixels of a side after spreading: each cell of padding less than the window loses one."""
        return self.resolution + 2 * self.pool_padding[1] - self.pool[1] + 1


# ---- clouds and views together


def for_pairs(
    points: torch.Tensor,
    mask: torch.Tensor | None,
    views: int,
    cells: int,
    draw: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """(B, N, 3) -> (B, V, ...): `draw(points (P, N, 3), mask (P, N) or None, view (P,))` for some pairs at a time.

    Args:
        mask: (B, N) bool, the points that are there.
        cells: floats that a pair needs; bounds how many there are at once.
    """
    clouds, count = points.shape[:2]
    at_once = max(1, min(_CELLS_AT_ONCE // max(1, cells), _POINTS_AT_ONCE // count))
    drawn = []
    for pairs in torch.arange(clouds * views, device=points.device).split(at_once):
        cloud = pairs // views
        drawn.append(draw(points[cloud], None if mask is None else mask[cloud], pairs % views))
    return torch.cat(drawn).unflatten(0, (clouds, views))


# ---- PointCLIP


def sparse_depth_maps(
    points: torch.Tensor, mask: torch.Tensor | None, rotations: torch.Tensor, resolution: int, distance: float
) -> torch.Tensor:
    """(B, N, 3), (V, 3, 3) -> (B, V, R, R) depths; 0 where no point is.

    A pixel is the harmonic mean of the depths in it. x counts rows, y columns; a point is in the pixel whose middle is
    nearest. What falls outside is left out.

    Args:
        points: in the unit sphere around 0.
        mask: (B, N) bool, the points that are there; None: all.
        distance: of the camera from 0.
    """
    if can_be_read(points) and not (torch.is_grad_enabled() and points.requires_grad):
        return _sparse_depth_maps_in_place(points, mask, rotations, resolution, distance)

    def draw(points, mask, view):
        x, y, z = torch.bmm(points, rotations[view]).unbind(-1)
        z = z + distance
        row, column = (torch.ceil((side / (z + _EPS) + 1) * (resolution / 2) - 0.5) for side in (x, y))
        inside = (row >= 0) & (row < resolution) & (column >= 0) & (column < resolution) & (z >= 0)
        if mask is not None:
            inside &= mask
        pixel = (row * resolution + column).masked_fill(~inside, 0).long()
        weight = torch.where(inside, 1 / torch.where(inside, z + _EPS, 1), 0)
        empty = weight.new_zeros(len(points), resolution * resolution)
        share = weight / empty.scatter_add(1, pixel, weight).gather(1, pixel).clamp_min(_EPS)
        return empty.scatter_add(1, pixel, share * z).unflatten(1, (resolution, resolution))

    return for_pairs(points, mask, len(rotations), resolution**2, draw)


@np.errstate(all="ignore")  # points that are not finite are left out
def _sparse_depth_maps_in_place(
    points: torch.Tensor, mask: torch.Tensor | None, rotations: torch.Tensor, resolution: int, distance: float
) -> torch.Tensor:
    """`sparse_depth_maps` of float32 on a CPU without gradient: one buffer for all maps, of which only pixels with
    points are touched. The last point of a pixel stands for it: its number is in the pixel, and the others add to its
    sums. In numpy, whose calls cost less than torch's: some clouds at a time, in arrays that stay in a cache.
    """
    (clouds, count, _), views, area = points.shape, len(rotations), resolution**2
    # numpy asks for memory that is zero already, in large pages: three times as fast as to write zeros. The first
    # write to these pages, of numbers, is half of the time; depths then replace them while they are in the cache.
    depths = np.zeros(clouds * views * area, dtype=np.float32)
    numbers = depths.view(np.int32)
    turns = rotations.permute(2, 0, 1).reshape(-1, 3).to(points)  # x of all views, y of all, z of all
    flat = points.reshape(-1, 3).t().contiguous()
    at_once = min(clouds, max(1, min(_POINTS_AT_ONCE // count, _PIXELS_AT_ONCE // area) // views))
    begin = np.arange(views)[:, None, None] + np.arange(at_once)[:, None] * views
    begin = np.broadcast_to(begin * area, (views, at_once, count)).reshape(views, -1)
    work, order = np.empty(6 * begin.size, dtype=np.float32), np.arange(begin.size, dtype=np.int32)
    one, middle = np.float32(1), np.float32((resolution - 1) / 2)
    for first in range(0, clouds, at_once):
        part = flat[:, first * count : (first + at_once) * count]
        sides, (away, other, weights) = work[: 6 * views * part.shape[1]].reshape(2, 3, -1)
        torch.mm(turns, part, out=torch.from_numpy(sides).view(3 * views, -1))
        xy, (row, column, z) = sides[:2], sides
        z += np.float32(distance)
        np.add(z, np.float32(_EPS), out=weights)
        xy /= weights
        xy += one
        xy *= np.float32(resolution / 2)
        xy -= np.float32(0.5)
        np.ceil(xy, out=xy)
        # One comparison, as each takes as long as three sums: how far from the middle, and far for what is behind.
        for place, far in ((row, away), (column, other)):
            np.abs(np.subtract(place, middle, out=far), out=far)
        np.maximum(away, other, out=away)
        z *= np.float32(-1e30)
        np.maximum(away, z, out=away)
        row *= np.float32(resolution)
        row += column
        pixel = row.astype(np.int64)
        pixel.reshape(views, -1)[:] += begin[:, : part.shape[1]]
        np.divide(one, weights, out=weights)
        if mask is not None or not away.max() <= middle:
            inside = (away <= middle).reshape(views, -1)
            if mask is not None:
                inside &= mask[first : first + at_once].reshape(-1).numpy()
            there = np.flatnonzero(inside)
            pixel, weights = pixel.take(there), weights.take(there)
        own, here = order[: len(pixel)], slice(first * views * area, None)
        numbers[here][pixel] = own
        last = numbers[here].take(pixel)
        others = np.flatnonzero(last != own)
        of, found = last.take(others), np.ones(len(pixel), dtype=np.float32)
        np.add.at(weights, of, weights.take(others))
        np.add.at(found, of, one)
        # The harmonic mean: the number of points, which is that of weights times depths, over the weights.
        found /= weights
        depths[here][pixel] = found.take(last)
    return torch.from_numpy(depths).view(clouds, views, resolution, resolution)


# ---- PointCLIP V2


def in_cells(
    points: torch.Tensor, mask: torch.Tensor | None, settings: GridSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, N, 3) turned points -> (P, N, 3) cells (depth, y, x), and the depth values (P, N) in 1..D - 2.

    The bounding box of each cloud is put into the middle of the grid, so that moving and scaling a cloud changes
    nothing.
    """
    size, depth, bias = settings.resolution, settings.depth, settings.depth_bias
    if mask is None:
        low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    else:
        there = mask[..., None]
        low = points.masked_fill(~there, torch.inf).amin(1, keepdim=True)
        high = points.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
        points = torch.where(there, points, low)
    extent = (high - low).amax(-1, keepdim=True)
    # A single point, or equal ones: no extent, the middle of the grid. (Officially a division by zero.)
    x, y, z = ((points - (high + low) / 2) / torch.where(extent > 0, extent, 1) * 2).unbind(-1)
    # Of a cloud far from 0, rounding may put points beside its own box: into the outermost cells.
    (nearest, end), (first, last) = _occupied_depth(settings), _occupied_side(settings)
    x, y = ((torch.ceil((side * settings.object_ratio + 1) / 2 * size)).clamp(first, last - 1) for side in (x, y))
    z = ((z + 1) / 2 + bias) / (1 + bias) * (depth - 2)
    cells = torch.stack([torch.ceil(z).clamp(nearest, end - 1), y, x], -1).detach().long()
    return cells, z.clamp(1, depth - 2)


def filled_grid(
    cells: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, settings: GridSettings
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Cells (P, N, 3) and values (P, N) -> the part of the grid (P, d, r, r) in which points can be, with x counting
    rows and y columns, and where it begins in depth and in the image.
    """
    depth, _ = deep = _occupied_depth(settings)
    first, _ = wide = _occupied_side(settings)
    d, r = deep[1] - deep[0], wide[1] - wide[0]
    if mask is not None:
        values = values.masked_fill(~mask, 0)
    index = ((cells[..., 0] - depth) * r + cells[..., 2] - first) * r + cells[..., 1] - first
    grid = values.new_zeros(len(values), d * r * r)
    if settings.last_point_wins:
        # Of all points in a cell the one with the highest number; scattering itself promises no order.
        order = torch.arange(1, values.shape[1] + 1, device=values.device).expand_as(index)
        order = order if mask is None else order.masked_fill(~mask, 0)
        last = order.new_zeros(grid.shape).scatter_reduce(1, index, order, "amax")
        grid = torch.where(last > 0, values.gather(1, (last - 1).clamp_min(0)), 0)
    else:
        grid = grid.scatter_reduce(1, index, values, "amax")
    return grid.view(len(values), d, r, r), (depth, first)


def _occupied_depth(settings: GridSettings) -> tuple[int, int]:
    lowest = settings.depth_bias / (1 + settings.depth_bias) * (settings.depth - 2)
    return max(0, math.ceil(lowest - 1e-3)), settings.depth


def _occupied_side(settings: GridSettings) -> tuple[int, int]:
    low, high = ((1 + sign * settings.object_ratio) / 2 * settings.resolution for sign in (-1, 1))
    first = math.ceil(low - 1e-3)
    return min(max(1, first), settings.resolution - 2), min(math.ceil(high + 1e-3) + 1, settings.resolution - 1)


def densified(
    grid: torch.Tensor, start: tuple[int, int], settings: GridSettings
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Spreads and smooths: a max pooling, then a Gaussian. Input and output as of `filled_grid`.

    The same as `max_pool3d` and `conv3d` on the whole grid, in which all else is 0; but along one axis after the
    other, and the window of a maximum doubled in each step.
    """
    (deep, wide), (pad_deep, pad_wide) = settings.pool, settings.pool_padding
    depth, depth_start = _spread_axis(grid, 1, start[0], settings.depth, deep, pad_deep)
    pooled, image_start = _spread_axis(depth, 2, start[1], settings.resolution, wide, pad_wide)
    pooled, _ = _spread_axis(pooled, 3, start[1], settings.resolution, wide, pad_wide)
    sizes = settings.depth + 2 * pad_deep - deep + 1, settings.image_size
    starts = []
    for axis, length, width, sigma, begin in (
        (1, sizes[0], settings.kernel[0], settings.sigma[0], depth_start),
        (2, sizes[1], settings.kernel[1], settings.sigma[1], image_start),
        (3, sizes[1], settings.kernel[1], settings.sigma[1], image_start),
    ):
        pooled, begin = _smoothed_axis(pooled, axis, begin, length, width, sigma)
        starts.append(begin)
    return pooled, (starts[0], starts[1])


def _padded(x: torch.Tensor, axis: int, before: int, after: int) -> torch.Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [before, after])


def _spread_axis(x: torch.Tensor, axis: int, start: int, length: int, window: int, padding: int):
    """The maximum over windows of one axis; what `x` has of it starts at `start` of `length` cells."""
    if window == 1 and padding == 0:
        return x, start
    end = start + x.shape[axis]
    before, after = min(window - 1, start + padding), min(window - 1, length - end + padding)
    x, reach = _padded(x, axis, before, after), 1
    while reach < window:
        step = min(reach, window - reach)
        rest = x.shape[axis] - step
        x, reach = torch.maximum(x.narrow(axis, 0, rest), x.narrow(axis, step, rest)), reach + step
    return x, start - before + padding


def _smoothed_axis(x: torch.Tensor, axis: int, start: int, length: int, width: int, sigma: float):
    """A Gaussian along one axis, with zeros around its `length` cells; what `x` has of them starts at `start`."""
    if width == 1:
        return x, start
    half = width // 2
    before, after = min(half, start), min(half, length - start - x.shape[axis])
    rest = x.shape[axis] + before + after
    x = _padded(x, axis, before + half, after + half)
    weights = gaussian(width, sigma)
    smooth = x.narrow(axis, half, rest) * weights[half]
    for step in range(1, half + 1):
        pair = x.narrow(axis, half - step, rest) + x.narrow(axis, half + step, rest)
        smooth = torch.add(smooth, pair, alpha=weights[half - step])
    return smooth, start - before


def gaussian(width: int, sigma: float) -> list[float]:
    """Weights of a Gaussian that add up to 1; the outer product of three is the official kernel.

    >>> [round(weight, 4) for weight in gaussian(3, 3.0)]
    [0.3271, 0.3458, 0.3271]
    """
    raw = [math.exp(-((i - width // 2) ** 2) / (2 * sigma**2)) for i in range(width)]
    return [value / sum(raw) for value in raw]


def as_picture(dense: torch.Tensor, start: int, size: int) -> torch.Tensor:
    """(P, d, r, r) -> (P, S, S) in 0..1: the largest value of all depths, divided by the picture's largest, as 1 minus
    it. The background is white, 1; the cells of the largest depth value are darkest, 0.
    """
    flat = dense.amax(1)
    largest = flat.amax((1, 2), keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1)
    rest = size - start - flat.shape[-1]
    return 1 - F.pad(flat, (start, rest, start, rest))


def realistic_depth_maps(
    points: torch.Tensor, mask: torch.Tensor | None, rotations: torch.Tensor, settings: GridSettings
) -> torch.Tensor:
    """(B, N, 3), (V, 3, 3) -> (B, V, S, S) pictures in 0..1 on white, S = `settings.image_size`.

    Args:
        points: of any extent and place.
        mask: (B, N) bool, the points that are there; None: all.
    """

    def draw(points, mask, view):
        cells, values = in_cells(torch.bmm(points, rotations[view]), mask, settings)
        dense, (_, start) = densified(*filled_grid(cells, values, mask, settings), settings)
        return as_picture(dense, start, settings.image_size)

    (d0, d1), (r0, r1) = _occupied_depth(settings), _occupied_side(settings)
    return for_pairs(points, mask, len(rotations), (d1 - d0) * (r1 - r0) ** 2, draw)


def resized(maps: torch.Tensor, size: int) -> torch.Tensor:
    """(B, V, S, S) -> (B, V, 3, size, size): bilinear, corners on corners as officially, three equal channels."""
    if maps.shape[-1] != size:
        maps = F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=True)
    return maps[:, :, None].expand(-1, -1, 3, -1, -1)


__all__ = [
    "GridSettings",
    "as_picture",
    "densified",
    "filled_grid",
    "for_pairs",
    "gaussian",
    "in_cells",
    "realistic_depth_maps",
    "resized",
    "sparse_depth_maps",
]
