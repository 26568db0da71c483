"""The four heads of CLIP4Clip on clips of emoji in motion: who finds the thing, and who its motion.

    python scripts/clip4clip_on_drawn_clips.py --out scripts/results/clip4clip_drawn   # all heads, seeds 1, 2, 3
    python scripts/clip4clip_on_drawn_clips.py --out /tmp/clips --development          # other things, another style

The encoders are those of the embedded model and stay as they are, so each frame is encoded once. A head trains on
clips of things that do one of two opposite motions, with one caption for each thing and motion; beside the head, two
linear layers train that all heads have, so that the mean can learn, too. Features are standardised first: as CLIP
gives them they are 17 long, and positions, 0.3 long, would not be noticed in so short a training. Each clip is also
shown backwards, with the opposite caption: a head that does not know the order of frames is right in exactly half of
all cases.

Test clips are drawn in a style that no training clip has. A clip's answer is its most similar caption. OUT/runs.jsonl
gets a line for each head and seed, OUT/table.md has the means and standard deviations over seeds in percent; OUT is
kept, and what is in runs.jsonl is not run again.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from hf_clip_variants import CLIP4ClipModel, VideoTextProcessor, embedded_model
from hf_clip_variants.data.clips import OPPOSITES, ClipMaker


LR = 3e-3
HEADS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")
THINGS = ("cat", "taco", "cactus", "octopus", "banana", "pizza", "tulip", "penguin")
DEVELOPMENT_THINGS = ("dog", "hamburger", "sunflower", "crab", "carrot", "doughnut", "mushroom", "owl")
TRAIN, DEVELOPMENT_STYLE, TEST_STYLE = ("fluentflat", "notov1"), "emojione", "fluent3d"


@dataclass(frozen=True)
class Clips:
    """N clips, each also backwards: frame features (N, T, D), thing and motion (N,)."""

    features: torch.Tensor
    things: torch.Tensor
    motions: torch.Tensor


def encoded_clips(clip, processor, count: int, seed: int, motions, num_frames: int, styles, things) -> Clips:
    scene = {"styles": styles, "class_names": things, "size": 64, "object_size": (0.4, 0.6), "backgrounds": "plain"}
    maker = ClipMaker(motions=motions, num_frames=num_frames, seed=seed, scene=scene)
    made = [maker.clip(index) for index in range(count)]
    model = CLIP4ClipModel.from_clip(clip, similarity_head="meanP")
    with torch.no_grad():
        parts = [
            model.get_frame_features(
                processor(videos=[list(one.frames) for one in made[first : first + 32]], return_tensors="pt")[
                    "pixel_values_videos"
                ]
            )
            for first in range(0, count, 32)
        ]
    features = torch.cat(parts)
    of_thing = torch.tensor([one.category for one in made])
    of_motion = torch.tensor([motions.index(one.motion) for one in made])
    backwards = torch.cat([features, features.flip(1)])
    return Clips(backwards, of_thing.repeat(2), torch.cat([of_motion, 1 - of_motion]))


def encoded_captions(clip, processor, motions, things) -> torch.Tensor:
    """(things * 2, D): of each thing, a caption for each of both motions."""
    maker = ClipMaker(scene={"class_names": things})
    captions = [maker.caption(thing, motion) for thing in range(len(things)) for motion in motions]
    with torch.no_grad():
        return clip.get_text_features(**processor(captions, return_tensors="pt")).pooler_output


def standardised(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Features (..., D), scaled so that the reference's have a mean of 0 and about unit norm."""
    flat = reference.flatten(0, -2)
    return (features - flat.mean(0)) / ((flat.std(0) + 1e-6) * features.shape[-1] ** 0.5)


def train_head(clip, head: str, texts, train: Clips, test: Clips, steps: int, seed: int) -> dict[str, float]:
    """Trains on `train`; which share of `test` is right in the thing and in the motion, 0..1."""
    torch.manual_seed(seed)
    frames = train.features.shape[1]
    model = CLIP4ClipModel.from_clip(
        clip, similarity_head=head, num_frames=frames, head_config={"num_hidden_layers": 1}, head_dropout=0.0
    )
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(*texts.shape[1:] * 2) for name in ("texts", "frames")})
    for layer in layers.values():
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    texts, seen = standardised(texts, texts), train.features
    weights = [*layers.parameters(), *(p for n, p in model.named_parameters() if not n.startswith("clip."))]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1, pct_start=0.1)
    generator, captions = torch.Generator().manual_seed(seed), train.things * 2 + train.motions

    def scores(features):
        of_frames, of_texts = layers["frames"](standardised(features, seen)), layers["texts"](texts)
        mask = torch.ones(of_frames.shape[:2], dtype=torch.long)
        if head == "tightTransf":
            return model.score_pairs(of_texts, of_frames, mask).T
        videos = F.normalize(model.temporal_features(of_frames, mask), dim=-1).mean(1)
        return 20 * F.normalize(videos, dim=-1) @ F.normalize(of_texts, dim=-1).T

    model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(captions), generator=generator)[:64]
        loss = F.cross_entropy(scores(train.features[chosen]), captions[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = scores(test.features).argmax(1)
    right = {"thing_right": found // 2 == test.things, "motion_right": found % 2 == test.motions}
    right["both_right"] = right["thing_right"] & right["motion_right"]
    return {name: value.float().mean().item() for name, value in right.items()}


def run(options: argparse.Namespace, seed: int, motion: str, heads) -> None:
    clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    processor = VideoTextProcessor.from_clip(AutoProcessor.from_pretrained(embedded_model()), num_frames=99)
    development = options.development
    motions, things = [motion, OPPOSITES[motion]], DEVELOPMENT_THINGS if development else THINGS
    texts = encoded_captions(clip, processor, motions, things)
    train, test = (
        encoded_clips(clip, processor, count, 2 * seed + k, motions, options.frames, styles, things)
        for k, (count, styles) in enumerate(
            [(options.clips, TRAIN), (options.test_clips, DEVELOPMENT_STYLE if development else TEST_STYLE)]
        )
    )
    for head in heads:
        start = time.process_time()
        found = train_head(clip, head, texts, train, test, options.steps, seed)
        line = {"motion": motion, "head": head, "seed": seed}
        line |= {name: round(value, 4) for name, value in found.items()}
        line["cpu_seconds"] = round(time.process_time() - start, 1)
        with (options.out / "runs.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: list[dict], things: int = len(THINGS)) -> str:
    """Means and standard deviations over seeds, in percent."""
    text = "| motion | head | thing | motion right | both | seeds |\n|---|---|---|---|---|---|\n"
    for motion, head in dict.fromkeys((line["motion"], line["head"]) for line in lines):
        rows = [line for line in lines if (line["motion"], line["head"]) == (motion, head)]
        cells = []
        for column in ("thing_right", "motion_right", "both_right"):
            values = [100 * row[column] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        text += f"| {motion}, {OPPOSITES[motion]} | {head} | {' | '.join(cells)} | {len(rows)} |\n"
    return text + f"| | chance | {100 / things:.1f} | 50.0 | {50 / things:.1f} | |\n"


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--development", action="store_true", help="other things, and another style to test on")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--motions", default="left", help=f"each against its opposite: {', '.join(OPPOSITES)}")
    parser.add_argument("--clips", type=int, default=160, help="training clips, each also shown backwards")
    parser.add_argument("--test-clips", type=int, default=80)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)
    for argument, known in (("heads", HEADS), ("motions", tuple(OPPOSITES))):
        given = getattr(options, argument).split(",")
        if unknown := [one for one in given if one not in known]:
            parser.error(f"--{argument}: {unknown[0]!r}; want some of {', '.join(known)}")
        setattr(options, argument, given)
    return options


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, options.seeds.split(",")):
        for motion in options.motions:
            done = {(line["motion"], line["head"], line["seed"]) for line in lines_of(options.out)}
            if heads := [head for head in options.heads if (motion, head, seed) not in done]:
                run(options, seed, motion, heads)
    written = table(lines_of(options.out))
    (options.out / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
