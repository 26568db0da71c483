"""`report.html` of a few-shot run, one self-contained page, with `results.csv` and `predictions.csv` beside it.

Reads `results.json` and the predictions of a run folder; images come from the test data that the run names.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.plain_figures import plain_figures
from ..data.images.thumbnails import thumbnail
from ..files.atomic_writes import write_atomically
from ..metrics.intervals import gain_text, may_be_chance
from .csv_files import predictions_csv, results_csv
from .next_commands import next_commands
from .recommendation import ZERO_SHOT, recommend
from .summary import ZERO_SHOT_PREDICTIONS, finished_runs, summary


IMAGES_PER_GROUP = 12
CLASSES_SHOWN = 8
PAIRS_SHOWN = 12
MATRIX_CLASSES = 30  # with more, the most confused pairs instead of the matrix
THUMBNAIL = 96  # pixels


def shown_candidate(recommended: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The candidate whose run is shown in detail: the recommended one, or the best adapter if that is zero-shot CLIP.

    None if there is no adapter.
    """
    if recommended["method"] != ZERO_SHOT:
        return recommended
    return next((c for c in recommended["candidates"] if c["method"] != ZERO_SHOT), None)


def accuracy_plot(rows: Sequence[Mapping[str, Any]], test_set: str, title: str, things: str = "images") -> str:
    """SVG: accuracy by shots, a line for each method with its spread over seeds; zero-shot is the dashed line.

    Text, grid and black take the colours of the page, which may be dark.
    """
    from matplotlib.figure import Figure

    from .plots import GREY, GRID, draw_curves

    zero_shot, lines = 0.0, {}
    for row in sorted(rows, key=lambda row: row["shots"]):
        test = row["tests"][test_set]
        if row["method"] == ZERO_SHOT:
            zero_shot = 100 * test["accuracy"]
        else:
            points = lines.setdefault(row["title"], {})
            points[row["shots"]] = 100 * test["accuracy"], 100 * (test["spread"] or 0.0)
    with plain_figures(svg__fonttype="none", svg__hashsalt="hf_clip_variants", font__size=10):
        figure = Figure(figsize=(4.6, 3.4))  # small, so that its text can still be read on a phone
        axes = figure.add_subplot(facecolor="none")
        draw_curves(axes, title, zero_shot, lines.items(), things)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    for colour, of_page in (("#000000", "currentColor"), (GREY, "var(--soft)"), (GRID, "var(--line)")):
        svg = svg.replace(colour, of_page)
    about = html.escape(f"{title}: accuracy by labelled {things} per class. The table of results has the numbers.")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{about}" ', 1)


def class_changes(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, names: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """How many images of each class were right, zero-shot and adapted, and how many classes have a single image.

    The rows are those of classes with at least two images, best change first: of a single image, an accuracy can be
    0 or 100 % only.
    """
    rows, single = [], 0
    for index, name in enumerate(names):
        own = labels == index
        count = int(own.sum())
        single += count == 1
        if count < 2:
            continue
        right = [int((predicted[own] == index).sum()) for predicted in (before, after)]
        rows.append({"name": name, "count": count, "before": right[0], "after": right[1]})
        rows[-1]["change"] = 100 * (right[1] - right[0]) / count
    return sorted(rows, key=lambda row: (-row["change"], -row["count"])), single


def confusion(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """(C, C) how many images of each class (row) were taken for each class (column)."""
    matrix = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def confused_pairs(before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes of the adapted model that occur at least twice, with zero-shot CLIP's count."""
    wrong = after * ~np.eye(len(after), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS_SHOWN]
    pairs = [divmod(int(place), len(after)) for place in order]
    return [
        {"truth": names[t], "taken_for": names[p], "before": int(before[t, p]), "after": int(wrong[t, p])}
        for t, p in pairs
        if wrong[t, p] > 1
    ]


def _matrix(counts: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table: a cell has its count and its share of the row, which is its shade."""
    totals = counts.sum(axis=1)
    return [
        {
            "name": name,
            "cells": [{"count": int(n), "share": n / max(total, 1), "right": t == p} for p, n in enumerate(row)],
        }
        for t, (name, row, total) in enumerate(zip(names, counts, totals, strict=True))
    ]


def image_groups(images, class_names: Sequence[str], before, after) -> list[dict[str, Any]]:
    """A few images each, spread evenly over the set: fixed by adapting, broken by it, wrong both times, right both
    times.

    Args:
        images: the test set (`ImageSet`).
        class_names: C names.
        before, after: (N,) predicted class of each image, zero-shot and adapted.
    """
    truth = images.labels
    was_right, is_right = before == truth, after == truth
    kinds = (
        ("Fixed by adapting", "wrong before, right now", ~was_right & is_right),
        ("Broken by adapting", "right before, wrong now", was_right & ~is_right),
        ("Still wrong", "wrong before and now", ~was_right & ~is_right),
        ("Right both times", "right before and now", was_right & is_right),
    )
    groups = []
    for title, meaning, mask in kinds:
        found = mask.nonzero()[0].tolist()
        shown = found[:: max(1, len(found) // IMAGES_PER_GROUP)][:IMAGES_PER_GROUP]
        group = [
            {
                "source": thumbnail(images.image(index), THUMBNAIL),
                "truth": class_names[truth[index]],
                "before": class_names[before[index]],
                "after": class_names[after[index]],
                "before_right": bool(was_right[index]),
                "after_right": bool(is_right[index]),
            }
            for index in shown
        ]
        groups.append({"title": title, "meaning": meaning, "count": len(found), "images": group})
    return groups


def human_seconds(seconds: float) -> str:
    """`75.2` -> `"1 min 15 s"`."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def mean_text(test: Mapping[str, Any]) -> str:
    """An accuracy of the table in %, with its spread where there are several seeds: `"59.5 ± 0.3"`."""
    spread = "" if test["spread"] is None else f" ± {100 * test['spread']:.1f}"
    return f"{100 * test['accuracy']:.1f}{spread}"


def write_report(run_folder: str | Path) -> Path:
    """Writes `report.html`, `results.csv` and `predictions.csv` into a run folder and returns the page's path.

    Images are taken from the run's test data. If those can no longer be read, the page says so and shows the
    rest. Raises ValueError when the folder has no `results.json`, or nothing is measured yet.
    """
    from jinja2 import Environment

    folder = Path(run_folder)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"run_folder: {folder} has no results.json; is it the --out of `hf-clip-variants adapt`?"
        ) from None
    if not results["zero_shot"]:
        raise ValueError(f"run_folder: nothing is measured yet in {folder}; let `hf-clip-variants adapt` go on")
    runs = finished_runs(results)
    if results["status"] == "finished":
        rows, recommended = results["table"], results["recommended"]
    else:
        rows, recommended = summary(folder, results), recommend(runs)
    candidate = shown_candidate(recommended)
    shown = candidate and next(run for run in runs if run["folder"] == candidate["folder"])
    sections = [_section(folder, results, rows, shown, name) for name in results["data"]["test_sets"]]

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"seconds": human_seconds, "mean": mean_text, "points": lambda value: f"{100 * value:.1f}"}
    environment.globals |= {"gain_text": gain_text, "may_be_chance": may_be_chance}
    page = environment.from_string(template).render(
        results=results,
        sections=sections,
        rows=sorted(rows, key=lambda row: row["shots"]),
        recommended=recommended,
        keep_zero_shot=recommended["method"] == ZERO_SHOT,
        shown=shown,
        shown_row=shown and next(r for r in rows if (r["method"], r["shots"]) == (shown["method"], shown["shots"])),
        encoder=_encoder_work(results["data"], runs),
        failed=[run for run in results["runs"] if run.get("error")],
        several_seeds=any(row["seeds"] > 1 for row in rows),
        commands=next_commands(results, recommended, folder),
    )
    write_atomically(folder / "results.csv", results_csv(results, rows))
    write_atomically(folder / "predictions.csv", predictions_csv(results["data"]["class_names"], sections))
    return write_atomically(folder / "report.html", page)


def _encoder_work(data: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Passes of the image encoder on training images, with and without cached features; None if not known."""
    passes = sum(run.get("passes_at_every_step", 0) for run in runs)
    encoded, seconds = data.get("encoded_views", 0), data.get("seconds_per_view", 0.0)
    if not (passes and encoded):
        return None
    return {"encoded": encoded, "seconds": encoded * seconds, "passes": passes, "seconds_then": passes * seconds}


def _section(
    folder: Path,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any] | None,
    name: str,
) -> dict[str, Any]:
    """What the page shows of one test set, and what predictions.csv takes from it."""
    from safetensors.numpy import load_file

    names, about = results["data"]["class_names"], results["data"]["test_sets"][name]
    saved = load_file(folder / ZERO_SHOT_PREDICTIONS)
    labels, before = saved[f"{name}.labels"], saved[f"{name}.predicted"]
    section = {"name": name, "images": about["images"], "unreadable": about.get("unreadable", [])}
    section |= {"labels": labels, "zero_shot": (before, saved[f"{name}.confidence"]), "adapted": None, "ids": None}
    images = None
    try:
        images = _test_images(folder, results, name, len(labels))
        section["ids"] = images.ids
    except (OSError, ValueError) as error:
        section["no_images"] = str(error)
    if shown is None:
        return section
    files = load_file(folder / shown["predictions"])
    after = files[f"{name}.predicted"]
    section["adapted"] = after, files[f"{name}.confidence"]
    things = "videos" if results["data"].get("videos") else "images"
    section["plot"] = accuracy_plot(rows, name, f"{name}, {about['images']} test {things}", things)
    changes, section["single"] = class_changes(labels, before, after, names)
    section["measured"] = len(changes)
    section["gains"] = [row for row in changes if row["change"] > 0][:CLASSES_SHOWN]
    section["losses"] = [row for row in changes[::-1] if row["change"] < 0][:CLASSES_SHOWN]
    matrices = confusion(labels, before, len(names)), confusion(labels, after, len(names))
    if len(names) <= MATRIX_CLASSES:
        section["matrices"] = [
            (title, _matrix(counts, names))
            for title, counts in zip(("zero-shot CLIP", shown["title"] or shown["method"]), matrices, strict=True)
        ]
    else:
        section["pairs"] = confused_pairs(*matrices, names)
    section["groups"] = [] if images is None else image_groups(images, names, before, after)
    return section


def _test_images(folder: Path, results: Mapping[str, Any], name: str, count: int):
    from .splits import reload_test_set

    images = reload_test_set(results, name, folder)
    if len(images) != count:
        raise ValueError(f"{len(images)} images now, {count} when the run was made")
    return images


__all__ = ["mean_text", "write_report"]
