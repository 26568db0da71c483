"""Models that compare each second of a video with texts: what happens in a video, when, and in which of many."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images.image_set import explain
from ..data.videos import is_video_name
from ..modeling.dual_encoders.prompts import encode_texts, format_prompts, resolve_templates
from ..modeling.video.moments import (
    background_threshold,
    best_seconds,
    candidate_moments,
    check_count,
    labelled_seconds,
    moment_scores,
    ordered_steps,
    segments_of,
)
from ..modeling.video.seconds import features_of_seconds
from ..registry import methods
from .devices import choose_device
from .saved_folders import check_model_folder, configuration_of, load_saved_processor


FEATURES = ".npy"  # files of features (seconds, width)
_LONGEST_FEATURES = 31 * 24 * 3600  # seconds


@dataclass(frozen=True)
class Found:
    """
    A text, and where it was found in a video.

    Attributes:
        label (`int`): number of the text.
        start, end (`int`): seconds, without `end`; None: the whole video.
        score (`float`): a dot product; the larger, the better it fits.
    """

    label: int
    score: float
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class SecondsModel:
    """A model that is ready to compare seconds with texts, and its processor."""

    model: Any
    processor: Any
    texts: dict = field(default_factory=dict)  # encoded ones

    @property
    def longest(self) -> int:
        """Seconds that the model sees at once."""
        return self.model.config.max_video_length


def compares_seconds(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that compares each second with texts."""
    kind = configuration_of(source).get("model_type")
    return any(row.model_type == kind and hasattr(row.load("model"), "get_second_logits") for row in methods("model"))


def load_seconds_model(source: str | os.PathLike, device: str | torch.device | None = None) -> SecondsModel:
    """In float32 on a CPU.

    Raises:
        ValueError: another kind of model. OSError: no such folder or Hub repository, or no tokenizer in it.
    """
    from transformers import AutoModel

    check_model_folder(source)
    if not compares_seconds(source):
        rows = [row for row in methods("model") if hasattr(row.load("model"), "get_second_logits")]
        raise ValueError(
            f"model: {source} is a {configuration_of(source).get('model_type')}, which does not compare seconds of "
            f"videos with texts; want {' or '.join(row.title for row in rows)}"
        )
    device = choose_device(device)
    model = AutoModel.from_pretrained(source, dtype=torch.float32 if device.type == "cpu" else "auto")
    return SecondsModel(model.eval().requires_grad_(False).to(device), load_saved_processor(source, of=("videos",)))


@torch.inference_mode()
def encode(
    loaded: SecondsModel,
    texts: Sequence[str],
    templates: str | Sequence[str] | None = None,
    are_labels: bool = True,
) -> torch.Tensor:
    """(K, D) of K texts, on the CPU; of several templates the mean, and so of "house;home", a label with two texts
    (unless `are_labels` is False: in captions a semicolon is a semicolon)."""
    texts, templates = list(texts), resolve_templates(templates or "{}")
    key = tuple(texts), tuple(templates), are_labels
    if key not in loaded.texts:
        parts = [text.split(";") if are_labels else [text] for text in texts]
        variants = [
            [part.strip() for part in some if part.strip()] or [text] for some, text in zip(parts, texts, strict=True)
        ]
        tokens = encode_texts(
            loaded.processor.tokenizer,
            format_prompts([variant for some in variants for variant in some], templates),
            what="labels",
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        features = loaded.model.get_text_features(**tokens.to(loaded.model.device)).pooler_output.float().cpu()
        counts = [len(some) * len(templates) for some in variants]
        loaded.texts[key] = torch.stack([some.mean(0) for some in features.split(counts)])
    return loaded.texts[key]


# ---- videos


def find_videos(inputs: Iterable[str]) -> Iterator[str]:
    """Paths of files unchanged; for a folder, every video and file of features (.npy) below it, sorted."""
    for item in inputs:
        if not os.path.isdir(item):
            yield item
            continue
        names = (path for path in Path(item).rglob("*") if path.is_file() and not path.name.startswith("."))
        yield from sorted(str(path) for path in names if is_video_name(path.name) or path.suffix == FEATURES)


@torch.inference_mode()
def read_features(loaded: SecondsModel, source: Any, fps: float | None = None, seconds: int | None = None):
    """(T, F) on the CPU: features of each second of a video of any length, in the memory of a few seconds of frames.

    Args:
        source: a video in any form that `open_video` takes; or features: a .npy file, an array or tensor (T, F).
        fps: frames a second of a folder, list or array of frames.
        seconds: only the first ones.

    Raises:
        ValueError: what cannot be read, frames without a rate, features of another width, or with NaN.
        OSError: no such file.
    """
    width, name = loaded.model.config.feature_size, ""
    if isinstance(source, str | os.PathLike) and str(source).endswith(FEATURES):
        try:
            source = np.load(source, allow_pickle=False, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(f"not a .npy file of numbers ({error})") from error
        name = "features: "
    if isinstance(source, np.ndarray | torch.Tensor) and source.ndim == 2:
        if source.shape[1] != width or not 0 < source.shape[0] <= _LONGEST_FEATURES:
            raise ValueError(f"features of shape {list(source.shape)}, expected [seconds, {width}]")
        kind = source.dtype.kind if isinstance(source, np.ndarray) else "f" if source.is_floating_point() else "?"
        if kind != "f":
            raise ValueError(f"features of type {source.dtype}, expected floats")
        cut = source[:seconds]
        features = torch.as_tensor(np.array(cut, np.float32) if isinstance(cut, np.ndarray) else cut).float()
    elif name:
        raise ValueError(f"features of shape {list(source.shape)}, expected [seconds, {width}]")
    else:
        videos = loaded.processor.video_processor
        features = features_of_seconds(loaded.model, source, videos, fps, end=seconds)
    if not features.isfinite().all():
        raise ValueError("features with NaN or infinite numbers, expected finite ones")
    return features


def features_or_reason(loaded: SecondsModel, path: str, seconds: int | None = None) -> torch.Tensor | str:
    """Features of a video's seconds, or what is wrong with it."""
    try:
        return read_features(loaded, path, seconds=seconds)
    except Exception as error:  # FFmpeg and NumPy raise errors of many kinds
        return explain(error, path)


# ---- tasks. Texts are (K, D) of `encode`, features (T, F) of `read_features`


@torch.inference_mode()
def score_videos(loaded: SecondsModel, videos: Sequence[torch.Tensor], texts: torch.Tensor) -> torch.Tensor:
    """(V, K) dot products of V videos with K texts, all in one batch; of longer videos the first seconds that the
    model sees at once, as in the official code.

    Raises:
        ValueError: no videos, other shapes or types, NaN.
    """
    if not len(videos):
        raise ValueError("videos: none, expected features of at least one")
    for place, one in enumerate(videos):
        _check_floats(f"videos[{place}]: features", one, "seconds", loaded.model.config.feature_size)
    _check_floats("texts", texts, "labels", loaded.model.config.hidden_size)
    cut = [features[: loaded.longest] for features in videos]
    masks = [torch.ones(len(one), dtype=torch.long) for one in cut]
    features, mask = (
        torch.nn.utils.rnn.pad_sequence(x, batch_first=True).to(loaded.model.device) for x in (cut, masks)
    )
    embeds = loaded.model.get_video_features(video_features=features, video_mask=mask).pooler_output
    return embeds.float().cpu() @ texts.float().cpu().T


def _check_floats(name: str, values: object, rows: str, width: int) -> None:
    is_tensor = isinstance(values, torch.Tensor)
    if not is_tensor or values.dim() != 2 or values.shape[1] != width or not len(values):
        got = list(values.shape) if is_tensor else type(values).__name__
        raise ValueError(f"{name}: got {got}, expected a tensor [{rows}, {width}]")
    if not values.is_floating_point() or not values.isfinite().all():
        raise ValueError(f"{name}: {values.dtype}, expected finite floats, without NaN")


def retrieve(scores: torch.Tensor, top: int | None = None) -> list[list[tuple[int, float]]]:
    """(V, K) of `score_videos` -> for each of K texts, (video, score), best first."""
    if top is not None:
        check_count("top", top)
    found = []
    for row in scores.T:
        order = row.argsort(descending=True, stable=True)[:top].tolist()
        found.append([(video, float(row[video])) for video in order])
    return found


def answer(scores: torch.Tensor) -> list[Found]:
    """(K,) scores of a video with K candidate answers -> the candidates, best first (multiple-choice question
    answering: the question is part of each candidate, or left out)."""
    order = scores.argsort(descending=True, stable=True).tolist()
    return [Found(label, float(scores[label])) for label in order]


def locate_steps(
    loaded: SecondsModel, features: torch.Tensor, texts: torch.Tensor, ordered: bool = True
) -> list[Found]:
    """The second of each of a task's K steps. `ordered`: they happen in the order of the texts, once each; else each
    is where it fits best.

    Raises:
        ValueError: `ordered`, and fewer seconds than steps.
    """
    logits = loaded.model.get_second_logits(features, texts).cpu()
    seconds = (ordered_steps if ordered else best_seconds)(logits).tolist()
    return [Found(label, float(logits[s, label]), s, s + 1) for label, s in enumerate(seconds)]


def segment_video(
    loaded: SecondsModel, features: torch.Tensor, texts: torch.Tensor, threshold: float | None = None
) -> list[Found]:
    """Runs of seconds with one label, in their order; what is in none is background.

    Args:
        threshold: what a second's best label must exceed; None: the largest dot product of two different labels, the
            official rule.

    Raises:
        ValueError: a single label without a threshold.
    """
    logits = loaded.model.get_second_logits(features, texts).cpu()
    threshold = background_threshold(texts) if threshold is None else threshold
    segments = segments_of(labelled_seconds(logits, threshold), logits)
    return [Found(one.label, one.score, one.start, one.end) for one in segments]


def find_moments(
    loaded: SecondsModel,
    features: torch.Tensor,
    texts: torch.Tensor,
    top: int = 1,
    chunk: int = 5,
    longest: int = 6,
) -> list[list[Found]]:
    """For each text, the best moments: of all runs of 1 to `longest` chunks of `chunk` seconds (DiDeMo's), those whose
    mean score is largest."""
    for name, value in (("top", top), ("chunk", chunk), ("longest", longest)):
        check_count(name, value)
    logits = loaded.model.get_second_logits(features, texts).cpu()
    moments = candidate_moments(len(logits), chunk, longest)
    scores = moment_scores(logits, moments)
    found = []
    for label, row in enumerate(scores.T):
        best = row.argsort(descending=True, stable=True)[:top].tolist()
        found.append([Found(label, float(row[place]), *moments[place]) for place in best])
    return found


__all__ = [
    "Found",
    "SecondsModel",
    "answer",
    "compares_seconds",
    "encode",
    "features_or_reason",
    "find_moments",
    "find_videos",
    "load_seconds_model",
    "locate_steps",
    "read_features",
    "retrieve",
    "score_videos",
    "segment_video",
]
