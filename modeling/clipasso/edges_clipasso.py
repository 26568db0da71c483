"""The longest edges of a picture as strokes: where a sketch may begin instead of at salient points, and the baseline
that sketches are compared with. Not in the paper."""

import math

import numpy as np
import torch

from ..synthesis.guided_model import PUBLISHED_CANVAS
from .saliency_clipasso import gaussian_blur


_BLUR, _WEAKEST = 1.5, 0.15  # pixels; share of the strongest gradient
LONGEST = 200  # pixels of an edge that one cubic follows, on the authors' canvas of 224


def thin_edges(pixels: torch.Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W) bool, one pixel wide: where the gradient of any channel is greatest across the edge, and not
    weak (Canny's first steps). A picture of one colour has none."""
    height, width = pixels.shape[-2:]
    if min(height, width) < 2:
        return np.zeros((height, width), bool)
    blurred = torch.stack([gaussian_blur(channel.double().cpu(), _BLUR) for channel in pixels]).numpy()
    down, right = np.gradient(blurred, axis=(1, 2))
    strength = np.hypot(down, right)
    strongest = strength.argmax(0)[None]
    down, right, strength = (np.take_along_axis(one, strongest, 0)[0] for one in (down, right, strength))
    padded = np.pad(strength, 1)
    angle = (np.round(np.arctan2(down, right) / (np.pi / 4)) % 4).astype(int)
    greatest = np.zeros_like(strength, bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        greatest |= (angle == number) & (strength > ahead) & (strength >= behind)
    return greatest & (strength > max(_WEAKEST * strength.max(), 1e-6))


def edge_chains(edges: np.ndarray, longest: int) -> list[list[tuple[int, int]]]:
    """Edges followed from pixel to pixel, (x, y) of each, the longest chain first."""
    left = {(int(x), int(y)) for y, x in zip(*edges.nonzero(), strict=True)}
    steps = [(dx, dy) for reach in (1, 2) for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)]
    steps = sorted({step for step in steps if step != (0, 0)}, key=lambda step: step[0] ** 2 + step[1] ** 2)
    chains = []
    for first in sorted(left):
        if first not in left:
            continue
        left.discard(first)
        chain = [first]
        for end in (-1, 0):
            while len(chain) < longest:
                x, y = chain[end]
                near = next(((x + dx, y + dy) for dx, dy in steps if (x + dx, y + dy) in left), None)
                if near is None:
                    break
                left.discard(near)
                chain.insert(len(chain) if end else 0, near)
        chains.append(chain)
    return sorted(chains, key=len, reverse=True)


def fitted_curve(chain: torch.Tensor, segments: int = 1) -> torch.Tensor:
    """(3 * segments + 1, 2) control points of joined cubics of equal length that are nearest to (n, 2) pixels, in the
    sense of least squares; a straight line where there are fewer pixels than points."""
    count = 3 * segments + 1
    if len(chain) < count:
        t = torch.linspace(0, 1, count, dtype=chain.dtype)[:, None]
        return (1 - t) * chain[0] + t * chain[-1]
    steps = (chain[1:] - chain[:-1]).norm(dim=1).cumsum(0)
    t = segments * torch.cat([steps.new_zeros(1), steps / steps[-1]])
    piece = t.floor().clamp_max(segments - 1)
    t = t - piece
    basis = torch.stack([math.comb(3, k) * t**k * (1 - t) ** (3 - k) for k in range(4)], 1)
    columns = 3 * piece.long()[:, None] + torch.arange(4)
    rows = chain.new_zeros(len(chain), count).scatter(1, columns, basis)
    return torch.linalg.lstsq(rows, chain).solution


def edge_points(pixels: torch.Tensor, count: int, segments: int = 1, longest: int = LONGEST) -> torch.Tensor:
    """(3, H, W) in 0..1 -> (n, 3 * segments + 1, 2) control points in 0..1 along the `count` longest edges, the
    longest one first; fewer where the picture has fewer. Edges of more than `longest` pixels a segment, of a picture
    of 224, are several. On the CPU."""
    height, width = pixels.shape[-2:]
    chains = edge_chains(thin_edges(pixels), max(2, round(longest * segments * max(height, width) / PUBLISHED_CANVAS)))
    chains = [chain for chain in chains if len(chain) > 1][:count]
    if not chains:
        return torch.zeros(0, 3 * segments + 1, 2)
    points = torch.stack([fitted_curve(torch.tensor(chain, dtype=torch.float64), segments) for chain in chains])
    return ((points + 0.5) / torch.tensor([width, height], dtype=points.dtype)).float()


__all__ = ["LONGEST", "edge_chains", "edge_points", "fitted_curve", "thin_edges"]
