"""Retrieval of real clips by their names: CLIP4Clip, fine-tuned, beside the mean of CLIP's frames without training.

    python scripts/clip4clip_on_clips.py --clips moving.parquet --out scripts/results/clip4clip
    python scripts/clip4clip_on_clips.py --clips moving.parquet --out /tmp/clips --development

--clips is a Parquet file with the columns clip (bytes of an animation or a video, or a path), name, and split (train,
test). The encoders are those of the embedded model. Clips of the test split are found by their names and names by
clips; two clips with one name are both right. --development never reads the test split: each seed draws names of the
training split, tests on one clip of each, and trains on the rest. Without it, seeds differ in the order of the batches
and in new weights.

The upper layers of CLIP and the head train, with two learning rates, on batches in which no name comes twice.
OUT/runs.jsonl gets a line for each model and seed; OUT/table.md has the means and standard deviations over seeds in
percent. What is in runs.jsonl is not run again. With the defaults, a head and a seed take a minute of one processor.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import math
import random
import statistics
import time
from pathlib import Path

import datasets
import torch
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import CLIP4ClipModel, VideoTextProcessor, embedded_model
from hf_clip_variants.metrics.retrieval import retrieval
from hf_clip_variants.training.parameter_groups import two_rate_groups


HEADS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")
BASELINE = "CLIP, mean of frames, not trained"
COLUMNS = ("clip", "name", "split")
METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank")
SHORT = ("R@1", "R@5", "R@10", "median rank")
LARGEST_SCALE = math.log(100)
DEVELOPMENT_SHARE = 0.3


class Clips:
    """N clips: pixels (N, T, 3, H, W), names, and the token ids of these."""

    def __init__(self, rows: datasets.Dataset, processor, num_frames: int):
        options = {"sampling_rule": "segments", "num_frames": num_frames, "return_tensors": "pt"}
        parts = [processor(videos=rows[i : i + 64]["clip"], **options) for i in range(0, len(rows), 64)]
        self.pixels = torch.cat([part["pixel_values_videos"] for part in parts])
        self.names = list(rows["name"])
        self.texts = dict(processor(self.names, return_tensors="pt"))

    def texts_of(self, numbers) -> dict[str, torch.Tensor]:
        return {name: tensor[numbers] for name, tensor in self.texts.items()}


def divided(rows: datasets.Dataset, development: bool, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and test rows; for development both are of the training split."""
    split = rows["split"]
    train = [number for number, name in enumerate(split) if name == "train"]
    test = [number for number, name in enumerate(split) if name == "test"]
    if development:
        last = {rows[number]["name"]: number for number in train}  # one clip of each name
        test = random.Random(seed).sample(sorted(last.values()), int(DEVELOPMENT_SHARE * len(last)))
        train = sorted(set(train) - set(test))
    if not train or not test:
        raise ValueError(f"--clips: {len(train)} rows of split train and {len(test)} of test; want some of both")
    return rows.select(train), rows.select(test)


def batches_of(names: list[str], size: int, generator: torch.Generator):
    """Numbers of all clips once, in any order, no name twice in a batch; small rests are left out."""
    waiting = torch.randperm(len(names), generator=generator).tolist()
    while waiting:
        chosen: dict[str, int] = {}
        for number in waiting:
            if len(chosen) < size:
                chosen.setdefault(names[number], number)
        taken = set(chosen.values())
        waiting = [number for number in waiting if number not in taken]
        if len(taken) >= min(size, len(names)) // 2:
            yield list(taken)


def train(model: CLIP4ClipModel, clips: Clips, options: argparse.Namespace, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [b for _ in range(options.epochs) for b in batches_of(clips.names, options.batch_size, generator)]
    groups = two_rate_groups(model, options.lr, options.slow_factor)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)

    def rate(step: int) -> float:  # as the official schedule: the cosine is of the whole training
        progress = (step + 1) / (len(batches) + 1)
        return min(1.0, progress / 0.1) * (1 + math.cos(math.pi * progress)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for numbers in batches:
        inputs = clips.texts_of(numbers) | {"pixel_values_videos": clips.pixels[numbers]}
        model(**inputs, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=LARGEST_SCALE)
    model.eval()


@torch.no_grad()
def measure(model: CLIP4ClipModel, clips: Clips) -> dict[str, float]:
    texts = model.get_text_features(**clips.texts).pooler_output
    logits = torch.cat([model.video_text_logits(pixels, texts) for pixels in clips.pixels.split(64)])
    correct = torch.tensor([[one == other for other in clips.names] for one in clips.names])
    found = {}
    for direction, similarity in (("text_to_video", logits.T), ("video_to_text", logits)):
        ranks = retrieval(similarity, correct=correct)
        found |= {f"{direction}_{name}": round(ranks[name], 4) for name in METRICS}
    return found


def run(options: argparse.Namespace, rows: datasets.Dataset, seed: int, models: list[str]) -> None:
    processor = VideoTextProcessor.from_clip(AutoProcessor.from_pretrained(embedded_model()))
    clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32)
    known, unseen = (Clips(part, processor, options.frames) for part in divided(rows, options.development, seed))
    for name in models:
        start = time.process_time()
        torch.manual_seed(seed)
        settings = {"num_frames": options.frames, "frozen_layers": options.frozen_layers}
        if name in ("seqTransf", "tightTransf"):
            settings["head_config"] = {"num_hidden_layers": 2, "num_attention_heads": 4}
        head = "meanP" if name == BASELINE else name
        model = CLIP4ClipModel.from_clip(clip, similarity_head=head, **settings)
        if name != BASELINE:
            train(model, known, options, seed)
        line = {"model": name, "seed": seed, "clips": len(unseen.names)} | measure(model, unseen)
        line["cpu_seconds"] = round(time.process_time() - start, 1)
        with (options.out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: list[dict]) -> str:
    """Means and standard deviations over seeds; recalls in percent."""
    columns = ["", *(f"{way} {name}" for way in ("text to video", "video to text") for name in SHORT), "seeds"]
    text = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    for model in dict.fromkeys(line["model"] for line in lines):
        rows = [line for line in lines if line["model"] == model]
        cells = []
        for direction in ("text_to_video", "video_to_text"):
            for name in METRICS:
                values = [row[f"{direction}_{name}"] * (100 if name.startswith("recall") else 1) for row in rows]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
        text += f"| {model} | {' | '.join(cells)} | {len(rows)} |\n"
    return text


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--development", action="store_true", help="keep the test split unseen")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--heads", default="meanP,seqLSTM,seqTransf", help=f"some of {', '.join(HEADS)}")
    parser.add_argument("--frames", type=int, default=4, help="of each clip, evenly spaced")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the head")
    parser.add_argument("--slow-factor", type=float, default=0.1, help="what it is multiplied by for CLIP")
    parser.add_argument("--frozen-layers", type=int, default=6, help="of each encoder")
    options = parser.parse_args(argv)
    options.heads = options.heads.split(",")
    if unknown := [head for head in options.heads if head not in HEADS]:
        parser.error(f"--heads: {unknown[0]!r}; want some of {', '.join(HEADS)}")
    if not options.clips.is_file():
        parser.error(f"--clips: {options.clips}: no such file")
    return options


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_parquet(str(options.clips))
    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise ValueError(f"--clips: {options.clips} has no column {', '.join(missing)}; want {', '.join(COLUMNS)}")
    for seed in map(int, options.seeds.split(",")):
        done = {(line["model"], line["seed"]) for line in lines_of(options.out)}
        if models := [name for name in (BASELINE, *options.heads) if (name, seed) not in done]:
            run(options, rows, seed, models)
    written = table(lines_of(options.out))
    (options.out / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
