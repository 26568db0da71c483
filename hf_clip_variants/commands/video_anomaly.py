"""The task "video-anomaly" of `hf-clip-variants predict`: segments of videos, and pictures of scores over time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores
from .segmentation import file_name


if TYPE_CHECKING:
    from ..evaluation.video_anomaly import ScoredVideo

VIDEO_ANOMALY = "video-anomaly"
OUT = "anomalies"  # the folder that is written


def is_video_anomaly(task: str | None, model: str | None, others: Mapping[str, Any], fps: float | None) -> bool:
    """Whether this task was asked for, or the model is for it; ValueError for options of other tasks beside it.

    `others` are the options of other tasks, with the values that were given.
    """
    given = [name for name, value in others.items() if value]
    asked = task == VIDEO_ANOMALY
    if task is None and model and not given:
        from ..evaluation.video_anomaly import scores_videos

        asked = scores_videos(model)
    if not asked and fps is not None:
        raise ValueError(f"--fps: got it for {task or 'another task'}; it is for {VIDEO_ANOMALY}")
    if asked and given:
        raise ValueError(f"{given[0]}: got it for {VIDEO_ANOMALY}; it is for other tasks")
    if asked and model is None:
        raise ValueError("--model: missing; want a model that scores the frames of videos: folder or Hub id")
    return asked


def score_files(
    inputs: list[str] | Iterator[str],
    model: str,
    *,
    threshold: float | None,
    fps: float | None,
    out: str | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Scores videos, prints segments, writes pictures and scores: (videos that are broken, videos)."""
    out = OUT if out is None else out
    check_out("--out", out)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.video_anomaly import find_videos, load_video_scorer, score_videos

    scorer = load_video_scorer(model, device)
    report = _Report(scorer.model.config, Path(out), threshold)
    options = {"threshold": threshold, "batch_size": batch_size}
    options = {name: value for name, value in options.items() if value is not None}
    broken = done = 0
    stream = sys.stdout
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream)
        for one in score_videos(scorer, find_videos(inputs), fps, **options):
            done += 1
            if one.error is not None:
                broken += 1
                say(f"{one.path}: {one.error}", style="red")
                write({"path": one.path, "error": one.error})
                continue
            write(report.of_video(one))
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"VIDEOS: no video files in {where}")
        if done > broken:
            say(f"{out} holds curves/ (pictures of scores over time) and scores/ (the scores of all frames)")
    return broken, done


class _Report:
    """Writes the curve of a video, and returns its row."""

    def __init__(self, config: Any, out: Path, threshold: float | None):
        self.out, self.taken = out, set[str]()
        self.threshold = config.decision_threshold if threshold is None else threshold
        self.labels = [config.id2label[label] for label in config.anomaly_ids]

    def of_video(self, one: ScoredVideo) -> dict[str, Any]:
        from ..annotations.score_curves import draw_score_curve
        from ..data.csv_cells import csv_line
        from ..files.atomic_writes import write_atomically

        found = one.found
        name = file_name(one.path, self.taken)
        picture = draw_score_curve(
            found["times"],
            found["scores"],
            found["segments"],
            labels=self.labels,
            threshold=self.threshold,
            unit=found["unit"],
            title=Path(one.path).name,
        )
        written = write_atomically(self.out / "curves" / name, picture)
        column = {"seconds": "seconds", "frames": "frame"}[found["unit"]]
        lines = [csv_line([column, "score"])]
        lines += [csv_line([round(t, 6), round(s, 6)]) for t, s in zip(found["times"], found["scores"], strict=True)]
        scores = write_atomically(self.out / "scores" / f"{name.removesuffix('.png')}.csv", "".join(lines).encode())
        segments = [
            {
                "start": round(s["start"], 3),
                "end": round(s["end"], 3),
                "label": s["label"],
                "score": round(s["score"], 6),
            }
            for s in found["segments"]
        ]
        return {
            "path": one.path,
            "frames": len(found["scores"]),
            "unit": found["unit"],
            "score": round(max(found["scores"]), 6),
            "segments": segments,
            "picture": str(written),
            "scores": str(scores),
        }


def _csv_writer(stream: TextIO) -> Callable[[dict], None]:
    """A line for each segment; one for a video without any, with its highest score."""
    from ..data.csv_cells import csv_line

    stream.write(csv_line(["path", "start", "end", "label", "score", "unit", "error"]))

    def write(row: dict) -> None:
        unit = row.get("unit", "")
        lines = [
            [row["path"], s["start"], s["end"], s["label"], s["score"], unit, ""] for s in row.get("segments", ())
        ]
        for line in lines or [[row["path"], "", "", "", row.get("score", ""), unit, row.get("error", "")]]:
            stream.write(csv_line(line))
        stream.flush()

    return write


__all__ = ["OUT", "VIDEO_ANOMALY", "is_video_anomaly", "score_files"]
