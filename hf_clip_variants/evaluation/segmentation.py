"""Loads models that segment by texts, and segments many files, some of which may be broken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.images.image_set import explain
from ..modeling.decoding.image_decoding import MAX_PIXELS, DecodingRules, decode_image
from ..modeling.dense.zero_shot_image_segmentation import TASK, ZeroShotImageSegmentationPipeline
from ..registry import methods
from .devices import choose_device
from .prediction import check_readable_path
from .saved_folders import (
    SEGMENTATION_CLASS,
    check_model_folder,
    configuration_of,
    is_of_auto_class,
    load_saved_processor,
)


if TYPE_CHECKING:
    from PIL import Image


def is_segmenter(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that segments by texts."""
    return is_of_auto_class(source, SEGMENTATION_CLASS)


@dataclass(frozen=True)
class Segmenter:
    """A pipeline that is ready to segment, and the names of its labels."""

    pipeline: ZeroShotImageSegmentationPipeline
    labels: list[str]
    texts: Sequence[str] | None  # what the pipeline is asked for; None: the model's own labels
    options: Mapping[str, Any]  # of its forward
    template: str | Sequence[str] | None = None


@dataclass(frozen=True)
class SegmentedImage:
    """The segments of one image, or why it could not be read.

    Attributes:
        path (`str`).
        image (`PIL.Image.Image`, *optional*): RGB, upright, H x W.
        label_map (`np.ndarray`, *optional*): (H, W) int32: index in the labels, -1 where no label fits.
        areas (`np.ndarray`): (N,) pixels of each label; scores (N,): its mean probability over them, 0 without any.
        error (`str`, *optional*).
    """

    path: str
    image: Image.Image | None = None
    label_map: np.ndarray | None = None
    areas: np.ndarray | None = None
    scores: np.ndarray | None = None
    error: str | None = None


def load_segmenter(
    model: str | os.PathLike,
    labels: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
    background: float | Mapping[str, float] | None = None,
    window: int | None = None,
    labels_needed: bool = True,
) -> Segmenter:
    """A segmenter, in float32 on a CPU.

    Args:
        model: a saved model that segments by texts, folder or Hub id.
        labels: what to look for; "a;b" is one label with two texts. Default: the model's own.
        templates: prompt templates instead of the processor's.
        device: default: a GPU if there is one.
        background: below this score, pixels have no label; a number, or one for each label.
        window: side of windows that go through the model one after the other, in pixels of the resized image.
        labels_needed: whether a model without labels of its own is an error when none are given.

    Raises:
        ValueError: another kind of model, no labels, a blank or repeated one.
        OSError: no such folder or Hub repository.
    """
    from transformers import AutoModelForSemanticSegmentation

    check_model_folder(model)
    if not is_segmenter(model):
        known = [row.title for row in methods("model") if SEGMENTATION_CLASS in row.auto_classes]
        kind = configuration_of(model).get("model_type")
        raise ValueError(f"model: {model} is a {kind}, which does not segment by texts; want {' or '.join(known)}")
    device = choose_device(device)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(
        model, dtype=torch.float32 if device.type == "cpu" else "auto"
    )
    pipeline = ZeroShotImageSegmentationPipeline(
        model=loaded.eval().requires_grad_(False), processor=load_saved_processor(model), task=TASK, device=device
    )
    parsed = pipeline.texts_of(labels) if labels_needed or labels is not None else None
    names = loaded.labels_with_texts() if parsed is None else [texts[0] for texts in parsed]
    options = {"background_threshold": background, "sliding_window": window}
    return Segmenter(pipeline, names, labels, options, templates)


@torch.inference_mode()
def segment(segmenter: Segmenter, paths: Iterable[str], batch_size: int = 4) -> Iterator[SegmentedImage]:
    """The segments of each path, in order; `error` is set for an image that cannot be read.

    Threads read the images of the next batch while the model runs on this one. Images of one size go through the model
    together; results do not depend on it. Paths may be an endless stream.
    """
    pipeline = segmenter.pipeline
    rules = DecodingRules(max_pixels=getattr(pipeline.image_processor, "max_pixels", MAX_PIXELS))

    def read(path: str) -> tuple[Image.Image, dict]:
        check_readable_path(path)
        image = decode_image(path, rules)
        image.info = {}  # it is upright now, and is not to be turned once more
        return image, pipeline.preprocess(image, segmenter.texts, segmenter.template)["item"]

    def finish(waiting: list[tuple[str, Future]]) -> Iterator[SegmentedImage]:
        errors: dict[int, str] = {}
        read_ones: dict[int, tuple[Image.Image, dict]] = {}
        for place, (path, future) in enumerate(waiting):
            try:
                read_ones[place] = future.result()
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
                errors[place] = explain(error, path)
        found = {}
        if read_ones:
            items = [item for _, item in read_ones.values()]
            outputs = pipeline.forward({"item": items}, **segmenter.options)["found"]
            found = dict(zip(read_ones, outputs, strict=True))
        for place, (path, _) in enumerate(waiting):
            if place in errors:
                yield SegmentedImage(path, error=errors[place])
                continue
            segments = found.pop(place)["segments"]
            image, _ = read_ones.pop(place)
            numbers = (segments.label_map.numpy(), segments.areas.numpy(), segments.scores.numpy())
            yield SegmentedImage(path, image, *numbers)

    with ThreadPoolExecutor(min(batch_size, 8, os.cpu_count() or 1)) as pool:
        ready: list[tuple[str, Future]] = []
        batch: list[tuple[str, Future]] = []
        for path in paths:
            batch.append((path, pool.submit(read, path)))
            if len(batch) == batch_size:
                yield from finish(ready)
                ready, batch = batch, []
        yield from finish(ready)
        yield from finish(batch)


__all__ = ["SegmentedImage", "Segmenter", "is_segmenter", "load_segmenter", "segment"]
