"""Are painted pictures recognised by a CLIP that did not guide them? The table in scripts/results/vqgan_clip/.

    python scripts/train_drawing_judge.py --out /tmp/judge
    python scripts/paintings.py --judge /tmp/judge/run/model --out scripts/results/vqgan_clip

The embedded CLIP guides the embedded VQGAN; the judge, of another architecture, seed and training set, names each
picture out of 100 embedded concepts. Rows: random codes, the painted pictures, and the emoji themselves through the
VQGAN and as they are. Settings were tried on the prompts of DEVELOPED with seed 0; the table has others, with seed 1.
What is painted already is kept: the command goes on after a stop, and several may share the work (--part 0/2, --part
1/2).
"""

import argparse
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from stroke_drawings import Judge, emoji
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from hf_clip_variants.data.images.emoji import embedded_model, embedded_start
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.synthesis.guided_model import picture_tensor
from hf_clip_variants.synthesis.painting_results import load_painter
from hf_clip_variants.synthesis.progress_pictures import sheet


DEVELOPED = ("red apple", "tulip", "snail", "bread", "butterfly", "fox", "mushroom")
NAMES = (
    "banana", "strawberry", "carrot", "cactus", "sunflower", "pizza", "egg", "watermelon", "tomato", "pineapple",
    "cherries",
    "lemon", "pig face", "penguin", "tropical fish", "tiger face", "owl", "four leaf clover", "lady beetle",
    "whale", "rose", "grapes", "eggplant", "doughnut", "octopus", "crab", "green apple", "palm tree", "koala",
    "hamburger",
)  # fmt: skip
SIDE, GAP, COLUMNS = 128, 4, 6  # of the contact sheet
COUNT = 100  # names


class HundredNames(Judge):
    """Out of the names of the table, the development ones, and the first others of the 190."""

    def __init__(self, folder: str):
        super().__init__(folder)
        names = [*NAMES, *DEVELOPED]
        names += [name for name in self.names if name not in names][: COUNT - len(names)]
        self.texts = self.texts[[self.names.index(name) for name in names]]
        self.names = names


def painted(painter, name: str, arguments) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A picture of random codes, the painted one, and processor seconds."""
    prompt = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    options = {"seeds": arguments.seed, "evaluate_every": arguments.steps}
    with painter.model.frozen():
        before = painter.model.make_loop(prompt, painter.tokenizer, **options).images()[0].contiguous()
        started = time.process_time()
        start = embedded_start() if arguments.start == "mean" else arguments.start
        size = painter.model.config.canvas
        loop = painter.model.make_loop(
            prompt, painter.tokenizer, num_steps=arguments.steps, start=start, size=size, **options
        )
        loop.run()
        return before, loop.images()[0].contiguous(), time.process_time() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--kept", type=Path, help="folder of the pixels; default: inside of --out")
    parser.add_argument("--vqgan", help="default: the embedded one")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--cuts", type=int, default=4)
    parser.add_argument("--size", type=int, help="default of all of these: those of `paint` with the embedded VQGAN")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--method")
    parser.add_argument("--tv", type=float)
    parser.add_argument(
        "--start", default="mean", help="of emoji (start.png of the embedded VQGAN), codes, pixels, gradient"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", help="a sheet.png of other settings, whose pictures are judged, too")
    parser.add_argument("--developed", action="store_true", help="the prompts that settings are tried on")
    parser.add_argument("--part", default="0/1", help="paint a part of the prompts only; 0/1 also makes the table")
    arguments = parser.parse_args()
    kept = arguments.kept or arguments.out / "pictures"
    kept.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.part.split("/"))
    settings = {
        "num_cuts": arguments.cuts, "cut_method": arguments.method, "learning_rate": arguments.lr,
        "canvas_size": arguments.size, "tv_weight": arguments.tv,
    }  # fmt: skip
    painter = load_painter(None, arguments.vqgan, "cpu", **settings)
    names = DEVELOPED if arguments.developed else NAMES
    for name in names[part::parts]:
        file = kept / f"{name.replace(' ', '-')}.safetensors"
        if not file.is_file():
            before, after, seconds = painted(painter, name, arguments)
            save_file({"before": before, "after": after, "seconds": torch.tensor(seconds)}, file)
            print(f"{name}: {seconds:.0f} s", flush=True)
    if parts == 1:
        judge_all(arguments, kept, names, painter.model)


def row(judged: list[int], guided: list[int]) -> str:
    """Cells of the table."""
    shares = [
        torch.tensor([float(rank < top) for rank in ranks])
        for ranks, top in ((judged, 1), (judged, 5), (judged, 10), (guided, 1))
    ]
    beaten = torch.tensor([1 - rank / (COUNT - 1) for rank in judged])
    first, fifth, tenth, won, own = (
        f"{100 * float(one.mean()):.0f} ± {100 * float(one.std()) / len(one) ** 0.5:.0f}"
        for one in (*shares[:3], beaten, shares[3])
    )
    return f"{first} | {fifth} | {tenth} | {1 + sorted(judged)[len(judged) // 2]} | {won} | {own}"


def enlarged(pixels: torch.Tensor, side: int = 64) -> torch.Tensor:
    """(3, H, W) -> (3, side, side), as the judge takes it."""
    return F.interpolate(pixels[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def tiles(path: str, count: int) -> list[torch.Tensor]:
    """(3, 64, 64) of each picture of a contact sheet."""
    whole, step = Image.open(path).convert("RGB"), SIDE + GAP
    places = [(GAP + number % COLUMNS * step, GAP + number // COLUMNS * step) for number in range(count)]
    return [picture_tensor(whole.crop((left, top, left + SIDE, top + SIDE)), 64) for left, top in places]


@torch.no_grad()
def judge_all(arguments, kept: Path, names, model) -> None:
    judge, guide = HundredNames(arguments.judge), HundredNames(str(embedded_model()))
    others = dict(zip(names, tiles(arguments.sheet, len(names)), strict=True)) if arguments.sheet else {}
    kinds = ("before", *(["other"] if others else []), "after", "through", "emoji")
    ranks = {kind: ([], []) for kind in kinds}
    pictures, seconds, config = [], [], model.config
    for name in names:
        file = kept / f"{name.replace(' ', '-')}.safetensors"
        found = load_file(file)
        small = F.interpolate(emoji(name)[None], found["after"].shape[1:], mode="bilinear", antialias=True)
        codes = model.vqgan.encode_codes(small * 2 - 1)
        found["emoji"] = emoji(name)
        found |= {"other": others[name]} if others else {}
        found["through"] = ((model.vqgan.decode_codes(codes)[0] + 1) / 2).clamp(0, 1)
        for kind, of_kind in ranks.items():
            for place, one in enumerate((judge, guide)):
                of_kind[place].append(one.rank(enlarged(found[kind]), name))
        seconds.append(round(found["seconds"].item(), 1))
        pictures.append(to_pil_image(enlarged(found["after"], SIDE)))
    rows = (
        ("random codes", "before"),
        ("the other pictures (--sheet)", "other"),
        ("painted", "after"),
        ("the emoji, as small, through the VQGAN", "through"),
        ("the emoji itself, 64 x 64 pixels", "emoji"),
    )  # fmt: skip
    lines = [
        f"{arguments.steps} steps, {config.num_cuts} cuts ({config.cut_method}), rate {config.learning_rate:g}, total "
        f"variation x {config.tv_weight:g}, start {arguments.start}, seed {arguments.seed}, {config.canvas} x "
        f"{config.canvas} pixels; the embedded CLIP guides the embedded VQGAN.",
        "",
        "| | judge: top-1 % | top-5 % | top-10 % | median rank | names beaten % | the guide itself: top-1 % |",
        "|---|---|---|---|---|---|---|",
        *(f"| {words} | {row(*ranks[kind])} |" for words, kind in rows if kind in ranks),
        "",
        f"{len(names)} prompts, ± standard error; {COUNT} names: chance is 1 %, rank 50, 50 % beaten. One takes "
        f"{sorted(seconds)[len(seconds) // 2]} s of processor time (median).",
        "",
    ]
    (arguments.out / "table.md").write_text("\n".join(lines), encoding="utf-8")
    sheet([pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)], GAP).quantize(128).save(
        arguments.out / "sheet.png"
    )
    said = {kind: {"judge": both[0], "guide": both[1]} for kind, both in ranks.items()}
    write_json(arguments.out / "results.json", {"names": list(names), "ranks": said, "processor seconds": seconds})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
