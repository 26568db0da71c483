"""Tasks of `hf-clip-variants predict` that a command of their own does: when it is asked, and with which options.

A new task is a row of `PREDICTION_TASKS`. Classification, segmentation, detection and anomalies in videos are chosen
by their options, too, and are in `predict.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .depth import DEPTH, estimate_files, has_depth_model
from .news import NEWS, classify_post_files, has_post_model
from .point_clouds import POINTS, classify_files, has_point_model
from .video_moments import VIDEO_TASKS, check_video_task, find_in_videos
from .visual_questions import CAPTIONS, QUESTIONS, answer_files, chosen_language_task


Given = Mapping[str, Any]  # option -> what was given; None or False: not given
Sources = list[str] | Iterator[str]


class PredictionTask(NamedTuple):
    """A task, or several that are done alike.

    Attributes:
        names: of `--task`.
        chosen: options -> the name of the task that is to be done, or None.
        takes: options that it reads, beside --task, --model, --out, --device, --json and --format.
        refusal: what is said of any other option, behind its name; with {task}.
        run: (name, files, options) -> (what could not be read, all).
        what: what is counted.
    """

    names: tuple[str, ...]
    chosen: Callable[[Given], str | None]
    takes: frozenset[str]
    refusal: str
    run: Callable[[str, Sources, Given], tuple[int, int]]
    what: str = "images"


ALWAYS = frozenset({"--task", "--model", "--out", "--device", "--json"})


def check_options(row: PredictionTask, name: str, given: Given) -> None:
    """ValueError for an option that the task has not."""
    for option, value in given.items():
        if value and option not in ALWAYS and option not in row.takes:
            raise ValueError(f"{option}: {row.refusal}".replace("{task}", name))


def is_saved_model(model: str | None) -> bool:
    """Whether it is a folder with a configuration. Hub ids are not asked what they are for."""
    return model is not None and Path(model, "config.json").is_file()


def _by_model(name: str, fits: Callable[[str], bool]) -> Callable[[Given], str | None]:
    """Chosen by --task, or by what kind of model is in the folder."""

    def chosen(given: Given) -> str | None:
        task, model = given["--task"], given["--model"]
        return name if task == name or (task is None and is_saved_model(model) and fits(model)) else None

    return chosen


def _points(name: str, sources: Sources, given: Given) -> tuple[int, int]:
    labels, classes = given["--labels"], given["--classes"]
    if labels and classes:
        raise ValueError("--labels, --classes: got both, which say the same here; want one of them")
    shown = {"parts": given["--parts"], "up_axis": given["--up-axis"], "top": given["--top"] or 1}
    files = {"adapter": given["--adapter"], **_files(given)}
    return classify_files(sources, given["--model"], labels or classes, given["--templates"], **files, **shown)


def _depth(name: str, sources: Sources, given: Given) -> tuple[int, int]:
    return estimate_files(sources, given["--model"], given["--labels"], given["--templates"], **_files(given))


def _posts(name: str, sources: Sources, given: Given) -> tuple[int, int]:
    shown = {"top": given["--top"] or 1, "batch_size": given["--batch-size"]}
    return classify_post_files(sources, given["--model"], **shown, **_files(given))


def _language(name: str, sources: Sources, given: Given) -> tuple[int, int]:
    return answer_files(name, sources, given["--model"], given["--question"], top=given["--top"] or 1, **_files(given))


def _chosen_language(given: Given) -> str | None:
    others = ("--adapter", "--run", "--base", "--classes", "--labels")
    model = given["--model"] if all(given[name] is None for name in others) else None
    return chosen_language_task(given["--task"], model, given["--question"])


def _video_texts(name: str, sources: Sources, given: Given) -> tuple[int, int]:
    model, labels = given["--model"], given["--labels"]
    check_video_task(name, model, labels)
    shown = {option[2:].replace("-", "_"): given[option] for option in ("--background", "--top", "--batch-size")}
    return find_in_videos(name, sources, model, labels, given["--templates"], **shown, **_files(given))


def _files(given: Given) -> dict[str, Any]:
    return {"out": given["--out"], "device": given["--device"], "as_json": given["--json"]}


PREDICTION_TASKS = (
    PredictionTask(
        (POINTS,),
        _by_model(POINTS, has_point_model),
        frozenset({"--labels", "--classes", "--templates", "--parts", "--up-axis", "--top", "--adapter"}),
        "got it for clouds of points; it is for images",
        _points,
    ),
    PredictionTask(
        (DEPTH,),
        _by_model(DEPTH, has_depth_model),
        frozenset({"--labels", "--templates"}),
        "got it for depth, which has no such option",
        _depth,
    ),
    PredictionTask(
        (NEWS,),
        _by_model(NEWS, has_post_model),
        frozenset({"--top", "--batch-size"}),
        "got it for posts, whose classes are the model's",
        _posts,
        "posts",
    ),
    PredictionTask(
        (QUESTIONS, CAPTIONS),
        _chosen_language,
        frozenset({"--question", "--top"}),
        "got it for {task}; it is for other tasks",
        _language,
    ),
    PredictionTask(
        VIDEO_TASKS,
        lambda given: given["--task"] if given["--task"] in VIDEO_TASKS else None,
        frozenset({"--labels", "--templates", "--background", "--top", "--batch-size"}),
        "got it for {task}; it is for classes of images",
        _video_texts,
        "videos",
    ),
)


__all__ = ["ALWAYS", "PREDICTION_TASKS", "PredictionTask", "check_options", "is_saved_model"]
