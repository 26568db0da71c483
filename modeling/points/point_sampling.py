"""Points on surfaces, fewer points, and where clouds stand: plain functions on arrays (N, 3)."""

import numpy as np
import torch


# How many of three axes to turn by so that the named one points up, to +y: new (x, y, z) as columns of the old ones.
_TURNS = {"y": ((0, 1), (1, 1), (2, 1)), "z": ((0, 1), (2, 1), (1, -1)), "x": ((1, -1), (0, 1), (2, 1))}
UP_AXES = tuple(_TURNS)


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(count, 3) points on triangles, as many on a triangle as its area says, float32.

    The same seed gives the same points. Vertices themselves, in turn, where no triangle has an area.

    >>> corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
    >>> points = sample_surface(corners, np.array([[0, 1, 2]]), 4)
    >>> points.shape, bool((points.sum(1) <= 1).all())
    ((4, 3), True)
    """
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    upto = np.linalg.norm(np.cross(b - a, c - a), axis=1).cumsum()
    if not upto[-1] > 0:
        return vertices[np.arange(count) % len(vertices)].astype(np.float32)
    random = np.random.default_rng(seed)
    # The last triangle with an area where rounding puts a number at the very end.
    chosen = np.searchsorted(upto, random.random(count) * upto[-1], side="right")
    chosen = chosen.clip(max=np.searchsorted(upto, upto[-1]))
    root, share = np.sqrt(random.random((count, 1))), random.random((count, 1))
    points = (1 - root) * a[chosen] + root * (1 - share) * b[chosen] + root * share * c[chosen]
    return points.astype(np.float32)


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """(count, 3) points of a cloud, each the one farthest from all before it; the first one is farthest from the mean.

    All of them, if there are no more than `count`. Needs count * N steps.
    """
    if len(points) <= count:
        return points
    cloud = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    chosen = torch.empty(count, dtype=torch.long)
    chosen[0] = (cloud - cloud.mean(0)).square().sum(1).argmax()
    nearest = (cloud - cloud[chosen[0]]).square().sum(1)
    for number in range(1, count):
        chosen[number] = nearest.argmax()
        nearest = torch.minimum(nearest, (cloud - cloud[chosen[number]]).square().sum(1))
    return points[chosen.numpy()]


def in_unit_sphere(points: np.ndarray) -> np.ndarray:
    """(N, 3) float32: the mean at 0, the farthest point at distance 1; a single point, or equal ones, at 0."""
    wide = points.astype(np.float64)
    wide = wide - wide.mean(0)
    radius = np.linalg.norm(wide, axis=1).max()
    return (wide / radius if radius > 0 else wide).astype(np.float32)


def with_y_up(points: np.ndarray, up_axis: str) -> np.ndarray:
    """(N, 3) turned so that `up_axis` ("x", "y" or "z") points to +y; a rotation, no reflection.

    >>> with_y_up(np.array([[1.0, 2.0, 3.0]]), "z").tolist()
    [[1.0, 3.0, -2.0]]
    """
    if up_axis not in _TURNS:
        raise ValueError(f"up_axis: {up_axis!r}, expected one of {', '.join(_TURNS)}")
    if up_axis == "y":
        return points
    return np.stack([sign * points[:, axis] for axis, sign in _TURNS[up_axis]], 1)


def augment_points(points: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """(B, N, 3) -> as PointCLIP trains: each axis of a cloud scaled by 2/3 to 3/2, moved by -0.2 to 0.2, points
    shuffled."""
    options = {"generator": generator, "dtype": points.dtype, "device": points.device}
    scale, shift = (torch.rand(len(points), 1, 3, **options) for _ in range(2))
    moved = points * (2 / 3 + scale * (3 / 2 - 2 / 3)) + (0.4 * shift - 0.2)
    order = torch.rand(points.shape[:2], **options).argsort(1)
    return moved.gather(1, order[..., None].expand_as(moved))


__all__ = ["UP_AXES", "augment_points", "farthest_points", "in_unit_sphere", "sample_surface", "with_y_up"]
