"""Pictures of scores over the time of a video, with the segments that were found."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .legend import writable
from .palette import palette
from .plain_figures import plain_figures


_COLUMNS = 2000  # of the curve; of more frames in one, the highest is drawn
_INK, _GRID = "#333333", "#e6e6e6"


@plain_figures()
def draw_score_curve(
    times: Sequence[float] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    segments: Sequence[Mapping[str, Any]] = (),
    *,
    labels: Sequence[str] = (),
    threshold: float | None = None,
    truth: Sequence[tuple[float, float]] = (),
    unit: str = "seconds",
    title: str = "",
) -> bytes:
    """A PNG file: the score of each frame over time, each segment as a coloured band with its label in the legend.

    Args:
        times: (T,), rising. scores: (T,), in 0..1.
        segments: with **start**, **end**, **label**, **score**, as the pipeline "video-anomaly-detection" gives them.
        labels: names that have the same colours in all pictures; default: those of the segments, sorted.
        threshold: a dashed line.
        truth: (start, end) of what is known to be abnormal: a grey bar below the curve.
        unit: of times.
        title: such as the video's name.

    Raises:
        ValueError: no frames, or times that are not as many as scores.

    Example:

    ```python
    >>> segments = [{"start": 1.0, "end": 2.0, "label": "fire", "score": 0.9}]
    >>> draw_score_curve([0.0, 1.0, 2.0], [0.1, 0.9, 0.2], segments, threshold=0.5)[1:4]
    b'PNG'
    ```
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    times, scores = np.asarray(times, np.float64), np.asarray(scores, np.float64)
    if times.ndim != 1 or times.shape != scores.shape or not len(times):
        raise ValueError(
            f"times, scores: shapes {list(times.shape)}, {list(scores.shape)}; want as many of both, not 0"
        )
    names = list(dict.fromkeys(labels or sorted({str(one["label"]) for one in segments})))
    colours = {name: tuple(colour / 255) for name, colour in zip(names, palette(len(names)), strict=True)}
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    found: dict[str, float] = {}
    for one in segments:
        name = str(one["label"])
        axes.axvspan(one["start"], one["end"], color=colours.get(name, _INK), alpha=0.3, linewidth=0)
        found[name] = max(found.get(name, 0.0), float(one["score"]))
    for start, end in truth:
        axes.plot([start, end], [-0.04, -0.04], color="#888888", linewidth=5, solid_capstyle="butt")
    axes.plot(*_thinned(times, scores), color=_INK, linewidth=1.2, marker="o" if len(times) < 3 else None)
    if threshold is not None:
        axes.axhline(threshold, color=_INK, linestyle="--", linewidth=0.8)
    axes.set_ylim(-0.08 if truth else -0.02, 1.02)
    last = max([times[-1], *(one["end"] for one in segments), *(end for _, end in truth)])
    axes.set_xlim(times[0], last if last > times[0] else times[0] + 1)
    axes.set_xlabel({"seconds": "seconds", "frames": "frame"}.get(unit, unit))
    axes.set_ylabel("score")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(writable(title), fontsize=11)
    handles = [
        Patch(color=colours.get(name, _INK), alpha=0.5, label=f"{writable(name, number)} {score:.2f}")
        for number, (name, score) in enumerate(found.items())
    ]
    handles += [Patch(color="#888888", label="known to be abnormal")] if truth else []
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", frameon=False, fontsize=9, ncols=min(5, len(handles))
        )
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _thinned(times: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_COLUMNS` points; peaks stay."""
    if len(times) <= _COLUMNS:
        return times, scores
    first = np.linspace(0, len(times), _COLUMNS, endpoint=False).astype(int)
    return times[first], np.maximum.reduceat(scores, first)


__all__ = ["draw_score_curve"]
