"""`report.html` of a few-shot run: one self-contained page that a person can judge the run by.

Reads `results.json` and the predictions of a run folder (`hf_clip_variants.few_shot.run_folder`); pictures come from the test data that the run names.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any


PICTURES_A_GROUP = 12
CLASSES_SHOWN = 8
THUMBNAIL = 96  # pixels
# Okabe and Ito's palette: distinct for colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#000000")


@dataclass(frozen=True)
class Series:
    """One method's accuracy on one test set: shots -> accuracies over seeds."""

    method: str
    title: str
    colour: str
    by_shots: dict[int, list[float]]

    def mean(self, shots: int) -> float:
        return statistics.fmean(self.by_shots[shots])

    def spread(self, shots: int) -> float:
        """Standard deviation over seeds (population: a single seed has 0)."""
        return statistics.pstdev(self.by_shots[shots])


def series_of(runs: Iterable[dict[str, Any]], test_set: str) -> list[Series]:
    """Finished runs grouped by method, in the order in which methods first appear."""
    grouped: dict[str, tuple[str, dict[int, list[float]]]] = {}
    for run in runs:
        _, by_shots = grouped.setdefault(run["method"], (run.get("title") or run["method"], {}))
        by_shots.setdefault(run["shots"], []).append(run["accuracy"][test_set])
    return [
        Series(method, title, COLOURS[index % len(COLOURS)], dict(sorted(by_shots.items())))
        for index, (method, (title, by_shots)) in enumerate(grouped.items())
    ]


def best_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run that the page looks into: of the largest shot number, the method with the best mean over seeds and test sets, its first seed."""
    shots = max(run["shots"] for run in runs)
    candidates = [run for run in runs if run["shots"] == shots]

    def score(method: str) -> float:
        return statistics.fmean(a for run in candidates if run["method"] == method for a in run["accuracy"].values())

    method = max(dict.fromkeys(run["method"] for run in candidates), key=score)
    return next(run for run in candidates if run["method"] == method)


def _figure_svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def accuracy_plot(series: Sequence[Series], zero_shot: float, title: str) -> str:
    """SVG: accuracy by shots, a line a method with the standard deviation over seeds, zero-shot as the dashed line."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf_clip_variants", "font.size": 10}):
        figure = Figure(figsize=(5.6, 3.6))
        axes = figure.add_subplot()
        shots = sorted({k for line in series for k in line.by_shots})
        axes.axhline(100 * zero_shot, color="#666666", linestyle="--", linewidth=1.2, label="zero-shot CLIP")
        width = 0.06
        for index, line in enumerate(series):
            xs = [shots.index(k) + width * (index - (len(series) - 1) / 2) for k in line.by_shots]
            means = [100 * line.mean(k) for k in line.by_shots]
            spreads = [100 * line.spread(k) for k in line.by_shots]
            axes.errorbar(
                xs,
                means,
                yerr=spreads,
                color=line.colour,
                marker="o",
                markersize=5,
                linewidth=1.6,
                capsize=3,
                label=line.title,
            )
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        axes.set_xlim(-0.4, len(shots) - 0.6)
        axes.set_xlabel("labelled pictures per class")
        axes.set_ylabel("accuracy, %")
        axes.set_title(title, fontsize=11)
        axes.grid(axis="y", color="#e6e6e6")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
        return _figure_svg(figure)


def class_changes(
    before: Sequence[float | None], after: Sequence[float | None], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Per-class accuracy change, best first; classes without test pictures are left out."""
    rows = [
        {"name": name, "before": 100 * b, "after": 100 * a, "change": 100 * (a - b)}
        for name, b, a in zip(names, before, after, strict=True)
        if a is not None and b is not None
    ]
    return sorted(rows, key=lambda row: -row["change"])


def _thumbnail(image) -> str:
    from PIL import Image

    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    canvas = canvas.convert("RGB")
    canvas.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_groups(images, class_names: Sequence[str], before, after) -> list[dict[str, Any]]:
    """Pictures that the adapter put right, spoiled, kept right and never got, a few of each, spread evenly over the set.

    Args:
        images: the test set (`ImageSet`).
        class_names: C names.
        before, after: (N,) predicted class of each picture, zero-shot and adapted.
    """
    truth = images.labels
    kinds = (
        ("Put right", "wrong before, right now", (before != truth) & (after == truth)),
        ("Spoiled", "right before, wrong now", (before == truth) & (after != truth)),
        ("Still wrong", "wrong before and now", (before != truth) & (after != truth)),
        ("Right all along", "right before and now", (before == truth) & (after == truth)),
    )
    groups = []
    for title, meaning, mask in kinds:
        found = mask.nonzero()[0].tolist()
        step = max(1, len(found) // PICTURES_A_GROUP)
        pictures = []
        for index in found[::step][:PICTURES_A_GROUP]:
            pictures.append(
                {
                    "source": _thumbnail(images.image(index)),
                    "truth": class_names[truth[index]],
                    "before": class_names[before[index]],
                    "after": class_names[after[index]],
                    "before_right": bool(before[index] == truth[index]),
                    "after_right": bool(after[index] == truth[index]),
                }
            )
        groups.append({"title": title, "meaning": meaning, "count": len(found), "pictures": pictures})
    return groups


def _predictions(path: Path, test_set: str):
    from safetensors.numpy import load_file

    return load_file(path)[f"{test_set}.predicted"]


def _table_rows(
    runs: Sequence[dict[str, Any]], test_sets: Sequence[str], zero_shot: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for (method, shots), group in _group(runs).items():
        cells = []
        for name in test_sets:
            values = [100 * run["accuracy"][name] for run in group]
            mean = statistics.fmean(values)
            spread = statistics.pstdev(values) if len(values) > 1 else None
            cells.append({"mean": mean, "spread": spread, "gain": mean - 100 * zero_shot[name], "best": False})
        seconds = {
            key: statistics.fmean(run["seconds"].get(key) or 0 for run in group)
            for key in ("features", "train", "search")
        }
        rows.append(
            {
                "method": method,
                "title": group[0].get("title") or method,
                "shots": shots,
                "seeds": len(group),
                "cells": cells,
                "trained": group[0]["trained_parameters"],
                "bytes": group[0]["adapter_bytes"],
                "seconds": sum(seconds.values()),
                "validation": group[0]["validation"]["kind"],
            }
        )
    for column in range(len(test_sets)):
        for shots in {row["shots"] for row in rows}:
            max((row for row in rows if row["shots"] == shots), key=lambda row: row["cells"][column]["mean"])["cells"][
                column
            ]["best"] = True
    return rows


def _group(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["shots"]):
        grouped.setdefault((run["method"], run["shots"]), []).append(run)
    return grouped


def human_bytes(count: float) -> str:
    """`1536` -> `"1.5 kB"`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def human_seconds(seconds: float) -> str:
    """`75.2` -> `"1 min 15 s"`."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def write_report(run_folder: str | Path) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    Pictures are taken from the run's test data; where those cannot be read any more, the page says so and shows the rest. Raises ValueError
    when the folder has no `results.json`.
    """
    from jinja2 import Environment

    folder = Path(run_folder)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"run_folder: {folder} has no results.json; is it the --out of `hf-clip-variants adapt`?"
        ) from None
    runs = [run for run in results["runs"] if not run.get("error")]
    class_names, zero_shot = results["data"]["class_names"], results["zero_shot"]["accuracy"]
    test_sets = list(results["data"]["test_sets"])

    chosen = best_run(runs) if runs else None
    sections = []
    for name in test_sets:
        lines = series_of(runs, name)
        section = {
            "name": name,
            "images": results["data"]["test_sets"][name]["images"],
            "zero_shot": 100 * zero_shot[name],
        }
        if lines:
            section["plot"] = accuracy_plot(lines, zero_shot[name], f"{name}, {section['images']} test pictures")
        if chosen:
            changes = class_changes(results["zero_shot"]["per_class"][name], chosen["per_class"][name], class_names)
            section["gains"] = [row for row in changes if row["change"] > 0][:CLASSES_SHOWN]
            section["losses"] = [row for row in changes[::-1] if row["change"] < 0][:CLASSES_SHOWN]
            section["accuracy"] = 100 * chosen["accuracy"][name]
            section["pictures"], section["no_pictures"] = _pictures(folder, results, chosen, name)
        sections.append(section)

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": human_bytes, "seconds": human_seconds}
    page = environment.from_string(template).render(
        results=results,
        sections=sections,
        rows=_table_rows(runs, test_sets, zero_shot),
        test_sets=test_sets,
        chosen=chosen,
        towers=_tower_work(results["data"], runs),
        failed=[run for run in results["runs"] if run.get("error")],
        several_seeds=len(results["settings"]["seeds"]) > 1,
    )
    path = folder / "report.html"
    temporary = path.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _tower_work(data: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """How often the image tower ran on training pictures, and how often it would have without cached features; None if it is not known."""
    passes = sum(run.get("passes_at_every_step", 0) for run in runs)
    encoded, seconds = data.get("encoded_views", 0), data.get("seconds_per_view", 0.0)
    if not (passes and encoded):
        return None
    return {"encoded": encoded, "seconds": encoded * seconds, "passes": passes, "seconds_then": passes * seconds}


def _pictures(folder: Path, results: dict[str, Any], chosen: dict[str, Any], test_set: str):
    from .splits import reload_test_set

    try:
        images = reload_test_set(results, test_set, folder)
        before = _predictions(folder / "predictions" / "zero_shot.safetensors", test_set)
        after = _predictions(folder / chosen["predictions"], test_set)
        if not len(images) == len(before) == len(after):
            raise ValueError(f"{len(images)} pictures now, {len(after)} when the run was made")
        return picture_groups(images, results["data"]["class_names"], before, after), None
    except (OSError, ValueError) as error:
        return [], str(error)


__all__ = ["write_report"]
