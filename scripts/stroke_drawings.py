"""Are drawings recognised by a CLIP that did not guide them? The table in scripts/results/clipdraw. Of sketches:
`sketch_recognition.py`.

    python scripts/train_drawing_judge.py --out /tmp/judge
    python scripts/stroke_drawings.py draw --judge /tmp/judge/run/model --out scripts/results/clipdraw

The embedded CLIP guides; the judge names each picture out of all 190 embedded concepts. Settings were tried on other
prompts with seed 0; the table has seed 1. What is drawn already is kept: the command goes on after a stop.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from hf_clip_variants import CLIPDrawForImageSynthesis
from hf_clip_variants.data.images.emoji import embedded_model, load_emoji
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing
from hf_clip_variants.modeling.synthesis.guided_model import IMAGE_MEAN, IMAGE_STD, picture_tensor
from hf_clip_variants.modeling.synthesis.stroke_samples import drawing_of
from hf_clip_variants.synthesis.progress_pictures import sheet


PROMPTS = (
    "a banana", "a strawberry", "a carrot", "a cactus", "a sunflower", "a pizza", "an egg", "a watermelon", "a tomato",
    "a pineapple", "cherries", "a lemon", "a pig face", "a penguin", "a tropical fish", "a tiger face", "an owl",
    "a four leaf clover", "a lady beetle", "a whale",
)  # fmt: skip
SIDE = 128
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")


def emoji(name: str) -> torch.Tensor:
    """(3, 64, 64) of a style that neither the guide nor the judge was trained on."""
    images = load_emoji("emojione")
    return picture_tensor(images.dataset[images.class_names.index(name)]["image"])


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


# ---- the table


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
    about = {"ranks of judge and guide": ranks, "processor seconds of each drawing": [round(s, 1) for s in seconds]}
    if not seconds and (folder / "results.json").is_file():  # nothing was drawn anew
        about = about | {
            k: v for k, v in json.loads((folder / "results.json").read_text()).items() if k.startswith("processor")
        }
    write_json(folder / "results.json", about)
    print(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw",))
    parser.add_argument("--judge", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--strokes", type=int, default=64)
    parser.add_argument("--speed", type=float, default=4.0, help="learning rates, times the published ones")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    judge, guide = Judge(arguments.judge), Judge(str(embedded_model()))
    draw(arguments, judge, guide)


if __name__ == "__main__":
    main()
