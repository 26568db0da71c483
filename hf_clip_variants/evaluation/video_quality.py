"""How well a model finds videos by texts, and steps, segments, moments and answers in videos, on labelled ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..data.images.image_set import explain
from ..data.video_tables import VideoRow
from ..metrics.moments import MomentMetrics, SecondMetrics, StepMetrics
from ..metrics.retrieval import rank_summary, ranks_in_tiles
from ..modeling.dual_encoders.backbones import unit_norm
from ..modeling.dual_encoders.prompts import resolve_templates
from ..modeling.video.class_texts import class_features
from ..modeling.video.frame_sampling import FrameSampling
from ..modeling.video.read_ahead import read_ahead
from ..modeling.video.video_decoding import read_video
from .video_classification import is_video_classifier, load_video_classifier, logits_of_videos
from .video_moments import (
    SecondsModel,
    answer,
    compares_seconds,
    encode,
    find_moments,
    load_seconds_model,
    locate_steps,
    read_features,
    score_videos,
    segment_video,
)


TEXTS_AT_ONCE = 256
FRAMES = FrameSampling(num_frames=12)  # of a dual encoder of images: one a second, as CLIP4Clip looks at videos
DIRECTIONS = ("text_to_video", "video_to_text")
Found = dict[str, Any]
Templates = str | Sequence[str] | None
Advance = Callable[[int], None]  # is told how many videos are done


def _ignore(done: int) -> None:
    pass


def measure_retrieval(
    model: str | os.PathLike,
    rows: Sequence[VideoRow],
    templates: Templates = None,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    advance: Advance = _ignore,
) -> Found:
    """
    Videos found by their captions, and captions by their video, among all of the rows.

    Args:
        model: folder or Hub id of a model of videos and texts, or of any dual encoder of images: then a video is the
            mean of its frames, one a second, at most twelve.
        rows: a caption each (`text`); several rows of one path are captions of one video.
        templates: prompts of a caption; default: the caption itself.

    Returns:
        recall at 1, 5 and 10, median and mean rank of both directions ("text_to_video_recall_at_1", ...); "baseline"
        has what chance finds; "unreadable" (path, reason). Captions of one video are one group: a video's rank is that
        of its best caption, and a tie counts as a miss (`metrics.retrieval.ranks_in_tiles`).

    Raises:
        ValueError: a model of another kind, no video that can be read.
    """
    paths = list(dict.fromkeys(row.path for row in rows))
    captions = [row.text for row in rows]
    scores, unreadable = [], []
    scoring = _similarities(model, captions, resolve_templates(templates or "{}"), device)
    for done, (path, found) in enumerate(scoring(paths, batch_size), 1):
        advance(done)
        if isinstance(found, torch.Tensor):
            scores.append(found)
        else:
            unreadable.append((path, found))
    _check_read(unreadable, len(paths))
    missing = {path for path, _ in unreadable}
    places = {path: place for place, path in enumerate(path for path in paths if path not in missing)}
    kept = torch.tensor([number for number, row in enumerate(rows) if row.path in places])
    similarity = torch.stack(scores)[:, kept]
    entries = torch.tensor([places[rows[number].path] for number in kept])
    found: Found = {"videos": len(places), "texts": len(kept)}
    for direction, ranks in zip(
        DIRECTIONS, ranks_in_tiles(lambda t, v: similarity[v][:, t].T, entries, len(places)), strict=True
    ):
        found |= {f"{direction}_{name}": value for name, value in rank_summary(ranks).items()}
    found["baseline"] = {f"{direction}_recall_at_1": 1 / len(places) for direction in DIRECTIONS}
    return found | {"unreadable": unreadable}


def _similarities(model: str | os.PathLike, captions: list[str], templates: list[str], device: Any) -> Callable:
    """(paths, batch size) -> (path, (B,) similarities to B captions or what is wrong with the video)."""
    if compares_seconds(model):
        loaded = load_seconds_model(model, device)
        texts = torch.cat([encode(loaded, part, templates, are_labels=False) for part in _parts(captions)])
        return lambda paths, batch_size: _of_seconds(loaded, texts, paths)
    if is_video_classifier(model):
        videos = load_video_classifier(model, captions[:1], templates, device)
        with torch.inference_mode():
            texts = [
                class_features(videos.model, videos.processor.tokenizer, part, templates, "captions")
                for part in _parts(captions)
            ]
        videos = dataclasses.replace(videos, class_names=captions, texts=torch.cat(texts, -2))

        def of_videos(paths: Sequence[str], batch_size: int) -> Iterator[tuple[str, Any]]:
            for path, logits in logits_of_videos(videos, paths, batch_size):
                said = str(logits).removeprefix("videos[0]: ")
                yield path, said if isinstance(logits, Exception) else logits.cpu()

        return of_videos
    from ..search.encoder import load_encoder  # not before it is needed: search uses this package

    encoder = load_encoder(model, device)
    if "image" not in encoder.kinds:
        raise ValueError(f"model: {model} compares neither videos nor images with texts")
    texts = torch.cat([encoder.encode_texts(part, templates) for part in _parts(captions)])

    def of_frames(paths: Sequence[str], batch_size: int) -> Iterator[tuple[str, Any]]:
        def read(path: str) -> Any:
            try:
                frames, _ = read_video(path, FRAMES)
                return path, encoder.images(frames, return_tensors="pt")["pixel_values"]
            except (OSError, ValueError, ImportError) as error:
                return path, explain(error)

        for path, pixels in read_ahead(paths, read):
            if isinstance(pixels, str):
                yield path, pixels
            else:
                yield path, texts @ unit_norm(encoder.encode_pixels(pixels).mean(0))

    return of_frames


def _parts(texts: list[str]) -> Iterator[list[str]]:
    yield from (texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE))


def _of_seconds(loaded: SecondsModel, texts: torch.Tensor, paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for path in paths:
        features = _features(loaded, path, loaded.longest)
        yield path, features if isinstance(features, str) else score_videos(loaded, [features], texts)[0]


def _features(loaded: SecondsModel, path: str, seconds: int | None = None) -> torch.Tensor | str:
    """Features of a video's seconds, or what is wrong with it."""
    try:
        return read_features(loaded, path, seconds=seconds)
    except Exception as error:  # FFmpeg and NumPy raise errors of many kinds
        return explain(error)


def _check_read(unreadable: list[tuple[str, str]], videos: int) -> None:
    if len(unreadable) == videos:
        raise ValueError(f"none of {videos} videos can be read: {unreadable[0][0]}: {unreadable[0][1]}")


# ---- in videos


def measure_answers(
    loaded: SecondsModel, rows: Sequence[VideoRow], templates: Templates = None, advance: Advance = _ignore
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
    loaded: SecondsModel, rows: Sequence[VideoRow], templates: Templates = None, advance: Advance = _ignore
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
    advance: Advance = _ignore,
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
    loaded: SecondsModel, rows: Sequence[VideoRow], templates: Templates = None, advance: Advance = _ignore
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
            features = _features(self.loaded, path, self.seconds)
            if isinstance(features, str):
                self.unreadable.append((path, features))
            else:
                yield task, rows, features
            self.advance(done)

    def leave_out(self, rows: Sequence[VideoRow], why: str) -> None:
        self.unreadable.append((rows[0].path, why))

    def facts(self, texts: int) -> Found:
        _check_read(self.unreadable, len(self.videos))
        return {"videos": len(self.videos) - len(self.unreadable), "texts": texts, "unreadable": self.unreadable}


def _texts_of_tasks(rows: Sequence[VideoRow]) -> dict[str, list[str]]:
    """The different texts of each task, in the order of the table."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        texts = found.setdefault(row.task, {})
        if row.text is not None:
            texts[row.text] = None
    return {task: list(texts) for task, texts in found.items()}


__all__ = ["measure_answers", "measure_moments", "measure_retrieval", "measure_segments", "measure_steps"]
