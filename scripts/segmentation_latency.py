"""How long one image takes on a CPU in models that segment by text: published sizes, random weights.

    python scripts/segmentation_latency.py --out scripts/results/segmentation_latency.md
    python scripts/segmentation_latency.py --small          # seconds: shows that everything runs

Model alone, one image, one thread, float32, labels stored (`set_labels`): their texts cost nothing. The table has the
processor's time and the wall's, each the median over rounds with the smallest and the largest, after one round that
does not count. Weights are random: times do not depend on them.
"""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_clip_variants import (
    GroupViTConfig,
    GroupViTForSemanticSegmentation,
    LSegConfig,
    LSegForSemanticSegmentation,
)
from hf_clip_variants.files.atomic_writes import write_atomically


def lseg(variant: str) -> torch.nn.Module:
    return LSegForSemanticSegmentation(LSegConfig.of_variant(variant))


def groupvit() -> torch.nn.Module:
    return GroupViTForSemanticSegmentation(GroupViTConfig())


def small() -> torch.nn.Module:
    text = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 4}
    return LSegForSemanticSegmentation(
        LSegConfig(text_config=text, vision_config=text | {"patch_size": 16, "image_size": 64}, fusion_hidden_size=16)
    )


# Name, how it is made, side of the image.
MODELS: list[tuple[str, Callable[[], torch.nn.Module], int]] = [
    ("LSeg ViT-L/16", lambda: lseg("vitl16"), 480),
    ("LSeg ViT-B/32", lambda: lseg("vitb32"), 480),
    ("LSeg ResNet-101", lambda: lseg("resnet101"), 480),
    ("GroupViT", groupvit, 448),
    ("GroupViT", groupvit, 224),
]


def store_labels(model: torch.nn.Module, count: int) -> None:
    """Any embeddings: what `set_labels` stores, without a tokenizer."""
    model.class_embeddings = torch.nn.functional.normalize(torch.randn(count, model.config.projection_dim), dim=-1)
    model.config.id2label = {label: str(label) for label in range(count)}


@torch.inference_mode()
def measure(model: torch.nn.Module, side: int, rounds: int) -> tuple[list[float], list[float]]:
    """Processor and wall seconds of each round."""
    image = torch.randn(1, 3, side, side)
    processor, wall = [], []
    for turn in range(rounds + 1):
        started, spent = time.perf_counter(), time.process_time()
        model(pixel_values=image)
        if turn:
            processor.append(time.process_time() - spent)
            wall.append(time.perf_counter() - started)
    return processor, wall


def cell(seconds: list[float]) -> str:
    """Median [smallest, largest]."""
    return f"{statistics.median(seconds):.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]"


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path)
    made.add_argument("--labels", type=int, nargs="+", default=[20, 150])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--small", action="store_true", help="seconds: one small model")
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = [("small", small, 64)] if options.small else MODELS
    lines = ["| model | image | parameters without texts | labels | processor time | wall time |", "|" + "---|" * 6]
    for name, make, side in models:
        model = make().eval().requires_grad_(False)
        store_labels(model, options.labels[0])
        model.drop_text_encoder()
        weights = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        for labels in options.labels:
            store_labels(model, labels)
            processor, wall = measure(model, side, options.rounds)
            line = f"| {name} | {side} x {side} | {weights:.1f} M | {labels} | {cell(processor)} | {cell(wall)} |"
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
    command = shlex.join(
        ["python", "scripts/segmentation_latency.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    machine = f"{platform.machine()}, threads 1, torch {torch.__version__}, load {os.getloadavg()[0]:.0f}"
    text = f"Written by `{command}`. {machine}.\n\n" + "\n".join(lines) + "\n"
    if options.out:
        write_atomically(options.out, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
