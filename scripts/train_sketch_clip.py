"""Trains a small CLIP-ResNet that judges sketches: on pictures, and on line drawings, of the things to be sketched.

    python scripts/make_emoji_data.py --out data
    python scripts/train_sketch_clip.py --data data --out /tmp/judge
    python scripts/train_sketch_clip.py --data data --out /tmp/judge-without-lines --lines 0 --seed 12
    python scripts/train_sketch_clip.py --data data --out /tmp/chooser --developed --seed 12

Another architecture (RN-mini, 2.3 million parameters), seed and training set than the embedded CLIP. It knows the
thirty names of `sketch_pictures.py`, as emoji of seven styles, each in colours, in grey, and as line drawings of
random width and detail that wobble and have gaps; `--lines 0` leaves those out. With `--developed`, it knows the names
of the pictures that settings are chosen on, and no reported one. Minutes of one core.
"""

import argparse
import math
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter
from sketch_pictures import DEVELOPED, MORE_DEVELOPED, REPORTED
from torchvision.transforms.v2.functional import pil_to_tensor

from hf_clip_variants.data.augmentation.batches import AUGMENTATIONS_OF_BATCHES
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.synthesis.guided_model import IMAGE_MEAN, IMAGE_STD
from hf_clip_variants.training.architectures import new_model


STYLES = ("fluent3d", "fluentflat", "notov1", "emojione", "noto", "twemoji", "openmoji")
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")
SIDE, SEEN = 64, 32  # pixels of the pictures, and of what the model sees


def line_drawing(image: Image.Image, random: np.random.Generator) -> torch.Tensor:
    """(H, W) opacity of black lines along the edges, of random width and detail, wobbling, with gaps."""
    white = Image.new("RGBA", image.size, "white")
    flat = (
        Image.alpha_composite(white, image).convert("RGB").filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.6)))
    )
    levels = np.asarray(flat, float)
    strength = np.hypot(*np.gradient(levels, axis=(0, 1))).max(-1) * 2
    alpha = np.clip((strength - random.uniform(15, 90)) * random.uniform(2, 8), 0, 255)
    rows, columns = np.meshgrid(*(np.arange(side) for side in alpha.shape), indexing="ij")
    moved = []
    for along, across in ((rows, columns), (columns, rows)):
        phase, waves = random.uniform(0, 2 * np.pi, 2), random.uniform(1, 3, 2)
        swing = np.sin(waves[0] * 2 * np.pi * along / SIDE + phase[0])
        swing = swing + np.sin(waves[1] * 2 * np.pi * across / SIDE + phase[1])
        moved.append(np.clip(along + random.uniform(0, 1.2) * swing, 0, len(alpha) - 1).round().astype(int))
    alpha = alpha[moved[0], moved[1]]
    for _ in range(random.integers(0, 7)):
        y, x, side = random.integers(0, SIDE), random.integers(0, SIDE), random.integers(4, SIDE // 4)
        alpha[y : y + side, x : x + side] = 0
    return torch.from_numpy(alpha.astype(np.uint8))


def load(
    data: Path, drawings: int, known: Collection[str]
) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Names; (n,) name of each picture; (n, 4, 64, 64) pictures; (n, drawings, 64, 64) opacities of lines."""
    random = np.random.default_rng(3)
    names: dict[str, int] = {}
    labels, pictures, lines = [], [], []
    for style in STYLES:
        table = Dataset.from_parquet(str(data / f"emoji-{style}.parquet"))
        for row in table.cast_column("image", ImageFeature()):
            if row["name"] in known:
                image = row["image"].convert("RGBA").resize((SIDE, SIDE))
                labels.append(names.setdefault(row["name"], len(names)))
                pictures.append(pil_to_tensor(image))
                lines.append([line_drawing(image, random) for _ in range(drawings)])
    opacities = torch.stack([torch.stack(some) for some in lines]) if drawings else torch.zeros(len(labels), 0)
    return list(names), torch.tensor(labels), torch.stack(pictures), opacities


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with emoji-*.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lines", type=float, default=0.5, help="share of line drawings")
    parser.add_argument("--developed", action="store_true", help="know the pictures on which settings are chosen")
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    known = {**DEVELOPED, **(MORE_DEVELOPED if arguments.developed else REPORTED)}
    names, labels, pictures, lines = load(arguments.data, 6 if arguments.lines else 0, known)
    model, processor = new_model("clip", "RN-mini", image_size=SEEN)
    model.train()
    model.vision_model.to(memory_format=torch.channels_last)
    texts = [text.replace("{}", name) for name in names for text in TEXTS]
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    # One vector a name: pictures learn towards it, then texts do. Contrasted with texts that are not told apart yet,
    # pictures learn nothing in so few steps.
    table = torch.nn.Parameter(0.1 * torch.randn(len(names), model.config.projection_dim))
    augment = replace(AUGMENTATIONS_OF_BATCHES["icons"], backgrounds=("white",), greyscale=0.3, blur=0.0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    size = arguments.batch_size

    def image_features(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(labels), (size,))
        images = pictures[rows]
        if arguments.lines:
            drawn = torch.rand(size) < arguments.lines
            images[drawn, :3] = 0
            images[drawn, 3] = lines[rows[drawn], torch.randint(lines.shape[1], (int(drawn.sum()),))]
        generators = [torch.Generator().manual_seed(step * size + number) for number in range(size)]
        pixels = (augment(images, SEEN, generators) - mean) / std
        output = model.get_image_features(pixel_values=pixels.contiguous(memory_format=torch.channels_last))
        return output.pooler_output, labels[rows]

    def text_features(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(texts), (2 * size,))
        parts = {name: tokens[name][chosen] for name in ("input_ids", "attention_mask")}
        return model.get_text_features(**parts).pooler_output, chosen // len(TEXTS)

    def train(what: str, features, parameters, steps: int, lr: float, cosines: bool) -> None:
        groups = [{"params": some, "weight_decay": decay} for some, decay in parameters]
        optimizer, average = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)), None
        for step in range(steps):
            found, goal = features(step)
            # Of unit vectors only, pictures would all become one at first.
            logits = 20 * unit_norm(found) @ unit_norm(table).T if cosines else found @ table.T
            loss = torch.nn.functional.cross_entropy(logits, goal)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for some, _ in parameters for p in some], 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            right = float((logits.argmax(1) == goal).float().mean())
            average = right if average is None else 0.95 * average + 0.05 * right
            if step % 50 == 0 or step == steps - 1:
                spent = f"{time.process_time():.0f} s of processor time"
                print(f"{what}, step {step}: loss {loss:.3f}, {100 * average:.1f} % right, {spent}", flush=True)
            if step % 200 == 199 or step == steps - 1:
                model.save_pretrained(arguments.out)
                processor.save_pretrained(arguments.out)

    seeing = [p for name, p in model.named_parameters() if name.startswith("vision_model")]
    reading = [p for name, p in model.named_parameters() if name.startswith("text_")]
    matrices, others = ([p for p in seeing if (p.dim() > 1) == many] for many in (True, False))
    train("pictures", image_features, [(matrices, 0.1), ([*others, table], 0.0)], arguments.steps, arguments.lr, False)
    train("texts", text_features, [(reading, 0.0)], arguments.steps // 8, 1e-3, True)


if __name__ == "__main__":
    main()
