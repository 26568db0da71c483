"""The pictures of `sketch_recognition.py`, and the strokes that it compares sketches with."""

from pathlib import Path

import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_clip_variants.modeling.clipasso.edges_clipasso import LONGEST, edge_points
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
# What only choices are made with, and the judge of the reported ones does not know.
MORE_DEVELOPED = {
    "frog": "animals/amphibians/frog",
    "lobster": "animals/fish/lobster",
    "giraffe": "animals/mammals/giraffe",
    "bat": "seasonal/halloween/bat_left",
    "carrot": "food/vegetables/carrot",
    "hammer": "household/tools/hammer",
    "trumpet": "hobbies/music/brass/trumpet",
    "anchor": "anchor",
    "grapes": "grapes",
    "turtle": "turtle jurgen gaeremyn",
    "saxophone": "saxophone jarno vasamaa",
    "snowman without snow": "snowman",
    "sunglasses": "sunglasses",
    "airplane": "airplane",
}
STAMPS = [name for name, source in {**REPORTED, **DEVELOPED, **MORE_DEVELOPED}.items() if "/" in source]


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


# ---- what sketches are compared with


def edge_strokes(
    pixels: torch.Tensor, count: int, canvas: int, radius: float, longest: int = LONGEST
) -> StrokeDrawing:
    """The `count` longest edges of a picture, each a cubic fitted to its at most `longest` pixels."""
    return black_strokes(edge_points(pixels, count, longest=longest) * canvas, canvas, radius)


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
