"""Trains a small CLIP-ResNet on pictures and line drawings of a thousand things, to guide sketches or to judge them.

    python scripts/make_emoji_data.py --out data
    python scripts/train_sketch_clip.py --data data --out /tmp/rn

Another architecture (RN-mini, 2.3 million parameters), seed and training set than the embedded CLIP. Emoji of four
styles, each in colours, in grey, and as line drawings of random width and detail that wobble and have gaps;
`--lines 0` leaves those out. Everything is kept in memory and in bfloat16: minutes of one core.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image, ImageFilter
from torchvision.transforms.v2.functional import pil_to_tensor

from hf_clip_variants.data.augmentation.batches import AUGMENTATIONS_OF_BATCHES
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.synthesis.guided_model import IMAGE_MEAN, IMAGE_STD
from hf_clip_variants.training.architectures import new_model


STYLES = ("fluent3d", "fluentflat", "notov1", "emojione")  # the embedded CLIP was trained on none of them
GROUPS = ("animals-nature", "food-drink", "travel-places", "objects", "activities")
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")
SIDE = 64


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


def load(data: Path, drawings: int) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Names; (n,) name of each picture; (n, 4, 64, 64) pictures; (n, drawings, 64, 64) opacities of lines."""
    random = np.random.default_rng(3)
    names: dict[str, int] = {}
    labels, pictures, lines = [], [], []
    for style in STYLES:
        table = Dataset.from_parquet(str(data / f"emoji-{style}.parquet"))
        for row in table.cast_column("image", ImageFeature()):
            if row["group"] in GROUPS:
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
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lines", type=float, default=0.5, help="share of line drawings")
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    names, labels, pictures, lines = load(arguments.data, 1 if arguments.lines else 0)
    rows_of = [(labels == label).nonzero()[:, 0] for label in range(len(names))]
    model, processor = new_model("clip", "RN-mini")
    model.train()
    model.vision_model.to(memory_format=torch.channels_last)
    texts = [text.replace("{}", name) for name in names for text in TEXTS]
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, betas=(0.9, 0.98))
    augment = replace(AUGMENTATIONS_OF_BATCHES["icons"], greyscale=0.3)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    size, steps, average = arguments.batch_size, arguments.steps, None
    for step in range(steps):
        chosen = torch.randperm(len(names))[:size]
        rows = torch.stack([rows_of[label][torch.randint(len(rows_of[label]), ())] for label in chosen.tolist()])
        images = pictures[rows]
        if arguments.lines:
            drawn = torch.rand(size) < arguments.lines
            images[drawn, :3] = 0
            images[drawn, 3] = lines[rows[drawn], torch.randint(lines.shape[1], (int(drawn.sum()),))]
        generators = [torch.Generator().manual_seed(step * size + number) for number in range(size)]
        pixels = (augment(images, SIDE, generators) - mean) / std
        text = chosen * len(TEXTS) + torch.randint(len(TEXTS), (size,))
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.get_image_features(pixel_values=pixels.contiguous(memory_format=torch.channels_last))
            read = model.get_text_features(
                input_ids=tokens["input_ids"][text], attention_mask=tokens["attention_mask"][text]
            )
        scale = model.logit_scale.exp().clamp_max(100)
        logits = scale * unit_norm(seen.pooler_output.float()) @ unit_norm(read.pooler_output.float()).T
        goal = torch.arange(size)
        loss = (
            torch.nn.functional.cross_entropy(logits, goal) + torch.nn.functional.cross_entropy(logits.T, goal)
        ) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm, left = min(1.0, (step + 1) / 50), 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * warm * left
        optimizer.step()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 20 == 0:
            print(f"step {step}: loss {average:.3f}, {time.process_time():.0f} s of processor time", flush=True)
        if step % 100 == 99 or step == steps - 1:
            model.save_pretrained(arguments.out)
            processor.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
