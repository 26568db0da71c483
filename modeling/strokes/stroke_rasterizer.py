"""Differentiable drawings of Bezier strokes and filled paths, in plain PyTorch.

A pixel's coverage by a stroke is a smooth step of its distance to the curve, and strokes are painted over each other
in their order. Where the nearest point of a curve lies is searched without gradient; the distance to it is then
differentiated with the place on the curve held fixed, which is the exact derivative (envelope theorem). Conventions
are diffvg's (Li et al. 2020, https://dl.acm.org/doi/10.1145/3414685.3417871): pixel (x, y) has its centre at
(x + 0.5, y + 0.5), a radius is half of the width of a line, ends and joins are round. Unlike diffvg, colours are
composited premultiplied, without the dark fringe that CLIPDraw's official code gets, and straight lines are drawn.
"""

import torch

from .curve_search import Fragments, cubic_basis, find_fragments, with_closing_segments


SOFTNESS = 0.65  # nearest to the average over a pixel's square; 1 is diffvg's prefiltering
SEARCH_SEGMENTS, NEWTON_STEPS = 16, 4
LARGEST_CANVAS = 8192
_LEAST_SQUARE = 1e-12  # of a distance: nearer, a centre lies on the curve, and its gradient is zero


# D drawings, N strokes of each, P control points, M fragments (pixels that a stroke touches), C channels


def smooth_step(x: torch.Tensor, softness: float) -> torch.Tensor:
    """S_h(x): 0 below -h, 1 above h, u^2 (3 - 2u) with u = (x / h + 1) / 2 between."""
    u = ((x / softness + 1) / 2).clamp(0, 1)
    return u * u * (3 - 2 * u)


def stroke_coverage(distance: torch.Tensor, radius: torch.Tensor, softness: float = SOFTNESS) -> torch.Tensor:
    """Coverage in 0..1 of pixels at `distance` from the middle of a line of `radius`, both in pixels.

    S_h(d + r) - S_h(d - r). Thin lines fade instead of vanishing: the ink stays 2 r times the length for r < h.
    """
    return smooth_step(distance + radius, softness) - smooth_step(distance - radius, softness)


def render_strokes(
    points: torch.Tensor,
    radii: torch.Tensor,
    colors: torch.Tensor,
    num_segments: torch.Tensor | None = None,
    *,
    height: int,
    width: int,
    filled: torch.Tensor | None = None,
    fill_rule: str = "nonzero",
    background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    softness: float = SOFTNESS,
    search_segments: int = SEARCH_SEGMENTS,
    newton_steps: int = NEWTON_STEPS,
) -> torch.Tensor:
    r"""
    Draws strokes; differentiable in points, radii and colours.

    Args:
        points: (D, N, P, 2), x and y in pixels of the control points of D drawings of N paths. A path is a chain of
            cubics: segment k uses points 3 k .. 3 k + 3. They may lie outside of the canvas.
        radii: (D, N), half of the lines' widths, in pixels, >= 0.
        colors: (D, N, 4), red, green, blue and opacity in 0..1.
        num_segments: (D, N), cubics of each path, 1..(P - 1) / 3; the points behind them do not matter. None: all.
        height, width: of the canvas, in pixels.
        filled: (D, N), true for paths that are closed and filled, whose radius does not matter. None: all are lines.
        fill_rule: of filled paths that cross themselves: `"nonzero"` or `"evenodd"`, as in SVG.
        background: red, green, blue under the strokes; None: transparent.
        softness: h of the coverage, in pixels.
        search_segments, newton_steps: chords of each cubic and refinements of the search for the nearest point. Near
            cusps and loops the chord that is nearest may belong to the second nearest part of the curve. Of pixels of
            random curves of 20 (60) pixels, 0.003 % (0.04 %) are off by more than 0.01 with 16 and 4, at most by 0.01
            (0.12); with 8 and 2, 0.1 % (0.2 %), at most by 0.1 (0.3); with 32 and 4, none (0.003 %, at most by 0.02).

    Returns:
        (D, 3, H, W) in 0..1; with `background=None` (D, 4, H, W), premultiplied by the opacity in the last channel.
        In the dtype of `points`, computed in float32 at least.

    Raises:
        ValueError: other shapes, numbers that are not finite, negative radii, absurd sizes.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.strokes.stroke_rasterizer import render_strokes

    >>> line = torch.tensor([[[[4.0, 8.0], [8.0, 8.0], [12.0, 8.0], [16.0, 8.0]]]], requires_grad=True)
    >>> image = render_strokes(line, torch.ones(1, 1), torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]), height=16, width=20)
    >>> round(float((1 - image[0, 0]).sum()))  # ink: 2 * radius * length, and half a disc at each end
    27
    >>> image.sum().backward()
    >>> line.grad.isfinite().all().item()
    True
    ```
    """
    check_strokes(points, radii, colors, num_segments, filled)
    check_canvas(height, width)
    if fill_rule not in ("nonzero", "evenodd"):
        raise ValueError(f"fill_rule: {fill_rule!r}, expected 'nonzero' or 'evenodd'")
    check_background(background)
    if not isinstance(softness, int | float) or not 0.01 <= softness <= 100:
        raise ValueError(f"softness: {softness!r}, expected pixels in 0.01..100")
    for name, value, low in (("search_segments", search_segments, 1), ("newton_steps", newton_steps, 0)):
        if type(value) is not int or not low <= value <= 1024:
            raise ValueError(f"{name}: {value!r}, expected a whole number in {low}..1024")
    drawings, strokes, control_points = points.shape[:3]
    dtype = points.dtype
    wide = torch.promote_types(dtype, torch.float32)
    points, radii, colors = points.to(wide), radii.to(wide), colors.to(wide)
    if num_segments is None:
        num_segments = torch.full((drawings, strokes), (control_points - 1) // 3, device=points.device)
    num_segments = num_segments.flatten().long()
    points, radii = points.flatten(0, 1), radii.flatten()
    areas = None
    if filled is not None and filled.any():
        areas = filled.flatten().bool()
        points, num_segments = with_closing_segments(points, num_segments, areas)
    with torch.no_grad():
        fragments = find_fragments(
            points.detach(),
            radii.detach(),
            num_segments,
            areas,
            (height, width),
            softness,
            search_segments,
            newton_steps,
            fill_rule == "evenodd",
        )
    coverage = fragment_coverage(points, radii, fragments, softness)
    flat = colors.flatten(0, 1)
    alphas = coverage * flat[:, 3].index_select(0, fragments.stroke)
    inks = flat[:, :3]
    if background is None:
        inks = torch.cat([inks, torch.ones_like(inks[:, :1])], 1)
    ground = points.new_zeros(4) if background is None else points.new_tensor(background)
    pixels = fragments.pixel + torch.div(fragments.stroke, strokes, rounding_mode="floor") * (height * width)
    canvas = _Compositing.apply(alphas, inks, fragments.stroke, pixels, ground, drawings * height * width)
    return canvas.view(drawings, height, width, -1).permute(0, 3, 1, 2).contiguous().to(dtype)


# ---- coverage


def fragment_coverage(
    points: torch.Tensor, radii: torch.Tensor, fragments: Fragments, softness: float
) -> torch.Tensor:
    """(M,) of the fragments of (D N, P, 2) points and (D N,) radii, differentiable. Those inside of a line or an area
    are 1 and have no gradient: their distance is never computed."""
    near = fragments.near
    index = fragments.point_index
    basis = cubic_basis(fragments.t)
    distance = _Distance.apply(points, index, basis, fragments.centre)
    radius = radii.index_select(0, fragments.stroke.index_select(0, near))
    covered = stroke_coverage(distance, radius, softness)
    if fragments.side is not None:
        area = fragments.side != 0
        covered = torch.where(area, smooth_step(distance * fragments.side, softness), covered)
    return points.new_ones(len(fragments.stroke)).index_copy(0, near, covered)


class _Distance(torch.autograd.Function):
    """|B(t) - X| with t fixed: (K, P, 2) points, (M, 4) flat indices of control points, (M, 4) their weights, (M, 2)
    centres of pixels -> (M,)."""

    @staticmethod
    def forward(ctx, points, index, basis, centre):
        flat = points.reshape(-1, 2)
        apart = [(flat[:, axis].take(index) * basis).sum(1) - centre[:, axis] for axis in (0, 1)]
        square = apart[0].square() + apart[1].square()
        distance = square.clamp_min(_LEAST_SQUARE).sqrt()
        scale = torch.where(square > _LEAST_SQUARE, 1 / distance, 0)
        ctx.save_for_backward(index, basis, apart[0] * scale, apart[1] * scale)
        ctx.shape = points.shape
        return distance

    @staticmethod
    def backward(ctx, grad):
        index, basis, *directions = ctx.saved_tensors
        flat = index.flatten()
        size = ctx.shape[0] * ctx.shape[1]
        # One axis at a time: adding rows of two numbers by index is a hundred times slower on a CPU.
        axes = [
            grad.new_zeros(size).scatter_add_(0, flat, ((grad * direction)[:, None] * basis).flatten())
            for direction in directions
        ]
        return torch.stack(axes, -1).view(ctx.shape), None, None, None


# ---- colours


class _Compositing(torch.autograd.Function):
    """C <- C (1 - a) + a c for the fragments of each pixel in the strokes' order.

    (M,) alphas, (K, C) inks of strokes, (M,) stroke and (M,) pixel of each fragment with strokes ascending, (C,)
    ground -> (pixels, C). Fragments are sorted by their rank within the pixel, and ranks are painted one after the
    other: as many steps as strokes lie over each other at most, not as many as there are strokes.
    """

    @staticmethod
    def forward(ctx, alphas, inks, stroke, pixel, ground, num_pixels):
        canvas = ground.expand(num_pixels, -1).clone()
        ctx.num_inks = len(inks)
        ctx.empty = not len(pixel)
        ctx.shape = alphas.shape
        if ctx.empty:
            return canvas
        order, places, levels = _by_rank(pixel)
        sorted_stroke = stroke.index_select(0, order)
        a, c = alphas.index_select(0, order)[:, None], inks.index_select(0, sorted_stroke)
        current = canvas.index_select(0, places)
        before = torch.empty_like(c)
        start = 0
        for count in levels:
            part = slice(start, start + count)
            before[part] = current[:count]
            current[:count] += a[part] * (c[part] - current[:count])
            start += count
        ctx.levels = levels
        ctx.save_for_backward(a, c, before, order, places, sorted_stroke)
        return canvas.index_copy_(0, places, current)

    @staticmethod
    def backward(ctx, grad):
        if ctx.empty:
            return grad.new_zeros(ctx.shape), grad.new_zeros(ctx.num_inks, grad.shape[1]), None, None, None, None
        a, c, before, order, places, stroke = ctx.saved_tensors
        current = grad.index_select(0, places)
        of_alphas, of_inks = torch.empty_like(a[:, 0]), torch.empty_like(c)
        start = len(a)
        for count in reversed(ctx.levels):
            part = slice(start - count, start)
            of_alphas[part] = (current[:count] * (c[part] - before[part])).sum(1)
            of_inks[part] = a[part] * current[:count]
            current[:count] *= 1 - a[part]
            start -= count
        gradient = torch.empty_like(of_alphas).index_copy_(0, order, of_alphas)
        channels = [
            grad.new_zeros(ctx.num_inks).scatter_add_(0, stroke, of_inks[:, channel])
            for channel in range(grad.shape[1])
        ]
        return gradient, torch.stack(channels, 1), None, None, None, None


def _by_rank(pixel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(M,) pixels of fragments, in painting order -> fragments sorted by their rank within the pixel (M,); the pixels
    in the order of each rank's fragments; the number of fragments of each rank."""
    by_pixel = torch.sort(pixel.int() if pixel.max() < 2**31 else pixel, stable=True)
    places, counts = torch.unique_consecutive(by_pixel.values, return_counts=True)
    counts, fullest = torch.sort(counts, descending=True, stable=True)
    starts = (counts.new_zeros(len(counts)).index_copy_(0, fullest, counts)).cumsum(0).index_select(0, fullest)
    starts = starts - counts
    levels = [len(counts), *(len(counts) - torch.bincount(counts).cumsum(0)).tolist()[1:-1]]
    ranks = [starts[:count] + rank for rank, count in enumerate(levels)]
    return by_pixel.indices.index_select(0, torch.cat(ranks)), places.index_select(0, fullest).long(), levels


# ---- what comes in


def check_canvas(height: int, width: int) -> None:
    """ValueError unless both are whole numbers in 1..8192."""
    for name, value in (("height", height), ("width", width)):
        if type(value) is not int or not 1 <= value <= LARGEST_CANVAS:
            raise ValueError(f"{name}: {value!r}, expected a whole number of pixels in 1..{LARGEST_CANVAS}")


def check_background(background) -> None:
    """ValueError unless it is None or three numbers in 0..1."""
    if background is not None and (
        not isinstance(background, list | tuple)
        or len(background) != 3
        or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in background)
    ):
        raise ValueError(f"background: {str(background)[:60]}, expected red, green and blue in 0..1, or None")


def check_strokes(points, radii, colors, num_segments, filled) -> None:
    """ValueError, which names the argument, for anything that `render_strokes` does not take."""
    if not isinstance(points, torch.Tensor) or points.dim() != 4 or points.shape[-1] != 2:
        got = list(points.shape) if isinstance(points, torch.Tensor) else type(points).__name__
        raise ValueError(f"points: got {got}, expected [drawings, strokes, control points, 2]")
    if not points.is_floating_point():
        raise ValueError(f"points: got {points.dtype}, expected floats")
    if points.shape[2] < 4 or points.shape[2] % 3 != 1:
        raise ValueError(f"points: {points.shape[2]} control points a stroke, expected 3 * segments + 1")
    wanted = points.shape[:2]
    for name, value, shape in (
        ("radii", radii, wanted),
        ("colors", colors, (*wanted, 4)),
        ("num_segments", num_segments, wanted),
        ("filled", filled, wanted),
    ):
        if value is None and name in ("num_segments", "filled"):
            continue
        if not isinstance(value, torch.Tensor) or value.shape != torch.Size(shape):
            got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name}: got {got}, expected a tensor of shape {list(shape)}")
        wants_floats = name in ("radii", "colors")
        if value.is_complex() or value.is_floating_point() != wants_floats:
            kind = "floats" if wants_floats else "true or false" if name == "filled" else "whole numbers"
            raise ValueError(f"{name}: got {value.dtype}, expected {kind}")
    for name, value in (("points", points), ("radii", radii), ("colors", colors)):
        if not value.isfinite().all():
            raise ValueError(f"{name}: NaN or infinite numbers, expected finite ones")
    if radii.numel() and radii.min() < 0:
        raise ValueError(f"radii: {radii.min().item():g}, expected numbers >= 0")
    if num_segments is not None and num_segments.numel():
        low, high = int(num_segments.min()), int(num_segments.max())
        if low < 1 or high > (points.shape[2] - 1) // 3:
            raise ValueError(f"num_segments: {low}..{high}, expected 1..{(points.shape[2] - 1) // 3}")


__all__ = [
    "SOFTNESS",
    "check_background",
    "check_canvas",
    "check_strokes",
    "render_strokes",
    "smooth_step",
    "stroke_coverage",
]
