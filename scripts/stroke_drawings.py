"""Are sketches and drawings recognised by a CLIP that did not guide them? The tables in scripts/results/.

    python scripts/train_drawing_judge.py --out /tmp/judge
    python scripts/stroke_drawings.py sketch --judge /tmp/judge/run/model --out scripts/results/clipasso
    python scripts/stroke_drawings.py draw --judge /tmp/judge/run/model --out scripts/results/clipdraw

The embedded CLIP guides; the judge names each picture out of all 190 embedded concepts. Settings were tried on the
pictures of DEVELOPED with seed 0; the tables are of others, with seed 1. What is drawn already is kept: the command
goes on after a stop.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from hf_clip_variants import CLIPassoForImageSynthesis, CLIPDrawForImageSynthesis
from hf_clip_variants.data.images.emoji import embedded_model, load_emoji
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.clipasso.saliency_clipasso import edge_map
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.modeling.synthesis.guided_model import IMAGE_MEAN, IMAGE_STD, picture_tensor
from hf_clip_variants.modeling.synthesis.stroke_samples import drawing_of
from hf_clip_variants.synthesis.progress_pictures import sheet


DEVELOPED = ("penguin", "pear", "fish", "butterfly", "mushroom", "cat face")
PICTURES = (
    "owl", "duck", "elephant", "snail", "banana", "pineapple", "cherries", "wine glass", "turtle", "rabbit face",
    "octopus", "carrot", "ice cream", "cactus", "sunflower", "crab", "rooster", "dolphin", "avocado", "hot beverage",
)  # fmt: skip
PROMPTS = (
    "a banana", "a strawberry", "a carrot", "a cactus", "a sunflower", "a pizza", "an egg", "a watermelon", "a tomato",
    "a pineapple", "cherries", "a lemon", "a pig face", "a penguin", "a tropical fish", "a tiger face", "an owl",
    "a four leaf clover", "a lady beetle", "a whale",
)  # fmt: skip
COUNTS = (4, 8, 16, 32)
SIDE = 128
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")


def emoji(name: str) -> torch.Tensor:
    """(3, 64, 64) of a style that neither the guide nor the judge was trained on."""
    images = load_emoji("emojione")
    return picture_tensor(images.dataset[images.class_names.index(name)]["image"])


# ---- the baseline: the longest edges as strokes


def edge_strokes(pixels: torch.Tensor, count: int, canvas: int, radius: float) -> StrokeDrawing:
    """The `count` longest edges of a picture, each a cubic fitted to its pixels."""
    large = picture_tensor(pixels, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    left = {(int(x), int(y)) for y, x in (edge_map((large - mean) / std) == 0).nonzero().tolist()}
    chains = []
    while left:
        chain = [left.pop()]
        for end in (-1, 0):  # from both ends to the nearest neighbour, until there is none
            while True:
                x, y = chain[end]
                near = [
                    (x + dx, y + dy)
                    for reach in (1, 2)
                    for dx in range(-reach, reach + 1)
                    for dy in range(-reach, reach + 1)
                    if (x + dx, y + dy) in left
                ]
                if not near or len(chain) >= 120:
                    break
                left.discard(near[0])
                chain = [*chain, near[0]] if end else [near[0], *chain]
        chains.append(chain)
    chains = sorted(chains, key=len, reverse=True)[:count]
    points = torch.stack([fitted(torch.tensor(chain, dtype=torch.float64)) for chain in chains]) * canvas / 224
    size = len(points)
    colors = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(size, 1)
    return StrokeDrawing(
        points.float(), torch.full((size,), radius), colors, torch.ones(size, dtype=torch.long), canvas, canvas
    )


def fitted(chain: torch.Tensor) -> torch.Tensor:
    """(4, 2) control points of the cubic nearest to (n, 2) pixels, in the sense of least squares."""
    if len(chain) < 4:
        return torch.stack([chain[0], chain[0], chain[-1], chain[-1]])
    steps = (chain[1:] - chain[:-1]).norm(dim=1).cumsum(0)
    t = torch.cat([steps.new_zeros(1), steps / steps[-1]])
    s = 1 - t
    basis = torch.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], 1)
    return torch.linalg.lstsq(basis, chain).solution


# ---- judging


class Judge:
    """Names a picture out of all embedded concepts."""

    def __init__(self, folder: str):
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.names = list(load_emoji("emojione").class_names)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            features = []
            for text in TEXTS:
                tokens = tokenizer(
                    [text.replace("{}", name) for name in self.names], padding=True, return_tensors="pt"
                )
                output = self.model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
                features.append(unit_norm(output.pooler_output))
        self.texts = unit_norm(torch.stack(features).mean(0))

    @torch.no_grad()
    def rank(self, drawing: StrokeDrawing | torch.Tensor, name: str) -> int:
        """0 if the name is the nearest one."""
        pixels = drawing if isinstance(drawing, torch.Tensor) else drawing.render(64 / drawing.height)
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        features = self.model.get_image_features(pixel_values=((pixels - mean) / std)[None]).pooler_output
        scores = (unit_norm(features) @ self.texts.T)[0]
        return int((scores > scores[self.names.index(name)]).sum())


def cells(ranks: list[int], names: int = 190) -> tuple[str, ...]:
    """Top-1 and top-5 in per cent, the median rank, and the mean share of the other names that are farther away, with
    standard errors."""
    found = []
    for top in (1, 5):
        share = sum(rank < top for rank in ranks) / len(ranks)
        found.append(f"{100 * share:.0f} ± {100 * (share * (1 - share) / len(ranks)) ** 0.5:.0f}")
    beaten = torch.tensor([100 * (1 - rank / (names - 1)) for rank in ranks])
    error = float(beaten.std()) / len(ranks) ** 0.5
    return *found, f"{1 + sorted(ranks)[len(ranks) // 2]}", f"{float(beaten.mean()):.0f} ± {error:.0f}"


def table(title: str, rows: list[tuple[str, list[int], list[int]]]) -> str:
    head = "| | judge: top-1 % | top-5 % | median rank | names beaten % | the guide itself: top-1 % |"
    lines = [title, "", head, "|---|---|---|---|---|---|"]
    for name, judged, guided in rows:
        lines.append(f"| {name} | {' | '.join(cells(judged))} | {cells(guided)[0]} |")
    about = f"{len(rows[0][1])} pictures a row, ± standard error; 190 names: chance is 0.5 %, rank 95, 50 % beaten."
    return "\n".join([*lines, "", about, ""])


# ---- the two tables


def sketch(arguments, judge: Judge, guide: Judge):
    model = CLIPassoForImageSynthesis.from_pretrained(
        embedded_model(), dtype=torch.float32, points_lr=float(arguments.speed)
    )
    counts = [int(word) for word in arguments.counts.split(",")]
    kept = Path(arguments.out) / "drawings"
    kept.mkdir(parents=True, exist_ok=True)
    names = PICTURES[: arguments.pictures]
    ranks = {kind: ([], []) for kind in ("picture", *((k, n) for n in counts for k in ("start", "edges", "sketch")))}
    rows, seconds = [], []

    def add(kind, drawing, name):
        for place, one in enumerate((judge, guide)):
            ranks[kind][place].append(one.rank(drawing, name))

    for name in names:
        pixels = emoji(name)
        add("picture", pixels, name)
        pictures = [Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).resize((SIDE, SIDE))]
        lines = []
        for count in counts:
            file = kept / f"{name.replace(' ', '-')}-{count}.safetensors"
            with model.frozen():
                loop = model.make_loop(pixels, seeds=arguments.seed, num_strokes=count, num_steps=arguments.steps)
                add(("start", count), drawing_of(loop.samples[0], model.config.canvas), name)
                if not file.is_file():
                    started = time.process_time()
                    loop.run()
                    model.results(loop)[0].drawing.save(file)
                    seconds.append(time.process_time() - started)
            drawing = StrokeDrawing.load(file)
            edges = edge_strokes(pixels, count, drawing.height, float(drawing.radii[0]))
            add(("edges", count), edges, name)
            add(("sketch", count), drawing, name)
            pictures.append(drawing.to_image(SIDE / drawing.height))
            lines.append(edges.to_image(SIDE / edges.height))
        rows.append([*pictures, *lines])
    named = [("the picture itself", *ranks["picture"])]
    for kind, words in (
        ("start", "{} strokes before the first step"),
        ("edges", "{} longest edges"),
        ("sketch", "sketch, {} strokes"),
    ):
        named += [(words.replace("{}", str(count)), *ranks[kind, count]) for count in counts]
    text = f"{arguments.steps} steps, rate x {arguments.speed:g}, seed {arguments.seed}, the embedded CLIP guides."
    write(arguments.out, table(text, named), rows, ranks, seconds)


def draw(arguments, judge: Judge, guide: Judge):
    rates = {"points_lr": arguments.speed, "radii_lr": 0.1 * arguments.speed, "colors_lr": 0.01 * arguments.speed}
    model = CLIPDrawForImageSynthesis.from_pretrained(embedded_model(), dtype=torch.float32, **rates)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    kept = Path(arguments.out) / "drawings"
    kept.mkdir(parents=True, exist_ok=True)
    prompts = PROMPTS[: arguments.pictures]
    known = judge.names
    kinds = ("start", "drawing")
    ranks = {kind: ([], []) for kind in kinds}
    pictures, seconds = [], []
    for prompt in prompts:
        name = prompt.removeprefix("a ").removeprefix("an ")
        if name not in known:
            continue
        file = kept / f"{name.replace(' ', '-')}.safetensors"
        with model.frozen():
            loop = model.make_loop(
                prompt, tokenizer, seeds=arguments.seed, num_strokes=arguments.strokes, num_steps=arguments.steps
            )
            start = drawing_of(loop.samples[0], model.config.canvas)
            if not file.is_file():
                started = time.process_time()
                loop.run()
                model.results(loop)[0].drawing.save(file)
                seconds.append(time.process_time() - started)
        drawing = StrokeDrawing.load(file)
        for kind, one in (("start", start), ("drawing", drawing)):
            for place, by in enumerate((judge, guide)):
                ranks[kind][place].append(by.rank(one, name))
        pictures.append(drawing.to_image(SIDE / drawing.height))
    named = [("random strokes", *ranks["start"]), (f"drawings, {arguments.strokes} strokes", *ranks["drawing"])]
    text = f"{arguments.steps} steps, {arguments.strokes} strokes, seed {arguments.seed}, "
    text += f"rates x {arguments.speed:g}, the embedded CLIP guides."
    rows = [pictures[i : i + 5] for i in range(0, len(pictures), 5)]
    write(arguments.out, table(text, named), rows, ranks, seconds)


def write(out: str, text: str, rows, ranks, seconds) -> None:
    folder = Path(out)
    (folder / "table.md").write_text(text, encoding="utf-8")
    sheet(rows, 4).quantize(64).save(folder / "sheet.png")
    said = {" ".join(map(str, key)) if isinstance(key, tuple) else key: value for key, value in ranks.items()}
    about = {"ranks of judge and guide": said, "processor seconds of each drawing": [round(s, 1) for s in seconds]}
    if not seconds and (folder / "results.json").is_file():  # nothing was drawn anew
        about = about | {
            k: v for k, v in json.loads((folder / "results.json").read_text()).items() if k.startswith("processor")
        }
    write_json(folder / "results.json", about)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sketch", "draw"))
    parser.add_argument("--judge", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--strokes", type=int, default=64)
    parser.add_argument("--speed", type=float, default=4.0, help="learning rates, times the published ones")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="strokes of sketches")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    judge, guide = Judge(arguments.judge), Judge(str(embedded_model()))
    {"sketch": sketch, "draw": draw}[arguments.what](arguments, judge, guide)


if __name__ == "__main__":
    main()
