"""How much memory drawing and painting take, over steps, views, sizes and numbers of pictures.

    OMP_NUM_THREADS=1 python scripts/synthesis_memory.py --out scripts/results/synthesis_memory

The embedded models. Each row is a process of its own: the peak of its resident memory above what it had when the
models were loaded; what libraries set up once is in it. 32 strokes and 4 views of a drawing, 4 cuts and 32 x 32
pixels of a painting, except for what the row says. Rows that results.json holds already are not measured again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch


FEW, MANY = 5, 50
GIVEN_BACK = ", freed memory given back"  # rows in whose name this is run with the variables below
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}  # glibc's malloc
ROWS = [
    # what, method, options
    ("5 steps", "draw", {"num_steps": FEW}),
    ("50 steps", "draw", {"num_steps": MANY}),
    ("8 pictures, 5 steps", "draw", {"num_steps": FEW, "seeds": list(range(8))}),
    ("64 views, all at once", "draw", {"num_steps": 1, "num_augmentations": 64, "views_at_once": 64}),
    ("64 views, 4 at once", "draw", {"num_steps": 1, "num_augmentations": 64, "views_at_once": 4}),
    ("256 views, 4 at once", "draw", {"num_steps": 1, "num_augmentations": 256, "views_at_once": 4}),
    (f"64 views, 4 at once{GIVEN_BACK}", "draw", {"num_steps": 1, "num_augmentations": 64, "views_at_once": 4}),
    (f"256 views, 4 at once{GIVEN_BACK}", "draw", {"num_steps": 1, "num_augmentations": 256, "views_at_once": 4}),
    ("canvas 512", "draw", {"num_steps": 1, "canvas_size": 512}),
    ("5 steps", "paint", {"num_steps": FEW}),
    ("50 steps", "paint", {"num_steps": MANY}),
    ("8 pictures, 5 steps", "paint", {"num_steps": FEW, "seeds": list(range(8))}),
    ("64 cuts, all at once", "paint", {"num_steps": 1, "num_cuts": 64, "views_at_once": 64}),
    ("64 cuts, 4 at once", "paint", {"num_steps": 1, "num_cuts": 64, "views_at_once": 4}),
    ("256 cuts, 4 at once", "paint", {"num_steps": 1, "num_cuts": 256, "views_at_once": 4}),
    ("128 x 128 pixels", "paint", {"num_steps": 1, "canvas_size": 128}),
    ("256 x 256 pixels", "paint", {"num_steps": 1, "canvas_size": 256}),
]
_OF_CALL = ("num_steps", "seeds", "num_strokes")


def bytes_of(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measured(method: str, options: dict) -> float:
    """Megabytes of one row, in this process."""
    from hf_clip_variants.commands.drawing import load_guided
    from hf_clip_variants.synthesis.painting_results import load_painter

    torch.set_num_threads(1)
    call = {name: value for name, value in options.items() if name in _OF_CALL}
    settings = {name: value for name, value in options.items() if name not in _OF_CALL}
    if method == "draw":
        model, tokenizer, _ = load_guided("clipdraw", None, "cpu", **settings)
        call = {"num_strokes": 32} | call
    else:
        painter = load_painter(None, None, "cpu", **{"num_cuts": 4} | settings)
        model, tokenizer = painter.model, painter.tokenizer
    before = bytes_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    model.generate("a red apple", tokenizer, **{"seeds": 0} | call)
    return (bytes_of("VmHWM") - before) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        print(measured(*json.loads(arguments.row)))
        return
    if arguments.out is None:
        parser.error("--out: missing, want a folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, found = arguments.out / "results.json", []
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    for what, method, options in ROWS:
        row = {"method": method, "what": what, "options": options}
        if (same := next((one for one in before if one | row == one), None)) is None:
            command = [sys.executable, __file__, "--row", json.dumps([method, options])]
            environment = os.environ | (_GIVES_BACK if GIVEN_BACK in what else {})
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            same = row | {"megabytes": round(float(output), 1)}
            print(same, flush=True)
        found.append(same)
        measured_before = [one for one in before if one not in found]
        file.write_text(json.dumps([*found, *measured_before], indent=1) + "\n", encoding="utf-8")
    lines = ["| | | MB above the loaded models |", "|---|---|---:|"]
    lines += [f"| {one['method']} | {one['what']} | {one['megabytes']:.0f} |" for one in found]
    (arguments.out / "table.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
