"""Speed and memory against named peers, measured in one run on one machine.

    python scripts/benchmark_speed.py                       # all rows (half an hour on one core); prints a table
    python scripts/benchmark_speed.py --rows coop_step --rounds 3
    python scripts/benchmark_speed.py --small               # seconds: shows that everything runs; ratios mean nothing
    python scripts/benchmark_speed.py --out scripts/results/speed_cpu   # also writes .jsonl and .md

With --out, rows that were not measured keep their lines.

How: our implementation and its peers run in one process, on one thread, in random order within each round, after one
round of warm-up whose outputs must agree. A ratio is peer time / our time; reported is the median over rounds, with
the smallest and the largest. The clock is CPU time, which other programs disturb least. "Kept" are the bytes that
autograd holds for the backward pass; "peak" is the growth of the resident set in a fresh process (at least 1 MB in
ratios). Weights are random: neither speed nor equality depends on them. The exit code is 1 if outputs differ, or if
a median is more than 20 % below its target.

To add a row, see `speed_rows.py`.
"""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import importlib.metadata
import json
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from speed_rows import OURS, ROWS, Row
from speed_rows_adapt import ADAPT_ROWS
from speed_rows_adapters import ADAPTER_ROWS
from speed_rows_dense import DENSE_ROWS
from speed_rows_detection import DETECTION_ROWS
from speed_rows_loss import LOSS_ROWS
from speed_rows_points import POINT_ROWS
from speed_rows_predict import PREDICT_ROWS
from speed_rows_segmentation import SEGMENTATION_ROWS
from torch import nn


ROWS |= (
    ADAPTER_ROWS | LOSS_ROWS | PREDICT_ROWS | ADAPT_ROWS | DENSE_ROWS | SEGMENTATION_ROWS | DETECTION_ROWS | POINT_ROWS
)
PEAK_ROUNDS = 3
SLACK = 0.8  # of the target: medians move by some percent from run to run


@dataclass
class Result:
    row: str
    what: str
    peer: str
    ratio: float
    low: float
    high: float
    target: float
    ours_s: float
    peer_s: float
    max_error: float | None
    rounds: int
    ok: bool | None  # None: sizes too small to judge the speed
    kept_mb: tuple[float, float] | None = None  # ours, peer
    peak_mb: tuple[float, float] | None = None
    peak_ratio: tuple[float, float, float] | None = None  # peer / ours: median, lowest, highest
    machine: dict = field(default_factory=dict)


class WrongResult(AssertionError):
    """Ours and a peer do not compute the same."""


def measure(
    name: str, row: Row, rounds: int, peaks: dict[str, list[float]] | None = None, judge: bool = True
) -> list[Result]:
    errors = errors_of(name, row, {case: run() for case, run in row.cases.items()}) if row.warm_up else {}
    kept = {case: saved_bytes(run, row.weights) / 2**20 for case, run in row.cases.items()} if row.weights else None

    times: dict[str, list[float]] = {case: [] for case in row.cases}
    order, generator = list(row.cases), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        outputs = {}
        for case in order:
            start = row.clock()
            output = row.cases[case]()
            times[case].append(row.clock() - start)
            if not errors:
                outputs[case] = output
            del output
        errors = errors or errors_of(name, row, outputs)

    results = []
    for peer, target in row.targets.items():
        ratios = [p / o for p, o in zip(times[peer], times[OURS], strict=True)]
        ratio = statistics.median(ratios)
        ok = ratio >= SLACK * target
        result = Result(
            row=name,
            what=row.what,
            peer=peer,
            ratio=ratio,
            low=min(ratios),
            high=max(ratios),
            target=target,
            ours_s=statistics.median(times[OURS]),
            peer_s=statistics.median(times[peer]),
            max_error=errors[peer],
            rounds=rounds,
            ok=ok if judge else None,
            machine=machine(),
        )
        if kept:
            result.kept_mb = (kept[OURS], kept[peer])
            if judge and row.kept_target is not None:
                result.ok &= kept[peer] >= row.kept_target * kept[OURS]
        if peaks:
            ratios = [p / max(o, 1.0) for p, o in zip(peaks[peer], peaks[OURS], strict=True)]
            result.peak_mb = (statistics.median(peaks[OURS]), statistics.median(peaks[peer]))
            result.peak_ratio = (statistics.median(ratios), min(ratios), max(ratios))
        results.append(result)
    return results


def errors_of(name: str, row: Row, outputs: dict[str, Any]) -> dict[str, float | None]:
    """The error of each peer. Raises WrongResult where it is too large."""
    errors = {peer: row.error(outputs[OURS], outputs[peer]) if row.error else None for peer in row.targets}
    for peer, error in errors.items():
        tolerance = row.tolerance[peer] if isinstance(row.tolerance, dict) else row.tolerance
        if error is not None and not error <= tolerance:
            raise WrongResult(f"{name}: ours differs from {peer} by {error:.1e}, {tolerance:.0e} is allowed")
    return errors


def saved_bytes(run: Callable[[], Any], weights: tuple[nn.Module, ...]) -> int:
    """Bytes that autograd keeps while `run()` goes forward: distinct storages that belong to no weight."""
    excluded = {t.untyped_storage().data_ptr() for m in weights for t in (*m.parameters(), *m.buffers())}
    kept: dict[int, int] = {}
    alive = []  # keeps addresses unique: that of a freed storage could be used again

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def peak_growth(run: Callable[[], Any]) -> float:
    """MB by which `run()` raises the peak of the resident set."""
    process = Path("/proc/self")
    if not (process / "clear_refs").exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    def kilobytes(entry):
        (line,) = [x for x in (process / "status").read_text().splitlines() if x.startswith(entry)]
        return int(line.split()[1])

    (process / "clear_refs").write_text("5")  # resets the peak
    before = kilobytes("VmRSS")
    run()
    return (kilobytes("VmHWM") - before) / 1024


def peak_mb(row: str, case: str, small: bool) -> float:
    """Growth of the resident set while one case runs once, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", row, case, *(["--small"] if small else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@cache
def machine() -> dict:
    names = ("torch", "transformers", "open_clip_torch", "peft", "huggingface_hub")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": models[0] if models else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


# ---- Report


COLUMNS = (
    *("row", "peer", "time, peer / ours", "target", "ours", "peer time"),
    *("max error", "kept MB", "peak MB", "peak, peer / ours", ""),
)


def table_line(result: dict) -> str:
    def pair(values):
        return f"{values[0]:.3g} / {values[1]:.3g}" if values else ""

    def spread(values):
        return f"**{values[0]:.1f}** [{values[1]:.1f}, {values[2]:.1f}]" if values else ""

    def seconds(value):
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"

    cells = (
        result["row"],
        result["peer"],
        f"**{result['ratio']:.2f}** [{result['low']:.2f}, {result['high']:.2f}]",
        f"{result['target']:.2f}",
        seconds(result["ours_s"]),
        seconds(result["peer_s"]),
        "" if result["max_error"] is None else f"{result['max_error']:.0e}",
        pair(result["kept_mb"]),
        pair(result["peak_mb"]),
        spread(result.get("peak_ratio")),
        {True: "met" if result["ratio"] >= result["target"] else "within 20 %", False: "MISSED", None: "not judged"}[
            result["ok"]
        ],
    )
    return "| " + " | ".join(cells) + " |"


def as_table(results: list[dict]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(table_line, results)]
    sizes = [f"- `{row}`: {what}" for row, what in dict.fromkeys((r["row"], r["what"]) for r in results)]
    rows_of: dict[tuple, dict[str, int]] = {}  # machine -> row -> rounds
    for r in results:
        rows_of.setdefault(tuple(r["machine"].items()), {})[r["row"]] = r["rounds"]
    machines = [
        f"- {', '.join(f'{key} {value}' for key, value in about)}: "
        + ", ".join(f"`{row}` ({rounds} rounds)" for row, rounds in rows.items())
        for about, rows in rows_of.items()
    ]
    return "\n".join(
        [
            *lines,
            "",
            "Median over rounds [lowest, highest]; kept and peak: ours / peer.",
            "",
            *sizes,
            "",
            *machines,
            "",
        ]
    )


def write_results(path: Path, results: list[dict], arguments: list[str]):
    """Writes .jsonl and .md; lines of rows that were not measured now are kept.

    `arguments` are the command's, which the table records. The table may come from several commands that differ in
    `--rows`; recorded is the one that makes all rows.
    """
    if "--rows" in arguments:
        place = arguments.index("--rows")
        arguments = arguments[:place] + arguments[place + 2 :]
    measured = {r["row"] for r in results}
    lines = path.with_suffix(".jsonl")
    old = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    merged = [r for r in old if r["row"] not in measured] + results
    merged.sort(key=lambda r: list(ROWS).index(r["row"]))
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("".join(json.dumps(r) + "\n" for r in merged))
    path.with_suffix(".md").write_text(
        f"# Speed\n\n`{shlex.join(['python', 'scripts/benchmark_speed.py', *arguments])}`\n\n" + as_table(merged)
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated: " + ", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument(
        "--memory",
        action="store_true",
        help=f"also measure peak memory, each case in {PEAK_ROUNDS} processes of its own",
    )
    parser.add_argument("--out", type=Path, help="path without suffix: writes .jsonl and .md")
    parser.add_argument("--peak-of", nargs=2, metavar=("ROW", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    rows = options.rows.split(",")
    unknown = set(rows) - set(ROWS)
    if unknown:
        parser.error(f"--rows: unknown {sorted(unknown)}, expected some of {', '.join(ROWS)}")
    torch.set_num_threads(1)

    if options.peak_of:
        name, case = options.peak_of
        run = ROWS[name](options.small).cases[case]
        print(peak_growth(run))
        return 0

    results = []
    for name in rows:
        row = ROWS[name](options.small)
        peaks = None
        if row.peak and options.memory:
            peaks = {c: [peak_mb(name, c, options.small) for _ in range(PEAK_ROUNDS)] for c in row.cases}
        found = [vars(result) for result in measure(name, row, options.rounds, peaks, not options.small)]
        results += found
        for result in found:
            print(table_line(result), flush=True)
        if options.out:
            write_results(options.out, results, sys.argv[1:] if arguments is None else arguments)
    print("\n" + as_table(results))
    return 1 if any(r["ok"] is False for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
