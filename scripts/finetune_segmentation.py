"""LSeg on scenes: does it segment concepts that it was never trained on, because the text encoder knows them?

    python scripts/finetune_segmentation.py --out scripts/results/lseg --part report --seeds 1 2
    python scripts/finetune_segmentation.py --out /tmp/lseg --small        # shows that everything runs

Two worlds of concepts; in both, the text encoder is that of the embedded CLIP, frozen, and `Trainer` trains on label
maps of base concepts, with the epoch chosen on validation concepts that are not trained on (early stopping):

shapes   27 concepts, nine colours times three shapes ("blue heart"). The image encoder is new: nothing but the text
         encoder has ever met a novel concept. Each colour and each shape is also among the base concepts.
emoji    190 concepts, one large emoji in a scene. The image encoder is that of the embedded CLIP, frozen, which has
         seen the concepts in other styles: the closed head has it, too. What this CLIP knows is in its class token,
         which the decoder reads; its patches are not near texts (--without-decoder), so that two things would mix.

What is reported is measured in a style that was not trained on: `--part dev`, on which the settings were chosen, has
another one than `--part report`.

Rows, all measured in one run:

LSeg                      scores by the texts of the novel concepts
closed head, guessed      the same decoder with a learned vector for each base class; each base class is taken for a
                          novel one by chance (mean of 20 draws)
closed head, by its name  the same, but each base class is taken for the novel one whose text is nearest to its name;
                          this asks the text encoder, too: of shapes, it knows that "red circle" is near "red heart"
chance                    true masks, each object's class by chance (mean of 20 draws)

Columns: mean IoU of novel classes where novel ones are asked for, and where all are ("of all"); the share of novel
objects' pixels with the right class among novel ones ("object pixels"); mean IoU of base classes.
OUT/<concepts>-<part>.json has a line for each run, OUT/<concepts>-<part>.md the table, and
OUT/<concepts>-<part>-<seed>.png scenes, their label maps and what LSeg and the closed head find.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPModel,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from hf_clip_variants import DenseImageProcessor, LSegForSemanticSegmentation, embedded_model
from hf_clip_variants.data import DISTINCT_CLASSES, SceneMaker, SegmentationCollator, base_and_novel
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.metrics.segmentation import MeanIoU, argmax_for_metrics, mean_iou_metrics
from hf_clip_variants.modeling.lseg.finetuning_lseg import LSegRecipe, make_optimizer


TEMPLATES = ["an emoji of {}", "{}", "a picture of {}", "an icon of {}"]
OTHER = "other"
DRAWS = 20
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (60, 170, 60),
    "blue": (50, 90, 220),
    "purple": (140, 60, 180),
    "brown": (120, 75, 45),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "heart")
STYLES = ("flat", "shaded", "outlined", "spotted")  # of drawn shapes


@dataclass(frozen=True)
class Settings:
    """Of a world; `--small` takes fewer scenes and epochs."""

    trained: tuple[str, ...]  # styles
    tested: dict[str, str]  # part -> style
    novel: int  # classes
    validation: int
    size: int
    scenes: int
    decoder: int  # channels
    learning_rate: float  # of the decoder
    head_factor: float  # the image encoder's rate is this many times smaller
    epochs: int
    labels_at_once: int | None = None
    held_out: int = 150  # scenes of each test set
    batch: int = 16
    patience: int = 2
    objects: tuple[int, int] = (1, 2)
    object_size: tuple[float, float] = (0.45, 0.75)


WORLDS = {
    "shapes": Settings(
        trained=("flat", "shaded"),
        tested={"dev": "outlined", "report": "spotted"},
        novel=9,
        validation=4,
        size=48,
        scenes=2400,
        decoder=48,
        learning_rate=4e-3,
        head_factor=1.0,
        epochs=8,
        patience=3,
    ),
    "emoji": Settings(
        trained=("emojione", "fluentflat"),
        tested={"dev": "fluent3d", "report": "notov1"},
        novel=14,
        validation=8,
        size=64,
        scenes=2400,
        decoder=96,
        learning_rate=3e-3,
        head_factor=1.0,
        epochs=4,
        labels_at_once=24,
        held_out=100,
        objects=(1, 1),
        object_size=(0.7, 0.95),
    ),
}


# ---- classes and scenes


def divide(world: str, seed: int) -> dict[str, tuple[str, ...]]:
    """Base, validation and novel concepts.

    Of shapes, one shape of each colour is novel, each shape as often; a second one of some colours is for validation.
    Of emoji, novel and validation ones are among those that look different, base ones are all others.
    """
    settings, generator = WORLDS[world], np.random.default_rng(seed)
    if world == "shapes":
        order = generator.permutation(len(COLOURS))
        novel = [f"{colour} {SHAPES[order[i] % 3]}" for i, colour in enumerate(COLOURS)]
        chosen = sorted(generator.permutation(len(COLOURS))[: settings.validation])
        validation = [f"{list(COLOURS)[i]} {SHAPES[(order[i] + 1) % 3]}" for i in chosen]
        names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        base = [name for name in names if name not in {*novel, *validation}]
        return {"base": tuple(base), "validation": tuple(validation), "novel": tuple(novel)}
    share = (settings.novel + settings.validation) / len(DISTINCT_CLASSES)
    _, held_out = base_and_novel(DISTINCT_CLASSES, share, seed)
    order = generator.permutation(len(held_out))
    novel, validation = order[: settings.novel], order[settings.novel :]
    names = SceneMaker(styles=settings.trained[0]).class_names
    return {
        "base": tuple(name for name in names if name not in held_out),
        "validation": tuple(held_out[i] for i in sorted(validation)),
        "novel": tuple(held_out[i] for i in sorted(novel)),
    }


def draw_shape(shape: str, colour: tuple[int, int, int], style: str, side: int = 64) -> Image.Image:
    """RGBA."""
    picture = Image.new("RGBA", (side, side))
    pen, last = ImageDraw.Draw(picture), side - 3
    if shape == "circle":
        pen.ellipse((2, 2, last, last), fill=colour)
    elif shape == "square":
        pen.rectangle((4, 4, last - 2, last - 2), fill=colour)
    else:
        middle = side // 2
        pen.ellipse((2, 6, middle + 2, middle + 6), fill=colour)
        pen.ellipse((middle - 2, 6, last, middle + 6), fill=colour)
        pen.polygon(((4, middle - 4), (last - 2, middle - 4), (middle, side - 2)), fill=colour)
    alpha = np.asarray(picture)[..., 3:]
    pixels = np.asarray(picture)[..., :3].astype(np.float64)
    if style == "shaded":  # lighter above, darker below
        pixels = pixels + np.linspace(45, -45, side)[:, None, None]
    elif style == "outlined":
        inner = np.asarray(picture.getchannel("A").filter(ImageFilter.MinFilter(7)))[..., None] > 0
        pixels = np.where(inner, pixels, 0.45 * pixels)
    elif style == "spotted":  # a light spot, as of glass
        rows, columns = np.indices((side, side))[..., None] - side * 0.36
        pixels = pixels + 90 * np.exp(-(rows**2 + columns**2) / (2 * (side / 9) ** 2))
    return Image.fromarray(np.concatenate([pixels.clip(0, 255).astype(np.uint8), alpha], -1), "RGBA")


def shape_files(folder: Path) -> dict[str, str]:
    """Style -> a Parquet file with pictures of all shapes, as `SceneMaker` reads them."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    found = {}
    for style in STYLES:
        pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        pictures = [draw_shape(shape, COLOURS[colour], style) for colour, shape in pairs]
        names = [f"{colour} {shape}" for colour, shape in pairs]
        found[style] = str(folder / f"{style}.parquet")
        rows = datasets.Dataset.from_dict({"image": pictures, "name": names}, features=features)
        rows.to_parquet(found[style])
    return found


class SceneRows(torch.utils.data.Dataset):
    """Scenes of these classes as rows of image and label map, drawn once."""

    def __init__(
        self,
        count: int,
        names: Sequence[str],
        styles: Sequence[str] | str,
        settings: Settings,
        seed: int,
        trained: bool = False,
    ):
        maker = SceneMaker(
            styles=styles,
            class_names=names,
            size=settings.size,
            objects=settings.objects,
            object_size=settings.object_size,
            seed=seed,
        )
        self.rows = []
        for index in range(count):
            scene = maker.scene(index)
            self.rows.append({"image": scene.image, "label_map": scene.label_map, "trained": trained})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


# ---- models


def new_model(world: str, settings: Settings, seed: int) -> LSegForSemanticSegmentation:
    torch.manual_seed(seed)
    if world == "emoji":
        widths = {"fusion_hidden_size": settings.decoder, "neck_hidden_sizes": [48, 96, 192, 192]}
        model = LSegForSemanticSegmentation.from_pretrained(embedded_model(), dtype=torch.float32, **widths)
        model.lseg.vision_model.requires_grad_(False)
        return model
    sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    encoder = ViTModel(ViTConfig(**sizes, image_size=settings.size, patch_size=8), add_pooling_layer=False)
    texts = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32)
    return LSegForSemanticSegmentation.from_encoders(
        encoder, texts, fusion_hidden_size=settings.decoder, neck_hidden_sizes=[24, 24, 48, 48]
    )


class ClosedHead(nn.Module):
    """The same decoder without texts: a learned vector for each label of the training. `class_embeddings` are (n, 1)
    numbers of labels instead.
    """

    def __init__(self, model: LSegForSemanticSegmentation, count: int):
        super().__init__()
        self.model = model
        self.vectors = nn.Parameter(torch.randn(count, model.config.projection_dim))

    def forward(self, pixel_values, class_embeddings, labels=None):
        vectors = self.vectors[class_embeddings[:, 0].long()]
        return self.model(pixel_values=pixel_values, class_embeddings=vectors, labels=labels)


class PartCollator:
    """Training and evaluation have different labels, and `Trainer` has one collator: rows say what they are for."""

    def __init__(self, training: SegmentationCollator, evaluation: SegmentationCollator):
        self.training, self.evaluation = training, evaluation

    def __call__(self, rows):
        return (self.training if rows[0]["trained"] else self.evaluation)(rows)


def train(
    model: nn.Module,
    settings: Settings,
    tables: tuple[torch.Tensor, torch.Tensor],
    data: tuple[SceneRows, SceneRows],
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Trains with early stopping; `tables` and `data` are those of the training and of the choice of the epoch."""
    recipe = LSegRecipe(
        optimizer="adamw",
        learning_rate=settings.learning_rate / settings.head_factor,
        head_factor=settings.head_factor,
        batch_size=settings.batch,
        epochs=settings.epochs,
        patience=settings.patience,
        weight_decay=0.01,
    )
    arguments = recipe.arguments(
        output_dir=str(out),
        seed=seed,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        save_total_limit=1,
        save_only_model=True,
        logging_strategy="epoch",
        per_device_eval_batch_size=25,
        warmup_steps=10,
        batch_eval_metrics=True,
        dataloader_num_workers=0,
    )
    processor = image_processor()
    collator = PartCollator(
        SegmentationCollator(processor, tables[0], settings.labels_at_once, always=[0]),
        SegmentationCollator(processor, tables[1]),
    )
    trainer = Trainer(
        model,
        TrainingArguments(**arguments),
        train_dataset=data[0],
        eval_dataset=data[1],
        data_collator=collator,
        compute_metrics=mean_iou_metrics(len(tables[1])),
        preprocess_logits_for_metrics=argmax_for_metrics,
        optimizers=(make_optimizer(model, recipe), None),
        callbacks=[EarlyStoppingCallback(settings.patience)],
    )
    trainer.train()
    history = trainer.state.log_history
    return {
        "losses": [round(line["loss"], 4) for line in history if "loss" in line],
        "validation": [round(line["eval_mean_iou"], 4) for line in history if "eval_mean_iou" in line],
    }


# ---- measures


def image_processor() -> DenseImageProcessor:
    return DenseImageProcessor(do_resize=False, image_mean=CLIP_MEAN, image_std=CLIP_STD)


@torch.no_grad()
def predict(model: LSegForSemanticSegmentation, rows: SceneRows, table: torch.Tensor) -> torch.Tensor:
    """Scores (S, N, H, W) of the labels of `table`."""
    collate, model = SegmentationCollator(image_processor()), model.eval()
    batches = [collate(rows.rows[i : i + 25])["pixel_values"] for i in range(0, len(rows), 25)]
    return torch.cat([model(pixel_values=batch, class_embeddings=table).logits for batch in batches])


def truth_of(rows: SceneRows) -> torch.Tensor:
    return torch.stack([torch.from_numpy(row["label_map"].astype(np.int64)) for row in rows.rows])


def iou(predicted: torch.Tensor, truth: torch.Tensor, classes: Sequence[int], count: int) -> float:
    """Mean over these classes, of `count` labels; one that is nowhere does not count."""
    metric = MeanIoU(count)
    metric.update(predicted, truth)
    found = metric.compute()["per_category_iou"][list(classes)]
    return float(np.nanmean(found))


def figures(predicted: torch.Tensor, best_object: torch.Tensor, truth: torch.Tensor, count: int) -> dict[str, float]:
    """Of label maps, and of the best class of each pixel where none is `other`."""
    inside = truth > 0
    return {
        "novel": iou(predicted, truth, range(1, count), count),
        "object_pixels": (best_object == truth)[inside].float().mean().item(),
    }


def mean_of(results: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(one[name] for one in results) for name in results[0]}


def by_chance(rows: SceneRows, count: int, generator: np.random.Generator) -> dict[str, float]:
    """True masks; the class of each object, here of each class in a scene, by chance."""
    truth, results = truth_of(rows), []
    for _ in range(DRAWS):
        drawn = torch.from_numpy(generator.integers(1, count, (len(truth), count)))
        drawn[:, 0] = 0
        guessed = drawn.gather(1, truth.flatten(1)).view_as(truth)
        results.append(figures(guessed, guessed, truth, count))
    return mean_of(results)


# ---- one run


def run_one(world: str, part: str, seed: int, settings: Settings, out: Path) -> dict[str, Any]:
    started, processor_time = time.monotonic(), time.process_time()
    work = out / "work" / f"{world}-{part}-{seed}"
    tokenizer, classes = AutoTokenizer.from_pretrained(embedded_model()), divide(world, seed)
    base, validation, novel = classes["base"], classes["validation"], classes["novel"]
    trained, tested = settings.trained, settings.tested[part]
    if world == "shapes":
        files = shape_files(work)
        trained, tested = tuple(files[style] for style in trained), files[tested]
    data = {
        "train": SceneRows(settings.scenes, base, trained, settings, 10 * seed + 1, trained=True),
        "validation": SceneRows(settings.held_out, validation, trained, settings, 10 * seed + 2),
        "same classes": SceneRows(settings.held_out, base, trained, settings, 10 * seed + 3),
        "novel": SceneRows(settings.held_out, novel, tested, settings, 10 * seed + 4),
        "base": SceneRows(settings.held_out, base, tested, settings, 10 * seed + 5),
    }
    model = new_model(world, settings, seed)
    texts = {
        name: model.embed_texts([OTHER, *names], tokenizer, TEMPLATES)
        for name, names in (("base", base), ("validation", validation), ("novel", novel))
    }
    counts = {name: len(table) for name, table in texts.items()}
    truth = {name: truth_of(data[name]) for name in ("novel", "base")}
    generator = np.random.default_rng(seed)
    found: dict[str, Any] = {"chance": by_chance(data["novel"], counts["novel"], generator)}

    log = train(model, settings, (texts["base"], texts["validation"]), (data["train"], data["validation"]), seed, work)
    scores = predict(model, data["novel"], texts["novel"])
    maps = {"LSeg": scores.argmax(1)}
    found["LSeg"] = figures(maps["LSeg"], scores[:, 1:].argmax(1) + 1, truth["novel"], counts["novel"])
    everything = torch.cat([texts["novel"], texts["base"][1:], texts["validation"][1:]])
    of_all = predict(model, data["novel"], everything).argmax(1)
    found["LSeg"]["novel_of_all"] = iou(of_all, truth["novel"], range(1, counts["novel"]), len(everything))
    seen = predict(model, data["base"], texts["base"]).argmax(1)
    found["LSeg"]["base"] = iou(seen, truth["base"], range(1, counts["base"]), counts["base"])
    seconds = {"LSeg": time.process_time() - processor_time}

    closed = ClosedHead(new_model(world, settings, seed), counts["base"])
    numbers = torch.arange(counts["base"])[:, None].float()
    closed_log = train(closed, settings, (numbers, numbers), (data["train"], data["same classes"]), seed, work)
    vectors = closed.vectors.detach()
    scores = predict(closed.model, data["novel"], vectors)
    predicted, best_object = scores.argmax(1), scores[:, 1:].argmax(1) + 1
    results = []
    for _ in range(DRAWS):
        taken = torch.from_numpy(generator.integers(1, counts["novel"], counts["base"]))
        taken[0] = 0
        results.append(figures(taken[predicted], taken[best_object], truth["novel"], counts["novel"]))
    found["closed head, guessed"] = mean_of(results)
    taken = (texts["base"] @ texts["novel"][1:].T).argmax(1) + 1
    taken[0] = 0
    maps["closed head, by its name"] = taken[predicted]
    found["closed head, by its name"] = figures(taken[predicted], taken[best_object], truth["novel"], counts["novel"])
    seen = predict(closed.model, data["base"], vectors).argmax(1)
    for name in ("closed head, guessed", "closed head, by its name"):
        found[name]["base"] = iou(seen, truth["base"], range(1, counts["base"]), counts["base"])
    seconds["closed head"] = time.process_time() - processor_time - seconds["LSeg"]
    draw(data["novel"], maps, (OTHER, *novel), out / f"{world}-{part}-{seed}.png")
    shutil.rmtree(work)
    return {
        "seed": seed,
        "figures": found,
        "novel": novel,
        "validation": validation,
        "base": base,
        "training": {"LSeg": log, "closed head": closed_log},
        "processor_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds": round(time.monotonic() - started, 1),
        "device": "CUDA" if torch.cuda.is_available() else f"CPU, threads: {torch.get_num_threads()}",
    }


@torch.no_grad()
def without_decoder(part: str, seed: int) -> dict[str, float]:
    """Share of novel emoji's pixels whose class is right by CLIP alone: "patches", each pixel by the last layer's
    output at its patch; "values", by what this patch alone adds to the class token; "image", all by the class token.
    """
    settings, novel = WORLDS["emoji"], divide("emoji", seed)["novel"]
    clip = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    texts = new_model("emoji", settings, seed).embed_texts(
        novel, AutoTokenizer.from_pretrained(embedded_model()), TEMPLATES
    )
    rows = SceneRows(settings.held_out, novel, settings.tested[part], settings, 10 * seed + 4)
    pixels, truth = SegmentationCollator(image_processor())(rows.rows)["pixel_values"], truth_of(rows)
    states = clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    last = clip.vision_model.encoder.layers[-1]
    values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states[-2])))
    kinds = {"patches": states[-1][:, 1:], "values": values[:, 1:]}
    kinds["image"] = states[-1][:, :1].expand(-1, states[-1].shape[1] - 1, -1)
    found, side = {"chance": 1 / len(novel)}, settings.size // clip.config.vision_config.patch_size
    for kind, tokens in kinds.items():
        embeddings = clip.visual_projection(clip.vision_model.post_layernorm(tokens))
        scores = nn.functional.normalize(embeddings, dim=-1) @ texts.T
        scores = scores.transpose(1, 2).unflatten(-1, (side, side))
        best = nn.functional.interpolate(scores, size=truth.shape[-2:], mode="bilinear").argmax(1) + 1
        found[kind] = round((best == truth)[truth > 0].float().mean().item(), 3)
    return found


# ---- pictures and the table


def draw(rows: SceneRows, maps: dict[str, torch.Tensor], names: Sequence[str], path: Path, count: int = 8) -> None:
    """Images, their label maps, and what was found, in the colours of a legend."""
    from hf_clip_variants.annotations.legend import Entry, with_legend
    from hf_clip_variants.annotations.palette import palette

    colours, side, gap = palette(len(names), background=0), 128, 4
    chosen = rows.rows[:count]
    lines = [[row["image"] for row in chosen], [colours[row["label_map"]] for row in chosen]]
    lines += [[colours[one.numpy()] for one in found[:count]] for found in maps.values()]
    sheet = Image.new("RGB", (len(chosen) * (side + gap), len(lines) * (side + gap)), "white")
    for line, pictures in enumerate(lines):
        for column, picture in enumerate(pictures):
            picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture.astype(np.uint8))
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (side + gap), line * (side + gap)))
    shown = sorted({int(label) for row in chosen for label in np.unique(row["label_map"])})
    shown = sorted({*shown, *(int(v) for found in maps.values() for v in found[:count].unique())})
    entries = [Entry(tuple(int(v) for v in colours[label]), names[label]) for label in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    with_legend(sheet, entries).save(path, optimize=True)


ROWS = ("LSeg", "closed head, guessed", "closed head, by its name", "chance")
COLUMNS = {"novel": "novel", "novel_of_all": "novel, of all", "object_pixels": "object pixels", "base": "base"}


def table(runs: Sequence[dict[str, Any]], command: str) -> str:
    """Means and standard deviations over seeds, percent."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for row in ROWS:
        cells = []
        for column in COLUMNS:
            values = [100 * run["figures"][row][column] for run in runs if column in run["figures"][row]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "–")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    spent = {name: statistics.mean(run["processor_seconds"][name] for run in runs) for name in ("LSeg", "closed head")}
    head = f"Written by `{command}`. Percent, mean ± standard deviation over {len(runs)} seeds.\n\n"
    tail = f"\n\nProcessor time of a run: LSeg {spent['LSeg']:.0f} s, closed head {spent['closed head']:.0f} s; "
    tail += f"{runs[0]['device']}; {statistics.mean(run['seconds'] for run in runs) / 60:.0f} minutes for both.\n"
    return head + "\n".join(lines) + tail


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--concepts", choices=tuple(WORLDS), default="shapes")
    made.add_argument("--part", choices=("dev", "report"), default="dev")
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--small", action="store_true", help="seconds: a few scenes and steps")
    made.add_argument("--without-decoder", action="store_true", help="emoji: what CLIP's patches say; no training")
    options = made.parse_args(arguments)
    if options.without_decoder:
        for seed in options.seeds:
            print(json.dumps({"part": options.part, "seed": seed} | without_decoder(options.part, seed)))
        return 0
    command = shlex.join(
        ["python", "scripts/finetune_segmentation.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    settings = WORLDS[options.concepts]
    if options.small:
        settings = replace(settings, scenes=16, held_out=4, batch=8, epochs=1)
    name = f"{options.concepts}-{options.part}"
    file = options.out / f"{name}.json"
    for seed in options.seeds:
        runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if str(seed) in runs:
            continue
        print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
        found = run_one(options.concepts, options.part, seed, settings, options.out)
        runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        runs[str(seed)] = found
        write_json(file, runs)
        (options.out / f"{name}.md").write_text(table(list(runs.values()), command), encoding="utf-8")
        print(json.dumps(found["figures"]), file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
