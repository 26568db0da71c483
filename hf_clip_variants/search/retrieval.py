"""How well a model finds videos by their captions, and captions by their videos."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..data.images.image_set import explain
from ..data.video_tables import VideoRow
from ..evaluation.video_classification import is_video_classifier, load_video_classifier, logits_of_videos
from ..evaluation.video_moments import (
    SecondsModel,
    compares_seconds,
    encode,
    features_or_reason,
    load_seconds_model,
    score_videos,
)
from ..evaluation.video_quality import (
    Advance,
    Found,
    Templates,
    check_some_read,
    ignore_progress,
)
from ..metrics.retrieval import rank_summary, ranks_in_tiles
from ..modeling.dual_encoders.backbones import unit_norm
from ..modeling.dual_encoders.prompts import resolve_templates
from ..modeling.video.class_texts import class_features
from ..modeling.video.frame_sampling import FrameSampling
from ..modeling.video.read_ahead import read_ahead
from ..modeling.video.video_decoding import read_video
from .encoder import load_encoder


TEXTS_AT_ONCE = 256
FRAMES = FrameSampling(num_frames=12)  # of a dual encoder of images: one a second, as CLIP4Clip looks at videos
DIRECTIONS = ("text_to_video", "video_to_text")


def measure_retrieval(
    model: str | os.PathLike,
    rows: Sequence[VideoRow],
    templates: Templates = None,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    advance: Advance = ignore_progress,
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
    check_some_read(unreadable, len(paths))
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
    count = len(places)  # of a random order, each rank is as likely
    chance = {f"recall_at_{k}": min(1.0, k / count) for k in (1, 5, 10)}
    chance |= dict.fromkeys(("median_rank", "mean_rank"), (1 + count) / 2)
    found["baseline"] = {f"{direction}_{name}": value for direction in DIRECTIONS for name, value in chance.items()}
    return found | {"unreadable": unreadable}


def _similarities(model: str | os.PathLike, captions: list[str], templates: list[str], device: Any) -> Callable:
    """(paths, batch size) -> (path, (B,) similarities to B captions or what is wrong with the video)."""
    if compares_seconds(model):
        loaded = load_seconds_model(model, device)
        texts = torch.cat([encode(loaded, part, templates, are_labels=False) for part in _parts(captions)])
        return lambda paths, batch_size: _by_seconds(loaded, texts, paths)
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
                yield path, explain(logits, path) if isinstance(logits, Exception) else logits.cpu()

        return of_videos
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
                return path, explain(error, path)

        for path, pixels in read_ahead(paths, read):
            if isinstance(pixels, str):
                yield path, pixels
            else:
                yield path, texts @ unit_norm(encoder.encode_pixels(pixels).mean(0))

    return of_frames


def _parts(texts: list[str]) -> Iterator[list[str]]:
    yield from (texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE))


def _by_seconds(loaded: SecondsModel, texts: torch.Tensor, paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for path in paths:
        features = features_or_reason(loaded, path, loaded.longest)
        yield path, features if isinstance(features, str) else score_videos(loaded, [features], texts)[0]


__all__ = ["measure_retrieval"]
