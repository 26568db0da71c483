"""Are sketches of stamps and clip art recognised by a CLIP that did not guide them? Beside as many strokes along
edges, strokes before the first step, and random strokes.

    python scripts/make_debian_data.py --out data           # stamps, clip art
    python scripts/make_emoji_data.py --out data
    python scripts/train_sketch_clip.py --data data --out /tmp/rn
    python scripts/sketch_recognition.py --data data --guide /tmp/rn --judge embedded --out scripts/results/clipasso
    python scripts/sketch_recognition.py --data data --guide embedded --judge /tmp/rn --out /tmp/other
    python scripts/sketch_recognition.py --data data --guide embedded --guide /tmp/rn2 --judge /tmp/rn --out /tmp/two

The judge says which of the twenty names is nearest, and which of the twenty pictures. Settings are chosen with
`--developed` (24 other pictures). What is drawn already is kept: the command goes on after a stop.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from sketch_pictures import DEVELOPED, MORE_DEVELOPED, REPORTED, STAMPS, edge_strokes, load_pictures, random_strokes
from transformers import AutoModel, AutoTokenizer

from hf_clip_variants import CLIPassoForImageSynthesis
from hf_clip_variants.data.images.emoji import embedded_model
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.clipasso.edges_clipasso import LONGEST
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing, image_of
from hf_clip_variants.modeling.synthesis.guided_model import IMAGE_MEAN, IMAGE_STD, picture_tensor
from hf_clip_variants.modeling.synthesis.stroke_samples import drawing_of
from hf_clip_variants.synthesis.progress_pictures import sheet


COUNTS = (4, 8, 16, 32)
TEXTS = ("{}", "an emoji of a {}", "a drawing of a {}", "a sketch of a {}")
SKETCH = "sketch, {} strokes"
KINDS = (
    "{} random strokes",
    "{} strokes before the first step",
    "{} longest edges",
    "{} shorter edges",
    SKETCH,
)
AGAINST = ("{} longest edges", "{} shorter edges", "{} strokes before the first step")
SHORTER = 90  # pixels of an edge, of 224
TILE = 96
RANDOM = 5  # drawings of random strokes for each picture


class Judge:
    """Ranks the names and the pictures by nearness to an image, in a dual encoder's space."""

    @torch.no_grad()
    def __init__(self, folder: str, pictures: dict[str, torch.Tensor]):
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.size = self.model.config.vision_config.image_size
        tokenizer = AutoTokenizer.from_pretrained(folder)
        features = []
        for text in TEXTS:
            tokens = tokenizer([text.replace("{}", name) for name in pictures], padding=True, return_tensors="pt")
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            features.append(unit_norm(output.pooler_output))
        self.texts = unit_norm(torch.stack(features).mean(0))
        self.pictures = self.embed([picture_tensor(pixels, self.size) for pixels in pictures.values()])

    @torch.no_grad()
    def embed(self, images: list[torch.Tensor]) -> torch.Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        pixels = torch.stack([(image - mean) / std for image in images])
        return unit_norm(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def ranks(self, images: list[torch.Tensor | StrokeDrawing]) -> dict[str, list[int]]:
        """Of one image for each picture, in order: 0 if its own name, its own picture, is the nearest."""
        shown = [
            image.render(self.size / image.height).detach()
            if isinstance(image, StrokeDrawing)
            else picture_tensor(image, self.size)
            for image in images
        ]
        features, found = self.embed(shown), {}
        for kind, others in (("name", self.texts), ("picture", self.pictures)):
            scores = features @ others.T
            found[kind] = (scores > scores.diagonal()[:, None]).sum(1).tolist()
        return found


def with_error(values: list[float]) -> str:
    numbers = torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean():.0f} ± {numbers.std() / len(numbers) ** 0.5:.0f}"


def scores(ranks: list[list[int]], names: int) -> tuple[list[float], list[float]]:
    """Of each picture, given its rank with each seed, in per cent, the mean over seeds: whether it is first; the share
    of the others that are farther away."""
    firsts = [[100.0 * (rank == 0) for rank in some] for some in ranks]
    beaten = [[100 * (1 - rank / (names - 1)) for rank in some] for some in ranks]
    return tuple([sum(values) / len(values) for values in one] for one in (firsts, beaten))


def of_seeds(ranks: list[dict[str, list[int]]]) -> dict[str, list[list[int]]]:
    """Ranks with each seed -> of each picture, its rank with each seed."""
    return {kind: [list(some) for some in zip(*(one[kind] for one in ranks), strict=True)] for kind in ranks[0]}


def table(
    ranks: dict[str, dict[str, list[list[int]]]],
    counts: list[int],
    names: int,
    other: dict[str, dict[str, list[list[int]]]] | None = None,
) -> list[str]:
    """`other`: ranks of another run, whose sketches are compared, too."""
    lines = [
        "| | own name first, % | names beaten, % | own picture first, % | pictures beaten, % |",
        "|---|---|---|---|---|",
    ]
    for row, found in ranks.items():
        cells = [with_error(values) for kind in ("name", "picture") for values in scores(found[kind], names)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "Differences, picture by picture:", "", *lines[:2]]
    against = list(AGAINST)
    if other is not None:
        ranks = ranks | {f"{row}, of the other run": found for row, found in other.items()}
        against.append(f"{SKETCH}, of the other run")
    pairs = []  # label, then rows of which the mean is compared
    for kind in against:
        rows = [(SKETCH.replace("{}", str(count)), kind.replace("{}", str(count))) for count in counts]
        pairs += [(f"{one} − {two}", [(one, two)]) for one, two in rows]
        if len(counts) > 1:
            pairs.append((f"sketch − {kind.replace('{} ', '')}, mean over {', '.join(map(str, counts))}", rows))
    steps = list(zip(counts, counts[1:], strict=False)) + [(counts[0], counts[-1])] * (len(counts) > 2)
    for few, many in steps:
        one, two = (SKETCH.replace("{}", str(count)) for count in (many, few))
        pairs.append((f"{one} − {two}", [(one, two)]))
    for label, rows in pairs:
        cells = []
        for kind in ("name", "picture"):
            for which in (0, 1):
                values = [
                    [a - b for a, b in zip(*(scores(ranks[row][kind], names)[which] for row in both), strict=True)]
                    for both in rows
                ]
                cells.append(with_error([sum(some) / len(some) for some in zip(*values, strict=True)]))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    size = len(ranks["the picture itself"]["name"])
    chance = f"{size} pictures a row (of sketches, the mean over seeds), ± standard error; {names} names and pictures "
    chance += "to choose from: by chance "
    chance += f"{100 / names:.0f} % are first and 50 % beaten."
    return [*lines, "", chance, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stamps.parquet and clipart.parquet")
    parser.add_argument("--guide", action="append", help="folder, or: embedded (the default); repeated: together")
    parser.add_argument("--judge", help="folder, or: embedded; another model than the guide. Default: sketch only")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--speed", type=float, default=4.0, help="learning rate, times the published one")
    parser.add_argument("--width", type=float, default=6.0, help="of the lines, on a picture of 224 pixels")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="further settings of CLIPasso")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="strokes")
    parser.add_argument("--developed", action="store_true", help="the pictures on which settings were chosen")
    parser.add_argument("--pictures", type=int, help="sketch the first ones only")
    parser.add_argument("--seeds", default="1", help="of sketches, with commas")
    parser.add_argument("--beside", type=Path, help="results.json of another run with the same judge and pictures")
    arguments = parser.parse_args()
    guides = arguments.guide or ["embedded"]
    if arguments.judge in guides:
        parser.error("--judge: a guide itself; want another model")
    folders = {
        name: str(embedded_model()) if name == "embedded" else name for name in (*guides, arguments.judge) if name
    }
    pictures = load_pictures(arguments.data, DEVELOPED | MORE_DEVELOPED if arguments.developed else REPORTED)
    everything = pictures  # names and pictures among which the judge chooses
    pictures = dict(list(pictures.items())[: arguments.pictures])
    counts, seeds = ([int(word) for word in words.split(",")] for words in (arguments.counts, arguments.seeds))
    options = {"points_lr": arguments.speed, "stroke_radius": arguments.width / 2}
    options |= {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    model = CLIPassoForImageSynthesis.from_pretrained(folders[guides[0]], dtype=torch.float32, **options)
    for guide in guides[1:]:
        model.add_guide(AutoModel.from_pretrained(folders[guide], dtype=torch.float32))
    kept = arguments.out / "drawings"
    kept.mkdir(parents=True, exist_ok=True)
    shown = {"the picture itself": [list(pictures.values())]}  # each row, each seed, each picture
    canvas, radius, seconds = model.config.canvas, model.config.stroke_radius * model.config.unit, []
    drawn = {}
    for name, pixels in pictures.items():
        saliency = model.saliency_map(pixels)
        for count, seed in itertools.product(counts, seeds):
            file = kept / f"{name.replace(' ', '-')}-{count}-seed-{seed}.safetensors"
            with model.frozen():
                loop = model.make_loop(
                    pixels, saliency=saliency, seeds=seed, num_strokes=count, num_steps=arguments.steps
                )
                start = drawing_of(loop.samples[0], canvas)
                if not file.is_file():
                    begun = time.process_time()
                    loop.run()
                    model.results(loop)[0].drawing.save(file)
                    seconds.append(round(time.process_time() - begun, 1))
                    print(f"{name}, {count} strokes, seed {seed}: {seconds[-1]} s", flush=True)
            drawn[name, count, seed] = start, StrokeDrawing.load(file)
    if arguments.judge is None:
        return
    for count in counts:
        starts, sketches = (
            [[drawn[name, count, seed][place] for name in pictures] for seed in seeds] for place in (0, 1)
        )
        shown[f"{count} random strokes"] = [
            [random_strokes(count, canvas, radius, seed + n) for n in range(len(pictures))] for seed in seeds
        ]
        shown[f"{count} strokes before the first step"] = starts
        for kind, longest in (("longest", LONGEST), ("shorter", SHORTER)):
            shown[f"{count} {kind} edges"] = [
                [edge_strokes(pixels, count, canvas, radius, longest) for pixels in pictures.values()]
            ]
        shown[f"sketch, {count} strokes"] = sketches
    order = ["the picture itself"]
    for kind in KINDS:
        order += [kind.replace("{}", str(count)) for count in counts]
    judges = {
        which: Judge(folders[name], everything) for which, name in (("judge", arguments.judge), ("guide", guides[0]))
    }
    ranks = {
        which: {row: of_seeds([judge.ranks(images) for images in shown[row]]) for row in order}
        for which, judge in judges.items()
    }
    about = (
        f"{arguments.steps} steps, rate x {arguments.speed:g}, lines {arguments.width:g} wide, seeds {arguments.seeds}"
        + (f", {len(guides)} guides" if len(guides) > 1 else "")
        + "".join(f", {text}" for text in arguments.set)
        + "."
    )
    other = {}
    if arguments.beside is not None:
        other = json.loads(arguments.beside.read_text(encoding="utf-8"))["ranks"]
    lines = [about, ""]
    for which, what in (
        ("judge", "**The judge**, which did not guide:"),
        ("guide", "**The guide**, against which sketches were optimised (of several, the first):"),
    ):
        lines += [what, "", *table(ranks[which], counts, len(everything), other.get(which))]
    (arguments.out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    before = arguments.out / "results.json"
    if not seconds and before.is_file():
        seconds = json.loads(before.read_text(encoding="utf-8"))["processor seconds of each sketch"]
    write_json(before, {"names": list(everything), "ranks": ranks, "processor seconds of each sketch": seconds})
    rows, free = [], []
    for number, (name, pixels) in enumerate(pictures.items()):
        drawn = [
            shown[f"{kind}{count}{more}"][0][number]
            for kind, more in (("sketch, ", " strokes"), ("", " longest edges"))
            for count in counts
        ]
        tiles = [image_of(pixels).resize((TILE, TILE)), *(one.to_image(TILE / one.height) for one in drawn)]
        rows.append(tiles)
        if name not in STAMPS:  # stamps are GPL: they are not passed on
            free.append(tiles)
    if free:
        sheet(free, 4).quantize(64).save(arguments.out / "sheet.png")
    sheet(rows, 4).quantize(64).save(kept / "all.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
