"""GroupViT trained on the captions of scenes alone, and what its groups are: a table and pictures.

    python scripts/pretrain_groupvit_scenes.py --out scripts/results/groupvit --part report --seeds 0 1

Scenes are pasted emoji with exact masks (`data/scenes`); training sees images and captions, never a mask. Settings
were chosen with `--part dev`; `--part report` has other classes and other styles. Rows of the table (`--variants`):

    groupvit       8 groups, hard assignment, two noun prompts of each caption
    no_groups      the same image encoder without group tokens: the image is the mean of its patches
    soft           soft assignment
    no_nouns       without noun prompts and their loss
    more_groups    16 groups
    two_stages     16 groups, and 6 groups of groups
    k_means        group tokens start at cluster centres of patches
    batch_4        few distinct things in a batch: as many steps with 4 images instead of 48
    grad_cache     its cure where memory is short: batches of 48, encoded 12 images at a time (GradCache)
    official_start weights start with the official standard deviation 0.02 instead of 0.1
    tokens_only    the groupvit of seed 0, trained on with the classes of the other part, group tokens alone

"patches" is the baseline without groups: each patch of an encoder has the class whose text is nearest to it, by the
same projection; thresholds of the background are chosen on 100 labelled scenes for every row alike. Runs that
OUT/<part>.json has already are not repeated, so that a stopped command goes on. OUT/<part>.md is the table,
OUT/<part>-<variant>.png are pictures of seed 0.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation, GroupViTModel, embedded_model
from hf_clip_variants.data import NounPrompts
from hf_clip_variants.data.pairs.noun_prompts import word_ids
from hf_clip_variants.data.scenes.scenes import DISTINCT_CLASSES, SceneMaker
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.metrics.segmentation import MeanIoU
from hf_clip_variants.modeling.groupvit.group_token_initialisation import start_group_tokens_from_clusters
from hf_clip_variants.modeling.groupvit.modeling_groupvit import GroupViTVisionModelOutput
from hf_clip_variants.modeling.groupvit.segmentation_groupvit import compose_group_maps, resize_group_maps
from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks
from hf_clip_variants.training.callbacks import limit_logit_scale
from hf_clip_variants.training.lr_schedules import warmup_cosine
from hf_clip_variants.training.parameter_groups import weight_decay_groups


STYLES = {"dev": ("emojione", "fluentflat"), "report": ("notov1", "fluent3d")}
CLASSES = {
    "dev": ("cactus", "sunflower", "strawberry", "pizza", "penguin", "octopus", "whale", "banana"),
    "report": ("taco", "tulip", "watermelon", "doughnut", "elephant", "owl", "crab", "carrot"),
}
TEMPLATE = "a photo of a {}."
TEMPLATES = (TEMPLATE, "{}", "the {}")
SIZE, SCENES, KNOWN, TEST = 48, 2000, 100, 200
SCENE = {"objects": (1, 2), "object_size": (0.45, 0.7), "backgrounds": ("plain", "gradient", "noise")}
DRAWS = 4  # of noun prompts of each caption
THRESHOLDS = tuple(step / 40 for step in range(40))
OFFICIAL_MEAN, OFFICIAL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """Of one run; the defaults are those of the table's first row."""

    vision: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    steps: int = 1500
    batch: int = 48
    micro_batch: int | None = None
    lr: float = 3e-3
    prompts: int = 2
    has_groups: bool = True
    k_means: bool = False
    tokens_only: bool = False
    kept: bool = False


VARIANTS: dict[str, Settings] = {
    "groupvit": Settings(kept=True),
    "no_groups": Settings(has_groups=False),
    "soft": Settings(vision={"assignment": "soft"}),
    "no_nouns": Settings(prompts=0),
    "more_groups": Settings(vision={"num_group_tokens": [16, 0], "num_output_groups": [16]}, kept=True),
    "two_stages": Settings(vision={"depths": [1, 1, 1], "num_group_tokens": [16, 6, 0], "num_output_groups": [16, 6]}),
    "k_means": Settings(k_means=True),
    "batch_4": Settings(batch=4),
    "grad_cache": Settings(micro_batch=12),
    "official_start": Settings(vision={"initializer_range": 0.02}),
    "tokens_only": Settings(tokens_only=True, steps=150),
}


# ---- data


@dataclass(frozen=True)
class Scenes:
    """Normalised images (S, 3, H, W), label maps (S, H, W) with 0 for the background, captions."""

    images: torch.Tensor
    label_maps: torch.Tensor
    captions: list[str]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@cache
def make_scenes(part: str, count: int, seed: int) -> Scenes:
    names = CLASSES[part]
    assert set(names) <= set(DISTINCT_CLASSES)
    maker = SceneMaker(
        styles=list(STYLES[part]),
        class_names=names,
        size=SIZE,
        **SCENE,
        seed=seed,
    )
    made = [maker.scene(index) for index in range(count)]
    pixels = torch.from_numpy(np.stack([np.array(one.image) for one in made])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OFFICIAL_MEAN, OFFICIAL_STD))
    label_maps = torch.from_numpy(np.stack([one.label_map for one in made])).long()
    return Scenes((pixels - mean) / std, label_maps, [one.caption for one in made], names)


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model())


def token_ids(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")["input_ids"]


# ---- models


def new_model(settings: Settings, tokenizer: Any) -> GroupViTModel:
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "patch_size": 8}
    vision |= {"depths": [1, 1], "num_group_tokens": [8, 0], "num_output_groups": [8], "drop_path_rate": 0.0}
    # The official 0.02 is for a width of 384; in narrow layers it leaves the assignment to the Gumbel noise for long.
    vision |= {"initializer_range": 0.1}
    text = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 1}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"projection_dim": 48, "projection_intermediate_dim": 128, "num_noun_prompts": settings.prompts}
    config = GroupViTConfig(
        vision_config=vision | {"image_size": SIZE} | settings.vision,
        text_config=text,
        **sizes | settings.model,
    )
    return (GroupViTModel if settings.has_groups else WithoutGroups)(config)


class WithoutGroups(GroupViTModel):
    """The same layers without group tokens: patches run through all of them, and their mean is the image."""

    def _run_image_encoder(self, pixel_values, interpolate_pos_encoding=True, **kwargs) -> GroupViTVisionModelOutput:
        tokens = self.vision_model.embeddings(pixel_values)
        for stage in self.vision_model.encoder.stages:
            for layer in stage.layers:
                tokens = layer(tokens)
        tokens = self.vision_model.layernorm(tokens)
        return GroupViTVisionModelOutput(last_hidden_state=tokens, pooler_output=tokens.mean(1))


@dataclass(frozen=True)
class Texts:
    """Token ids of the captions (S, T), of DRAWS draws of M noun prompts of each (S, DRAWS, M, T), and numbers of the
    words in the prompts (S, DRAWS, M).
    """

    captions: torch.Tensor
    prompts: torch.Tensor
    words: torch.Tensor


def draw_texts(scenes: Scenes, prompts: int, seed: int, tokenizer: Any) -> Texts:
    draw, drawn = NounPrompts(prompts or 1, nouns=scenes.class_names, templates=list(TEMPLATES), seed=seed), []
    for epoch in range(DRAWS):
        draw.set_epoch(epoch)
        drawn += [draw.draw(caption) for caption in scenes.captions]
    ids = token_ids(tokenizer, [*scenes.captions, *(text for one in drawn for text in one.texts)])
    shape = (DRAWS, len(scenes), draw.num_prompts)
    return Texts(
        captions=ids[: len(scenes)],
        prompts=ids[len(scenes) :].view(*shape, -1).transpose(0, 1),
        words=word_ids([one.words for one in drawn]).view(shape).transpose(0, 1),
    )


def without_padding(batch: dict[str, torch.Tensor], pad: int) -> None:
    """Cuts texts behind the longest one."""
    names = [name for name in ("input_ids", "prompt_input_ids") if name in batch]
    # The token that pads also ends each text.
    longest = max(int((batch[name] != pad).sum(-1).max()) for name in names) + 1
    for name in names:
        batch[name] = batch[name][..., :longest]


def train(model: GroupViTModel, scenes: Scenes, settings: Settings, seed: int, tokenizer: Any) -> list[float]:
    """AdamW with a cosine schedule; returns the losses."""
    model.train()
    if settings.k_means:
        start_group_tokens_from_clusters(model, scenes.images[:200], seed=seed)
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.05), lr=settings.lr, fused=True)
    schedule = partial(
        warmup_cosine, peak=settings.lr, num_steps=settings.steps, warmup_steps=max(1, settings.steps // 10)
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    texts = draw_texts(scenes, settings.prompts, seed, tokenizer)
    generator, losses, batch_size = torch.Generator().manual_seed(seed), [], settings.batch
    for _ in range(settings.steps):
        rows = torch.randint(len(scenes), (batch_size,), generator=generator)
        mirrored = torch.rand(batch_size, 1, 1, 1, generator=generator) < 0.5
        images = scenes.images[rows]
        batch = {"input_ids": texts.captions[rows], "pixel_values": torch.where(mirrored, images.flip(-1), images)}
        if settings.prompts:
            draws = torch.randint(DRAWS, (batch_size,), generator=generator)
            batch["prompt_input_ids"] = texts.prompts[rows, draws]
            if model.config.num_background_vectors:
                batch["prompt_word_ids"] = texts.words[rows, draws]
        without_padding(batch, tokenizer.pad_token_id)
        if settings.micro_batch:
            loss = backward_in_chunks(model, batch, settings.micro_batch)
        else:
            loss = model(**batch, return_loss=True).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if model.logit_scale.requires_grad:
            limit_logit_scale(model)
        losses.append(loss.item())
    model.eval()
    return losses


def as_segmentation(model: GroupViTModel) -> GroupViTForSemanticSegmentation:
    found = GroupViTForSemanticSegmentation(model.config).eval()
    found.load_state_dict(model.state_dict())
    return found


# ---- measuring


@torch.no_grad()
def class_embeddings(model: GroupViTModel, tokenizer: Any, names: Sequence[str]) -> torch.Tensor:
    ids = token_ids(tokenizer, [TEMPLATE.format(name) for name in names])
    return F.normalize(model.get_text_features(ids).pooler_output, dim=-1)


@torch.no_grad()
def patch_scores(model: GroupViTModel, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(S, N, H, W): each patch scored by itself, as the image is; of a model with groups, the patches that enter the
    first grouping block.
    """
    grid = model.vision_model.embeddings.patch_grid(images)
    if isinstance(model, WithoutGroups):
        tokens = model._run_image_encoder(images).last_hidden_state
    else:
        layers = model.config.vision_config.depths[0]
        tokens = model.vision_model.embeddings(images)
        if layers:
            tokens = model.vision_model(images, output_hidden_states=True).hidden_states[layers]
        tokens = model.vision_model.layernorm(tokens[:, : grid[0] * grid[1]])
    embeddings = F.normalize(model.visual_projection(tokens), dim=-1)
    scores = (model.scale() * embeddings @ classes.T).softmax(-1)
    return resize_group_maps(scores.transpose(1, 2).unflatten(-1, grid), tuple(images.shape[-2:]))


def labels_of(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """(S, N, H, W) -> (S, H, W), 0 where the best score is below the threshold."""
    best, label = scores.max(1)
    return torch.where(best < threshold, 0, label + 1)


def mean_iou(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    metric = MeanIoU(classes + 1)
    metric.update(predicted, truth)
    return metric.compute()["mean_iou"]


def quality(known: torch.Tensor, known_maps: torch.Tensor, scores: torch.Tensor, maps: torch.Tensor) -> dict:
    """Of scores (S, N, H, W): mean IoU with the background's threshold that is best on `known` scenes, and the share
    of the objects' pixels whose class is right when there is no background.
    """
    classes = scores.shape[1]
    threshold = max(THRESHOLDS, key=lambda t: mean_iou(labels_of(known, t), known_maps, classes))
    inside = maps > 0
    return {
        "miou": mean_iou(labels_of(scores, threshold), maps, classes),
        "object_pixels": (scores.argmax(1) + 1 == maps)[inside].float().mean().item(),
        "threshold": threshold,
    }


def group_figures(groups: torch.Tensor, maps: torch.Tensor, count: int) -> dict[str, float]:
    """Of groups of pixels (S, H, W): how many an image has; the IoU of each object class of an image with its best
    group; and how much all images are cut alike: the mean over pixels of the share of images in which the pixel is in
    its most frequent group (1: every image is cut in the same way, whatever it shows).
    """
    ious = []
    for image, label_map in zip(groups, maps, strict=True):
        for label in label_map.unique()[label_map.unique() > 0]:
            mask = label_map == label
            shared = torch.bincount(image[mask], minlength=count)
            union = torch.bincount(image.flatten(), minlength=count) + mask.sum() - shared
            ious.append((shared / union).max().item())
    frequent = F.one_hot(groups, count).float().mean(0).amax(-1).mean().item()
    used = statistics.mean(len(image.unique()) for image in groups)
    return {"groups_used": used, "best_group_iou": statistics.mean(ious), "cut_alike": frequent}


@torch.no_grad()
def measure(model: GroupViTModel, known: Scenes, test: Scenes, tokenizer: Any) -> dict[str, Any]:
    """Everything that the table has of one trained model."""
    classes = class_embeddings(model, tokenizer, test.class_names)
    found: dict[str, Any] = {}
    parts = [torch.cat([patch_scores(model, one, classes) for one in s.images.split(50)]) for s in (known, test)]
    found["patches"] = quality(parts[0], known.label_maps, parts[1], test.label_maps)
    image = torch.cat([model.get_image_features(one).pooler_output for one in test.images.split(50)])
    text = model.get_text_features(token_ids(tokenizer, test.captions)).pooler_output
    nearest = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
    # Scenes with the same caption are one.
    found["retrieval"] = statistics.mean(test.captions[n] == test.captions[i] for i, n in enumerate(nearest.tolist()))
    if isinstance(model, WithoutGroups):
        return found
    segmentation = as_segmentation(model)
    outputs = [[segmentation(one, class_embeddings=classes) for one in s.images.split(50)] for s in (known, test)]
    known_scores, scores = (torch.cat([one.logits for one in each]) for each in outputs)
    found["groups"] = quality(known_scores, known.label_maps, scores, test.label_maps)
    maps = torch.cat([one.group_maps for one in outputs[1]])
    pixels = resize_group_maps(maps, tuple(test.images.shape[-2:])).argmax(1)
    return found | group_figures(pixels, test.label_maps, maps.shape[1])


# ---- pictures


@torch.no_grad()
def draw(model: GroupViTModel, test: Scenes, tokenizer: Any, threshold: float, path: Path, count: int = 6) -> None:
    """Images, their masks, the groups of each stage, and what the model says of the pixels and of patches alone."""
    from PIL import Image, ImageDraw

    from hf_clip_variants.annotations.palette import palette

    images, size = test.images[:count], tuple(test.images.shape[-2:])
    classes = class_embeddings(model, tokenizer, test.class_names)
    segmentation = as_segmentation(model)
    outputs = segmentation(images, class_embeddings=classes)
    grid = model.vision_model.embeddings.patch_grid(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OFFICIAL_MEAN, OFFICIAL_STD))
    pixels = (255 * (images * std + mean)).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    colours = np.asarray(palette(max(len(test.class_names) + 1, 24)))
    rows = {"image": pixels, "mask": colours[test.label_maps[:count].numpy()]}
    for stage in range(len(outputs.stage_maps)):
        maps = resize_group_maps(compose_group_maps(outputs.stage_maps[: stage + 1], grid), size)
        rows[f"groups {stage + 1}"] = colours[1 + maps.argmax(1).numpy()]
    rows["by groups"] = colours[labels_of(outputs.logits, threshold).numpy()]
    patches = patch_scores(model, images, classes)
    rows["by patches"] = colours[(1 + patches.argmax(1)).numpy()]
    side, margin, width = 96, 4, 84
    sheet = Image.new("RGB", (width + count * (side + margin), len(rows) * (side + margin) + 60), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(rows.items()):
        top = row * (side + margin)
        pen.text((4, top + side // 2), name, fill="black")
        for column, picture in enumerate(pictures):
            one = Image.fromarray(picture.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(one, (width + column * (side + margin), top))
    for label, name in enumerate(("background", *test.class_names)):
        left, top = 4 + 130 * (label % 5), len(rows) * (side + margin) + 6 + 24 * (label // 5)
        pen.rectangle((left, top, left + 14, top + 14), fill=tuple(int(v) for v in colours[label]))
        pen.text((left + 20, top + 2), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


# ---- the table


COLUMNS = {
    "mIoU": ("groups", "miou"),
    "object pixels": ("groups", "object_pixels"),
    "mIoU, patches": ("patches", "miou"),
    "object pixels, patches": ("patches", "object_pixels"),
    "IoU of an object's best group": ("best_group_iou",),
    "groups in an image": ("groups_used",),
    "cut alike": ("cut_alike",),
    "caption found": ("retrieval",),
}


def cell(runs: Sequence[dict], path: Sequence[str]) -> str:
    """Mean and standard deviation over seeds, percent but for numbers of groups."""
    values = []
    for run in runs:
        value: Any = run["figures"]
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            values.append(value if path[-1] == "groups_used" else 100 * value)
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(part: str, runs: dict[str, dict], command: str) -> str:
    by_variant: dict[str, list[dict]] = {}
    for run in runs.values():
        by_variant.setdefault(run["variant"], []).append(run)
    lines = [f"| {part} | seeds | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (2 + len(COLUMNS))]
    for variant in VARIANTS:
        found = by_variant.get(variant, [])
        before = [{"figures": run["figures"]["before"]} for run in found if "before" in run["figures"]]
        for name, rows in ((f"{variant}, before", before), (variant, found)):
            if rows:
                cells = [cell(rows, path) for path in COLUMNS.values()]
                lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    head = f"Written by `{command}`. Percent, mean ± standard deviation over seeds. Rows and columns: see the script."
    return head + "\n\n" + "\n".join(lines) + "\n"


# ---- running


def model_folder(out: Path, part: str, variant: str, seed: int) -> Path:
    return out / "models" / f"{part}-{variant}-{seed}"


def run_one(part: str, variant: str, seed: int, out: Path, tokenizer: Any, steps: int | None = None) -> dict[str, Any]:
    """Trains and measures one model; some are kept in OUT/models, for `tokens_only` and `groupvit_background.py`."""
    settings = VARIANTS[variant]
    if steps:
        settings = Settings(**{**vars(settings), "steps": steps})
    torch.manual_seed(seed)
    started, processor = time.monotonic(), time.process_time()
    model = new_model(settings, tokenizer)
    trained_part = part
    figures: dict[str, Any] = {}
    if settings.tokens_only:
        trained_part = {"dev": "report", "report": "dev"}[part]
        before = model_folder(out, part, "groupvit", seed)
        model = GroupViTModel.from_pretrained(before, trained_part="group_tokens")
    scenes = make_scenes(trained_part, SCENES, 1)
    known, test = make_scenes(trained_part, KNOWN, 2), make_scenes(trained_part, TEST, 3)
    if settings.tokens_only:
        figures["before"] = measure(model.eval(), known, test, tokenizer)
    losses = train(model, scenes, settings, seed, tokenizer)
    figures |= measure(model, known, test, tokenizer)
    if settings.kept:
        model.save_pretrained(model_folder(out, part, variant, seed))
    if seed == 0 and settings.has_groups:
        draw(model, test, tokenizer, figures["groups"]["threshold"], out / f"{part}-{variant}.png")
    return {
        "variant": variant,
        "seed": seed,
        "figures": figures,
        "steps": settings.steps,
        "last_loss": statistics.mean(losses[-20:]),
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--part", choices=("dev", "report"), default="dev")
    made.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--steps", type=int, help="fewer, to try it")
    options = made.parse_args(arguments)
    command = shlex.join(
        ["python", "scripts/pretrain_groupvit_scenes.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    file = options.out / f"{options.part}.json"
    tokenizer = load_tokenizer()
    for seed in options.seeds:
        for variant in options.variants:
            runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if f"{variant}-{seed}" in runs:
                continue
            print(f"{variant}, seed {seed}", file=sys.stderr, flush=True)
            found = run_one(options.part, variant, seed, options.out, tokenizer, options.steps)
            # Another command may have written meanwhile.
            runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            runs[f"{variant}-{seed}"] = found
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(file, runs)
            (options.out / f"{options.part}.md").write_text(table(options.part, runs, command), encoding="utf-8")
            print(json.dumps(found), file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
