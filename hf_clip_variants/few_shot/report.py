"""`report.html` of a few-shot run: one self-contained page about its results.

Reads `results.json` and the predictions of a run folder; images come from the test data that the run names.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..files.atomic_writes import write_atomically


IMAGES_PER_GROUP = 12
CLASSES_SHOWN = 8
THUMBNAIL = 96  # pixels


def best_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run shown in detail: of the most shots, the first seed of the method with the best mean accuracy."""
    shots = max(run["shots"] for run in runs)
    candidates = [run for run in runs if run["shots"] == shots]

    def score(method: str) -> float:
        return statistics.fmean(a for run in candidates if run["method"] == method for a in run["accuracy"].values())

    method = max(dict.fromkeys(run["method"] for run in candidates), key=score)
    return next(run for run in candidates if run["method"] == method)


def table_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each method and number of shots of what results.json holds, in the order of its runs.

    Its `cells` hold, for each test set and in %: mean, spread over seeds (None for one seed), gain over zero-shot
    CLIP.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in finished_runs(results):
        groups.setdefault((run["method"], run["shots"]), []).append(run)
    rows = []
    for (method, shots), group in groups.items():
        cells = {}
        for name, zero_shot in results["zero_shot"]["accuracy"].items():
            values = [100 * run["accuracy"][name] for run in group]
            mean, spread = statistics.fmean(values), statistics.pstdev(values) if len(values) > 1 else None
            cells[name] = {"mean": mean, "spread": spread, "gain": mean - 100 * zero_shot, "best": False}
        parts = ("features", "train", "search")
        row = {
            "title": group[0].get("title") or method,
            "shots": shots,
            "cells": cells,
            "trained": group[0]["trained_parameters"],
            "bytes": group[0]["adapter_bytes"],
            "seconds": statistics.fmean(sum(run["seconds"].get(part) or 0 for part in parts) for run in group),
            "validation": group[0]["validation"]["kind"],
        }
        rows.append(row)
    for name in results["zero_shot"]["accuracy"]:
        for shots in {row["shots"] for row in rows}:
            own = [row["cells"][name] for row in rows if row["shots"] == shots]
            max(own, key=lambda cell: cell["mean"])["best"] = True
    return rows


def finished_runs(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if not run.get("error")]


def accuracy_plot(rows: Sequence[dict[str, Any]], test_set: str, zero_shot: float, title: str) -> str:
    """SVG: accuracy by shots, a line for each method with its spread over seeds; zero-shot is the dashed line."""
    import matplotlib
    from matplotlib.figure import Figure

    from .plots import draw_curves

    lines: dict[str, dict[int, tuple[float, float]]] = {row["title"]: {} for row in rows}
    for row in sorted(rows, key=lambda row: row["shots"]):
        cell = row["cells"][test_set]
        lines[row["title"]][row["shots"]] = (cell["mean"], cell["spread"] or 0.0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf_clip_variants", "font.size": 10}):
        figure = Figure(figsize=(5.6, 3.6))
        axes = figure.add_subplot()
        draw_curves(axes, title, zero_shot, lines.items())
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def class_changes(
    before: Sequence[float | None], after: Sequence[float | None], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Per-class accuracy change, best first; classes without test images are left out."""
    rows = [
        {"name": name, "before": 100 * b, "after": 100 * a, "change": 100 * (a - b)}
        for name, b, a in zip(names, before, after, strict=True)
        if a is not None and b is not None
    ]
    return sorted(rows, key=lambda row: -row["change"])


def _thumbnail(image) -> str:
    from PIL import Image

    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image)
    background = background.convert("RGB")
    background.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    background.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
                "source": _thumbnail(images.image(index)),
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


def write_report(run_folder: str | Path) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    Images are taken from the run's test data. If those can no longer be read, the page says so and shows the
    rest. Raises ValueError when the folder has no `results.json`.
    """
    from jinja2 import Environment

    folder = Path(run_folder)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"run_folder: {folder} has no results.json; is it the --out of `hf-clip-variants adapt`?"
        ) from None
    runs, rows = finished_runs(results), table_rows(results)
    chosen = best_run(runs) if runs else None
    sections = []
    for name, about in results["data"]["test_sets"].items():
        zero_shot = 100 * results["zero_shot"]["accuracy"][name]
        section = {"name": name, "zero_shot": zero_shot}
        if chosen:
            section["plot"] = accuracy_plot(rows, name, zero_shot, f"{name}, {about['images']} test images")
            before, after = results["zero_shot"]["per_class"][name], chosen["per_class"][name]
            changes = class_changes(before, after, results["data"]["class_names"])
            section["gains"] = [row for row in changes if row["change"] > 0][:CLASSES_SHOWN]
            section["losses"] = [row for row in changes[::-1] if row["change"] < 0][:CLASSES_SHOWN]
            section["accuracy"] = 100 * chosen["accuracy"][name]
            section["groups"], section["no_images"] = _image_groups(folder, results, chosen, name)
        sections.append(section)

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["seconds"] = human_seconds
    page = environment.from_string(template).render(
        results=results,
        sections=sections,
        rows=sorted(rows, key=lambda row: row["shots"]),
        test_sets=list(results["data"]["test_sets"]),
        chosen=chosen,
        encoder=_encoder_work(results["data"], runs),
        failed=[run for run in results["runs"] if run.get("error")],
        several_seeds=len(results["settings"]["seeds"]) > 1,
    )
    return write_atomically(folder / "report.html", page)


def _encoder_work(data: dict[str, Any], runs: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Passes of the image encoder on training images, with and without cached features; None if not known."""
    passes = sum(run.get("passes_at_every_step", 0) for run in runs)
    encoded, seconds = data.get("encoded_views", 0), data.get("seconds_per_view", 0.0)
    if not (passes and encoded):
        return None
    return {"encoded": encoded, "seconds": encoded * seconds, "passes": passes, "seconds_then": passes * seconds}


def _image_groups(folder: Path, results: dict[str, Any], chosen: dict[str, Any], test_set: str):
    from safetensors.numpy import load_file

    from .splits import reload_test_set

    try:
        images = reload_test_set(results, test_set, folder)
        files = "predictions/zero_shot.safetensors", chosen["predictions"]
        before, after = (load_file(folder / file)[f"{test_set}.predicted"] for file in files)
        if not len(images) == len(before) == len(after):
            raise ValueError(f"{len(images)} images now, {len(after)} when the run was made")
        return image_groups(images, results["data"]["class_names"], before, after), None
    except (OSError, ValueError) as error:
        return [], str(error)


__all__ = ["table_rows", "write_report"]
