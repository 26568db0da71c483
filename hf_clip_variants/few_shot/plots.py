"""Plots of the few-shot protocols as PNG: curves over shots, and points with error bars where methods are compared."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .report import COLOURS
from .results import (
    TITLES,
    ZERO_SHOT_ROW,
    Column,
    Row,
    Seeds,
    columns_of,
    harmonic_over,
    mean_and_spread,
    mean_over,
    rows_of,
)


GREY = "#666666"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
PART_COLOURS = {"Base": COLOURS[0], "New": COLOURS[1], "HM": "#000000"}


def plot(protocol: str, records: Sequence[Mapping[str, Any]]) -> bytes:
    """The plot of one protocol and model, a PNG file."""
    titles = {record["method"]: record["title"] for record in records}
    columns, rows = columns_of(records), rows_of(records)
    draw = {"few_shot": _curves, "base_to_new": _base_to_new}.get(protocol, _transfer)
    figure = draw(columns, rows, titles)
    figure.suptitle(TITLES[protocol], fontsize=13)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    return content.getvalue()


def _panels(count: int, width: float, height: float, columns: int = 3):
    """A figure of `count` panels, at most `columns` side by side, and their axes."""
    from matplotlib.figure import Figure

    across = min(columns, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down + 0.9), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    for used in axes[:count]:
        used.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def _with_average(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    panels = [(column.title, [column]) for column in columns]
    return [(f"average of {len(columns)}", list(columns)), *panels] if len(columns) > 1 else panels


def _curves(columns: Sequence[Column], rows: Sequence[Row], titles: Mapping[str, str]):
    """Accuracy by shots: a panel a test set, a line a method, zero-shot dashed."""
    methods = [m for m in dict.fromkeys(m for m, _ in rows) if m != ZERO_SHOT_ROW[0]]
    shots = sorted({k for m, k in rows if m != ZERO_SHOT_ROW[0]})
    figure, panels = _panels(len(_with_average(columns)), 4.2, 3.4)
    for axes, (title, chosen) in zip(panels, _with_average(columns), strict=True):
        if zero := mean_over(chosen, ZERO_SHOT_ROW):
            axes.axhline(mean_and_spread(zero)[0], color=GREY, linestyle="--", linewidth=1.3, label="zero-shot CLIP")
        for index, method in enumerate(methods):
            points = [(place, s) for place, k in enumerate(shots) if (s := mean_over(chosen, (method, k)))]
            if not points:
                continue
            offset = 0.05 * (index - (len(methods) - 1) / 2)
            means, spreads = zip(*(mean_and_spread(s) for _, s in points), strict=True)
            axes.errorbar(
                [place + offset for place, _ in points], means, yerr=spreads, color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=1.5, capsize=3, label=titles[method],
            )  # fmt: skip
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        axes.set_xlim(-0.5, max(len(shots), 1) - 0.5)
        axes.set_title(title, fontsize=11)
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_xlabel("labelled pictures per class")
        axes.set_ylabel("accuracy, %")
    _legend(figure, panels[0])
    return figure


def _legend(figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=min(5, len(labels))
        )


def _comparison(
    axes, title: str, names: Sequence[str], series: Mapping[str, tuple[str, list[tuple[float, float] | None]]]
) -> None:
    """Methods from top to bottom; for each of `series` (label -> colour, points) a point with its error bar. A dash where all are None."""
    for index, (label, (colour, points)) in enumerate(series.items()):
        offset = 0.17 * (index - (len(series) - 1) / 2)
        shown = [(place, *point) for place, point in enumerate(points) if point is not None]
        axes.errorbar(
            [mean for _, mean, _ in shown], [place + offset for place, _, _ in shown], xerr=[spread for _, _, spread in shown], linestyle="",
            color=colour, marker=MARKERS[index % len(MARKERS)], markersize=6, capsize=3, label=label,
        )  # fmt: skip
    for place, points in enumerate(zip(*(points for _, points in series.values()), strict=True)):
        if not any(points):
            axes.text(
                0.02,
                place,
                "–  no answer for other classes",
                transform=axes.get_yaxis_transform(),
                color=GREY,
                fontsize=8,
                va="center",
            )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("accuracy, %")


def _points(seeds: Sequence[Seeds]) -> list[tuple[float, float] | None]:
    return [mean_and_spread(s) if s else None for s in seeds]


def _base_to_new(columns: Sequence[Column], rows: Sequence[Row], titles: Mapping[str, str]):
    """A panel a test set and number of shots: base, new and harmonic mean of each method."""
    sets = list(dict.fromkeys((c.data, c.of) for c in columns))
    named = {(c.data, c.of): c.title for c in columns}
    shots = sorted({k for m, k in rows if m != ZERO_SHOT_ROW[0]}) or [0]
    methods = list(dict.fromkeys(m for m, _ in rows))
    groups = [(named[key], [key]) for key in sets]
    if len(sets) > 1:
        groups = [(f"average of {len(sets)}", sets), *groups]
    figure, panels = _panels(
        len(groups) * len(shots), 4.4, 0.9 + 0.42 * len(methods), columns=len(groups) if len(groups) <= 3 else 3
    )
    places = [(k, group) for k in shots for group in groups]
    for axes, (k, (title, chosen)) in zip(panels, places, strict=True):
        own = [(m, 0 if m == ZERO_SHOT_ROW[0] else k) for m in methods]
        base, new = (
            [mean_over([c for c in columns if (c.data, c.of) in chosen and c.part == part], row) for row in own]
            for part in ("base", "new")
        )
        harmonic = [harmonic_over(b, n) for b, n in zip(base, new, strict=True)]
        series = {
            "Base": (PART_COLOURS["Base"], _points(base)),
            "New": (PART_COLOURS["New"], _points(new)),
            "HM": (PART_COLOURS["HM"], harmonic),
        }
        _comparison(axes, f"{title}, {k} shot{'s' * (k != 1)}", [titles[m] for m in methods], series)
    _legend(figure, panels[0])
    return figure


def _transfer(columns: Sequence[Column], rows: Sequence[Row], titles: Mapping[str, str]):
    """A panel a source and test set, and one for the targets' mean; a colour a number of shots, zero-shot as the dashed line."""
    shots = sorted({k for m, k in rows if m != ZERO_SHOT_ROW[0]})
    methods = [m for m in dict.fromkeys(m for m, _ in rows) if m != ZERO_SHOT_ROW[0]]
    groups: list[tuple[str, list[Column]]] = []
    for data in dict.fromkeys(c.data for c in columns):
        own = [c for c in columns if c.data == data]
        targets = [c for c in own if c.part == "target"]
        groups += [(f"{data} (source)" if c.part == "source" else f"{data} → {c.of}", [c]) for c in own]
        if len(targets) > 1:
            groups.append((f"{data} → mean of {len(targets)}", targets))
    figure, panels = _panels(
        len(groups), 4.4, 0.9 + 0.42 * len(methods), columns=min(3, len(groups)) if len(groups) != 4 else 2
    )
    for axes, (title, chosen) in zip(panels, groups, strict=True):
        if zero := mean_over(chosen, ZERO_SHOT_ROW):
            axes.axvline(mean_and_spread(zero)[0], color=GREY, linestyle="--", linewidth=1.3, label="zero-shot CLIP")
        series = {
            f"{k} shot{'s' * (k != 1)}": (
                COLOURS[place % len(COLOURS)],
                _points([mean_over(chosen, (m, k)) for m in methods]),
            )
            for place, k in enumerate(shots)
        }
        _comparison(axes, title, [titles[m] for m in methods], series)
    _legend(figure, panels[0])
    return figure


__all__ = ["plot"]
