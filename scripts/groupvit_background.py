"""The background of a small GroupViT, measured on scenes: thresholds, training with background, groups, scales.

    python scripts/groupvit_background.py --out scripts/results/groupvit --work runs --part report --seeds 0 1

Models are those of `pretrain_groupvit_scenes.py` (captions alone, no masks), from WORK/models or trained now. What is
fitted is fitted to label maps of 10 or 40 of its labelled scenes, drawn five times, and measured on its test scenes.
OUT/background-<part>-<seed>.json has every number, OUT/background.md (of `report`) the table: means over seeds and
draws, with their standard deviation. Seeds may run at the same time, each alone; `--join` then makes the table of all.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pretrain_groupvit_scenes as pretraining
import torch
from pretrain_groupvit_scenes import (
    KNOWN,
    SIZE,
    TEMPLATE,
    TEST,
    VARIANTS,
    Scenes,
    load_tokenizer,
    make_scenes,
    model_folder,
    run_one,
    train,
)

from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation, GroupViTModel
from hf_clip_variants.metrics.group_oracle import GroupOracle
from hf_clip_variants.metrics.segmentation import MeanIoU
from hf_clip_variants.modeling.dense.group_counts import group_ids
from hf_clip_variants.modeling.groupvit.background_calibration import (
    GroupObservations,
    calibrate_thresholds,
    observe_groups,
    sum_of_ious,
)
from hf_clip_variants.modeling.groupvit.background_constraint import BACKGROUND_WORDS
from hf_clip_variants.modeling.groupvit.background_rule import background_groups, nearer_to_vectors
from hf_clip_variants.modeling.groupvit.background_threshold import BackgroundThreshold, fit_background_threshold


HEARD = 5  # classes whose thresholds an open vocabulary is fitted to
OFFICIAL = 0.95
SHOTS, DRAWS = (10, 40), 5
FIT_STEPS = 100  # of learned thresholds
MORE_STEPS = 100  # with and without the constraint
SCALES = {"1, mirrored": ((1.0,), True), "1, 1.5": ((1.0, 1.5), False), "0.75, 1, 1.5": ((0.75, 1.0, 1.5), False)}
GROUPS = {"groupvit": 8, "more_groups": 16}  # variant -> groups


# ---- models


def load(args, variant: str, seed: int, tokenizer) -> GroupViTForSemanticSegmentation:
    folder = model_folder(args.work, args.part, variant, seed)
    if not (folder / "config.json").is_file():
        run_one(args.part, variant, seed, args.work, tokenizer, args.steps)
    model = GroupViTForSemanticSegmentation.from_pretrained(folder).eval()
    model.set_labels(list(pretraining.CLASSES[args.part]), tokenizer, templates=[TEMPLATE], background=OFFICIAL)
    return model


def trained_on(args, weights: list[float], seed: int, tokenizer) -> GroupViTForSemanticSegmentation:
    """The model of `groupvit` after more steps, with background vectors that start at texts of background words."""
    folder = args.work / "models" / f"{args.part}-{'with' if any(weights) else 'without'}-constraint-{seed}"
    if not (folder / "config.json").is_file():
        before = GroupViTModel.from_pretrained(model_folder(args.work, args.part, "groupvit", seed))
        options = {"num_background_vectors": len(BACKGROUND_WORDS), "background_weights": weights}
        model = GroupViTModel(GroupViTConfig.from_dict(before.config.to_dict() | options))
        model.load_state_dict(before.state_dict(), strict=False)
        with torch.no_grad():
            encoded = tokenizer([TEMPLATE.format(w) for w in BACKGROUND_WORDS], padding=True, return_tensors="pt")
            features = model.eval().get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output
            model.background_constraint.start_from(torch.nn.functional.normalize(features, dim=-1))
        torch.manual_seed(seed)
        settings = VARIANTS["groupvit"]
        settings = replace(settings, steps=args.more_steps, lr=settings.lr / 4)
        train(model, make_scenes(args.part, pretraining.SCENES, 1), settings, seed, tokenizer)
        model.save_pretrained(folder)
    model = GroupViTForSemanticSegmentation.from_pretrained(folder).eval()
    model.set_labels(list(pretraining.CLASSES[args.part]), tokenizer, templates=[TEMPLATE], background=OFFICIAL)
    return model


# ---- what a model says of scenes


@dataclass(frozen=True)
class Said:
    """(S, G, N) scores, (S, G, h, w) soft maps, (S, H, W) groups of pixels, (S, G, D) embeddings, (S, H, W) truth."""

    scores: torch.Tensor
    soft: torch.Tensor
    groups: torch.Tensor
    embeds: torch.Tensor
    truth: torch.Tensor

    def observed(self, rows) -> GroupObservations:
        return GroupObservations.joined(observe_groups(self.scores[r], self.groups[r], self.truth[r]) for r in rows)


@torch.no_grad()
def listen(model, scenes: Scenes) -> Said:
    parts = [model(pixel_values=batch) for batch in scenes.images.split(50)]
    scores, soft, embeds = (
        torch.cat([getattr(p, n) for p in parts]) for n in ("group_scores", "group_maps", "group_embeds")
    )
    return Said(scores, soft, group_ids(soft, (SIZE, SIZE)), embeds, scenes.label_maps)


def quality(said: Said, background: torch.Tensor) -> dict[str, float]:
    """Mean IoU with these groups (S, G) as background, by the official rule."""
    classes = torch.where(background, 0, said.scores.argmax(-1) + 1)
    predicted = classes.gather(1, said.groups.flatten(1)).view_as(said.groups)
    return iou_of(predicted, said.truth, said.scores.shape[-1])


def iou_of(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> dict[str, float]:
    metric = MeanIoU(1 + classes)
    metric.update(predicted, truth)
    each = metric.compute()["per_category_iou"]
    return {"miou": float(np.nanmean(each)), "background": float(each[0]), "objects": float(np.nanmean(each[1:]))}


def one_threshold(observed: GroupObservations) -> float:
    """The best of 99 for all labels."""
    tried = [number / 100 for number in range(1, 100)]
    count = observed.counts.shape[1] - 1
    return max(tried, key=lambda t: sum_of_ious(observed, torch.full((count,), t)))


# ---- the rows


def thresholds_of(said: Said, rows, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
    """Name of a way -> (N,) thresholds fitted to the scenes `rows`."""
    observed, count = said.observed(rows), said.scores.shape[-1]
    start = one_threshold(observed)
    found = {"one threshold": torch.full((count,), start)}
    found["(a) of each label"] = calibrate_thresholds(observed, start)
    found["(a) of each label, without shrinkage"] = calibrate_thresholds(observed, start, shrinkage=0)
    soft = torch.nn.functional.interpolate(said.soft[rows], size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    tags = torch.stack([(said.truth[rows] == c + 1).flatten(1).any(1) for c in range(count)], dim=1)
    for name, truth, from_start in (
        ("(b) learned, from label maps", said.truth[rows], start),
        ("(b) learned, from tags", tags, OFFICIAL),  # tags say no threshold: it starts from the official one
    ):
        module = BackgroundThreshold(num_labels=count, threshold=from_start)
        examples = list(zip(said.scores[rows], soft, truth, strict=True))
        fit_background_threshold(module, examples, steps=FIT_STEPS, pull=0.01)
        found[name] = module.thresholds().detach()
    module = BackgroundThreshold(embedding_dim=embeddings.shape[1], threshold=start)
    only = torch.where(said.truth[rows] > HEARD, 255, said.truth[rows])  # pixels of other classes do not count
    examples = list(zip(said.scores[rows][..., :HEARD], soft, only, strict=True))
    fit_background_threshold(module, examples, embeddings[:HEARD], steps=FIT_STEPS, pull=0.01)
    found[f"(b) learned from texts, on {HEARD} of {count} classes"] = module.thresholds(embeddings).detach()
    return found


def rows_of_thresholds(model, known: Scenes, report: Scenes, embeddings, draws) -> dict[str, list[dict]]:
    """Name of a row -> a result for each draw (one for rows without)."""
    developed, said = listen(model, known), listen(model, report)
    rows = defaultdict(list)
    rows["official threshold, 0.95"].append(quality(said, background_groups(said.scores, OFFICIAL)))
    rows["no background at all"].append(quality(said, torch.zeros(said.scores.shape[:2], dtype=torch.bool)))
    for shots in SHOTS:
        for chosen in draws[shots]:
            for name, thresholds in thresholds_of(developed, chosen, embeddings).items():
                rows[f"{name}, {shots} scenes"].append(quality(said, background_groups(said.scores, thresholds)))
    of_report = said.observed(range(len(report)))
    best = calibrate_thresholds(of_report, one_threshold(of_report), shrinkage=0)
    rows["analysis: of each label, fitted to the reported scenes"].append(
        quality(said, background_groups(said.scores, best, never_all=False))
    )
    return rows


def oracle_of(model, report: Scenes, threshold: float) -> dict:
    said, oracle = listen(model, report), GroupOracle(1 + len(model.class_embeddings))
    background = background_groups(said.scores, threshold)
    texts = model.class_embeddings
    for i in range(len(report)):
        full = said.embeds[i] @ texts.T + 1
        oracle.add(said.groups[i], said.truth[i], said.scores[i], background[i], said.embeds[i], texts, full)
    return oracle.figures()


def tuned(model, known: Scenes, draws) -> list[float]:
    developed = listen(model, known)
    return [one_threshold(developed.observed(chosen)) for chosen in draws[SHOTS[-1]]]


@torch.no_grad()
def scaled(model, report: Scenes, threshold: float, scales, flip: bool) -> dict[str, float]:
    model.config.background = threshold
    parts = []
    for batch in report.images.split(50):
        window = max(round(max(scales) * SIZE), SIZE)
        parts.append(model.sliding_window_logits(batch, window, scales=scales, flip=flip).argmax(1))
    return iou_of(torch.cat(parts), report.label_maps, len(model.class_embeddings))


PARTS = ("thresholds", "scales", "constraint", "groups")


def run_seed(seed: int, args, tokenizer) -> Iterator[dict[str, list[dict]]]:
    """Name of a row -> its results, of one part after the other."""
    known, report = make_scenes(args.part, KNOWN, 2), make_scenes(args.part, TEST, 3)
    generator = torch.Generator().manual_seed(seed)
    draws = {shots: [torch.randperm(len(known), generator=generator)[:shots] for _ in range(DRAWS)] for shots in SHOTS}
    plain = load(args, "groupvit", seed, tokenizer)
    if "thresholds" in args.parts:
        yield rows_of_thresholds(plain, known, report, plain.class_embeddings, draws)
    if "scales" in args.parts:
        rows = defaultdict(list)
        for threshold in tuned(plain, known, draws)[:2]:
            for name, (scales, flip) in {"1": ((1.0,), False), **SCALES}.items():
                rows[f"(f) scales {name}, one threshold"].append(scaled(plain, report, threshold, scales, flip))
        yield rows
    if "constraint" in args.parts:
        yield rows_of_constraint(seed, args, tokenizer, known, report, draws)
    for variant in GROUPS if "groups" in args.parts else ():
        model, rows = load(args, variant, seed, tokenizer), defaultdict(list)
        for threshold in tuned(model, known, draws):
            figures = oracle_of(model, report, threshold)
            ious = figures["per_class_iou"]["zero_shot"]
            objects = statistics.mean(iou for iou in ious[1:] if iou is not None)  # None: neither there nor predicted
            row = {"miou": figures["miou"]["zero_shot"], "background": ious[0], "objects": objects}
            rows[f"(e) {GROUPS[variant]} groups, one threshold, {SHOTS[-1]} scenes"].append(row | {"oracle": figures})
        yield rows


def rows_of_constraint(seed, args, tokenizer, known, report, draws) -> dict[str, list[dict]]:
    """The model trained on, once with and once without the constraint."""
    rows: dict[str, list[dict]] = defaultdict(list)
    for name, weights in {"without": [0, 0, 0, 0], "with": [1, 1, 1, 0]}.items():
        model = trained_on(args, weights, seed, tokenizer)
        texts, title = model.class_embeddings, f"(c) {args.more_steps} steps more {name} constraint"
        said = listen(model, report)
        for threshold in tuned(model, known, draws):
            background = background_groups(said.scores, threshold)
            rows[f"{title}, one threshold, {SHOTS[-1]} scenes"].append(quality(said, background))
        rows[f"{title}, official threshold"].append(quality(said, background_groups(said.scores, OFFICIAL)))
        # Without the constraint the vectors stay what they start as: texts of background words.
        nearest = nearer_to_vectors(said.embeds, texts, model.background_constraint.vectors.detach())
        rows[f"{title}, nearest background vector, no label map"].append(quality(said, nearest))
    return rows


# ---- the table


def table(results: dict[str, dict], part: str, command: str) -> str:
    """`results`: seed -> name of a row -> results."""
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    classes = len(pretraining.CLASSES[part])
    lines = ["# The background of a small GroupViT", "", f"`{command}`", ""]
    lines += [
        f"Models: `{part}` of `pretrain_groupvit_scenes.py`, {len(results)} seeds of training. Mean IoU, % over "
        f"{classes} classes and the background, on {TEST} scenes; what is fitted is fitted to 10 or 40 of {KNOWN} "
        f"other scenes, {DRAWS} draws a seed. ± is the standard deviation over seeds and draws; the last column is "
        "the difference from one threshold fitted to the same scenes, seed by seed and draw by draw.",
        "",
        "| | mean IoU | background | objects | difference |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        every = [row for rows in results.values() for row in rows.get(name, [])]
        cells = [_spread([100 * row[key] for row in every]) for key in ("miou", "background", "objects")]
        lines.append(f"| {name} | {' | '.join(cells)} | {_difference(results, name)} |")
    lines += ["", "Oracle analysis of the models of (e), means (%):", "", "| groups | " + " | ".join(_ORACLE) + " |"]
    lines.append("|---" * (len(_ORACLE) + 1) + "|")
    for name in (name for name in names if name.startswith("(e)")):
        every = [row["oracle"] for rows in results.values() for row in rows.get(name, [])]
        cells = [f"{statistics.mean(value(one) for one in every):.1f}" for value in _ORACLE.values()]
        lines.append(f"| {name.split()[1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_ORACLE = {
    "model": lambda f: 100 * f["miou"]["zero_shot"],
    "oracle names": lambda f: 100 * f["miou"]["oracle"],
    "told the classes": lambda f: 100 * f["miou"]["present_classes"],
    "told the background": lambda f: 100 * f["miou"]["true_background"],
    "true masks": lambda f: 100 * f["miou"]["true_masks"],
    "masks named right": lambda f: 100 * f["mask_accuracy"],
    "groups used": lambda f: f["groups_used"],
}


def _spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{spread}"


def _difference(results: dict[str, dict], name: str) -> str:
    for shots in SHOTS:
        if name.startswith(("(a)", "(b)")) and name.endswith(f"{shots} scenes"):
            pairs = [
                100 * (one["miou"] - other["miou"])
                for rows in results.values()
                for one, other in zip(rows[name], rows[f"one threshold, {shots} scenes"], strict=True)
            ]
            return _spread(pairs, "+")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="OUT of pretrain_groupvit_scenes.py, with its models")
    parser.add_argument("--part", choices=("dev", "report"), default="report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, help="of models that are not in WORK yet; fewer, to try it")
    parser.add_argument("--more-steps", type=int, default=MORE_STEPS, help="with and without the constraint")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others keep their rows in OUT")
    parser.add_argument("--join", action="store_true", help="only make the table of what is in OUT")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = None if args.join else load_tokenizer()
    results = {}
    for seed in args.seeds:
        file = args.out / f"background-{args.part}-{seed}.json"
        for rows in () if args.join else run_seed(seed, args, tokenizer):
            kept = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps(kept | rows, indent=1) + "\n")
            print(f"seed {seed}: {', '.join(rows)}", file=sys.stderr, flush=True)
        results[str(seed)] = json.loads(file.read_text())
    command = "python " + shlex.join(word for word in (sys.argv[0], *sys.argv[1:]) if word != "--join")
    text = table(results, args.part, command)
    (args.out / ("background.md" if args.part == "report" else f"background-{args.part}.md")).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
