"""VideoCLIP on long drawn videos: overlapped pairs against pairs with the captions' own borders, on three tasks.

    python scripts/videoclip_on_drawn_clips.py --out scripts/results/videoclip            # seeds 1, 2, 3
    python scripts/videoclip_on_drawn_clips.py --out /tmp/videos --development            # other things, another style

A video is a row of segments of 2 to 8 seconds, a frame a second; in each a thing moves in one of two directions, and a
caption says so. Between them are segments of other things, which no caption names: the background. A second's
features are those of the embedded CLIP's image encoder, which stays as it is; both BERTs are small and new, and so
know only words of the training. Test videos are drawn in a style that no training video has.

- retrieval: 16 single segments, one of each thing and direction, by their captions. Chance: R@1 of 1 / 16.
- steps: of a video, whose captions are given in their order: the share of steps whose second is in the step. Baseline:
  steps evenly spread over the video.
- segmentation: each second gets one of the video's captions or background (the rule of the largest dot product between
  two of them). Baselines: all background; the best caption of each second without the rule, of a model and by chance.

OUT/runs.jsonl gets a line for each way of sampling and seed, OUT/table.md has means and standard deviations over
seeds; OUT is kept, and what is in runs.jsonl is not run again.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, BertTokenizerFast

from hf_clip_variants import CLIP4ClipModel, VideoCLIPConfig, VideoCLIPModel, VideoTextProcessor, embedded_model
from hf_clip_variants.data.clips import ClipMaker
from hf_clip_variants.metrics.moments import SecondMetrics, StepMetrics
from hf_clip_variants.metrics.retrieval import rank_summary, ranks_in_tiles
from hf_clip_variants.modeling.video.moments import background_threshold, labelled_seconds, ordered_steps
from hf_clip_variants.modeling.videoclip.pretraining_videoclip import (
    PairSampling,
    RebuildClusters,
    VideoCLIPBatches,
    VideoCLIPPairs,
    collate_batches,
)


SAMPLINGS = ("overlapped", "exact")
MOTIONS = ("left", "right")
THINGS = ("cat", "taco", "cactus", "octopus", "banana", "pizza", "tulip", "penguin")
DEVELOPMENT_THINGS = ("dog", "hamburger", "sunflower", "crab", "carrot", "doughnut", "mushroom", "owl")
NAMELESS = ("burrito", "chestnut", "seedling", "hot dog")  # the background's
TRAIN, DEVELOPMENT_STYLE, TEST_STYLE = ("fluentflat", "notov1"), "emojione", "fluent3d"
LR = 1e-3


class Drawn:
    """Draws segments, and their features by the embedded CLIP."""

    def __init__(self):
        clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
        self.model = CLIP4ClipModel.from_clip(clip, similarity_head="meanP")
        self.processor = VideoTextProcessor.from_clip(AutoProcessor.from_pretrained(embedded_model()), num_frames=999)

    @torch.no_grad()
    def features(self, frames: list) -> torch.Tensor:
        pixels = self.processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
        return self.model.get_frame_features(pixels)[0]

    def segment(self, things, styles, length: int, seed: int, index: int, motion: str | None = None):
        """Frames, caption and (thing, direction) of one segment."""
        scene = {"styles": styles, "class_names": things, "size": 64, "object_size": (0.4, 0.6)}
        motions = MOTIONS if motion is None else (motion,)
        scene["backgrounds"] = "plain"
        maker = ClipMaker(motions=motions, num_frames=max(length, 2), seed=seed, scene=scene)
        clip = maker.clip(index)
        return list(clip.frames[:length]), clip.caption, (clip.category, MOTIONS.index(clip.motion))

    def videos(self, count: int, things, styles, seed: int) -> list[dict]:
        """Features (T, F), captions with their seconds, and labels (T,): 0 for background, else 1 + the caption's."""
        random, videos, index = np.random.default_rng(seed), [], 0
        for _ in range(count):
            frames, captions, labels = [], [], []
            for _ in range(int(random.integers(3, 6))):
                if random.random() < 0.5:
                    index += 1
                    more, _, _ = self.segment(NAMELESS, styles, int(random.integers(2, 9)), seed + 1000, index)
                    frames, labels = frames + more, labels + [0] * len(more)
                index += 1
                more, text, kind = self.segment(things, styles, int(random.integers(2, 9)), seed, index)
                captions.append({"start": len(frames), "end": len(frames) + len(more), "text": text, "kind": kind})
                labels += [1 + kind[0] * len(MOTIONS) + kind[1]] * len(more)
                frames += more
            videos.append({"features": self.features(frames), "captions": captions, "labels": torch.tensor(labels)})
        return videos


def all_captions(things) -> list[str]:
    """In the order of labels: of each thing, both directions."""
    maker = ClipMaker(scene={"class_names": things})
    return [maker.caption(thing, motion) for thing in range(len(things)) for motion in MOTIONS]


def tokenizer_of(captions) -> BertTokenizerFast:
    words = sorted({word for text in captions for word in text.lower().replace(".", " .").split()})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(names)}, do_lower_case=True)


def trained(videos, tokenizer, sampling: str, steps: int, seed: int) -> VideoCLIPModel:
    torch.manual_seed(seed)
    text = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"intermediate_size": 128, "max_position_embeddings": 64}
    config = VideoCLIPConfig(
        text_config=text,
        video_config=text,
        feature_size=videos[0]["features"].shape[1],
        use_s3d=False,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    model = VideoCLIPModel(config)
    draws = PairSampling(overlapped=sampling == "overlapped", text_length=(4, 16), video_length=(3, 16))
    pairs = VideoCLIPPairs(videos, tokenizer, pairs_per_video=4, sampling=draws, seed=seed)
    batches = VideoCLIPBatches(pairs, videos_per_batch=12, neighbours=24, seed=seed)
    clusters = RebuildClusters(batches, first_epoch=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1, pct_start=0.1)
    done, epoch = 0, 0
    while done < steps:
        state = argparse.Namespace(epoch=float(epoch), global_step=done)
        clusters.on_epoch_begin(None, state, None, model=model)
        model.train()
        for number in range(min(len(batches), steps - done)):
            loss = model(**collate_batches([batches[number]])).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            done += 1
        epoch += 1
    return model.eval()


@torch.no_grad()
def measured(model, tokenizer, drawn: Drawn, videos, things, style: str, seed: int, rounds: int) -> dict[str, float]:
    captions = all_captions(things)
    texts = model.get_text_features(**tokenizer(captions, padding=True, return_tensors="pt")).pooler_output
    # Retrieval: rounds of one segment for each caption.
    found = []
    for number in range(rounds):
        clips = [
            drawn.features(drawn.segment((things[label // 2],), style, 6, seed + number, label, MOTIONS[label % 2])[0])
            for label in range(len(captions))
        ]
        embeds = model.get_video_features(video_features=torch.stack(clips)).pooler_output
        scores = texts @ embeds.T
        found.append(ranks_in_tiles(lambda t, v, s=scores: s[t][:, v], torch.arange(len(captions)))[0])
    ranked = rank_summary(torch.cat(found), (1, 5))
    result = {f"retrieval_{name}": value for name, value in ranked.items() if "recall" in name}
    steps, even, seconds, nothing, without = (
        StepMetrics(),
        StepMetrics(),
        SecondMetrics(),
        SecondMetrics(),
        SecondMetrics(),
    )
    chance = []
    for video in videos:
        logits = model.get_second_logits(video["features"], texts)
        own = [one["kind"][0] * len(MOTIONS) + one["kind"][1] for one in video["captions"]]
        spans = [[(one["start"], one["end"])] for one in video["captions"]]
        steps.update(ordered_steps(logits[:, own]).tolist(), spans)
        even.update([int((k + 0.5) / len(own) * len(logits)) for k in range(len(own))], spans)
        if len(few := sorted(set(own))) < 2:
            continue  # no two captions, no rule
        # Labels of the video's own captions: 0 stays the background.
        labels = sum((video["labels"] == 1 + label) * (1 + place) for place, label in enumerate(few))
        threshold = background_threshold(texts[few])
        seconds.update(labelled_seconds(logits[:, few], threshold), labels)
        nothing.update(torch.zeros_like(labels), labels)
        without.update(labelled_seconds(logits[:, few], -torch.inf), labels)
        chance.append(float((labels > 0).float().mean()) / len(few))
    result |= {"steps": steps.compute()["step_recall"], "steps_evenly": even.compute()["step_recall"]}
    result["segmentation"] = seconds.compute()["frame_accuracy"]
    result["segmentation_all_background"] = nothing.compute()["frame_accuracy"]
    result["segmentation_no_background"] = without.compute()["frame_accuracy"]
    result["segmentation_chance"] = statistics.mean(chance)
    return result


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


COLUMNS = ("retrieval_recall_at_1", "retrieval_recall_at_5", "steps", "segmentation")


def table(lines: list[dict], labels: int = 2 * len(THINGS)) -> str:
    """Means and standard deviations over seeds, in percent."""

    def cell(rows, column) -> str:
        values = [100 * row[column] for row in rows]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    text = "| | retrieval R@1 | R@5 | steps | segmentation | seeds |\n|---|---|---|---|---|---|\n"
    for sampling in dict.fromkeys(line["sampling"] for line in lines):
        rows = [line for line in lines if line["sampling"] == sampling]
        text += f"| {sampling} | {' | '.join(cell(rows, column) for column in COLUMNS)} | {len(rows)} |\n"
        text += f"| {sampling}, no background | | | | {cell(rows, 'segmentation_no_background')} | {len(rows)} |\n"
    if lines:
        rows = [line for line in lines if line["sampling"] == lines[0]["sampling"]]
        base = f"{100 / labels:.1f} | {500 / labels:.1f} | {cell(rows, 'steps_evenly')}"
        text += f"| chance; evenly; all background | {base} | {cell(rows, 'segmentation_all_background')} | |\n"
        text += f"| chance, no background | | | | {cell(rows, 'segmentation_chance')} | |\n"
    return text


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--development", action="store_true", help="other things, and another style to test on")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--samplings", default=",".join(SAMPLINGS))
    parser.add_argument("--videos", type=int, default=120, help="to train on")
    parser.add_argument("--test-videos", type=int, default=40)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="of retrieval, each with one segment for a caption")
    options = parser.parse_args(argv)
    options.samplings = options.samplings.split(",")
    if unknown := [one for one in options.samplings if one not in SAMPLINGS]:
        parser.error(f"--samplings: {unknown[0]!r}; want some of {', '.join(SAMPLINGS)}")
    return options


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    things = DEVELOPMENT_THINGS if options.development else THINGS
    style = DEVELOPMENT_STYLE if options.development else TEST_STYLE
    for seed in map(int, options.seeds.split(",")):
        done = {(line["sampling"], line["seed"]) for line in lines_of(options.out)}
        wanted = [one for one in options.samplings if (one, seed) not in done]
        if not wanted:
            continue
        drawn = Drawn()
        videos = drawn.videos(options.videos, things, TRAIN, 10 * seed)
        tests = drawn.videos(options.test_videos, things, style, 10 * seed + 1)
        tokenizer = tokenizer_of(all_captions(things))
        for sampling in wanted:
            start = time.process_time()
            model = trained(videos, tokenizer, sampling, options.steps, seed)
            found = measured(model, tokenizer, drawn, tests, things, style, 10 * seed + 2, options.rounds)
            line = {"sampling": sampling, "seed": seed} | {name: round(value, 4) for name, value in found.items()}
            line["cpu_seconds"] = round(time.process_time() - start, 1)
            with (options.out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    written = table(lines_of(options.out), 2 * len(things))
    (options.out / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
