"""SVG files as drawings. Geometry, styles and transforms are read by svgelements; paths become chains of cubics."""

import importlib
import io
import logging
import re

import torch

from .stroke_rasterizer import LARGEST_CANVAS


logger = logging.getLogger(__name__)

LARGEST_TEXT = 20_000_000  # characters
LARGEST_POINTS = 5_000_000  # of all paths, padded to the longest
_CHANNEL = re.compile(r"([-+.\deE]+)(%?)")


def read_svg(text: str) -> dict:
    """The fields of a `StrokeDrawing`. Units are pixels of the file's own size.

    Read as they are drawn: transforms, shapes, arcs, styles, opacity, widths. Otherwise: ends and joins of all lines
    are round; gradients, pictures and text are left out, with a warning. A first rectangle that covers the canvas is
    the background.
    """
    if not isinstance(text, str) or "<svg" not in text:
        raise ValueError("svg: no <svg> element in it")
    if len(text) > LARGEST_TEXT:
        raise ValueError(f"svg: {len(text)} characters, expected at most {LARGEST_TEXT}")
    if "<!ENTITY" in text:
        raise ValueError("svg: it declares entities, expected a file without them")
    try:
        svgelements = importlib.import_module("svgelements")
    except ImportError as error:
        raise ImportError("reading SVG files needs svgelements: pip install hf-clip-variants[synthesis]") from error
    try:
        size, paths, background, rules, left_out = _parsed(svgelements, text)
    except Exception as error:  # whatever a broken file makes of the parser
        raise ValueError(f"svg: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
    if left_out:
        logger.warning("svg: left out %s, which strokes and areas cannot show", ", ".join(sorted(left_out)))
    if not paths:
        raise ValueError("svg: no path or shape with a stroke or a fill in it")
    longest = max(len(path["points"]) for path in paths)
    if longest * len(paths) > LARGEST_POINTS:
        raise ValueError(
            f"svg: {len(paths)} paths of up to {longest} points, expected at most {LARGEST_POINTS} together"
        )
    points = torch.zeros(len(paths), longest, 2)
    for row, path in enumerate(paths):
        points[row, : len(path["points"])] = torch.tensor(path["points"])
    return {
        "points": points,
        "radii": torch.tensor([path["radius"] for path in paths]),
        "colors": torch.tensor([path["color"] for path in paths]),
        "num_segments": torch.tensor([(len(path["points"]) - 1) // 3 for path in paths]),
        "filled": torch.tensor([path["filled"] for path in paths]),
        "fill_rule": "evenodd" if rules == {"evenodd"} else "nonzero",
        "height": size[0],
        "width": size[1],
        "background": background,
    }


def _parsed(svgelements, text: str):
    """Size, paths, background, fill rules, and what was left out."""
    svg = svgelements.SVG.parse(io.StringIO(text), reify=True)
    width, height = float(svg.width), float(svg.height)
    for name, side in (("width", width), ("height", height)):
        if not 0 < side <= LARGEST_CANVAS:
            raise ValueError(f"{name}: {side:.10g} pixels, expected more than 0 and at most {LARGEST_CANVAS}")
    size = max(1, round(height)), max(1, round(width))
    paths, background, rules, left_out = [], None, set(), set()
    for element in svg.elements():
        if isinstance(element, svgelements.Shape):
            background = _background(svgelements, element, size, paths, background)
            if background is not None and not paths and _covers(svgelements, element, size):
                continue
            _add(svgelements, element, paths, rules, left_out)
        elif isinstance(element, svgelements.Image | svgelements.Text):
            left_out.add(type(element).__name__.lower())
    return size, paths, background, rules, left_out


def _covers(svgelements, element, size) -> bool:
    if not isinstance(element, svgelements.Rect):
        return False
    x, y, width, height = (float(getattr(element, name) or 0) for name in ("x", "y", "width", "height"))
    return x <= 0 and y <= 0 and x + width >= size[1] - 0.5 and y + height >= size[0] - 0.5


def _background(svgelements, element, size, paths, found):
    if found is not None or paths or not _covers(svgelements, element, size):
        return found
    color = _paint(element, "fill")
    return None if color is None or color == "other" or color[3] < 1 else tuple(color[:3])


def _add(svgelements, element, paths, rules, left_out) -> None:
    """The area and the lines of one shape."""
    fill, stroke = _paint(element, "fill"), _paint(element, "stroke")
    if "other" in (fill, stroke):
        left_out.add("gradient or pattern")
    chains = list(_chains(svgelements, svgelements.Path(element)))
    if fill not in (None, "other") and chains:
        rules.add(element.values.get("fill-rule") or "nonzero")
        paths.append({"points": _bridged(chains), "radius": 0.0, "color": fill, "filled": True})
    if stroke not in (None, "other"):
        radius = max(0.0, float(element.stroke_width or 0) / 2)
        for points, _ in chains:
            paths.append({"points": points, "radius": radius, "color": stroke, "filled": False})


def _paint(element, name: str):
    """Red, green, blue, opacity; None without paint; "other" for gradients and patterns."""
    raw = str(element.values.get(name) or ("black" if name == "fill" else "none")).strip()
    if raw.startswith("url("):
        return "other"
    paint = getattr(element, name)
    if paint is None or paint.value is None:
        return None
    color = [paint.red / 255, paint.green / 255, paint.blue / 255]
    opacity = float(paint.opacity)
    if raw.startswith("rgb("):  # svgelements rounds to 8 bits
        parts = _CHANNEL.findall(raw[4:])
        if len(parts) == 3:
            color = [min(1.0, max(0.0, float(number) / (100 if sign else 255))) for number, sign in parts]
    given = [element.values.get(key) for key in (f"{name}-opacity", "opacity")]
    if any(value is not None for value in given):
        opacity = 1.0
        for value in given:
            if value is not None:
                text = str(value)
                opacity *= float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    return [*color, min(1.0, max(0.0, opacity))]


def _chains(svgelements, path):
    """(points, whether closed) of each sub-path: the first point, and three for each cubic."""
    points, closed = [], False
    for segment in path:
        if isinstance(segment, svgelements.Move):
            if len(points) > 1:
                yield points, closed
            points, closed = [_pair(segment.end)], False
            continue
        if not points:
            points = [_pair(segment.start)]
        if isinstance(segment, svgelements.CubicBezier):
            cubics = [segment]
        elif isinstance(segment, svgelements.Arc):
            cubics = list(segment.as_cubic_curves())
        elif isinstance(segment, svgelements.QuadraticBezier):
            start, control, end = (_pair(p) for p in (segment.start, segment.control, segment.end))
            inner = [[(a + 2 * b) / 3 for a, b in zip(one, control, strict=True)] for one in (start, end)]
            points += [*inner, end]
            continue
        else:  # a line, or the one that closes the path
            closed = closed or isinstance(segment, svgelements.Close)
            end = segment.end if segment.end is not None else path.first_point
            if _pair(end) != points[-1] or (closed and len(points) == 1):
                points += _straight(points[-1], _pair(end))
            continue
        for cubic in cubics:
            points += [_pair(cubic.control1), _pair(cubic.control2), _pair(cubic.end)]
    if len(points) > 1:
        yield points, closed


def _bridged(chains) -> list:
    """One chain of all sub-paths of an area: a line to the next one and back, which encloses nothing. Holes stay."""
    whole = list(chains[0][0])
    first = whole[0]
    if len(chains) == 1:
        return whole
    if whole[-1] != first:
        whole += _straight(whole[-1], first)
    for points, _ in chains[1:]:
        whole += _straight(first, points[0]) + points[1:]
        if points[-1] != points[0]:
            whole += _straight(points[-1], points[0])
        whole += _straight(points[0], first)
    return whole


def _straight(start, end) -> list:
    return [[a + (b - a) * share for a, b in zip(start, end, strict=True)] for share in (1 / 3, 2 / 3)] + [list(end)]


def _pair(point) -> list[float]:
    return [float(point.x), float(point.y)]


__all__ = ["read_svg"]
