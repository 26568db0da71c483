"""What the five heads of ActionCLIP know of time: questions that no single frame answers.

    python scripts/actionclip_on_clips.py --clips moving.parquet --out scripts/results/actionclip   # seeds 1, 2, 3
    python scripts/actionclip_on_clips.py --clips moving.parquet --out /tmp/clips --development     # other data

| task | clips | which of | chance |
|---|---|---|---|
| directions | drawn, things in motion | moving left, right, up, down | 25 |
| reversed | --clips | played forwards, backwards | 50 |
| shuffled | --clips | frames in order, in any order | 50 |
| speed | --clips | slow, fast (every second frame) | 50 |

Each clip is there once with each answer, or, in directions, also backwards with the opposite one: the mean of its
frames is right in at most half of the cases, except in speed.

The encoders are those of the embedded model and stay as they are, so that each frame is encoded once. A head trains
with the paper's loss, on the texts of the classes in a template that is drawn for each clip; beside the head, two
linear layers train that all heads have, so that the mean can learn, too. Features are standardised first, as in
clip4clip_on_drawn_clips.py. An answer is the class with the highest mean score over the sixteen templates.

--clips is a Parquet file with the columns clip (bytes of an animation, or a path), name and split. Clips of the test
split, and drawn clips in a style that no training clip has, are tested on. --development takes other things and
another style, and names of the training split. OUT/runs.jsonl gets a line for each task, head and seed, and
what is in it is not run again; OUT/table.md has the means and standard deviations over seeds in percent.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from clip4clip_on_clips import divided
from clip4clip_on_drawn_clips import (
    DEVELOPMENT_STYLE,
    DEVELOPMENT_THINGS,
    TEST_STYLE,
    THINGS,
    TRAIN,
    encoded_clips,
    lines_of,
    standardised,
)
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import ActionCLIPModel, VideoTextProcessor, embedded_model
from hf_clip_variants.modeling.actionclip.configuration_actionclip import FUSION_HEADS
from hf_clip_variants.modeling.actionclip.loss_actionclip import label_contrastive_loss
from hf_clip_variants.modeling.video.class_texts import class_features


TASKS = {
    "directions": ("moving to the left", "moving to the right", "moving up", "moving down"),
    "reversed": ("playing forwards", "playing backwards"),
    "shuffled": ("frames in order", "frames in any order"),
    "speed": ("moving slowly", "moving fast"),
}
SCALE = 20.0
LR = 3e-3


@dataclass(frozen=True)
class Clips:
    """N clips: features of frames (N, T, D), classes (N,)."""

    features: torch.Tensor
    labels: torch.Tensor


# ---- clips


def drawn(clip, processor, options, seed: int) -> tuple[Clips, Clips]:
    """Of two axes: the second motion of each is the first one backwards."""
    things = DEVELOPMENT_THINGS if options.development else THINGS
    test_style = DEVELOPMENT_STYLE if options.development else TEST_STYLE
    found = []
    for part, (count, styles) in enumerate(((options.drawn_clips, TRAIN), (options.drawn_clips // 2, test_style))):
        axes = [
            encoded_clips(clip, processor, count, 4 * seed + 2 * part + axis, motions, options.frames, styles, things)
            for axis, motions in enumerate((["left", "right"], ["up", "down"]))
        ]
        labels = torch.cat([axis.motions + 2 * number for number, axis in enumerate(axes)])
        found.append(Clips(torch.cat([axis.features for axis in axes]), labels))
    return tuple(found)


@torch.no_grad()
def all_frames(clip, processor, rows: datasets.Dataset, cache: dict) -> list[torch.Tensor]:
    """Features of all frames of each clip, (frames, D)."""
    model, found = ActionCLIPModel.from_clip(clip, fusion_head="meanP"), []
    for name, one in zip(rows["clip"], rows, strict=True):
        key = hash(name)
        if key not in cache:
            pixels = processor(videos=[one["clip"]], do_sample_frames=False, return_tensors="pt")
            cache[key] = model.get_frame_features(pixels["pixel_values_videos"])[0]
        found.append(cache[key])
    return found


def question(task: str, clips: list[torch.Tensor], frames: int, seed: int) -> Clips:
    """Each clip with both answers."""
    generator, found, labels = torch.Generator().manual_seed(seed), [], []
    for one in clips:
        if task == "speed":
            if len(one) < 2 * frames:
                continue
            starts = [torch.randint(len(one) - step * (frames - 1), (), generator=generator) for step in (1, 2)]
            found += [one[start :: step + 1][:frames] for step, start in enumerate(starts)]
        else:
            even = one[torch.linspace(0, len(one) - 1, frames).round().long()]
            other = even.flip(0) if task == "reversed" else even[torch.randperm(frames, generator=generator)]
            found += [even, other]
        labels += [0, 1]
    return Clips(torch.stack(found), torch.tensor(labels))


# ---- training


def train_head(
    clip, head: str, texts: torch.Tensor, train: Clips, test: Clips, options, seed: int
) -> dict[str, float]:
    """Shares of right answers, 0..1. `texts`: (P, C, D)."""
    torch.manual_seed(seed)
    model = ActionCLIPModel.from_clip(
        clip,
        fusion_head=head,
        num_frames=options.frames,
        num_fusion_layers=options.layers,
        fusion_dropout=0.0,
        score_scale=SCALE,
    )
    width = texts.shape[-1]
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(width, width) for name in ("texts", "frames")})
    for layer in layers.values():
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    texts = standardised(texts, texts)
    weights = [*layers.parameters(), *model.fusion.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=options.steps + 1, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)

    def videos(features: torch.Tensor) -> torch.Tensor:
        frames = layers["frames"](standardised(features, train.features))
        return model.fusion(frames, torch.ones(frames.shape[:2], dtype=torch.long))[1]

    @torch.no_grad()
    def right(clips: Clips) -> float:
        logits = model.class_logits(videos(clips.features), layers["texts"](texts))
        return (logits.argmax(1) == clips.labels).float().mean().item()

    model.train()
    for _ in range(options.steps):
        chosen = torch.randperm(len(train.labels), generator=generator)[:64]
        labels = train.labels[chosen]
        templates = torch.randint(len(texts), (len(chosen),), generator=generator)
        of_texts = layers["texts"](texts[templates, labels])
        loss = label_contrastive_loss(videos(train.features[chosen]), of_texts, math.log(SCALE), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return {"train_right": right(train), "test_right": right(test)}


def run(options: argparse.Namespace, seed: int, task: str, heads: list[str], cache: dict) -> None:
    clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    processor = VideoTextProcessor.from_clip(AutoProcessor.from_pretrained(embedded_model()), num_frames=99)
    if task == "directions":
        parts = drawn(clip, processor, options, seed)
    else:
        rows = datasets.Dataset.from_parquet(str(options.clips)).select_columns(["clip", "name", "split"])
        of_split = divided(rows, options.development, seed)
        parts = [question(task, all_frames(clip, processor, one, cache), options.frames, seed) for one in of_split]
    model = ActionCLIPModel.from_clip(clip, fusion_head="meanP")
    with torch.no_grad():
        texts = class_features(model, processor.tokenizer, TASKS[task], model.default_templates, "classes")
    for head in heads:
        start = time.process_time()
        line = {"task": task, "head": head, "seed": seed, "clips": [len(part.labels) for part in parts]}
        line |= {name: round(v, 4) for name, v in train_head(clip, head, texts, *parts, options, seed).items()}
        line["cpu_seconds"] = round(time.process_time() - start, 1)
        with (options.out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def table(lines: list[dict]) -> str:
    """Right answers on test clips and, in brackets, training clips: means and standard deviations over seeds."""
    tasks = [task for task in TASKS if any(line["task"] == task for line in lines)]
    text = f"| head | {' | '.join(tasks)} |\n|---|{'---|' * len(tasks)}\n"
    for head in [head for head in FUSION_HEADS if any(line["head"] == head for line in lines)]:
        cells = []
        for task in tasks:
            rows = [line for line in lines if (line["task"], line["head"]) == (task, head)]
            values = [100 * row["test_right"] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            train = statistics.mean(100 * row["train_right"] for row in rows) if rows else 0.0
            cells.append(f"{statistics.mean(values):.1f}{spread} ({train:.0f})" if rows else "")
        text += f"| {head} | {' | '.join(cells)} |\n"
    return text + f"| chance | {' | '.join(f'{100 / len(TASKS[task]):.1f}' for task in tasks)} |\n"


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--clips", type=Path, help="needed by all tasks but directions")
    parser.add_argument("--development", action="store_true", help="other things, another style, no test clips")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--heads", default=",".join(FUSION_HEADS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--drawn-clips", type=int, default=80, help="to train on, of each axis, each also backwards")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--layers", type=int, default=1, help="of Transf and Transf_cls")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args(argv)
    for argument, known in (("heads", FUSION_HEADS), ("tasks", tuple(TASKS))):
        given = getattr(options, argument).split(",")
        if unknown := [one for one in given if one not in known]:
            parser.error(f"--{argument}: {unknown[0]!r}; want some of {', '.join(known)}")
        setattr(options, argument, given)
    if options.clips is None and options.tasks != ["directions"]:
        parser.error("--clips: missing; want a Parquet file, or --tasks directions")
    return options


def main(argv=None) -> None:
    options, cache = parse(argv), {}
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, options.seeds.split(",")):
        for task in options.tasks:
            done = {(line["task"], line["head"], line["seed"]) for line in lines_of(options.out)}
            if heads := [head for head in options.heads if (task, head, seed) not in done]:
                run(options, seed, task, heads, cache)
    written = table(lines_of(options.out))
    (options.out / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
