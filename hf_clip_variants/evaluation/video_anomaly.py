"""Loads models that score the frames of videos, and runs them on many files, some of which may be broken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.images.folders import walk
from ..data.images.image_set import explain
from ..data.videos import is_video_name
from ..modeling.video.video_anomaly_detection import TASK, VideoAnomalyDetectionPipeline
from ..registry import methods
from .devices import choose_device
from .saved_folders import check_model_folder, configuration_of, load_saved_processor


FEATURE_EXTENSION = ".npy"


@dataclass(frozen=True)
class ScoredVideo:
    """What the pipeline found in one video, or why it could not be read."""

    path: str
    found: dict[str, Any] | None = None
    error: str | None = None


def scores_videos(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that scores the frames of videos."""
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        return False
    kinds = {row.model_type for row in methods("model") if row.task == TASK}
    return configuration_of(source).get("model_type") in kinds


def load_video_scorer(
    model: str | os.PathLike, device: str | torch.device | None = None
) -> VideoAnomalyDetectionPipeline:
    """The pipeline of a saved model, in float32 on a CPU.

    Raises:
        ValueError: another kind of model.
        OSError: no such folder or Hub repository.
    """
    from transformers import AutoModel

    check_model_folder(model)
    if not scores_videos(model):
        known = [row.title for row in methods("model") if row.task == TASK]
        kind = configuration_of(model).get("model_type")
        raise ValueError(f"model: {model} is a {kind}, which does not score frames; want {' or '.join(known)}")
    device = choose_device(device)
    loaded = AutoModel.from_pretrained(model, dtype=torch.float32 if device.type == "cpu" else "auto")
    processor = load_saved_processor(model, of=("videos",))
    return VideoAnomalyDetectionPipeline(
        model=loaded.eval().requires_grad_(False), processor=processor, task=TASK, device=device
    )


def find_videos(inputs: Iterable[str]) -> Iterator[str]:
    """Paths of files unchanged; for a folder, every video and every file of features below it, sorted. A folder
    without any is a video itself, whose frames are its images."""
    for item in inputs:
        if not os.path.isdir(item):
            yield item
            continue
        files = sorted(Path(place, name) for place, names in walk(Path(item)) for name in names if name[0] != ".")
        videos = [str(p) for p in files if is_video_name(p.name) or p.suffix.lower() == FEATURE_EXTENSION]
        yield from videos or [item]


def score_videos(
    scorer: VideoAnomalyDetectionPipeline, paths: Iterable[str], fps: float | None = None, **options: Any
) -> Iterator[ScoredVideo]:
    """What is found in each video, in order; `error` is set for one that cannot be read.

    Args:
        fps: frames a second that are looked at; of features, how many there are.
        options: `threshold`, `batch_size` of the pipeline.
    """
    for path in paths:
        of_features = path.lower().endswith(FEATURE_EXTENSION)
        rate = {} if fps is None else {"fps" if of_features or os.path.isdir(path) else "sample_fps": fps}
        try:
            yield ScoredVideo(path, scorer(path, **rate, **options))
        except (ValueError, OSError) as error:
            yield ScoredVideo(path, error=explain(error, path))


__all__ = ["ScoredVideo", "find_videos", "load_video_scorer", "score_videos", "scores_videos"]
