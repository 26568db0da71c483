"""Where the CPU time of an `adapt` goes: ours and the peers of the rows `adapt_500` and `adapt_5000`, part by part.

    python scripts/speed_parts_adapt.py 500 --out scripts/results/adapt_parts

Each runs once, in a process of its own, on one thread (ours reads images in threads beside it). One run on a machine
that does other things, too: for the ratios see the table of `benchmark_speed.py`, which repeats them.
"""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import io
import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmark_speed import machine
from speed_peers_adapt import ENCODER, METHODS, READING, SEARCH, STEPS
from speed_rows import OURS, output_of
from speed_rows_adapt import PEERS, SIZES, our_command, peer


REPORT = "report and plots"
PARTS = "start", READING, ENCODER, STEPS, SEARCH, REPORT


def run_ours(arguments: list[str]) -> dict[str, Any]:
    """`hf-clip-variants adapt` in this process, with the CPU seconds of its parts."""
    from hf_clip_variants import cli
    from hf_clip_variants.adapters.tip_adapter import model as tip_adapter
    from hf_clip_variants.data.augmentation import views
    from hf_clip_variants.data.images import image_set
    from hf_clip_variants.few_shot import adapt, fitting, report  # noqa: F401
    from hf_clip_variants.modeling.dual_encoders import image_encoding

    seconds, passes, lock = Counter(start=time.process_time()), Counter(), threading.Lock()

    def measure(part: str, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return plain(*args, **kwargs)
            finally:
                with lock:
                    seconds[part] += time.thread_time() - start
                    passes[part] += len(args[2]) if part == ENCODER else 0

        setattr(owner, name, timed)

    measure(READING, views.AugmentedViews, "views")
    measure(READING, image_set, "decode_roughly")
    measure(ENCODER, image_encoding, "encode_images")
    measure(STEPS, fitting, "train_adapter")
    measure(SEARCH, tip_adapter, "search_alpha_beta")
    measure(REPORT, report, "write_report")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        cli.main(arguments)
    runs = json.loads(shown.getvalue())["runs"]
    accuracies = {run["method"]: next(iter(run["accuracy"].values())) for run in runs}
    seconds["all"] = time.process_time()
    return {"accuracy": accuracies, "passes": passes[ENCODER], "seconds": dict(seconds)}


def table(name: str, found: dict[str, dict[str, Any]]) -> str:
    """One column for each of `found`, one row for each part."""
    sizes, columns = SIZES[name], list(found.values())
    about = f"{sizes.images:,} images in {sizes.classes} classes, {sizes.train} shots, {sizes.epochs} epochs"
    lines = [f"## `adapt_{name}`: {about}", "", "| CPU seconds | " + " | ".join(found) + " |"]
    lines.append("|" + "---|" * (len(found) + 1))
    seconds = [column["seconds"] for column in columns]
    parts = {part: [of.get(part, 0.0) for of in seconds] for part in PARTS}
    parts["the rest"] = [of["all"] - sum(of.get(part, 0.0) for part in PARTS) for of in seconds]
    parts["all"] = [of["all"] for of in seconds]
    lines += [f"| {part} | " + " | ".join(f"{value:.1f}" for value in values) + " |" for part, values in parts.items()]
    lines.append("| passes of the image encoder | " + " | ".join(f"{c['passes']:,}" for c in columns) + " |")
    each = (1000 * of[ENCODER] / column["passes"] for of, column in zip(seconds, columns, strict=True))
    lines.append("| ms a pass | " + " | ".join(f"{value:.2f}" for value in each) + " |")
    for method in METHODS:
        values = " | ".join(f"{100 * column['accuracy'][method]:.1f}" for column in columns)
        lines.append(f"| {method}: test accuracy, % | {values} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", help=" ".join(SIZES))
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="a peer that is not run")
    parser.add_argument("--out", type=Path, help="path without suffix: writes .md")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if options.ours:
        print(json.dumps(run_ours([*options.sizes, *rest])))
        return
    tables = []
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as out:
            command = [__file__, "--ours", *our_command(SIZES[name], Path(out) / "run")]
            found = {OURS: json.loads(output_of(command))}
        found |= {title: peer(SIZES[name], how) for title, how in PEERS.items() if title not in options.without}
        tables.append(table(name, found))
        print(tables[-1], flush=True)
        if options.out:
            how = f"`python scripts/speed_parts_adapt.py`: one run each, one core of a {machine()['device']}."
            head = f"# Where the time of an `adapt` goes\n\n{how}\n"
            options.out.with_suffix(".md").write_text("\n".join([head, *tables]), encoding="utf-8")


if __name__ == "__main__":
    main()
