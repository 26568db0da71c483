"""What the runs of a folder say together: means over seeds, spreads, and gains over zero-shot CLIP with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.intervals import paired_bootstrap
from .recommendation import ZERO_SHOT


ZERO_SHOT_PREDICTIONS = f"predictions/{ZERO_SHOT}.safetensors"


def finished_runs(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of results.json that did not fail."""
    return [run for run in results["runs"] if not run.get("error")]


def gains(run_folder: str | Path, predictions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What saved predictions of one method gained over zero-shot CLIP on the same images.

    Args:
        run_folder: of `adapt`.
        predictions: files in it, one for each seed.

    Returns:
        For each test set, all in 0..1: `zero_shot` (its accuracy), `gain` (of the mean over the files), its 95 %
        `interval` by a paired bootstrap over test images and, where five classes are fewer than all, `top5` (the
        share of images with the right class among the five most likely).
    """
    from safetensors.numpy import load_file

    folder, found = Path(run_folder), {}
    saved = load_file(folder / ZERO_SHOT_PREDICTIONS)
    files = [load_file(folder / file) for file in predictions]
    for name in [key.removesuffix(".labels") for key in saved if key.endswith(".labels")]:
        labels = saved[f"{name}.labels"]
        before = saved[f"{name}.predicted"] == labels
        after = np.stack([file[f"{name}.predicted"] == labels for file in files])
        found[name] = {"zero_shot": float(before.mean()), "gain": float(after.mean() - before.mean())}
        found[name]["interval"] = list(paired_bootstrap(before, after))
        if f"{name}.top" in files[0]:
            hits = [(file[f"{name}.top"] == labels[:, None]).any(axis=1).mean() for file in files]
            found[name]["top5"] = float(np.mean(hits))
    return found


def summary(run_folder: str | Path, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for zero-shot CLIP, then one for each method and number of shots, in the order of the runs.

    Each has `method`, `title`, `shots`, `seeds` (how many), `trained_parameters`, `adapter_bytes`, `seconds` (mean,
    for features, training and search), `validation` (how settings were chosen) and, for each test set in `tests`, all
    in 0..1: `accuracy` (mean over seeds), `spread` (their standard deviation; None for one seed),
    `top5` (with more than five classes) and, for methods, `gain` over zero-shot CLIP and its `interval`, 95 %.
    """
    own = gains(run_folder, [ZERO_SHOT_PREDICTIONS])
    top5 = {name: {"top5": test["top5"]} if "top5" in test else {} for name, test in own.items()}
    baseline = results["zero_shot"]["accuracy"]
    about = {"method": ZERO_SHOT, "title": "zero-shot CLIP", "shots": 0, "seeds": 1, "trained_parameters": 0}
    about |= {"adapter_bytes": 0, "seconds": 0.0, "validation": "none"}
    tests = {name: {"accuracy": value, "spread": None, **top5[name]} for name, value in baseline.items()}
    rows = [about | {"tests": tests}]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in finished_runs(results):
        groups.setdefault((run["method"], run["shots"]), []).append(run)
    for (method, shots), group in groups.items():
        tests = {}
        for name, measured in gains(run_folder, [run["predictions"] for run in group]).items():
            values = [run["accuracy"][name] for run in group]
            spread = statistics.pstdev(values) if len(values) > 1 else None
            del measured["zero_shot"]
            tests[name] = {"accuracy": statistics.fmean(values), "spread": spread, **measured}
        parts = ("features", "train", "search")
        row = {"method": method, "title": group[0].get("title") or method, "shots": shots, "seeds": len(group)}
        row |= {name: group[0][name] for name in ("trained_parameters", "adapter_bytes")}
        row["seconds"] = statistics.fmean(sum(run["seconds"].get(part) or 0 for part in parts) for run in group)
        rows.append(row | {"validation": group[0]["validation"]["kind"], "tests": tests})
    return rows


__all__ = ["ZERO_SHOT_PREDICTIONS", "finished_runs", "gains", "summary"]
