"""SVG text of a drawing."""

from xml.sax.saxutils import quoteattr


def svg_of(drawing, title: str | None = None) -> str:
    """The text of an SVG file of a `StrokeDrawing`: one `path` each, lines with round ends and joins.

    A line's width is twice its radius. Colours are percentages with nine digits, so that nothing is rounded.
    """
    height, width = drawing.height, drawing.width
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ]
    if title:
        lines.append(f"<title>{quoteattr(title)[1:-1]}</title>")
    if drawing.background is not None:
        lines.append(f'<rect id="background" width="{width}" height="{height}" fill="{_color(drawing.background)}"/>')
    points, colors = drawing.points.detach().cpu(), drawing.colors.detach().cpu().tolist()
    radii, counts = drawing.radii.detach().cpu().tolist(), drawing.num_segments.tolist()
    filled = [False] * len(points) if drawing.filled is None else drawing.filled.tolist()
    for path, radius, color, count, is_filled in zip(points, radii, colors, counts, filled, strict=True):
        d = path_data(path[: 3 * count + 1].tolist()) + (" Z" if is_filled else "")
        if is_filled:
            paint = f'fill="{_color(color)}" fill-opacity="{_number(color[3])}" fill-rule="{drawing.fill_rule}"'
        else:
            paint = f'fill="none" stroke="{_color(color)}" stroke-opacity="{_number(color[3])}" '
            paint += f'stroke-width="{_number(2 * radius)}" stroke-linecap="round" stroke-linejoin="round"'
        lines.append(f'<path d="{d}" {paint}/>')
    return "\n".join([*lines, "</svg>", ""])


def path_data(points: list[list[float]], digits: int = 9) -> str:
    """`"M x y C …"` of chained cubics."""
    pairs = [f"{_number(x, digits)} {_number(y, digits)}" for x, y in points]
    return f"M {pairs[0]} C {' '.join(pairs[1:])}"


def _number(value: float, digits: int = 9) -> str:
    return f"{value:.{digits}g}"


def _color(color) -> str:
    return f"rgb({', '.join(f'{_number(100 * value)}%' for value in color[:3])})"


__all__ = ["path_data", "svg_of"]
