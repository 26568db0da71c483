"""Trains a small CLIP that judges or guides drawings: of another architecture, seed and other pictures than the
embedded one.

    python scripts/train_drawing_judge.py --out /tmp/judge         # some minutes on a CPU
    python scripts/train_drawing_judge.py --out /tmp/sketches --data data --steps 1200

It is a ResNet (RN-mini). Without `--data`: on the embedded emoji of three styles, none of which the embedded CLIP was
trained on, each also as a drawing of its edges, so that lines are not new to it; the fourth style, emojione, is left
for pictures. With `--data` (the folder of `make_emoji_data.py`): on seven styles of a thousand things, each in
colours, in grey and as line drawings of random width, detail and wobble; `--lines none` leaves those out.
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter

from hf_clip_variants.data.images.emoji import FOLDER


STYLES = ("fluent3d", "fluentflat", "notov1")
ALL_STYLES = ("fluent3d", "fluentflat", "notov1", "emojione", "noto", "twemoji", "openmoji")
GROUPS = ("animals-nature", "food-drink", "travel-places", "objects", "activities")
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")


def edge_drawing(image: Image.Image, blur: float = 0.6, least: float = 25, gain: float = 4) -> Image.Image:
    """Black lines along the edges, with alpha."""
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB").filter(ImageFilter.GaussianBlur(blur))
    gray = np.asarray(flat, float)
    down, right = (np.zeros_like(gray) for _ in range(2))
    down[1:-1], right[:, 1:-1] = gray[2:] - gray[:-2], gray[:, 2:] - gray[:, :-2]
    strength = np.hypot(down, right).max(-1)
    alpha = np.clip((strength - least) * gain, 0, 255).astype(np.uint8)
    drawn = np.zeros((*alpha.shape, 4), np.uint8)
    drawn[..., 3] = alpha
    return Image.fromarray(drawn, "RGBA")


def line_drawing(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """As `edge_drawing`, of random width and detail, wobbling, with gaps."""
    drawn = edge_drawing(image, random.uniform(0.4, 1.6), random.uniform(15, 90), random.uniform(2, 8))
    alpha = np.asarray(drawn.getchannel("A"), float)
    height, width = alpha.shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    moved = []
    for along, across in ((rows, columns), (columns, rows)):
        phase, waves = random.uniform(0, 2 * np.pi, 2), random.uniform(1, 3, 2)
        swing = np.sin(waves[0] * 2 * np.pi * along / height + phase[0])
        swing = swing + np.sin(waves[1] * 2 * np.pi * across / width + phase[1])
        moved.append(np.clip(along + random.uniform(0, 1.2) * swing, 0, len(alpha) - 1).round().astype(int))
    alpha = alpha[moved[0], moved[1]]
    for _ in range(random.integers(0, 7)):
        y, x, side = random.integers(0, height), random.integers(0, width), random.integers(4, height // 4)
        alpha[y : y + side, x : x + side] = 0
    result = np.zeros((height, width, 4), np.uint8)
    result[..., 3] = alpha
    return Image.fromarray(result, "RGBA")


def gray(image: Image.Image) -> Image.Image:
    levels = image.convert("LA")
    return levels.convert("RGBA")


def as_bytes(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def rows(data: Path | None, lines: str):
    random = np.random.default_rng(3)
    for style in ALL_STYLES if data else STYLES:
        file = data / f"emoji-{style}.parquet" if data else FOLDER / f"{style}.parquet"
        table = Dataset.from_parquet(str(file)).cast_column("image", ImageFeature())
        for row in table:
            if data and row["group"] not in GROUPS:
                continue
            picture = row["image"].convert("RGBA")
            drawings = [edge_drawing(picture)]
            if data:
                drawings = [gray(picture)]
                drawings += [line_drawing(picture, random) for _ in range(2)] if lines == "edges" else []
            for image in (picture, *drawings):
                content = as_bytes(image)
                for text in TEXTS:
                    yield {
                        "image": {"bytes": content, "path": None},
                        "text": text.replace("{}", row["name"]),
                        "concept": row["name"],
                    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--data", type=Path, help="folder with emoji-*.parquet; default: the embedded pictures")
    parser.add_argument("--lines", choices=("edges", "none"), default="edges", help="with --data: line drawings, too")
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(list(rows(arguments.data, arguments.lines))).cast_column("image", ImageFeature())
    data.to_parquet(str(out / "pairs.parquet"))
    program = Path(__file__).with_name("pretrain.py")
    options = ["--arch", "RN-mini", "--augment", "icons", "--batch-size", "128", "--lr", "2e-3"]
    options += ["--seed", str(arguments.seed)]
    options += ["--text-columns", "text", "--distinct", "concept", "--steps", str(arguments.steps), "--warmup", "50"]
    command = [sys.executable, str(program), "--data", str(out / "pairs.parquet"), "--out", str(out / "run"), *options]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
