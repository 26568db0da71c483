"""Seeded scenes with exact depth: things that stand on a floor before a wall, as a camera sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .scenes import SceneMaker


if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, eq=False)
class DepthScene:
    """One scene; depth in metres along the camera's axis.

    Attributes:
        image (`PIL.Image.Image`): RGB, H x W.
        depth (`np.ndarray`): (H, W) float32.
        categories (`tuple[int, ...]`), distances (`tuple[float, ...]`): of the things, farthest first.
        wall (`float`): its distance.
    """

    image: Image.Image
    depth: np.ndarray
    categories: tuple[int, ...]
    distances: tuple[float, ...]
    wall: float


@dataclass(frozen=True, kw_only=True)
class DepthSceneMaker:
    """Draws scenes: `maker.scene(index)` is the same for the same settings, seed and index.

    A camera looks over a chequered floor at a wall. Floor under a row that is `drop` focal lengths below the horizon
    is `camera_height / drop` away; a thing of height s that stands at distance z is s / z focal lengths high, and
    hides what is behind it. Haze takes away colour with distance. So depth is told by place, size, the chequers, haze
    and what hides what.

    Args:
        scenes: whose classes and styles the things have (`SceneMaker`); its other settings do not matter.
        size: (width, height) in pixels.
        nearest: of things, in metres.
        walls: nearest and farthest wall.
        things: fewest and most.
        heights: smallest and largest thing, in metres.
        horizon: its highest and lowest place, as a share of the image's height.
        haze: least and most of the haze: the share of colour that is left at the wall is 1 minus it.
        camera_height, focal_length: in metres, and as a share of the image's height.
        seed: any integer from 0.

    Raises:
        ValueError: a setting is out of range.

    Example:

    ```python
    >>> maker = DepthSceneMaker(scenes=SceneMaker(styles="fluentflat"), size=(64, 48), seed=1)
    >>> scene = maker.scene(0)
    >>> scene.image.size, scene.depth.shape, bool(scene.depth.max() == np.float32(scene.wall))
    ((64, 48), (48, 64), True)
    ```
    """

    scenes: SceneMaker
    size: tuple[int, int] = (256, 192)
    nearest: float = 1.0
    walls: tuple[float, float] = (5.0, 8.0)
    things: tuple[int, int] = (2, 6)
    heights: tuple[float, float] = (0.4, 1.0)
    horizon: tuple[float, float] = (0.25, 0.5)
    haze: tuple[float, float] = (0.0, 0.6)
    camera_height: float = 1.0
    focal_length: float = 0.9
    seed: int = 0

    def __post_init__(self):
        width, height = self.size
        checks = {
            "size": (min(width, height) >= 8, "edges of at least 8 pixels"),
            "nearest": (0 < self.nearest < self.walls[0], "above 0 and before the wall"),
            "walls": (self.walls[0] <= self.walls[1] < math.inf, "nearest and farthest"),
            "things": (0 <= self.things[0] <= self.things[1] <= 255, "fewest and most, in 0..255"),
            "heights": (0 < self.heights[0] <= self.heights[1], "smallest and largest"),
            "horizon": (0 < self.horizon[0] <= self.horizon[1] < 1, "highest and lowest, in 0..1"),
            "haze": (0 <= self.haze[0] <= self.haze[1] <= 1, "least and most, in 0..1"),
            "camera_height": (self.camera_height > 0, "above 0"),
            "focal_length": (self.focal_length > 0, "above 0"),
            "seed": (self.seed >= 0, "an integer from 0"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ValueError(f"{name}: got {getattr(self, name)}; want {wanted}")

    def scene(self, index: int) -> DepthScene:
        """Scene number `index` (from 0)."""
        generator = np.random.default_rng([self.seed, index])
        width, height = self.size
        focal = self.focal_length * height
        horizon = float(generator.uniform(*self.horizon)) * height
        wall = float(generator.uniform(*self.walls))
        depth = self._room_depth(horizon, focal, wall)
        colours = self._room_colours(depth, horizon, focal, wall, generator)
        canvas = Image.fromarray(colours)
        count = int(generator.integers(self.things[0], self.things[1] + 1))
        known = list(self.scenes._rows)
        ends = np.log([self.nearest, 0.95 * wall])
        distances = sorted(np.exp(generator.uniform(*ends, count)).tolist(), reverse=True)
        categories = []
        for distance in distances:  # the nearest is drawn last, and hides the others
            category = known[int(generator.integers(len(known)))]
            picture = self.scenes.draw_object(category, width, generator)
            tall = max(1, round(float(generator.uniform(*self.heights)) * focal / distance))
            wide = max(1, round(picture.width * tall / picture.height))
            picture = picture.resize((wide, tall), Image.Resampling.LANCZOS)
            foot = horizon + self.camera_height * focal / distance
            left, top = round(float(generator.uniform(0, width)) - wide / 2), round(foot - tall)
            canvas.paste(picture, (left, top), picture)
            solid = Image.new("L", self.size)
            solid.paste(picture.getchannel("A"), (left, top))
            depth[np.asarray(solid) >= 128] = distance
            categories.append(category)
        left_over = 1 - float(generator.uniform(*self.haze)) * (depth / wall)[..., None]
        grey = float(generator.uniform(150, 255))
        hazy = np.asarray(canvas, dtype=np.float64) * left_over + grey * (1 - left_over)
        image = Image.fromarray(hazy.round().clip(0, 255).astype(np.uint8))
        return DepthScene(image, depth.astype(np.float32), tuple(categories), tuple(distances), wall)

    def _room_depth(self, horizon: float, focal: float, wall: float) -> np.ndarray:
        width, height = self.size
        drop = (np.arange(height) + 0.5 - horizon) / focal
        rows = np.where(drop > self.camera_height / wall, self.camera_height / np.maximum(drop, 1e-9), wall)
        return np.repeat(rows[:, None], width, 1)

    def _room_colours(self, depth, horizon, focal, wall, generator) -> np.ndarray:
        """(H, W, 3) uint8: a wall of one colour, and chequers of half a metre on the floor."""
        width, height = self.size
        paint = generator.integers(60, 256, (3, 3))
        side = (np.arange(width) + 0.5 - width / 2) / focal * depth
        chequers = (np.floor(2 * side) + np.floor(2 * depth)).astype(int) % 2
        colours = paint[chequers].astype(np.float64)
        at_wall = depth >= wall
        colours[at_wall] = paint[2]
        grain = generator.normal(0, 6, (height, width, 1))
        return (colours + grain).clip(0, 255).astype(np.uint8)

    def rows(self, count: int) -> Iterator[dict[str, Any]]:
        """`image`, `depth` (H, W), `distances` and `wall` of the scenes 0..count-1."""
        for index in range(count):
            scene = self.scene(index)
            yield {"image": scene.image, "depth": scene.depth, "distances": scene.distances, "wall": scene.wall}

    def dataset(self, count: int) -> datasets.Dataset:
        """The scenes 0..count-1 as a data set with the columns of `rows`; depth as (H, W) float32."""
        from datasets import Array2D, Dataset, Features, List, Value
        from datasets import Image as ImageFeature

        if count < 0:
            raise ValueError(f"count: got {count}; want 0 or more")
        features = Features(
            {
                "image": ImageFeature(),
                "depth": Array2D(self.size[::-1], "float32"),
                "distances": List(Value("float32")),
                "wall": Value("float32"),
            }
        )
        columns: dict[str, list] = {name: [] for name in features}
        for row in self.rows(count):
            for name, value in row.items():
                columns[name].append(list(value) if name == "distances" else value)
        return Dataset.from_dict(columns, features=features)


__all__ = ["DepthScene", "DepthSceneMaker"]
