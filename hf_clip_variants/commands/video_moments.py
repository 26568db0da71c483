"""Tasks of `hf-clip-variants predict` for videos: what happens in a video, when, and in which of many videos."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .arguments import check_out
from .output import machine_output, prepare_libraries, say, use_all_cores
from .segmentation import file_name, list_of_labels, png_of, read_background


if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.video_moments import Found, SecondsModel

RETRIEVAL, ANSWERS, STEPS = "video-retrieval", "video-question-answering", "video-steps"
SEGMENTS, MOMENTS = "video-segmentation", "video-moments"
VIDEO_TASKS = (RETRIEVAL, ANSWERS, STEPS, SEGMENTS, MOMENTS)
OUT = "moments"  # the folder that is written
BATCH = 8  # videos in one pass
FRAMES = 8  # of a video in its picture


def check_video_task(task: str, model: str | None, labels: str | None) -> None:
    """ValueError for options that are missing."""
    if model is None:
        raise ValueError("--model: missing; want a model that compares seconds of videos with texts: folder or Hub id")
    if labels is None:
        raise ValueError(f"--labels: missing; want the texts for {task}")


def find_in_videos(
    task: str,
    inputs: list[str] | Iterator[str],
    model: str,
    labels: str,
    templates: str | None,
    *,
    background: str | None,
    top: int | None,
    out: str | None,
    batch_size: int | None,
    device: str | None,
    as_json: bool,
) -> tuple[int, int]:
    """Compares videos with texts, prints what is found, writes pictures: (videos that are broken, videos)."""
    out = OUT if out is None else out
    check_out("--out", out)
    threshold = read_background(background)
    if isinstance(threshold, dict) or (threshold is not None and task != SEGMENTS):
        raise ValueError(f"--background: got {background} for {task}; it is a number for {SEGMENTS}")
    names = list_of_labels(labels)
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..evaluation.video_moments import encode, find_videos, load_seconds_model

    loaded = load_seconds_model(model, device)
    texts = encode(loaded, names, templates)
    work = _Work(task, loaded, names, texts, Path(out), threshold, top)
    stream, broken, done = sys.stdout, 0, 0
    with machine_output(stream) as emit:
        write = emit if as_json else _csv_writer(stream)
        for row in work.rows(find_videos(inputs), batch_size or BATCH):
            done += row.pop("counts", 1)
            if "error" in row:
                broken += 1
                say(f"{row['path']}: {row['error']}", style="red")
            write(row)
        if not done:
            where = ", ".join(inputs) if isinstance(inputs, list) else "standard input"
            raise ValueError(f"IMAGES: no videos in {where}")
        if done > broken:
            say(f"{out} holds a picture of each video")
    return broken, done


class _Work:
    def __init__(self, task, loaded: SecondsModel, names, texts, out: Path, threshold, top):
        self.task, self.loaded, self.names, self.texts, self.out = task, loaded, names, texts, out
        self.threshold, self.top, self.taken = threshold, top, set()

    def rows(self, paths: Iterator[str], batch_size: int) -> Iterator[dict[str, Any]]:
        if self.task in (RETRIEVAL, ANSWERS):
            yield from self._of_whole_videos(paths, batch_size)
            return
        for path in paths:
            features = self._features(path)
            if isinstance(features, str):
                yield {"path": path, "error": features}
                continue
            try:
                found = self._found(features)
            except ValueError as error:
                yield {"path": path, "error": str(error)}
                continue
            picture = self._picture(path, found, len(features))
            rows = [self._row(one) for one in found]
            yield {"path": path, "seconds": len(features), "found": rows, "picture": picture}

    def _features(self, path: str, seconds: int | None = None) -> Any:
        from ..evaluation.video_moments import features_or_reason

        return features_or_reason(self.loaded, path, seconds)

    def _found(self, features) -> list[Found]:
        from ..evaluation.video_moments import find_moments, locate_steps, segment_video

        if self.task == STEPS:
            return locate_steps(self.loaded, features, self.texts)
        if self.task == SEGMENTS:
            return segment_video(self.loaded, features, self.texts, self.threshold)
        return [one for some in find_moments(self.loaded, features, self.texts, self.top or 1) for one in some]

    def _of_whole_videos(self, paths: Iterator[str], batch_size: int) -> Iterator[dict[str, Any]]:
        import itertools

        import torch

        from ..evaluation.video_moments import answer, retrieve, score_videos

        read, scores, count = [], [], 0
        while batch := list(itertools.islice(paths, batch_size)):
            features = [self._features(path, self.loaded.longest) for path in batch]
            there = [(path, one) for path, one in zip(batch, features, strict=True) if not isinstance(one, str)]
            found = score_videos(self.loaded, [one for _, one in there], self.texts) if there else []
            by_path = iter(found)
            for path, one in zip(batch, features, strict=True):
                count += 1
                if isinstance(one, str):
                    yield {"path": path, "error": one}
                    continue
                row = next(by_path)
                picture = self._picture_of_scores(path, row.tolist())
                if self.task == ANSWERS:
                    answers = [self._row(candidate) for candidate in answer(row)[: self.top]]
                    yield {"path": path, "found": answers, "picture": picture}
                else:
                    read.append((path, picture))
                    scores.append(row)
        if not read or self.task == ANSWERS:
            return
        for label, videos in enumerate(retrieve(torch.stack(scores), self.top)):
            best = [
                {"path": read[video][0], "score": round(score, 6), "picture": read[video][1]}
                for video, score in videos
            ]
            yield {"label": self.names[label], "videos": best, "counts": len(read) if label == 0 else 0}

    def _row(self, one: Found) -> dict[str, Any]:
        row: dict[str, Any] = {"label": self.names[one.label]}
        if one.start is not None:
            row |= {"start": one.start, "end": one.end}
        return row | {"score": round(one.score, 6)}

    # ---- pictures

    def _picture(self, path: str, found: list[Found], seconds: int) -> str:
        from ..annotations.timelines import Span, draw_timeline

        spans = [Span(one.label, one.start, one.end, one.score) for one in found]
        return self._saved(path, draw_timeline(_frames(path), seconds, spans, self.names, Path(path).name))

    def _picture_of_scores(self, path: str, scores: list[float]) -> str:
        from ..annotations.timelines import draw_scores

        return self._saved(path, draw_scores(_frames(path), scores, self.names, Path(path).name))

    def _saved(self, path: str, picture: Image.Image) -> str:
        from ..files.atomic_writes import write_atomically

        return str(write_atomically(self.out / file_name(path, self.taken), png_of(picture)))


def _frames(path: str) -> list[Image.Image]:
    """Some frames of a video; none of a file of features."""
    from ..evaluation.video_moments import FEATURES
    from ..modeling.video.frame_sampling import FrameSampling
    from ..modeling.video.video_decoding import read_video

    if path.endswith(FEATURES):
        return []
    return read_video(path, FrameSampling("segments", num_frames=FRAMES))[0]


def _csv_writer(stream: TextIO) -> Callable[[dict], None]:
    """A line for each text that was found in a video, or for each video of a text."""
    from ..data.csv_cells import csv_line

    stream.write(csv_line(["path", "label", "rank", "start", "end", "score", "error"]))

    def write(row: dict) -> None:
        lines: list[list] = []
        for rank, one in enumerate(row.get("videos", ()), 1):
            lines.append([one["path"], row["label"], rank, "", "", one["score"], ""])
        for rank, one in enumerate(row.get("found", ()), 1):
            lines.append([row["path"], one["label"], rank, one.get("start", ""), one.get("end", ""), one["score"], ""])
        for line in lines or [[row.get("path", ""), "", "", "", "", "", row.get("error", "")]]:
            stream.write(csv_line(line))
        stream.flush()

    return write


__all__ = ["OUT", "VIDEO_TASKS", "check_video_task", "find_in_videos"]
