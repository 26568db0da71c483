"""What the runs of a folder say together: means over seeds, spreads, and gains over zero-shot CLIP with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.intervals import paired_bootstrap
from .recommendation import ZERO_SHOT


def finished_runs(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of results.json that did not fail."""
    return [run for run in results["runs"] if not run.get("error")]


def summary(run_folder: str | Path, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for zero-shot CLIP, then one for each method and number of shots, in the order of the runs.

    Each has `method`, `title`, `shots`, `seeds` (how many), `trained_parameters`, `adapter_bytes`, `seconds` (mean,
    for features, training and search), `validation` (how settings were chosen) and, for each test set in `tests`, all
    in 0..1: `accuracy` (mean over seeds), `spread` (their standard deviation; None for one seed), and for methods
    `gain` over zero-shot CLIP and its `interval`, 95 %.
    """
    from safetensors.numpy import load_file

    folder = Path(run_folder)
    baseline = results["zero_shot"]["accuracy"]
    saved = load_file(folder / "predictions" / f"{ZERO_SHOT}.safetensors")
    before = {name: saved[f"{name}.predicted"] == saved[f"{name}.labels"] for name in baseline}
    about = {"method": ZERO_SHOT, "title": "zero-shot CLIP", "shots": 0, "seeds": 1, "trained_parameters": 0}
    about |= {"adapter_bytes": 0, "seconds": 0.0, "validation": "none"}
    rows = [about | {"tests": {name: {"accuracy": value, "spread": None} for name, value in baseline.items()}}]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in finished_runs(results):
        groups.setdefault((run["method"], run["shots"]), []).append(run)
    for (method, shots), group in groups.items():
        files = [load_file(folder / run["predictions"]) for run in group]
        tests = {}
        for name, zero_shot in baseline.items():
            values = [run["accuracy"][name] for run in group]
            after = np.stack([file[f"{name}.predicted"] == saved[f"{name}.labels"] for file in files])
            tests[name] = {
                "accuracy": statistics.fmean(values),
                "spread": statistics.pstdev(values) if len(values) > 1 else None,
                "gain": statistics.fmean(values) - zero_shot,
                "interval": list(paired_bootstrap(before[name], after)),
            }
        parts = ("features", "train", "search")
        row = {"method": method, "title": group[0].get("title") or method, "shots": shots, "seeds": len(group)}
        row |= {name: group[0][name] for name in ("trained_parameters", "adapter_bytes")}
        row["seconds"] = statistics.fmean(sum(run["seconds"].get(part) or 0 for part in parts) for run in group)
        rows.append(row | {"validation": group[0]["validation"]["kind"], "tests": tests})
    return rows


__all__ = ["finished_runs", "summary"]
