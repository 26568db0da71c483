"""Plots of few-shot results: curves over shots, and points with error bars where methods are compared."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..annotations.plain_figures import plain_figures
from .results import (
    TITLES,
    ZERO_SHOT_ROW,
    Row,
    entries_of,
    harmonic_statistics,
    rows_of,
    statistics_of,
    test_sets_of,
)


if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
GREY, GRID = "#666666", "#e6e6e6"
PART_COLOURS = {"Base": COLOURS[0], "New": COLOURS[1], "HM": "#000000"}

Point = tuple[float, float]  # mean and spread over seeds


def plot(protocol: str, records: Sequence[Mapping[str, Any]]) -> bytes:
    """The plot of one protocol and model, a PNG file."""
    titles = {record["method"]: record["title"] for record in records}
    draw = {"few_shot": _few_shot, "base_to_new": _base_to_new}.get(protocol, _transfer)
    content = io.BytesIO()
    with plain_figures():
        figure, axes = draw(entries_of(records), rows_of(records), titles)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = min(5, len(labels))
            figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=columns)
        figure.suptitle(TITLES[protocol], fontsize=13)
        figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    return content.getvalue()


# ---- one panel


def style(axes, title: str, x: str = "", y: str = "", grid: str = "both") -> None:
    """Titles, grid and axes, the same in all panels."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis=grid, color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(
    axes,
    title: str,
    zero_shot: float | None,
    lines: Iterable[tuple[str, Mapping[int, Point]]],
    things: str = "images",
) -> None:
    """Accuracy by shots. `lines`: (name, shots -> point) of each method; zero-shot is the dashed line. `things`: what
    the shots are."""
    lines = list(lines)
    shots = sorted({k for _, points in lines for k in points})
    if zero_shot is not None:
        axes.axhline(zero_shot, color=GREY, linestyle="--", linewidth=1.3, label="zero-shot CLIP")
    for index, (name, points) in enumerate(lines):
        if not points:
            continue
        offset = 0.05 * (index - (len(lines) - 1) / 2)
        axes.errorbar(
            [shots.index(k) + offset for k in points],
            [mean for mean, _ in points.values()],
            yerr=[spread for _, spread in points.values()],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1.5,
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set_xlim(-0.5, max(len(shots), 1) - 0.5)
    style(axes, title, f"labelled {things} per class", "accuracy, %", grid="y")


def draw_comparison(
    axes, title: str, names: Sequence[str], series: Mapping[str, tuple[str, Sequence[Point | None]]]
) -> None:
    """Methods from top to bottom, with one point and error bar for each of `series` (label -> colour, points)."""
    for index, (label, (colour, points)) in enumerate(series.items()):
        offset = 0.17 * (index - (len(series) - 1) / 2)
        shown = [(place, *point) for place, point in enumerate(points) if point is not None]
        axes.errorbar(
            [mean for _, mean, _ in shown],
            [place + offset for place, _, _ in shown],
            xerr=[spread for _, _, spread in shown],
            linestyle="",
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markersize=6,
            capsize=3,
            label=label,
        )
    for place, points in enumerate(zip(*(points for _, points in series.values()), strict=True)):
        if not any(points):
            where, text = axes.get_yaxis_transform(), "–  no answer for other classes"
            axes.text(0.02, place, text, transform=where, color=GREY, fontsize=8, va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    style(axes, title, x="accuracy, %")


# ---- one protocol each: entries, rows and titles of methods -> a figure and the panel whose legend it shows


def _panels(count: int, width: float, height: float, columns: int = 3):
    """A figure of `count` panels, at most `columns` side by side, and their axes."""
    from matplotlib.figure import Figure

    across = min(columns, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down + 0.9), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def _points(found: pd.DataFrame) -> dict[Row, Point]:
    return dict(zip(found.index, zip(found["mean"], found["spread"], strict=True), strict=True))


def _methods_and_shots(rows: Sequence[Row]) -> tuple[list[str], list[int]]:
    """Without zero-shot CLIP."""
    adapted = [row for row in rows if row != ZERO_SHOT_ROW]
    return list(dict.fromkeys(m for m, _ in adapted)), sorted({k for _, k in adapted})


def _few_shot(entries: pd.DataFrame, rows: Sequence[Row], titles: Mapping[str, str]):
    """A panel for each test set."""
    (methods, shots), sets = _methods_and_shots(rows), test_sets_of(entries)
    figure, panels = _panels(len(sets), 4.2, 3.4)
    for axes, (title, own) in zip(panels, sets, strict=True):
        points = _points(statistics_of(own))
        zero_shot = points.get(ZERO_SHOT_ROW, (None, None))[0]
        lines = [(titles[m], {k: points[m, k] for k in shots if (m, k) in points}) for m in methods]
        draw_curves(axes, title, zero_shot, lines)
    return figure, panels[0]


def _base_to_new(entries: pd.DataFrame, rows: Sequence[Row], titles: Mapping[str, str]):
    """A panel for each test set and number of shots: base, new and harmonic mean of each method."""
    shots, methods = _methods_and_shots(rows)[1] or [0], list(dict.fromkeys(m for m, _ in rows))
    sets = test_sets_of(entries)
    across = len(sets) if len(sets) <= 3 else 3
    figure, panels = _panels(len(sets) * len(shots), 4.4, 0.9 + 0.42 * len(methods), across)
    for axes, (k, (title, own)) in zip(panels, ((k, test_set) for k in shots for test_set in sets), strict=True):
        base, new = own[own["part"] == "base"], own[own["part"] == "new"]
        found = {"Base": statistics_of(base), "New": statistics_of(new), "HM": harmonic_statistics(base, new)}
        own_rows = [ZERO_SHOT_ROW if m == ZERO_SHOT_ROW[0] else (m, k) for m in methods]
        series = {name: (PART_COLOURS[name], [*map(_points(v).get, own_rows)]) for name, v in found.items()}
        draw_comparison(axes, f"{title}, {k} shot{'s' * (k != 1)}", [titles[m] for m in methods], series)
    return figure, panels[0]


def _transfer(entries: pd.DataFrame, rows: Sequence[Row], titles: Mapping[str, str]):
    """A panel for each source and test set, and one for the targets' mean; a colour for each number of shots."""
    methods, shots = _methods_and_shots(rows)
    groups = []
    for data, own in entries.groupby("data", sort=False):
        for (part, of), single in own.groupby(["part", "of"], sort=False):
            groups.append((f"{data} (source)" if part == "source" else f"{data} → {of}", single))
        targets = own[own["part"] == "target"]
        if (count := targets["of"].nunique()) > 1:
            groups.append((f"{data} → mean of {count}", targets))
    across = 2 if len(groups) == 4 else min(3, len(groups))
    figure, panels = _panels(len(groups), 4.4, 0.9 + 0.42 * len(methods), across)
    for axes, (title, own) in zip(panels, groups, strict=True):
        points = _points(statistics_of(own))
        if ZERO_SHOT_ROW in points:
            zero_shot = points[ZERO_SHOT_ROW][0]
            axes.axvline(zero_shot, color=GREY, linestyle="--", linewidth=1.3, label="zero-shot CLIP")
        series = {
            f"{k} shot{'s' * (k != 1)}": (COLOURS[place % len(COLOURS)], [points.get((m, k)) for m in methods])
            for place, k in enumerate(shots)
        }
        draw_comparison(axes, title, [titles[m] for m in methods], series)
    return figure, panels[0]


__all__ = ["COLOURS", "GREY", "GRID", "draw_curves", "plot", "style"]
