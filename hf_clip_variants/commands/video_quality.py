"""What `evaluate --task video-…` does: figures of retrieval, steps, segments, moments and answers on a table of videos
with texts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from .output import machine_output, prepare_libraries, progress_bar, screen, title_and_rows, use_all_cores
from .video_moments import ANSWERS, MOMENTS, RETRIEVAL, SEGMENTS, STEPS


# task -> columns that its table has beside the video and a text
TABLES: Mapping[str, tuple[str, ...]] = {
    RETRIEVAL: (),
    ANSWERS: ("candidates",),
    STEPS: ("start", "end"),
    SEGMENTS: ("start", "end"),
    MOMENTS: ("start", "end"),
}
_RANKS = ("median_rank", "mean_rank")


def evaluate_video_texts(
    task: str,
    data: str,
    model: str,
    templates: str | None,
    threshold: float | None,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> list[tuple[str, str]]:
    """Prints the figures; returns (video, reason) of those that cannot be read."""
    if threshold is not None and (task != SEGMENTS or not isinstance(threshold, float)):
        raise ValueError(f"--background: got {threshold} for {task}; it is a number for {SEGMENTS}")
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..data.video_tables import read_video_rows
    from ..evaluation import video_quality as quality
    from ..evaluation.video_moments import load_seconds_model
    from ..search.retrieval import measure_retrieval

    measures = {
        ANSWERS: quality.measure_answers,
        STEPS: quality.measure_steps,
        SEGMENTS: partial(quality.measure_segments, threshold=threshold),
        MOMENTS: quality.measure_moments,
    }
    rows = read_video_rows(data, TABLES[task], without_text=task == SEGMENTS)
    loaded = load_seconds_model(model, device) if task in measures else None
    with progress_bar("Looking at videos", len({(row.task, row.path) for row in rows})) as advance:
        if loaded is not None:
            found = measures[task](loaded, rows, templates, advance)
        else:
            found = measure_retrieval(model, rows, templates, device, max(1, batch_size // 8), advance)
    unreadable = found.pop("unreadable")
    result = {"data": data, "task": task, **found, "unreadable": [path for path, _ in unreadable]}
    if as_json:
        with machine_output() as emit:
            emit(result)
    else:
        _print(result)
    return unreadable


def _print(result: Mapping[str, Any]) -> None:
    baseline = result["baseline"]
    left_out = {"data", "task", "videos", "texts", "tasks", "baseline", "unreadable"}
    rows = []
    for name, value in result.items():
        if name in left_out:
            continue
        rows.append((name.replace("_", " "), *(_shown(name, one) for one in (value, baseline.get(name)))))
    title = f"{result['task']}: {result['videos']} videos, {result['texts']} texts ({result['data']})"
    screen().print(title_and_rows(title, ("", "", "baseline"), rows))


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if name.endswith(_RANKS) else f"{100 * value:.1f} %"


__all__ = ["TABLES", "evaluate_video_texts"]
