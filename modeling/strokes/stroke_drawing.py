"""A drawing: strokes and areas as tensors, which renders at any size and is saved as SVG or safetensors."""

import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .stroke_rasterizer import check_background, check_canvas, check_strokes, render_strokes
from .svg_reading import LARGEST_TEXT, read_svg
from .svg_writing import svg_of


FORMAT = "strokes"  # in the metadata of a safetensors file


@dataclass
class StrokeDrawing:
    r"""
    Paths on a canvas, painted in their order.

    Args:
        points: (N, P, 2), x and y in pixels of the canvas; path i uses its first 3 * num_segments[i] + 1 points.
        radii: (N,), half of the lines' widths, in pixels.
        colors: (N, 4), red, green, blue, opacity in 0..1.
        num_segments: (N,), cubics of each path.
        height, width: of the canvas.
        filled: (N,) bool, paths that are closed and filled; None: all are lines.
        fill_rule: `"nonzero"` or `"evenodd"`.
        background: red, green, blue; None: transparent.

    Raises:
        ValueError: tensors of other shapes, numbers that are not finite, absurd sizes.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing

    >>> points = torch.tensor([[[4.0, 8.0], [8.0, 2.0], [12.0, 14.0], [16.0, 8.0]]])
    >>> blue = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> drawing = StrokeDrawing(points, torch.ones(1), blue, torch.ones(1).int(), 16, 20)
    >>> drawing.render().shape, drawing.to_image(scale=10).size
    (torch.Size([3, 16, 20]), (200, 160))
    >>> again = StrokeDrawing.from_svg(drawing.to_svg())
    >>> bool((again.points == points).all())
    True
    ```
    """

    points: torch.Tensor
    radii: torch.Tensor
    colors: torch.Tensor
    num_segments: torch.Tensor
    height: int
    width: int
    filled: torch.Tensor | None = None
    fill_rule: str = "nonzero"
    background: tuple[float, float, float] | None = (1.0, 1.0, 1.0)

    def __post_init__(self):
        check_canvas(self.height, self.width)
        check_background(self.background)
        parts = (self.points, self.radii, self.colors, self.num_segments, self.filled)
        check_strokes(*(part if part is None or not isinstance(part, torch.Tensor) else part[None] for part in parts))
        if self.colors.numel() and not (self.colors.min() >= 0 and self.colors.max() <= 1):
            low, high = self.colors.min().item(), self.colors.max().item()
            raise ValueError(f"colors: {low:g}..{high:g}, expected numbers in 0..1")
        if self.fill_rule not in ("nonzero", "evenodd"):
            raise ValueError(f"fill_rule: {self.fill_rule!r}, expected 'nonzero' or 'evenodd'")

    def __len__(self) -> int:
        return len(self.points)

    def scaled(self, scale: float) -> "StrokeDrawing":
        """The same drawing on a canvas `scale` times as large."""
        sizes = (max(1, round(self.height * scale)), max(1, round(self.width * scale)))
        return replace(self, points=self.points * scale, radii=self.radii * scale, height=sizes[0], width=sizes[1])

    def first(self, count: int) -> "StrokeDrawing":
        """The first `count` paths only."""
        parts = ("points", "radii", "colors", "num_segments", "filled")
        cut = {name: getattr(self, name)[:count] for name in parts if getattr(self, name) is not None}
        return replace(self, **cut)

    def render(self, scale: float = 1.0) -> torch.Tensor:
        """(3, H, W) in 0..1, or (4, H, W) premultiplied without a background. Differentiable."""
        drawing = self if scale == 1 else self.scaled(scale)
        return render_strokes(
            drawing.points[None],
            drawing.radii[None],
            drawing.colors[None],
            drawing.num_segments[None],
            height=drawing.height,
            width=drawing.width,
            filled=None if drawing.filled is None else drawing.filled[None],
            fill_rule=drawing.fill_rule,
            background=drawing.background,
        )[0]

    @torch.no_grad()
    def to_image(self, scale: float = 1.0) -> Image.Image:
        """RGB, or RGBA without a background."""
        return image_of(self.render(scale))

    # ---- files

    def to_svg(self) -> str:
        """SVG that browsers and editors open. Numbers are written so that they are read back as they were."""
        return svg_of(self)

    @classmethod
    def from_svg(cls, text: str) -> "StrokeDrawing":
        """Paths and shapes of an SVG file's text, in their order: strokes with round ends, and filled areas. A shape
        with both becomes an area and a line. Needs `svgelements` (`pip install hf-clip-variants[synthesis]`).

        Raises:
            ValueError: no SVG, nothing to draw in it, entities, too much of it.
            ImportError: without svgelements.
        """
        fields = read_svg(text)
        try:
            return cls(**fields)
        except ValueError as error:  # its size, or coordinates that are not finite
            raise ValueError(f"svg: {error}") from error

    def to_bytes(self) -> bytes:
        """As a safetensors file, exact; the same drawing gives the same bytes."""
        tensors = {name: getattr(self, name) for name in ("points", "radii", "colors", "num_segments")}
        if self.filled is not None:
            tensors["filled"] = self.filled
        settings = {
            "format": FORMAT,
            "canvas": json.dumps([self.height, self.width]),
            "background": json.dumps(self.background),
            "fill_rule": self.fill_rule,
        }
        return _sorted_header(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=settings))

    def save(self, path: str | os.PathLike) -> Path:
        """Writes `.svg`, `.safetensors` or `.png`, by the name's ending."""
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".svg":
            content = self.to_svg().encode()
        elif kind == ".safetensors":
            content = self.to_bytes()
        elif kind == ".png":
            stream = io.BytesIO()
            self.to_image().save(stream, "PNG")
            content = stream.getvalue()
        else:
            raise ValueError(f"path: {path.name}, expected a name that ends in .svg, .safetensors or .png")
        aside = path.with_name(f".tmp-{path.name[:80]}-{os.getpid()}")
        try:  # a full disk leaves the file that was there
            aside.write_bytes(content)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "StrokeDrawing":
        """Reads `.svg` or `.safetensors`, which `save` wrote or, of SVG, anybody.

        Raises:
            OSError: the file is missing, or cannot be read.
            ValueError: it holds no drawing.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path: {path} is not a file")
        if path.suffix.lower() == ".svg":
            if path.stat().st_size > 4 * LARGEST_TEXT:
                raise ValueError(f"{path}: {path.stat().st_size} bytes, expected at most {4 * LARGEST_TEXT}")
            try:
                return cls.from_svg(path.read_bytes().decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: no SVG file in UTF-8 ({error})") from None
        try:
            with safe_open(path, "pt") as file:
                settings = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise OSError(f"{path}: not a valid safetensors file ({error})") from error
        if settings.get("format") != FORMAT:
            raise ValueError(f"{path}: no drawing: its metadata have no format {FORMAT!r}")
        try:
            height, width = json.loads(settings["canvas"])
            background = json.loads(settings["background"])
            return cls(
                **tensors,
                height=height,
                width=width,
                fill_rule=settings["fill_rule"],
                background=None if background is None else tuple(background),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no drawing ({error})") from error


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header in a fixed order; safetensors writes metadata in any order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def image_of(pixels: torch.Tensor) -> Image.Image:
    """(3, H, W) in 0..1 as RGB; (4, H, W), premultiplied, as RGBA."""
    if len(pixels) == 4:
        pixels = torch.cat([pixels[:3] / pixels[3:].clamp_min(1e-6), pixels[3:]])
    levels = (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.fromarray(levels.cpu().numpy())


__all__ = ["StrokeDrawing", "image_of"]
