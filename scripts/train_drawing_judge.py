"""Trains a small CLIP that judges drawings: another architecture, seed and other pictures than the embedded guide's.

    python scripts/train_drawing_judge.py --out /tmp/judge         # some minutes on a CPU

It is a ResNet (RN-mini) on the embedded emoji of three styles, none of which the embedded CLIP was trained on, each
also as a drawing of its edges, so that lines are not new to it. The fourth style, emojione, is left for pictures to
sketch.
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
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")


def edge_drawing(image: Image.Image) -> Image.Image:
    """Black lines along the edges, with alpha."""
    white = Image.new("RGBA", image.size, "white")
    gray = np.asarray(Image.alpha_composite(white, image).convert("RGB").filter(ImageFilter.GaussianBlur(0.6)), float)
    down, right = (np.zeros_like(gray) for _ in range(2))
    down[1:-1], right[:, 1:-1] = gray[2:] - gray[:-2], gray[:, 2:] - gray[:, :-2]
    strength = np.hypot(down, right).max(-1)
    alpha = np.clip((strength - 25) * 4, 0, 255).astype(np.uint8)
    drawn = np.zeros((*alpha.shape, 4), np.uint8)
    drawn[..., 3] = alpha
    return Image.fromarray(drawn, "RGBA")


def as_bytes(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def rows():
    for style in STYLES:
        table = Dataset.from_parquet(str(FOLDER / f"{style}.parquet")).cast_column("image", ImageFeature())
        for row in table:
            picture = row["image"].convert("RGBA")
            for image in (picture, edge_drawing(picture)):
                for text in TEXTS:
                    yield {
                        "image": {"bytes": as_bytes(image), "path": None},
                        "text": text.replace("{}", row["name"]),
                        "concept": row["name"],
                    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(list(rows())).cast_column("image", ImageFeature())
    data.to_parquet(str(out / "pairs.parquet"))
    program = Path(__file__).with_name("pretrain.py")
    options = ["--arch", "RN-mini", "--augment", "icons", "--batch-size", "128", "--lr", "2e-3", "--seed", "11"]
    options += ["--text-columns", "text", "--distinct", "concept", "--steps", str(arguments.steps), "--warmup", "50"]
    command = [sys.executable, str(program), "--data", str(out / "pairs.parquet"), "--out", str(out / "run"), *options]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
