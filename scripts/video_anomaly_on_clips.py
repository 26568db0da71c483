"""Abnormal frames found with labels of whole videos alone: VideoAnomalyClip beside CLIP's similarity to the names.

    python scripts/video_anomaly_on_clips.py --out scripts/results/video_anomaly_clip
    python scripts/video_anomaly_on_clips.py --out /tmp/anomalies --development   # other things, another style

Videos are drawn: foods move about on a white table; in one part of an abnormal video, a thing that does not belong
there is among them (a spider, a snake, ...). Training sees what is in a video, not where. Each video's frames are
encoded once, by the embedded CLIP, which stays as it is but for its text projection. There are two sets of test
videos: other ones in the styles of the training videos, as train and test are alike in the paper; and in a style that
no training video has. Training has three styles (two with --development, which tests on the third). All that is
measured is of single frames, which no training label tells:

- AUC, AP: of the score against "is this frame abnormal";
- mAUC, mAP: the means over anomalies, of each one's probability;
- peak: of the abnormal videos, those whose frame with the highest score is abnormal.

Beside it, on the same frames: CLIP's probability of the anomalies' names among all names, "food" with them; the
highest similarity to an anomaly's name; the distance from the mean of normal frames, which does not read names. The
score of "video labels repeated" is 1 for each frame of an abnormal video: what a perfect classifier of videos, which
finds nothing in them, would reach. "Directions alone" are the trained model's logits: how far a frame lies in the
direction of each anomaly's text, without the layers over time.

OUT/runs.jsonl gets a line for each method and seed; OUT/table.md has the means and standard deviations over seeds, in
percent; OUT/found.png and OUT/missed.png are test videos of the first seed: the first abnormal one whose highest score
lies on an abnormal frame, and the first one where it does not; the threshold is that of Youden's J on all test frames,
as in the official test. Seeds differ in training videos, new weights and batches; test videos are the same. What is in
runs.jsonl is not run again. A seed takes a minute of one processor.
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

from hf_clip_variants import VideoAnomalyClipModel, embedded_model
from hf_clip_variants.annotations.score_curves import draw_score_curve
from hf_clip_variants.data.clips import NORMAL, ClipMaker
from hf_clip_variants.metrics.video_anomaly import FrameAnomalyMetrics, roc_auc
from hf_clip_variants.modeling.dual_encoders.backbones import CLIPFamily
from hf_clip_variants.modeling.video.anomaly_segments import anomaly_segments
from hf_clip_variants.modeling.video_anomaly_clip.windows_video_anomaly_clip import sample_training_frames


OURS = "VideoAnomalyClip"
TESTS = ("styles of the training", "new style")
DIRECTIONS = "VideoAnomalyClip, directions alone"
BASELINES = (
    "CLIP, probability of the names",
    "CLIP, highest similarity",
    "distance from normal frames",
    "video labels repeated",
)
NORMAL_TEXT = "food"
ANOMALIES = ("spider", "snake", "rat", "kitchen knife")
FOODS = ("taco", "pizza", "watermelon", "bread", "grapes", "doughnut", "sushi", "carrot", "cheese wedge", "egg")
DEVELOPMENT_ANOMALIES = ("scorpion", "crocodile", "bat", "honeybee")
DEVELOPMENT_FOODS = (
    "burrito",
    "hamburger",
    "melon",
    "croissant",
    "cherries",
    "cookie",
    "rice ball",
    "potato",
    "bacon",
)
TRAIN, DEVELOPMENT_STYLE, TEST_STYLE = ("fluentflat", "notov1"), "emojione", "fluent3d"
TEMPLATE = "an emoji of {}"
METRICS = ("auc", "ap", "mauc", "map", "peak")
SHORT = ("AUC", "AP", "mAUC", "mAP", "peak")
FPS = 4.0


@dataclass(frozen=True)
class Videos:
    """V videos: features of their frames (T_v, D) each, class of each, class of each frame (T_v,)."""

    features: list[torch.Tensor]
    labels: torch.Tensor
    frame_labels: list[torch.Tensor]


@torch.no_grad()
def drawn_videos(clip, processor, count: int, seed: int, options, styles, anomalies, foods) -> Videos:
    """Half of them are abnormal. Frames are encoded as CLIP gives them, not normalised."""
    names = [NORMAL, *anomalies]
    scene = {"styles": styles, "class_names": [*foods, *anomalies], "size": 64, "backgrounds": "white"}
    features, labels, frame_labels = [], [], []
    for rate in (1.0, 0.0):
        maker = ClipMaker(
            motions=("left", "right", "up", "down"),
            num_frames=8,
            fps=FPS,
            things=(1, 3),
            steps=options.steps,
            anomalies=anomalies,
            anomaly_rate=rate,
            seed=2 * seed + int(rate),
            scene=scene | {"object_size": (0.5, 0.8)},
        )
        for index in range(count // 2):
            made = maker.clip(index)
            pixels = processor.image_processor(list(made.frames), return_tensors="pt")["pixel_values"]
            features.append(CLIPFamily.pooled_image_features(clip, pixels))
            frame_labels.append(torch.tensor([names.index(name) for name in made.frame_labels]))
            labels.append(names.index(made.anomaly))
    return Videos(features, torch.tensor(labels), frame_labels)


def train(model: VideoAnomalyClipModel, videos: Videos, options: argparse.Namespace, seed: int) -> None:
    """As the paper: half of each batch is abnormal, segments start at random places, a warm-up and a cosine."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    kinds = [(videos.labels != 0).nonzero()[:, 0], (videos.labels == 0).nonzero()[:, 0]]
    # The paper has one rate for all.
    fast = list(model.scorer.parameters())
    slow = [model.context, model.clip.text_projection.weight]
    rates = [options.lr, options.lr * options.slow_factor]
    groups = [{"params": part, "lr": rate} for part, rate in zip((fast, slow), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=options.training_steps, pct_start=0.1)
    grid = (config.num_segments, config.segment_length)
    model.train()
    for _ in range(options.training_steps):
        chosen = torch.cat(
            [kind[torch.randperm(len(kind), generator=generator)[: options.batch_size // 2]] for kind in kinds]
        )
        frames = [
            videos.features[number][sample_training_frames(len(videos.features[number]), *grid, generator=generator)]
            for number in chosen.tolist()
        ]
        model(video_features=torch.stack(frames), labels=videos.labels[chosen]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def measured(videos: Videos, scores: list[torch.Tensor], class_probs: list[torch.Tensor] | None, classes: int) -> dict:
    metrics = FrameAnomalyMetrics(classes)
    for number, frame_labels in enumerate(videos.frame_labels):
        metrics.update(scores[number], frame_labels, None if class_probs is None else class_probs[number])
    found = metrics.compute()
    abnormal = (videos.labels != 0).nonzero()[:, 0].tolist()
    found["peak"] = statistics.mean(float(is_found(scores[n], videos.frame_labels[n])) for n in abnormal)
    return {name: round(found[name], 4) for name in METRICS if found.get(name) is not None}


def is_found(scores: torch.Tensor, frame_labels: torch.Tensor) -> bool:
    """Whether the highest score of a video is that of an abnormal frame; of equal ones, all of them."""
    return bool((frame_labels[scores == scores.max()] != 0).all())


@torch.no_grad()
def answers(model: VideoAnomalyClipModel, videos: Videos) -> tuple[list[torch.Tensor], ...]:
    """Scores (T_v,), class probabilities (T_v, N), and logits with the normal class (T_v, N), of each video."""
    found = [model(video_features=frames[None]) for frames in videos.features]
    logits = [F.pad(one.logits[0], (1, 0)) for one in found]
    return [one.scores[0] for one in found], [one.class_probs[0] for one in found], logits


@torch.no_grad()
def baselines(clip, processor, videos: Videos, centroid: torch.Tensor, anomalies) -> dict[str, dict]:
    texts = [TEMPLATE.format(name) for name in (NORMAL_TEXT, *anomalies)]
    tokens = processor(text=texts, padding=True, return_tensors="pt")
    texts = F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
    similar = [F.normalize(frames, dim=-1) @ texts.T for frames in videos.features]
    probs = [(clip.logit_scale.exp() * one).softmax(-1) for one in similar]
    count = len(texts)
    of_video = [
        torch.full((len(frames),), float(label != 0))
        for frames, label in zip(videos.features, videos.labels, strict=True)
    ]
    ways = {
        BASELINES[0]: ([1 - one[:, 0] for one in probs], probs),
        BASELINES[1]: ([one[:, 1:].amax(-1) for one in similar], similar),
        BASELINES[2]: ([(frames - centroid).norm(dim=-1) for frames in videos.features], None),
        BASELINES[3]: (of_video, None),
    }
    return {name: measured(videos, scores, class_probs, count) for name, (scores, class_probs) in ways.items()}


class Setting:
    """The encoder, the things that are drawn, and the test videos, which all seeds share."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.clip = AutoModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(embedded_model())
        self.anomalies, self.foods, style = ANOMALIES, FOODS, TEST_STYLE
        self.training_styles = (*TRAIN, DEVELOPMENT_STYLE)
        if options.development:
            self.anomalies, self.foods, style = DEVELOPMENT_ANOMALIES, DEVELOPMENT_FOODS, DEVELOPMENT_STYLE
            self.training_styles = TRAIN
        sets = zip(TESTS, (self.training_styles, style), (2000, 1000), strict=True)
        self.tests = {name: self.drawn(options.test_videos, seed, styles) for name, styles, seed in sets}

    def drawn(self, count: int, seed: int, styles) -> Videos:
        what = (self.options, styles, self.anomalies, self.foods)
        return drawn_videos(self.clip, self.processor, count, seed, *what)

    def new_model(self, known: Videos, seed: int) -> VideoAnomalyClipModel:
        torch.manual_seed(seed)
        options = self.options
        sizes = {"temporal_hidden_size": 32, "num_context_tokens": 4, "concat_features": not options.no_concat}
        sizes |= {"num_segments": options.segments, "segment_length": 2, "num_topk": options.topk, "num_bottomk": 3}
        rates = {f"selection_dropout_{kind}": options.selection_dropout for kind in ("topk", "bottomk")}
        model = VideoAnomalyClipModel.from_clip(self.clip, **sizes, **rates)
        model.set_anomalies(self.anomalies, self.processor, normal=NORMAL)
        batches = [
            {"video_features": frames[None], "labels": label[None]}
            for frames, label in zip(known.features, known.labels, strict=True)
        ]
        return model.compute_normal_centroid(batches)


def run(setting: Setting, seed: int) -> None:
    start, options = time.process_time(), setting.options
    known = setting.drawn(options.videos, seed, setting.training_styles)
    model = setting.new_model(known, seed)
    train(model, known, options, seed)
    seconds = {"cpu_seconds": round(time.process_time() - start, 1)}
    for test, videos in setting.tests.items():
        write_lines(setting, model, test, videos, {"seed": seed} | seconds)


def write_lines(setting: Setting, model: VideoAnomalyClipModel, test: str, unseen: Videos, about: dict) -> None:
    """What all methods reach on a set of test videos; of the new style, two pictures."""
    options = setting.options
    found = baselines(setting.clip, setting.processor, unseen, model.normal_centroid, setting.anomalies)
    scores, class_probs, logits = answers(model, unseen)
    classes = len(setting.anomalies) + 1
    found[DIRECTIONS] = measured(unseen, [one[:, 1:].amax(-1) for one in logits], logits, classes)
    found[OURS] = measured(unseen, scores, class_probs, classes)
    frames = sum(map(len, unseen.features))
    shares = float(sum((one > 0).sum() for one in unseen.frame_labels)) / frames
    with (options.out / "runs.jsonl").open("a") as file:
        for name, values in found.items():
            line = {"method": name, "test": test, "frames": frames, "abnormal_share": round(shares, 3)}
            line |= about | values
            file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    abnormal = (unseen.labels != 0).nonzero()[:, 0].tolist()
    for name, wanted in (("found", True), ("missed", False)):
        path = options.out / f"{name}.png"
        chosen = [n for n in abnormal if is_found(scores[n], unseen.frame_labels[n]) == wanted]
        if test == TESTS[1] and chosen and not path.exists():
            draw_one(path, chosen[0], model, unseen, scores, class_probs)


def draw_one(path: Path, number: int, model, videos: Videos, scores, class_probs) -> None:
    times = torch.arange(len(scores[number])) / FPS
    labels, config = model.config.id2label, model.config
    limit = roc_auc(torch.cat(scores), torch.cat(videos.frame_labels) != 0)[1]
    segments = anomaly_segments(scores[number], class_probs[number], labels, config.normal_id, limit, times.numpy())
    abnormal = (videos.frame_labels[number] != 0).nonzero()[:, 0] / FPS
    truth = [(float(abnormal[0]), float(abnormal[-1]) + 1 / FPS)]
    title = f"test video with a {labels[int(videos.labels[number])]}"
    names = [labels[label] for label in config.anomaly_ids]
    options = {"labels": names, "threshold": limit, "truth": truth, "title": title}
    path.write_bytes(draw_score_curve(times.numpy(), scores[number].numpy(), segments, **options))


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(lines: list[dict]) -> str:
    """Means and standard deviations over seeds, in percent."""
    text = ""
    for test in TESTS:
        text += _table_of([line for line in lines if line["test"] == test], test)
    return text


def _table_of(lines: list[dict], test: str) -> str:
    text = f"| {test} | {' | '.join(SHORT)} | seeds |\n{'|---' * (len(SHORT) + 2)}|\n"
    for method in (*BASELINES, DIRECTIONS, OURS):
        rows = [line for line in lines if line["method"] == method]
        cells = []
        for name in METRICS:
            values = [100 * row[name] for row in rows if name in row]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
        text += f"| {method} | {' | '.join(cells)} | {len(rows)} |\n" if rows else ""
    return f"{text}\n"


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--development", action="store_true", help="other things, and a style that is not the test's")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--videos", type=int, default=96, help="to train, half of them abnormal")
    parser.add_argument("--test-videos", type=int, default=60, help="of each of both sets")
    parser.add_argument("--steps", default="4,6", help="fewest and most parts of a video, of eight frames each")
    parser.add_argument("--segments", type=int, default=16, help="of a training grid, of two frames each")
    parser.add_argument("--topk", type=int, default=3, help="segments that count as abnormal")
    parser.add_argument("--selection-dropout", type=float, default=0.3)
    parser.add_argument("--no-concat", action="store_true", help="the layers over time do not see the logits")
    parser.add_argument("--training-steps", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the layers over time")
    parser.add_argument("--slow-factor", type=float, default=1.0, help="what it is multiplied by for texts")
    options = parser.parse_args(argv)
    steps = options.steps.split(",")
    if len(steps) != 2 or not all(one.isdecimal() for one in steps):
        parser.error(f"--steps: {options.steps!r}; want two numbers, fewest and most")
    options.steps = tuple(map(int, steps))
    return options


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    done = {line["seed"] for line in lines_of(options.out) if line["method"] == OURS}
    if seeds := [seed for seed in map(int, options.seeds.split(",")) if seed not in done]:
        setting = Setting(options)
        for seed in seeds:
            run(setting, seed)
    written = table(lines_of(options.out))
    (options.out / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
