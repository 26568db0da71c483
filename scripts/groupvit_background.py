"""The background of a small GroupViT, measured on scenes: thresholds, training with background, groups, scales.

    python scripts/groupvit_background.py --out scripts/results/groupvit --work /tmp/models --seeds 0 1

Scenes are pasted emoji with exact masks (`data/scenes`). Models are trained on images and captions of all four styles,
without masks; they are kept in WORK. Everything about the background is fitted to label maps of K scenes of three
styles, drawn five times, and measured on scenes of the fourth. OUT/background-<seed>.json has every
number, OUT/background.md the table: means over seeds and draws, with their standard deviation. Seeds may run at the
same time, each alone; `--join` then makes the table of all.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation, GroupViTModel, embedded_model
from hf_clip_variants.data import NounPrompts
from hf_clip_variants.data.pairs.noun_prompts import word_ids
from hf_clip_variants.data.scenes.scenes import SceneMaker
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


CLASSES = ("cactus", "sunflower", "strawberry", "pizza", "penguin", "octopus", "whale", "banana")
KNOWN = 5  # classes whose thresholds an open vocabulary is fitted to
DEVELOPED, REPORTED = ("emojione", "fluent3d", "fluentflat"), ("notov1",)
SIZE, TEMPLATE = 48, "a {}"
OFFICIAL = 0.95
SHOTS, DRAWS = (10, 40), 5
FIT_STEPS = 100  # of learned thresholds
SCALES = {"1, mirrored": ((1.0,), True), "1, 1.5": ((1.0, 1.5), False), "0.75, 1, 1.5": ((0.75, 1.0, 1.5), False)}
SCALES |= {"1, 2": ((1.0, 2.0), False), "0.75, 1, 1.5, mirrored": ((0.75, 1.0, 1.5), True)}


# ---- scenes


@dataclass(frozen=True)
class Scenes:
    """Normalised images (S, 3, H, W), label maps (S, H, W) with 0 for the background, captions."""

    images: torch.Tensor
    maps: torch.Tensor
    captions: list[str]

    def __len__(self) -> int:
        return len(self.images)


def make(count: int, styles, seed: int) -> Scenes:
    maker = SceneMaker(
        styles=styles,
        class_names=CLASSES,
        size=SIZE,
        objects=(1, 3),
        object_size=(0.35, 0.65),
        backgrounds=("plain", "gradient", "noise"),
        seed=seed,
    )
    made = [maker.scene(index) for index in range(count)]
    pixels = torch.from_numpy(np.stack([np.array(one.image) for one in made])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = torch.from_numpy(np.stack([one.label_map for one in made])).long()
    return Scenes((pixels - mean) / std, maps, [one.caption for one in made])


# ---- training


def tokenizer_of():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model())


def new_config(tokenizer, groups: int, **options) -> GroupViTConfig:
    text = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 1}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "image_size": SIZE}
    vision |= {"patch_size": 8, "depths": [2, 1], "num_group_tokens": [groups, 0], "num_output_groups": [groups]}
    vision |= {"drop_path_rate": 0.0}
    sizes = {"projection_dim": 48, "projection_intermediate_dim": 128}
    return GroupViTConfig(text_config=text, vision_config=vision, **sizes, **options)


def train(model: GroupViTModel, scenes: Scenes, tokenizer, steps: int, lr: float, seed: int, log) -> GroupViTModel:
    """Contrastive and multi-label loss on captions, batches of 48, one cycle of the learning rate."""
    model.train()
    draw = NounPrompts(2, nouns=CLASSES, templates=[TEMPLATE, "{}", "the {}"], seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator, start, seen = torch.Generator().manual_seed(seed), time.perf_counter(), defaultdict(list)
    torch.manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(scenes), (48,), generator=generator)
        draw.set_epoch(step)
        drawn = [draw.draw(scenes.captions[row]) for row in rows.tolist()]
        texts = [scenes.captions[row] for row in rows.tolist()] + [text for one in drawn for text in one.texts]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        ids, mask = (encoded[name] for name in ("input_ids", "attention_mask"))
        mirrored = torch.rand(48, 1, 1, 1, generator=generator) < 0.5
        outputs = model(
            ids[:48],
            torch.where(mirrored, scenes.images[rows].flip(-1), scenes.images[rows]),
            mask[:48],
            prompt_input_ids=ids[48:].view(48, 2, -1),
            prompt_attention_mask=mask[48:].view(48, 2, -1),
            prompt_word_ids=word_ids([one.words for one in drawn]),
            return_loss=True,
        )
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        seen["contrastive"].append(outputs.contrastive_loss.item())
        seen["multi_label"].append(outputs.multi_label_loss.item())
        if outputs.background_areas is not None:
            seen["area"].append(outputs.background_areas.mean().item())
            for name, part in zip(("positive", "negative", "area_loss"), outputs.background_losses, strict=False):
                seen[name].append(part.item())
        if step % 100 == 99:
            means = {name: round(statistics.mean(values[-100:]), 3) for name, values in seen.items()}
            log(f"  step {step + 1}, {time.perf_counter() - start:.0f} s, {means}")
    return model.eval()


def trained(
    work: Path, name: str, make_model, scenes, tokenizer, steps, lr, seed, log
) -> GroupViTForSemanticSegmentation:
    folder = work / name
    if not (folder / "config.json").is_file():
        log(f"training {name}")
        train(make_model(), scenes, tokenizer, steps, lr, seed, log).save_pretrained(folder)
    return GroupViTForSemanticSegmentation.from_pretrained(folder).eval()


def continued(base: Path, weights: list[float], tokenizer) -> GroupViTModel:
    """The base model with background vectors that start at the texts of background words."""
    model = GroupViTModel.from_pretrained(base)
    config = GroupViTConfig.from_dict(
        model.config.to_dict() | {"num_background_vectors": len(BACKGROUND_WORDS), "background_weights": weights}
    )
    found = GroupViTModel(config)
    found.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        encoded = tokenizer([TEMPLATE.format(word) for word in BACKGROUND_WORDS], padding=True, return_tensors="pt")
        features = model.eval().get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output
        found.background_constraint.start_from(torch.nn.functional.normalize(features, dim=-1))
    return found


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
    return Said(scores, soft, group_ids(soft, (SIZE, SIZE)), embeds, scenes.maps)


def quality(said: Said, background: torch.Tensor) -> dict[str, float]:
    """Mean IoU with these groups (S, G) as background, by the official rule."""
    classes = torch.where(background, 0, said.scores.argmax(-1) + 1)
    predicted = classes.gather(1, said.groups.flatten(1)).view_as(said.groups)
    return iou_of(predicted, said.truth)


def iou_of(predicted: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    metric = MeanIoU(1 + len(CLASSES))
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
    observed, count = said.observed(rows), len(CLASSES)
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
    only = torch.where(said.truth[rows] > KNOWN, 255, said.truth[rows])  # pixels of other classes do not count
    examples = list(zip(said.scores[rows][..., :KNOWN], soft, only, strict=True))
    fit_background_threshold(module, examples, embeddings[:KNOWN], steps=FIT_STEPS, pull=0.01)
    found[f"(b) learned from texts, on {KNOWN} of {count} classes"] = module.thresholds(embeddings).detach()
    return found


def set_labels(model, tokenizer) -> torch.Tensor:
    model.set_labels(list(CLASSES), tokenizer, templates=[TEMPLATE], background=OFFICIAL)
    return model.class_embeddings


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
    said, oracle = listen(model, report), GroupOracle(1 + len(CLASSES))
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
    return iou_of(torch.cat(parts), report.maps)


PARTS = ("thresholds", "scales", "constraint", "groups")


def run_seed(seed: int, args, tokenizer, log) -> Iterator[dict[str, list[dict]]]:
    """Name of a row -> its results, of one part after the other."""
    captions = make(args.scenes, (*DEVELOPED, *REPORTED), seed=100 + seed)
    known, report = make(args.known, DEVELOPED, seed=1000 + seed), make(args.reported, REPORTED, seed=2000)
    generator = torch.Generator().manual_seed(seed)
    draws = {shots: [torch.randperm(len(known), generator=generator)[:shots] for _ in range(DRAWS)] for shots in SHOTS}
    work = Path(args.work)

    def start(groups):
        torch.manual_seed(seed)
        return GroupViTModel(new_config(tokenizer, groups, num_noun_prompts=2))

    def model_of(groups, steps):
        name = f"groups{groups}-steps{steps}-seed{seed}"
        found = trained(work, name, lambda: start(groups), captions, tokenizer, steps, args.lr, seed, log)
        set_labels(found, tokenizer)
        return found

    plain = model_of(8, args.steps)
    if "thresholds" in args.parts:
        yield rows_of_thresholds(plain, known, report, plain.class_embeddings, draws)
    if "scales" in args.parts:
        rows = defaultdict(list)
        for threshold in tuned(plain, known, draws)[:2]:
            for name, (scales, flip) in SCALES.items():
                rows[f"(f) scales {name}, one threshold"].append(scaled(plain, report, threshold, scales, flip))
        yield rows
    if "constraint" in args.parts:
        base = work / f"groups8-steps{args.steps}-seed{seed}"
        yield rows_of_constraint(base, seed, args, tokenizer, captions, known, report, draws, log)
    for groups in args.groups if "groups" in args.parts else ():
        model, rows = model_of(groups, args.group_steps), defaultdict(list)
        for threshold in tuned(model, known, draws):
            figures = oracle_of(model, report, threshold)
            row = {"miou": figures["miou"]["zero_shot"], "background": figures["per_class_iou"]["zero_shot"][0]}
            name = f"(e) {groups} groups, {args.group_steps} steps, one threshold, {SHOTS[-1]} scenes"
            rows[name].append(
                row | {"objects": statistics.mean(figures["per_class_iou"]["zero_shot"][1:]), "oracle": figures}
            )
        yield rows


def rows_of_constraint(base, seed, args, tokenizer, captions, known, report, draws, log) -> dict[str, list[dict]]:
    """The model trained on, once with and once without the constraint."""
    rows: dict[str, list[dict]] = defaultdict(list)
    steps = args.more_steps
    for name, weights in {"without": [0, 0, 0, 0], "with": [1, 1, 1, 0]}.items():
        model = trained(
            Path(args.work),
            f"{name}-constraint-seed{seed}",
            lambda w=weights: continued(base, w, tokenizer),
            captions,
            tokenizer,
            steps,
            args.lr / 4,
            seed,
            log,
        )
        vectors = model.background_constraint.vectors.detach()
        texts, title = set_labels(model, tokenizer), f"(c) {steps} steps more {name} constraint"
        said = listen(model, report)
        for threshold in tuned(model, known, draws):
            background = background_groups(said.scores, threshold)
            rows[f"{title}, one threshold, {SHOTS[-1]} scenes"].append(quality(said, background))
        rows[f"{title}, official threshold"].append(quality(said, background_groups(said.scores, OFFICIAL)))
        # Without the constraint the vectors stay what they start as: texts of background words.
        nearest = nearer_to_vectors(said.embeds, texts, vectors)
        rows[f"{title}, nearest background vector, no label map"].append(quality(said, nearest))
    return rows


# ---- the table


def table(results: dict[str, dict], command: str) -> str:
    """`results`: seed -> name of a row -> results."""
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    lines = ["# The background of a small GroupViT", ""]
    lines += [f"`{command}`", ""]
    lines += [
        f"{len(results)} seeds (training, scenes, draws). Mean IoU, % over {len(CLASSES)} classes and the background, "
        f"on scenes of the style {REPORTED[0]}; what is fitted is fitted to scenes of {', '.join(DEVELOPED)}, {DRAWS} "
        "draws a seed. ± is the standard deviation over seeds and draws; the last column is the difference from one "
        "threshold fitted to the same scenes, seed by seed and draw by draw.",
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
        lines.append(f"| {name.split()[1]}, {name.split()[3]} steps | {' | '.join(cells)} |")
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


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _difference(results: dict[str, dict], name: str) -> str:
    for shots in SHOTS:
        if name.startswith(("(a)", "(b)")) and name.endswith(f"{shots} scenes"):
            pairs = [
                100 * (one["miou"] - other["miou"])
                for rows in results.values()
                for one, other in zip(rows[name], rows[f"one threshold, {shots} scenes"], strict=True)
            ]
            return f"{statistics.mean(pairs):+.1f} ± {statistics.stdev(pairs):.1f}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", required=True, help="where trained models are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--more-steps", type=int, default=200)
    parser.add_argument("--group-steps", type=int, default=500, help="of the models of --groups")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others keep their rows in OUT")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--scenes", type=int, default=3000, help="with captions, for training")
    parser.add_argument("--known", type=int, default=200, help="that labelled ones are drawn from")
    parser.add_argument("--reported", type=int, default=300)
    parser.add_argument("--join", action="store_true", help="only make the table of what is in OUT")
    args = parser.parse_args()
    out, tokenizer = Path(args.out), tokenizer_of()
    out.mkdir(parents=True, exist_ok=True)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    for seed in args.seeds:
        file = out / f"background-{seed}.json"
        if not args.join:
            for rows in run_seed(seed, args, tokenizer, log):
                kept = json.loads(file.read_text()) if file.is_file() else {}
                file.write_text(json.dumps(kept | rows, indent=1) + "\n")
                log(f"seed {seed}: {', '.join(rows)}")
    results = {str(seed): json.loads((out / f"background-{seed}.json").read_text()) for seed in args.seeds}
    command = "python " + shlex.join(word for word in (sys.argv[0], *sys.argv[1:]) if word != "--join")
    (out / "background.md").write_text(table(results, command))
    print(table(results, command))


if __name__ == "__main__":
    main()
