"""How long the rasteriser takes and how much memory, by the number of strokes and the size of the canvas.

    OMP_NUM_THREADS=1 python scripts/stroke_rasterizer_speed.py --out scripts/results/stroke_rasterizer

Processor time, the best of three; memory at its peak, forward and backward, beyond what the process had before.
"init": CLIPDraw's first strokes (short, 2 pixels wide). "thick": long strokes, 12 pixels wide, both on a canvas of
224; on others in proportion. Linux only, for the memory.
"""

import argparse
import ctypes
import time
from pathlib import Path

import torch

from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.modeling.strokes.stroke_rasterizer import render_strokes


def scene(count: int, spread: float, radius: float, size: int):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 4, (1, count), generator=generator)
    steps = spread * (torch.rand(1, count, 10, 2, generator=generator) - 0.5)
    steps[:, :, 0] = torch.rand(1, count, 2, generator=generator)
    points = (steps.cumsum(2) * size).requires_grad_()
    radii = torch.full((1, count), radius * size / 224).requires_grad_()
    return points, radii, torch.rand(1, count, 4, generator=generator).requires_grad_(), numbers


def best(*functions, times: int = 3) -> list[float]:
    """Milliseconds of each function; each is called with what the one before returned."""
    found = [float("inf")] * len(functions)
    for _ in range(times):
        value = None
        for place, function in enumerate(functions):
            start = time.process_time()
            value = function(value)
            found[place] = min(found[place], 1000 * (time.process_time() - start))
    return found


def peak_memory(function) -> float:
    """Megabytes that a call needs at most beyond what there was before it."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    function()
    return max(0.0, _resident("VmHWM") - before)


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    rows = []
    for size in (64, 128, 224, 512):
        for count in (16, 64, 256, 1024):
            row = {"canvas": size, "strokes": count}
            for name, spread, radius in (("init", 0.1, 1.0), ("thick", 0.5, 6.0)):
                strokes = scene(count, spread, radius, size)

                def both(strokes=strokes, size=size):
                    render_strokes(*strokes, height=size, width=size).sum().backward()

                both()
                row[f"{name} MB"] = round(peak_memory(both), 1)
                row[name] = [
                    round(value, 1)
                    for value in best(
                        lambda _, strokes=strokes, size=size: render_strokes(*strokes, height=size, width=size),
                        lambda image: image.sum().backward(),
                    )
                ]
            rows.append(row)
    lines = [
        "| canvas | strokes | init: forward + backward, ms | peak, MB | thick: forward + backward, ms | peak, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for name in ("init", "thick"):
            cells += [f"{row[name][0]:.0f} + {row[name][1]:.0f}", f"{row[f'{name} MB']:.0f}"]
        lines.append(f"| {row['canvas']} | {row['strokes']} | {' | '.join(cells)} |")
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    write_json(folder / "results.json", rows)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
