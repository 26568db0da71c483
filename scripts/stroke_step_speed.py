"""How long one step of a sketch takes, beside the plain way to compute it, in the same run.

    OMP_NUM_THREADS=1 python scripts/stroke_step_speed.py --out scripts/results/stroke_step

16 strokes, the embedded guide at its size, four views; processor time, medians of several steps that take turns. The
plain way: every pixel for every stroke with 32 samples of each, torchvision's transforms for one view after the other,
photographs encoded with the sketches in every step, nothing frozen.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torchvision.transforms import v2

from hf_clip_variants import CLIPassoForImageSynthesis
from hf_clip_variants.data.images.emoji import embedded_model, load_emoji
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.strokes.stroke_rasterizer_reference import render_strokes_reference
from hf_clip_variants.modeling.synthesis.guided_model import picture_tensor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    model = CLIPassoForImageSynthesis.from_pretrained(embedded_model(), dtype=torch.float32)
    images = load_emoji("emojione")
    pixels = picture_tensor(images.dataset[images.class_names.index("penguin")]["image"])
    loop = model.make_loop(pixels, seeds=0, num_steps=10**6)
    loop.samples[0].evaluations.append((0, 0.0))
    sample, size = loop.samples[0], model.config.canvas
    transform = v2.Compose(
        [
            v2.RandomPerspective(fill=None, p=1.0, distortion_scale=0.5),  # another fill has no gradient
            v2.RandomResizedCrop(size, scale=(0.8, 0.8), ratio=(1.0, 1.0), antialias=True),
        ]
    )

    def ours():
        with model.frozen():
            loop.advance()

    def plain():
        points = sample.tensors["points"]
        options = {"height": size, "width": size, "samples": 32}
        parts = (points, sample.fixed["radii"], sample.fixed["colors"], sample.fixed["num_segments"])
        pair = torch.cat([render_strokes_reference(*parts, **options)[None], sample.goal.pixels[None]])
        views = torch.stack([pair, *(transform(pair) for _ in range(model.config.num_augmentations))])
        layers, features, _ = model.image_layers(model.as_guide_sees(views.flatten(0, 1)))
        sides = [[one.unflatten(0, (-1, 2))[:, side] for one in layers] for side in (0, 1)]
        features = features.unflatten(0, (-1, 2))
        terms = model._terms(sides[0], features[:, 0], sides[1], features[:, 1], len(views))
        torch.stack(list(terms.values())).sum().backward()
        model.zero_grad()

    times = {"ours": [], "plain way": []}
    for _ in range(arguments.steps):
        for name, step in (("ours", ours), ("plain way", plain)):
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    found = {name: statistics.median(some) for name, some in times.items()}
    ratio = found["plain way"] / found["ours"]
    lines = ["| one step, 16 strokes | ms | |", "|---|---|---|", f"| ours | {1000 * found['ours']:.0f} | |"]
    lines.append(f"| plain way | {1000 * found['plain way']:.0f} | {ratio:.1f} times as long |")
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    write_json(folder / "results.json", {name: [round(one, 4) for one in some] for name, some in times.items()})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
