"""The pictures of `sketch_recognition.py`, and the strokes that it compares sketches with."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_clip_variants.modeling.clipasso.saliency_clipasso import gaussian_blur
from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.modeling.synthesis.guided_model import picture_tensor


SIDE = 224

# Name: stamp's path, or clip art's title (the first one with it).
REPORTED = {
    "owl": "animals/birds/owl",
    "banana": "banana",
    "penguin": "animals/birds/penguin",
    "cherries": "cherries",
    "rooster": "animals/birds/rooster",
    "mushroom": "mushroom",
    "dolphin": "animals/mammals/aquatic/dolphin",
    "key": "key juliane krug",
    "elephant": "animals/mammals/elephant",
    "scissors": "scissors forbici franc",
    "two-hump camel": "animals/mammals/camel/camel",
    "sailboat": "sailboat illustration",
    "lady beetle": "animals/insects/cartoon/ladybug",
    "rocket": "rocket",
    "snail": "animals/insects/cartoon/snail",
    "umbrella": "umbrella",
    "pineapple": "food/fruit/pineapple",
    "pizza": "pizza cheese",
    "top hat": "clothes/hats/tophat",
    "scorpion": "scorpion v0.",
}
DEVELOPED = {
    "duck": "animals/birds/duck",
    "kangaroo": "animals/marsupials/kangaroo",
    "butterfly": "animals/insects/cartoon/butterfly",
    "rabbit": "animals/mammals/rodents/rabbit",
    "pear": "pear",
    "strawberry": "strawberry",
    "guitar": "guitar ganson",
    "Christmas tree": "christmas tree",
    "violin": "violin colour ganson",
    "teapot": "teapot ganson",
}
STAMPS = [name for name, source in {**REPORTED, **DEVELOPED}.items() if "/" in source]


def load_pictures(data: Path, wanted: dict[str, str]) -> dict[str, torch.Tensor]:
    """(3, 224, 224) of each name: the thing on white with a margin, square."""
    found = {}
    for file, column in (("stamps", "path"), ("clipart", "title")):
        table = Dataset.from_parquet(str(data / f"{file}.parquet")).cast_column("image", ImageFeature())
        places = {source: row for row, source in reversed(list(enumerate(table[column])))}
        for name, source in wanted.items():
            if ("/" in source) == (file == "stamps"):
                found[name] = on_white(table[places[source]]["image"])
    return {name: found[name] for name in wanted}


def on_white(image: Image.Image) -> torch.Tensor:
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda value: 255 * (value > 8)).getbbox())
    side = round(1.15 * max(image.size))
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return picture_tensor(canvas.convert("RGB"), SIDE)


# ---- the baseline: the longest edges as strokes


def thin_edges(pixels: torch.Tensor, sigma: float = 1.5) -> np.ndarray:
    """(3, H, W) -> (H, W) bool, one pixel wide: where the gradient of any channel is greatest across the edge, and not
    weak (Canny's first steps)."""
    blurred = torch.stack([gaussian_blur(channel.double(), sigma) for channel in pixels]).numpy()
    down, right = np.gradient(blurred, axis=(1, 2))
    strength = np.hypot(down, right)
    strongest = strength.argmax(0)[None]
    down, right, strength = (np.take_along_axis(one, strongest, 0)[0] for one in (down, right, strength))
    padded = np.pad(strength, 1)
    angle = (np.round(np.arctan2(down, right) / (np.pi / 4)) % 4).astype(int)
    height, width = strength.shape
    greatest = np.zeros_like(strength, bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        greatest |= (angle == number) & (strength > ahead) & (strength >= behind)
    return greatest & (strength > 0.15 * strength.max())


def edge_chains(edges: np.ndarray, longest: int) -> list[list[tuple[int, int]]]:
    """Edges followed from pixel to pixel, the longest chain first."""
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


def edge_strokes(pixels: torch.Tensor, count: int, canvas: int, radius: float, longest: int = 90) -> StrokeDrawing:
    """The `count` longest edges of a picture, each a cubic fitted to its pixels."""
    chains = edge_chains(thin_edges(pixels), longest)[:count]
    points = torch.stack([fitted(torch.tensor(chain, dtype=torch.float64)) for chain in chains])
    return black_strokes((points + 0.5) * canvas / pixels.shape[-1], canvas, radius)


def random_strokes(count: int, canvas: int, radius: float, seed: int) -> StrokeDrawing:
    """Strokes anywhere, as long as sketches' are."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(count, 1, 2, generator=generator)
    moves = 0.3 * (torch.rand(count, 3, 2, generator=generator) - 0.5)
    return black_strokes(torch.cat([starts, moves], 1).cumsum(1) * canvas, canvas, radius)


def black_strokes(points: torch.Tensor, canvas: int, radius: float) -> StrokeDrawing:
    size = len(points)
    colors = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(size, 1)
    ones = torch.ones(size, dtype=torch.long)
    return StrokeDrawing(points.float(), torch.full((size,), radius), colors, ones, canvas, canvas)


def fitted(chain: torch.Tensor) -> torch.Tensor:
    """(4, 2) control points of the cubic nearest to (n, 2) pixels, in the sense of least squares."""
    if len(chain) < 4:
        return torch.stack([chain[0], chain[0], chain[-1], chain[-1]])
    steps = (chain[1:] - chain[:-1]).norm(dim=1).cumsum(0)
    t = torch.cat([steps.new_zeros(1), steps / steps[-1]])
    s = 1 - t
    basis = torch.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], 1)
    return torch.linalg.lstsq(basis, chain).solution
