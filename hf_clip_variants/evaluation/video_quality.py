"""How well a model finds steps, segments, moments and answers in labelled videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..data.video_tables import VideoRow
from ..metrics.moments import MomentMetrics, SecondMetrics, StepMetrics
from .video_moments import (
    SecondsModel,
    answer,
    encode,
    features_or_reason,
    find_moments,
    locate_steps,
    score_videos,
    segment_video,
)


Found = dict[str, Any]
Templates = str | Sequence[str] | None
Advance = Callable[[int], None]  # is told how many videos are done


def ignore_progress(done: int) -> None:
    pass


def check_some_read(unreadable: list[tuple[str, str]], videos: int) -> None:
    """ValueError, with the first reason, if no video can be read."""
    if len(unreadable) == videos:
        raise ValueError(f"none of {videos} videos can be read: {unreadable[0][0]}: {unreadable[0][1]}")


# ---- in videos


def measure_answers(
    loaded: SecondsModel, rows: Sequence[VideoRow], templates: Templates = None, advance: Advance = ignore_progress
) -> Found:
    """Multiple-choice question answering: the share of rows whose `text` is the best of its `candidates`; the baseline
    is that of a guess."""
    right, guesses = [], []
    for _, some, features in (walk := _Walk(loaded, rows, advance, loaded.longest)):
        for row in some:
            texts = encode(loaded, row.candidates, templates, are_labels=False)
            scores = score_videos(loaded, [features], texts)[0]
            right.append(row.candidates[answer(scores)[0].label] == row.text)
            guesses.append(1 / len(row.candidates))
    return walk.facts(len(right)) | {
        "accuracy": float(np.mean(right)),
        "baseline": {"accuracy": float(np.mean(guesses))},
    }


def measure_steps(
    loaded: SecondsModel, rows: Sequence[VideoRow], templates: Templates = None, advance: Advance = ignore_progress
) -> Found:
    """
    The second of each step of a task, in its order: "step_recall", the share of all steps whose second lies in one of
    the step's spans, and "average_recall", its mean over tasks (CrossTask's). The baseline spreads steps evenly.

    The steps of a task are the texts of its rows, in the order in which they first stand in the table; those that a
    video does not show are looked for, and do not count.
    """
    texts = _texts_of_tasks(rows)
    by_task: dict[str, StepMetrics] = {}
    overall, even = StepMetrics(), StepMetrics()
    for task, some, features in (walk := _Walk(loaded, rows, advance)):
        names = texts[task]
        if len(features) < len(names):
            walk.leave_out(some, f"{len(features)} s, fewer than the task's {len(names)} steps")
            continue
        found = locate_steps(loaded, features, encode(loaded, names, templates))
        spans = [[(row.start, row.end) for row in some if row.text == name] for name in names]
        spread = (np.arange(len(names)) + 0.5) * len(features) / len(names)
        for metric, seconds in (
            (overall, [one.start for one in found]),
            (by_task.setdefault(task, StepMetrics()), [one.start for one in found]),
            (even, spread.astype(int).tolist()),
        ):
            metric.update(seconds, spans)
    average = [metric.compute()["step_recall"] for metric in by_task.values()]
    found = walk.facts(sum(map(len, texts.values()))) | overall.compute()
    return found | {"average_recall": float(np.nanmean(average)), "tasks": len(average), "baseline": even.compute()}


def measure_segments(
    loaded: SecondsModel,
    rows: Sequence[VideoRow],
    templates: Templates = None,
    advance: Advance = ignore_progress,
    threshold: float | None = None,
) -> Found:
    """The label of each second, or background: "frame_accuracy" over all seconds (COIN's), "foreground_accuracy" over
    the labelled ones. Labels of a video are those of its task. A second has the label of the span that its middle is
    in, of several the last in the table. The baseline says background everywhere."""
    texts, overall, nothing = _texts_of_tasks(rows), SecondMetrics(), SecondMetrics()
    for task, some, features in (walk := _Walk(loaded, rows, advance)):
        names = texts[task]
        if not names:
            walk.leave_out(some, "no row of its task has a label")
            continue
        if len(names) == 1 and threshold is None:
            raise ValueError(
                "threshold: none given, and one label leaves the official rule nothing to compare; want one"
            )
        truth, predicted = (torch.zeros(len(features), dtype=torch.long) for _ in range(2))
        middles = torch.arange(len(features)) + 0.5
        for row in some:
            if row.text is not None:
                truth[(middles >= row.start) & (middles < row.end)] = names.index(row.text) + 1
        for one in segment_video(loaded, features, encode(loaded, names, templates), threshold):
            predicted[one.start : one.end] = one.label + 1
        overall.update(predicted, truth)
        nothing.update(torch.zeros_like(truth), truth)
    found = walk.facts(sum(map(len, texts.values()))) | overall.compute()
    return found | {"baseline": {"frame_accuracy": nothing.compute()["frame_accuracy"]}}


def measure_moments(
    loaded: SecondsModel, rows: Sequence[VideoRow], templates: Templates = None, advance: Advance = ignore_progress
) -> Found:
    """Each row's span, found by its text among all runs of one to six chunks of five seconds (DiDeMo's): the share of
    texts whose very span is the first, or among the first five, and the mean overlap (IoU) of the first one. The
    baseline is the whole video."""
    found, whole, texts = MomentMetrics(), MomentMetrics(ks=()), 0
    for _, some, features in (walk := _Walk(loaded, rows, advance)):
        queries = encode(loaded, [row.text for row in some], templates, are_labels=False)
        moments = find_moments(loaded, features, queries, top=5)
        for row, best in zip(some, moments, strict=True):
            found.update([(one.start, one.end) for one in best], (row.start, row.end))
            whole.update([(0, len(features))], (row.start, row.end))
            texts += 1
    return walk.facts(texts) | found.compute() | {"baseline": {"mean_iou": whole.compute()["mean_iou"]}}


class _Walk:
    """(task, rows, features) of each video that can be read, in the order of the table."""

    def __init__(self, loaded: SecondsModel, rows: Sequence[VideoRow], advance: Advance, seconds: int | None = None):
        self.loaded, self.seconds, self.advance = loaded, seconds, advance
        self.unreadable: list[tuple[str, str]] = []
        self.videos: dict[tuple[str, str], list[VideoRow]] = {}
        for row in rows:
            self.videos.setdefault((row.task, row.path), []).append(row)

    def __iter__(self) -> Iterator[tuple[str, list[VideoRow], torch.Tensor]]:
        for done, ((task, path), rows) in enumerate(self.videos.items(), 1):
            features = features_or_reason(self.loaded, path, self.seconds)
            if isinstance(features, str):
                self.unreadable.append((path, features))
            else:
                yield task, rows, features
            self.advance(done)

    def leave_out(self, rows: Sequence[VideoRow], why: str) -> None:
        self.unreadable.append((rows[0].path, why))

    def facts(self, texts: int) -> Found:
        check_some_read(self.unreadable, len(self.videos))
        return {"videos": len(self.videos) - len(self.unreadable), "texts": texts, "unreadable": self.unreadable}


def _texts_of_tasks(rows: Sequence[VideoRow]) -> dict[str, list[str]]:
    """The different texts of each task, in the order of the table."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        texts = found.setdefault(row.task, {})
        if row.text is not None:
            texts[row.text] = None
    return {task: list(texts) for task, texts in found.items()}


__all__ = [
    "check_some_read",
    "ignore_progress",
    "measure_answers",
    "measure_moments",
    "measure_segments",
    "measure_steps",
]
