"""The plain way to draw strokes, which the tests compare `stroke_rasterizer.py` with: every pixel, every stroke, many
samples of the curve. Slow; for small canvases."""

import torch

from .curve_search import cubic_basis
from .stroke_rasterizer import SOFTNESS, smooth_step, stroke_coverage


def curve_distances(points: torch.Tensor, num_segments: int, height: int, width: int, samples: int = 512):
    """(P, 2) control points -> (H, W) distances of the pixels' centres, and (L, 2) points along the curve."""
    t = torch.linspace(0, 1, samples + 1, dtype=points.dtype)
    curve = torch.cat([cubic_basis(t) @ points[3 * k : 3 * k + 4] for k in range(num_segments)])
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres = torch.stack([x, y], -1).to(points.dtype).view(-1, 1, 2)
    start, step = curve[:-1], curve[1:] - curve[:-1]
    length = step.square().sum(-1).clamp_min(1e-30)
    found = []
    for some in centres.split(256):
        share = (((some - start) * step).sum(-1) / length).clamp(0, 1)
        found.append((some - start - share[..., None] * step).norm(dim=-1).amin(1))
    return torch.cat(found).view(height, width), curve


def inside_of(curve: torch.Tensor, height: int, width: int, even_odd: bool = False) -> torch.Tensor:
    """(L, 2) points along a closed outline -> (H, W) whether each pixel's centre is inside."""
    start, end = curve, curve.roll(-1, 0)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = x.to(curve.dtype).reshape(-1, 1), y.to(curve.dtype).reshape(-1, 1)
    crossed = (start[:, 1] <= y) != (end[:, 1] <= y)
    rise = end[:, 1] - start[:, 1]
    at = start[:, 0] + (y - start[:, 1]) / torch.where(rise == 0, 1, rise) * (end[:, 0] - start[:, 0])
    turns = (crossed & (at < x)) * torch.where(rise > 0, 1, -1)
    turns = turns.sum(1).view(height, width)
    return turns % 2 != 0 if even_odd else turns != 0


def render_strokes_reference(
    points, radii, colors, num_segments, *, height, width, filled=None, even_odd=False, softness=SOFTNESS, samples=512
) -> torch.Tensor:
    """(N, P, 2), (N,), (N, 4), (N,) -> (3, H, W) on white. Outlines of areas must not overlap themselves unless
    `even_odd`."""
    canvas = points.new_ones(3, height, width)
    for stroke in range(len(points)):
        curve_points, count = points[stroke], int(num_segments[stroke])
        if filled is not None and filled[stroke]:
            end, start = curve_points[3 * count], curve_points[0]
            back = torch.stack([end + (start - end) * share for share in (1 / 3, 2 / 3, 1)])
            curve_points = torch.cat([curve_points[: 3 * count + 1], back])
            distance, curve = curve_distances(curve_points, count + 1, height, width, samples)
            side = torch.where(inside_of(curve, height, width, even_odd), 1.0, -1.0)
            coverage = smooth_step(side * distance, softness)
        else:
            distance, _ = curve_distances(curve_points, count, height, width, samples)
            coverage = stroke_coverage(distance, radii[stroke], softness)
        alpha = coverage * colors[stroke, 3]
        canvas = canvas * (1 - alpha) + alpha * colors[stroke, :3, None, None]
    return canvas


__all__ = ["curve_distances", "inside_of", "render_strokes_reference"]
