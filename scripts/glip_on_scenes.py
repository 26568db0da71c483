"""GLIP on scenes of emoji: detection data alone, with grounding data, and with a teacher's labels of captions.

    python scripts/glip_on_scenes.py --out scripts/results/glip            # all variants, seeds 1, 2, 3: an hour
    python scripts/glip_on_scenes.py --small --out /tmp/glip               # shows that everything runs

Three kinds of classes. "Detection" classes have boxes with class names; "sentence" classes only occur in captions
whose phrases have boxes; "pairs" classes only in captions without any box.

detection   boxes with class names
mixed       and captions whose phrases have boxes
longer      the mixed model, trained on with the same data
student     the mixed model, trained on with the same data and with captions without boxes, whose noun phrases it has
            found itself (`label_pairs`); their images have the styles of those with boxes, and a third one
adapted     the same, but the images of captions have the third style and the test's: nobody drew boxes there

The first two start from the same random weights and see the same number of images (--steps), and so do the others
(--more-steps, at a third of the rate); each is kept in OUT/seed-<seed>/. Pyramid, BERT, fusion, head, losses and
prompts are GLIP's. In the place of its Swin transformer, which is trained on ImageNet before, is the embedded CLIP's
image encoder, frozen, whose maps are computed once: from nothing, a Swin transformer learns nothing in a minute. BERT
starts from nothing: it knows no word that it was not shown.

Test scenes have another emoji style than all images with boxes. Seed s chooses the classes, which are distinct for
seeds 0 to 4, the scenes and the weights. Seed 0 is for development, with another test style; tables are made of the
seeds that --seeds names (default 1, 2, 3).

OUT/runs.jsonl gets a line for each variant and seed: AP of each kind of classes with all class names in the prompt,
and R@1 of the phrases of test captions. OUT/table.md has means and standard deviations, OUT/curves.png the losses of
the first seed, and OUT/boxes.png its first test captions with the best box of each phrase.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import csv
import json
import re
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import avg_pool2d
from transformers import BertTokenizerFast, CLIPVisionModel, set_seed

from hf_clip_variants import (
    GLIPConfig,
    GLIPForZeroShotObjectDetection,
    GLIPImageProcessor,
    GLIPProcessor,
    embedded_model,
)
from hf_clip_variants.annotations.boxes import draw_detections
from hf_clip_variants.annotations.detections import Detections
from hf_clip_variants.annotations.legend import font_for
from hf_clip_variants.data.crops.detection_rows import DetectionRows
from hf_clip_variants.data.detection_sets import DetectionSet, join_sets, load_detection_set, load_grounding_set
from hf_clip_variants.data.pairs.sources import open_pairs
from hf_clip_variants.data.scenes.coco import export_coco
from hf_clip_variants.data.scenes.scenes import DISTINCT_CLASSES, base_and_novel, make_scenes
from hf_clip_variants.evaluation.grounding_recall import measure_grounding_recall
from hf_clip_variants.evaluation.pseudo_labels import label_pairs
from hf_clip_variants.metrics.detection import DetectionMetrics
from hf_clip_variants.training.detection_trainer import TextDetectionCollator


VARIANTS = {
    "detection": "detection data alone",
    "mixed": "detection and grounding data (the teacher)",
    "longer": "the teacher, trained on",
    "student": "the teacher, trained on with its own labels of captions, too",
    "adapted": "the same, with captions of images in the test's style",
}
KINDS = ("detection", "sentence", "pairs")
CAPTIONS = {"student": "pairs", "adapted": "pairs-test-style"}  # the data that a variant labels itself
STYLES = ("notov1", "fluentflat")  # of data with boxes
PAIR_STYLE, TEST_STYLE = "emojione", "fluent3d"  # another one of captions alone, and of the test; seed 0: exchanged
SHOWN = 4  # test scenes on the picture
READ = (2, 5, 8)  # layers of the image encoder whose outputs are read
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--scenes", type=int, default=800, help="with boxes of class names")
    parser.add_argument("--captions", type=int, default=800, help="scenes with captions whose phrases have boxes")
    parser.add_argument("--pairs", type=int, default=4000, help="scenes with captions and no box")
    parser.add_argument("--test-scenes", type=int, default=400)
    parser.add_argument("--classes", type=int, default=9)
    parser.add_argument("--objects", default="1,3", help="fewest and most in a scene")
    parser.add_argument("--object-size", default="0.35,0.55", help="smallest and largest, as a share of the side")
    parser.add_argument("--backgrounds", default="plain")
    parser.add_argument("--threshold", type=float, default=0.3, help="smallest score of a pseudo-label")
    parser.add_argument(
        "--phrase-nms", type=float, default=0.5, metavar="IOU", help="of pseudo-labels: a thing has one name"
    )
    parser.add_argument(
        "--every-phrase",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="only captions whose phrases all have a pseudo-label",
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--more-steps", type=int, default=1000, help="of a model that is trained on")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--small", action="store_true", help="seconds: a few scenes and steps")
    options = parser.parse_args(argv)
    if options.small:
        options.scenes = options.captions = options.pairs = options.test_scenes = 8
        options.steps, options.more_steps, options.threshold, options.seeds = 2, 2, 0.001, "0"
        options.every_phrase = False
    return options


def vocabulary(names: list[str], captions: list[str]) -> list[str]:
    """Words of names and captions. A plural is its singular and an ending, so that it is not another word."""
    known = {word for name in names for word in re.findall(r"\w+", name.lower())}
    endings = ("s", "es")
    found = dict.fromkeys([*sorted(known), ".", ",", *(f"##{ending}" for ending in endings)])
    for caption in captions:
        for word in re.findall(r"\w+", caption.lower()):
            if not any(word == one + ending for one in known for ending in endings):
                found[word] = None
    return [*_SPECIAL, *found]


class FrozenEncoder(nn.Module):
    """The embedded CLIP's image encoder in the place of GLIP's Swin transformer: maps of strides 8, 16 and 32."""

    size, width = 64, 192 * len(READ)

    def __init__(self):
        super().__init__()
        self.clip = CLIPVisionModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
        self.clip.requires_grad_(False)
        self.stored: torch.Tensor | None = None  # maps of the next images, instead of computing them

    def train(self, mode: bool = True) -> "FrozenEncoder":
        return super().train(False)

    @torch.no_grad()
    def read(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) -> (B, C, 8, 8): the tokens of three layers."""
        states = self.clip(pixel_values, output_hidden_states=True).hidden_states
        tokens = [nn.functional.layer_norm(states[i][:, 1:], states[i].shape[-1:]) for i in READ]
        return torch.cat(tokens, dim=-1).transpose(1, 2).unflatten(2, (8, 8))

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SimpleNamespace:
        maps = self.read(pixel_values) if self.stored is None else self.stored
        return SimpleNamespace(feature_maps=[maps, avg_pool2d(maps, 2), avg_pool2d(maps, 4)], hidden_states=None)


class Run:
    """One seed: data and the stages."""

    def __init__(self, options: argparse.Namespace, seed: int):
        self.options, self.seed = options, seed
        self.folder = options.out / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = list(DISTINCT_CLASSES[seed % 5 :: 5][: options.classes])
        detection, rest = base_and_novel(self.names, 0.55, seed)
        sentence, pairs = base_and_novel(rest, 0.4, seed)
        kinds = dict(zip(KINDS, (detection, sentence, pairs), strict=True))
        self.kinds = {kind: [self.names.index(name) for name in own] for kind, own in kinds.items()}
        self.draw_data()
        captions = [one for name in ("grounding", "pairs") for one in self.load(name).captions]
        words = vocabulary(self.names, captions)
        tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
        size = {"shortest_edge": FrozenEncoder.size, "longest_edge": FrozenEncoder.size}
        clip = {"image_mean": [0.4815, 0.4578, 0.4082], "image_std": [0.2686, 0.2613, 0.2758]}
        self.processor = GLIPProcessor(GLIPImageProcessor(size=size, **clip), tokenizer)

    def names_of(self, *kinds: str) -> list[str]:
        return [self.names[label] for kind in kinds for label in self.kinds[kind]]

    def load(self, name: str) -> DetectionSet:
        return load_detection_set(self.folder / "data" / name / "annotations.json")

    def draw_data(self) -> None:
        """Scenes as COCO has them."""
        options, place = self.options, self.folder / "data"
        settings = {
            "class_names": self.names,
            "size": FrozenEncoder.size,
            "objects": tuple(map(int, options.objects.split(","))),
            "object_size": tuple(map(float, options.object_size.split(","))),
            "backgrounds": options.backgrounds.split(","),
        }
        other, test = (PAIR_STYLE, TEST_STYLE) if self.seed else (TEST_STYLE, PAIR_STYLE)
        gold = self.names_of("detection", "sentence")  # a caption names all that is there
        for number, (name, count, styles, shown) in enumerate(
            (
                ("detection", options.scenes, STYLES, self.names),
                ("grounding", options.captions, STYLES, gold),
                ("pairs", options.pairs, (*STYLES, other), self.names),
                ("test", options.test_scenes, (test,), self.names),
                ("pairs-test-style", options.pairs, (other, test), self.names),
            )
        ):
            if not (place / name).is_dir():
                scenes = make_scenes(count, seed=10 * self.seed + number, styles=styles, shown=shown, **settings)
                export_coco(scenes, place / name)

    # ---- models

    def new_model(self) -> GLIPForZeroShotObjectDetection:
        """Weights start larger than those of wide layers; the finest level has the anchors that fit the objects."""
        config = GLIPConfig.tiny(anchor_sizes=[32, 64, 128, 256, 512], initializer_range=0.07, head_num_layers=1)
        config.text_config.vocab_size = len(self.processor.tokenizer)
        config.text_config.initializer_range = 0.1
        set_seed(self.seed)
        model = GLIPForZeroShotObjectDetection(config)
        model.backbone = FrozenEncoder()
        lateral = [nn.Conv2d(FrozenEncoder.width, config.hidden_size, 1) for _ in model.pyramid.lateral]
        model.pyramid.lateral = nn.ModuleList(lateral)
        return model

    def training_set(self, variant: str) -> DetectionSet:
        """Images with names, then those with captions. Classes of other kinds stay in the images, without boxes."""
        names = self.names_of("detection")
        data = self.load("detection")
        data = data.without([name for name in self.names if name not in names])
        place = {label: names.index(self.names[label]) for label in self.kinds["detection"]}
        marks = [[mark | {"category_id": place[mark["category_id"]]} for mark in row] for row in data.annotations]
        data = DetectionSet(data.images, marks, names)
        if variant != "detection":
            data = join_sets(data, load_grounding_set(self.folder / "data" / "grounding" / "annotations.json"))
        if variant in CAPTIONS:
            data = join_sets(data, load_grounding_set(self.labels(variant) / "grounding.json"))
        return data

    def maps(self, data: DetectionSet) -> torch.Tensor:
        """(N, C, 8, 8), of the frozen encoder."""
        encoder, found = FrozenEncoder(), []
        for start in range(0, len(data), 32):
            images = [data.images[i].convert("RGB") for i in range(start, min(start + 32, len(data)))]
            found.append(encoder.read(self.processor(images).pixel_values))
        return torch.cat(found)

    def train(self, variant: str) -> GLIPForZeroShotObjectDetection:
        options, path = self.options, self.folder / f"{variant}.safetensors"
        model = self.new_model()
        if path.is_file():
            model.load_state_dict(load_file(path), strict=False)
            return model.eval()
        goes_on = variant == "longer" or variant in CAPTIONS
        model = self.train("mixed") if goes_on else model
        steps, rate = (options.more_steps, options.lr / 3) if goes_on else (options.steps, options.lr)
        data = self.training_set(variant)
        maps, captions = self.maps(data), data.captions or [None] * len(data)
        blank = Image.new("RGB", (FrozenEncoder.size,) * 2)
        rows = DetectionRows([blank] * len(data), data.annotations, seed=self.seed, captions=captions)
        collate = TextDetectionCollator(self.processor, labels=data.class_names, others=len(self.names))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
        generator, curve, order = torch.Generator().manual_seed(self.seed), [], []
        model.train()
        for step in range(steps):
            if len(order) < options.batch:
                rows.set_epoch(step)
                order = torch.randperm(len(rows), generator=generator).tolist()
            chosen = [order.pop() for _ in range(min(options.batch, len(rows)))]
            model.backbone.stored = maps[chosen]
            output = model(**collate([rows[i] for i in chosen]))
            optimizer.zero_grad()
            output.loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            curve.append({name: round(float(value), 4) for name, value in output.loss_dict.items()})
            if step % 50 == 49:
                print(f"seed {self.seed} {variant} step {step + 1}: {curve[-1]}", flush=True)
        model.backbone.stored = None
        (self.folder / f"{variant}.curve.json").write_text(json.dumps(curve))
        state = model.state_dict()
        save_file({n: t.contiguous() for n, t in state.items() if not n.startswith("backbone.")}, path)
        return model.eval()

    def labels(self, variant: str) -> Path:
        """The folder of the teacher's boxes."""
        return self.folder / ("labels" if variant == "student" else f"labels-{variant}")

    def label(self, variant: str) -> dict[str, int]:
        """The teacher's boxes of what captions name."""
        name = CAPTIONS[variant]
        table, data = self.folder / "data" / f"{name}.csv", self.load(name)
        with table.open("w", newline="", encoding="utf-8") as file:
            paths = [f"{name}/images/{number:06}.png" for number in range(len(data))]
            csv.writer(file).writerows([("image", "caption"), *zip(paths, data.captions, strict=True)])
        pairs = open_pairs(table)
        options = {name: getattr(self.options, name) for name in ("threshold", "phrase_nms", "every_phrase")}
        options |= {"batch_size": 16, "part_size": 1000}
        found = label_pairs(self.train("mixed"), self.processor, pairs, self.labels(variant), **options)
        return {"labelled_images": found.images, "labels": found.boxes}

    # ---- numbers and pictures

    @torch.inference_mode()
    def evaluate(self, model, variant: str) -> dict[str, float]:
        test = load_grounding_set(self.folder / "data" / "test" / "annotations.json")
        metrics = DetectionMetrics(num_labels=len(self.names), groups=self.kinds)
        prompt = self.processor(text=self.names)
        for start in range(0, len(test), 8):
            some = range(start, min(start + 8, len(test)))
            images = [test.images[i].convert("RGB") for i in some]
            found = self.processor.post_process_grounded_object_detection(
                model(**self.processor(images), **prompt),
                target_sizes=[image.size[::-1] for image in images],
                text_labels=self.names,
                score_threshold=0.0,
            )
            for i, one in zip(some, found, strict=True):
                metrics.add(i, {name: one[name].numpy() for name in ("scores", "labels", "boxes")}, test.target(i))
        self.draw(model, test, variant)
        return metrics.compute() | measure_grounding_recall(model, self.processor, test, self.kinds, batch_size=8)

    @torch.inference_mode()
    def draw(self, model, test: DetectionSet, variant: str) -> None:
        """The best box of each class that the caption names, and the true boxes."""
        place = self.folder / "pictures"
        place.mkdir(exist_ok=True)
        marked = {label: mark for mark, kind in zip(("", "*", "**"), KINDS, strict=True) for label in self.kinds[kind]}
        names = [f"{name}{marked[label]}" for label, name in enumerate(self.names)]
        chosen = [i for i in range(len(test)) if len({m["category_id"] for m in test.annotations[i]}) > 1][:SHOWN]
        for number, i in enumerate(chosen):
            image, truth = test.images[i].convert("RGB"), test.target(i)
            spans = {tuple(map(tuple, m["tokens_positive"])): m["category_id"] for m in test.annotations[i]}
            inputs = self.processor(image, captions=[test.captions[i]], phrases=[[list(one) for one in spans]])
            (found,) = self.processor.post_process_grounded_object_detection(
                model(**inputs), target_sizes=[image.size[::-1]], score_threshold=0.0, max_detections=1000
            )
            places = [(found["labels"] == k).nonzero() for k in range(len(spans))]
            rows = [int(one[0]) for one in places if len(one)]
            labels = [list(spans.values())[int(found["labels"][row])] for row in rows]
            best = Detections(found["boxes"][rows].numpy(), confidence=found["scores"][rows].numpy(), class_id=labels)
            draw_detections(image, best, names, legend=False).save(place / f"{variant}-{number}.png")
            true = Detections(truth["boxes"], class_id=truth["labels"])
            draw_detections(image, true, names, legend=False).save(place / f"truth-{number}.png")

    def run(self) -> None:
        done = {(line["variant"], line["seed"]) for line in lines_of(self.options.out)}
        for variant in self.options.variants.split(","):
            if (variant, self.seed) in done:
                continue
            start, line = time.process_time(), {"variant": variant, "seed": self.seed}
            if variant in CAPTIONS:
                line |= self.label(variant)
            model = self.train(variant)
            line |= {"cpu_seconds": round(time.process_time() - start, 1)}
            line |= {name: round(value, 4) for name, value in self.evaluate(model, variant).items()}
            with (self.options.out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def lines_of(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(out: Path) -> str:
    """Means and standard deviations over seeds, in percent."""
    lines, text = lines_of(out), ""
    for measures in (("AP50", "AP"), ("R@1",)):
        columns = [f"{kind}/{measure}" for measure in measures for kind in KINDS] + [measures[0]]
        text += f"| | {' | '.join(columns)} | seeds |\n" + "|---" * (len(columns) + 2) + "|\n"
        for variant, title in VARIANTS.items():
            rows = [line for line in lines if line["variant"] == variant]
            cells = []
            for column in columns if rows else ():
                values = [100 * row[column] for row in rows]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            text += f"| {title} | {' | '.join(cells)} | {len(rows)} |\n" if rows else ""
        text += "\n"
    for row in lines:
        if "labels" in row:
            found = f"{row['labels']} boxes in {row['labelled_images']} images by the teacher"
            text += f"Seed {row['seed']}, {row['variant']}: {found}.\n"
    return text


def figures(out: Path, seed: int) -> None:
    """OUT/curves.png and OUT/boxes.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder = out / f"seed-{seed}"
    names = [name for name in VARIANTS if (folder / f"{name}.curve.json").is_file()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6))
    for name in names:
        values = [row["loss_words"] for row in json.loads((folder / f"{name}.curve.json").read_text())]
        smooth = [statistics.mean(values[max(0, i - 19) : i + 1]) for i in range(len(values))]
        left.plot(smooth, label=VARIANTS[name])
    left.set_title("loss of regions and words, each on its own data"), left.set_xlabel("step"), left.set_yscale("log")
    if names:
        left.legend(fontsize=6, loc="lower left")
    lines, width = lines_of(out), 0.8 / len(VARIANTS)
    for place, name in enumerate(VARIANTS):
        rows = [row for row in lines if row["variant"] == name]
        if rows:
            means = [100 * statistics.mean(row[f"{kind}/R@1"] for row in rows) for kind in KINDS]
            right.bar([k + place * width for k in range(len(KINDS))], means, width, label=VARIANTS[name])
    right.set_xticks([k + width for k in range(len(KINDS))], [f"{kind} classes" for kind in KINDS])
    right.set_title("R@1 of the phrases of test captions, %")
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=80)
    pyplot.close(figure)
    shown = [name for name in ("truth", *names) if (folder / "pictures" / f"{name}-0.png").is_file()]
    pictures = [[Image.open(one) for one in sorted((folder / "pictures").glob(f"{name}-*.png"))] for name in shown]
    if pictures:
        width, height = pictures[0][0].size
        canvas = Image.new("RGB", (len(pictures[0]) * (width + 4), len(shown) * (height + 24)), "white")
        draw = ImageDraw.Draw(canvas)
        for y, (name, line) in enumerate(zip(shown, pictures, strict=True)):
            draw.text((6, y * (height + 24) + 2), VARIANTS.get(name, name), fill="black", font=font_for(name, 16))
            for x, picture in enumerate(line):
                canvas.paste(picture, (x * (width + 4), y * (height + 24) + 22))
        canvas.save(out / "boxes.png")


def main(argv=None) -> None:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in map(int, options.seeds.split(",")):
        Run(options, seed).run()
    (options.out / "table.md").write_text(table(options.out))
    figures(options.out, int(options.seeds.split(",")[0]))
    print(table(options.out))


if __name__ == "__main__":
    main()
