"""ViLD from nothing on scenes of emoji: ViLD-text, ViLD-image, ViLD and ViLD-ensemble, AP of base and novel classes.

    python scripts/vild_on_scenes.py --out scripts/results/vild            # all variants, three divisions of classes
    python scripts/vild_on_scenes.py --small --out /tmp/vild               # shows that everything runs

Four stages, as in the paper; each is kept in OUT/seed-<seed>/ and done once:

rpn          a region proposal network on the base classes' boxes
proposals    its best boxes of each image; AR@100 of base and of novel objects
crops        the teacher's embeddings of the boxes' crops at 1x and 1.5x
<variant>    the detector, from the RPN's weights, with the stored proposals; AP of base and novel classes

The training scenes show all classes, but only base classes have boxes: novel objects are among the proposals, as rare
classes are in LVIS. Seed s divides the classes, draws the scenes and the weights. Seed 0 is for development, with
emoji of other designers than all other seeds; tables are made of the seeds that --seeds names (default 1, 2, 3).

The teacher and the texts are those of the embedded model. OUT/runs.jsonl gets a line for each variant and seed, with
processor seconds; OUT/table.md has their means and standard deviations, OUT/curves.png the losses of the first seed,
and OUT/boxes.png its first test scenes: the true boxes, then of each variant as many of its best boxes as there
are objects. A star marks novel classes.
"""

import os


os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from PIL import ImageDraw
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from hf_clip_variants import ViLDForZeroShotObjectDetection, embedded_model
from hf_clip_variants.annotations.boxes import draw_detections
from hf_clip_variants.annotations.detections import Detections
from hf_clip_variants.annotations.legend import font_for
from hf_clip_variants.data.crops.crop_embeddings import embed_crops
from hf_clip_variants.data.crops.detection_rows import DetectionCollator, DetectionRows, scenes_as_rows
from hf_clip_variants.data.crops.proposals import Proposals, compute_proposals
from hf_clip_variants.data.scenes.scenes import DISTINCT_CLASSES, base_and_novel, make_scenes
from hf_clip_variants.metrics.detection import DetectionMetrics, average_recall
from hf_clip_variants.modeling.vild.image_processing_vild import ViLDImageProcessor


VARIANTS = ("text", "image", "vild", "ensemble")
TEMPLATES = ["an emoji of {}", "{}", "a picture of {}", "an icon of {}"]
DEVELOPMENT_STYLES, STYLES = ("emojione", "fluentflat"), ("notov1", "fluent3d")
SHOWN = 4  # test scenes on the picture
SHARED = ("backbone.", "pyramid.", "proposal_head.")


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--scenes", type=int, default=400, help="training scenes")
    parser.add_argument("--test-scenes", type=int, default=100)
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    parser.add_argument("--objects", default="1,4", help="fewest and most in a scene")
    parser.add_argument("--object-size", default="0.25,0.5", help="smallest and largest, as a share of the side")
    parser.add_argument("--backgrounds", default="plain,gradient,noise,checks")
    parser.add_argument("--novel", type=float, default=0.25, help="share of novel classes")
    parser.add_argument("--proposals", type=int, default=30, help="of each image, stored and distilled")
    parser.add_argument("--rpn-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--small", action="store_true", help="seconds: a few scenes and steps")
    options = parser.parse_args(argv)
    if options.small:
        options.scenes, options.test_scenes, options.classes = 16, 8, 6
        options.rpn_steps = options.steps = 2
        options.proposals, options.seeds = 5, "0"
    return options


class Run:
    """One seed: data, teacher, and the stages."""

    def __init__(self, options: argparse.Namespace, seed: int):
        self.options, self.seed = options, seed
        self.folder = options.out / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = list(DISTINCT_CLASSES[:: max(len(DISTINCT_CLASSES) // options.classes, 1)][: options.classes])
        self.base, self.novel = base_and_novel(self.names, options.novel, seed)
        self.teacher = CLIPModel.from_pretrained(embedded_model(), dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(embedded_model())
        self.teacher_images = CLIPImageProcessor.from_pretrained(embedded_model())
        self.images = ViLDImageProcessor(size={"shortest_edge": options.size, "longest_edge": options.size})
        settings = {
            "class_names": self.names,
            "styles": STYLES if seed else DEVELOPMENT_STYLES,
            "size": options.size,
            "objects": tuple(map(int, options.objects.split(","))),
            "object_size": tuple(map(float, options.object_size.split(","))),
            "backgrounds": options.backgrounds.split(","),
        }
        train = make_scenes(options.scenes, seed=2 * seed, **settings)
        test = make_scenes(options.test_scenes, seed=2 * seed + 1, **settings)
        self.train_images, self.train_marks = scenes_as_rows(
            train, lambda c: c if self.names[c] in self.base else None, masks=True
        )
        self.test_images, self.test_marks = scenes_as_rows(test, lambda c: c)
        self.cpu = {}

    def new_model(self, variant: str) -> ViLDForZeroShotObjectDetection:
        torch.manual_seed(self.seed)
        model = ViLDForZeroShotObjectDetection.from_dual_encoder(
            self.teacher, variant=variant, base_labels=list(self.base), use_masks=True
        )
        model.set_labels(self.names, self.tokenizer, TEMPLATES)
        return model

    def timed(self, name: str, work):
        start = time.process_time()
        result = work()
        self.cpu[name] = round(time.process_time() - start, 1)
        print(f"seed {self.seed} {name}: {self.cpu[name]} s of processor time", flush=True)
        return result

    # ---- stages

    def rpn(self) -> dict[str, torch.Tensor]:
        path = self.folder / "rpn.safetensors"
        if path.is_file():
            return load_file(path)
        model = self.new_model("text")
        rows = DetectionRows(self.train_images, self.train_marks, flip=True, seed=self.seed)
        self.fit(model, rows, self.options.rpn_steps, "rpn", only_proposals=True)
        weights = {n: t for n, t in model.state_dict().items() if n.startswith(SHARED)}
        save_file(weights, path)
        return weights

    def proposals(self, weights, images, name: str) -> Proposals:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            model = self.new_model("text")
            model.load_state_dict(weights, strict=False)
            compute_proposals(model, self.images, images, count=100, progress=False).save(path)
        return Proposals.load(path)

    def fit(self, model, rows: DetectionRows, steps: int, name: str, **forward) -> None:
        options = self.options
        collate = DetectionCollator(self.images, masks=not forward)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps + 1, pct_start=0.1)
        generator = torch.Generator().manual_seed(self.seed)
        order, epoch, curve = [], 0, []
        model.train()
        for step in range(steps):
            if len(order) < options.batch:
                rows.set_epoch(epoch)
                epoch += 1
                order = torch.randperm(len(rows), generator=generator).tolist()
            batch = collate([rows[order.pop()] for _ in range(min(options.batch, len(rows)))])
            output = model(**batch, **forward)
            optimizer.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 5.0)
            optimizer.step()
            schedule.step()
            parts = {key: round(float(value), 4) for key, value in output.loss_dict.items()}
            curve.append({"stage": name, "step": step, "loss": round(float(output.loss.detach()), 4)} | parts)
            if step % 50 == 0 or step == steps - 1:
                print(f"seed {self.seed} {name} step {step}: {curve[-1]}", flush=True)
        (self.folder / f"{name}.curve.json").write_text(json.dumps(curve))

    @torch.no_grad()
    def evaluate(self, model, proposals: Proposals) -> dict[str, float]:
        model.eval()
        place = {name: i for i, name in enumerate(self.names)}
        groups = {"base": [place[n] for n in self.base], "novel": [place[n] for n in self.novel]}
        metrics = DetectionMetrics(num_labels=len(self.names), groups=groups)
        rows = DetectionRows(self.test_images, self.test_marks, proposals=proposals)
        collate = DetectionCollator(self.images)
        for start in range(0, len(rows), 8):
            chosen = range(start, min(start + 8, len(rows)))
            batch = collate([rows[i] for i in chosen])
            batch.pop("labels")
            sizes = [(image.height, image.width) for image in self.test_images[start : start + 8]]
            found = self.images.post_process_object_detection(
                model(**batch), threshold=0.0, target_sizes=sizes, max_detections=100
            )
            for i, one in zip(chosen, found, strict=True):
                metrics.add(i, one, _target(self.test_marks[i]))
        return metrics.compute()

    @torch.no_grad()
    def draw(self, model, proposals: Proposals, variant: str) -> None:
        """Pictures of the first test scenes, with as many boxes as there are objects."""
        names = [name if name in self.base else f"{name}*" for name in self.names]
        rows = DetectionRows(self.test_images, self.test_marks, proposals=proposals)
        collate = DetectionCollator(self.images)
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        for i in range(min(SHOWN, len(rows))):
            image, truth = self.test_images[i], _target(self.test_marks[i])
            batch = collate([rows[i]])
            batch.pop("labels")
            size = (image.height, image.width)
            (found,) = self.images.post_process_object_detection(
                model(**batch), target_sizes=[size], max_detections=len(truth["labels"])
            )
            options = {"legend": False}
            draw_detections(image, Detections.from_boxes(found, names), names, **options).save(
                folder / f"{variant}-{i}.png"
            )
            true = Detections(truth["boxes"], class_id=truth["labels"])
            draw_detections(image, true, names, **options).save(folder / f"truth-{i}.png")

    def crop_baseline(self, proposals: Proposals) -> dict[str, float]:
        """The teacher on the crops themselves: what distillation can reach at most."""
        crops = embed_crops(self.teacher, self.teacher_images, self.test_images, proposals, progress=False)
        model = self.new_model("image")
        place = {name: i for i, name in enumerate(self.names)}
        groups = {"base": [place[n] for n in self.base], "novel": [place[n] for n in self.novel]}
        metrics = DetectionMetrics(num_labels=len(self.names), groups=groups)
        from hf_clip_variants.modeling.vild.boxes_vild import select_detections

        for i in range(len(self.test_images)):
            boxes, objectness = proposals[i]
            logits = model.logits_of(crops[i][None], model.resolve_class_embeddings())
            scores = model.scores_of(None, logits, model.novel_labels(len(self.names), True), objectness[None])[0]
            values, labels, kept, _ = select_detections(scores, boxes, max_detections=100)
            metrics.add(i, {"scores": values, "labels": labels, "boxes": kept}, _target(self.test_marks[i]))
        return metrics.compute()

    def run(self) -> None:
        options = self.options
        done = _done(options.out)
        weights = self.timed("rpn", self.rpn)
        train = self.timed("proposals", lambda: self.proposals(weights, self.train_images, "train"))
        test = self.proposals(weights, self.test_images, "test")
        recall = {}
        for group, names in (("base", self.base), ("novel", self.novel)):
            marks = [
                [_corners(one["bbox"]) for one in marks if self.names[one["category_id"]] in names]
                for marks in self.test_marks
            ]
            recall[f"{group}/AR@100"] = average_recall([test[i][0] for i in range(len(test))], marks)
        few = train.best(options.proposals)
        crops = self.timed(
            "crops",
            lambda: embed_crops(
                self.teacher, self.teacher_images, self.train_images, few, self.folder / "crops", progress=False
            ),
        )
        test = test.best(2 * options.proposals)
        for variant in ("crops", *options.variants.split(",")):
            if (variant, self.seed) in done:
                continue
            start, wall = time.process_time(), time.monotonic()
            if variant == "crops":
                found = self.crop_baseline(test)
            else:
                model = self.new_model(variant)
                model.load_state_dict(weights, strict=False)
                distilled = crops if variant != "text" else None
                rows = DetectionRows(
                    self.train_images, self.train_marks, distilled, train.best(100), flip=True, seed=self.seed
                )
                self.fit(model, rows, options.steps, variant)
                found = self.evaluate(model, test)
                self.draw(model, test, variant)
            line = {"variant": variant, "seed": self.seed, "cpu_seconds": round(time.process_time() - start, 1)}
            line["wall_seconds"] = round(time.monotonic() - wall, 1)
            line |= {"stages": self.cpu} | recall | {key: round(value, 4) for key, value in found.items()}
            with (options.out / "runs.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def _corners(box) -> list[float]:
    left, top, width, height = box
    return [left, top, left + width, top + height]


def _target(marks) -> dict:
    return {"labels": [m["category_id"] for m in marks], "boxes": [_corners(m["bbox"]) for m in marks]}


def _lines(out: Path) -> list[dict]:
    path = out / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _done(out: Path) -> set:
    return {(line["variant"], line["seed"]) for line in _lines(out)}


TITLES = {
    "crops": "CLIP on cropped regions (the teacher)",
    "text": "ViLD-text",
    "image": "ViLD-image",
    "vild": "ViLD",
    "ensemble": "ViLD-ensemble",
}


def table(out: Path) -> str:
    """Means and standard deviations over seeds, in percent."""
    lines = _lines(out)
    columns = ("base/AP", "novel/AP", "AP", "base/AP50", "novel/AP50")
    text = "| | " + " | ".join(columns) + " | seeds | CPU seconds |\n" + "|---" * (len(columns) + 3) + "|\n"
    if not lines:
        return text
    for variant, title in TITLES.items():
        rows = [line for line in lines if line["variant"] == variant]
        if not rows:
            continue
        cells = []
        for column in columns:
            values = [100 * row[column] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        seconds = statistics.mean(row["cpu_seconds"] for row in rows)
        text += f"| {title} | {' | '.join(cells)} | {len(rows)} | {seconds:.0f} |\n"
    recalls = {row["seed"]: row for row in lines}.values()
    for name in ("base/AR@100", "novel/AR@100"):
        text += f"\n{name} of the proposals: {100 * statistics.mean(row[name] for row in recalls):.1f}."
    return text + "\n"


def figures(out: Path, seed: int) -> None:
    """OUT/curves.png and OUT/boxes.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from PIL import Image

    folder, shown = out / f"seed-{seed}", ("loss_class", "loss_distillation", "loss_box", "loss_mask")
    curves = {name: json.loads((folder / f"{name}.curve.json").read_text()) for name in VARIANTS if _has(folder, name)}
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4 * len(shown), 3.2))
    for axis, part in zip(axes, shown, strict=True):
        for name, curve in curves.items():
            values = [row[part] for row in curve if part in row]
            if values and any(values):
                smooth = [statistics.mean(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
                axis.plot(smooth, label=TITLES[name])
        axis.set_title(part), axis.set_xlabel("step"), axis.legend()
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=80)
    pyplot.close(figure)
    rows = [name for name in ("truth", *VARIANTS) if (folder / "pictures" / f"{name}-0.png").is_file()]
    pictures = [[Image.open(one) for one in sorted((folder / "pictures").glob(f"{name}-*.png"))] for name in rows]
    if pictures:
        width, height = pictures[0][0].size
        canvas = Image.new("RGB", (len(pictures[0]) * (width + 4), len(rows) * (height + 24)), "white")
        draw = ImageDraw.Draw(canvas)
        for y, (name, line) in enumerate(zip(rows, pictures, strict=True)):
            draw.text((6, y * (height + 24) + 2), TITLES.get(name, name), fill="black", font=font_for(name, 16))
            for x, picture in enumerate(line):
                canvas.paste(picture, (x * (width + 4), y * (height + 24) + 22))
        canvas.save(out / "boxes.png")


def _has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.curve.json").is_file()


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
