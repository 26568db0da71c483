"""Loads models that find objects by texts, and runs them on many files, some of which may be broken, and on videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..annotations.detections import Detections
from ..data.images.image_set import explain
from ..modeling.decoding.image_decoding import MAX_PIXELS, DecodingRules, decode_image
from ..modeling.detection.zero_shot_object_detection import TASK, AllLabelsObjectDetectionPipeline
from ..modeling.dual_encoders.prompts import resolve_templates
from ..registry import methods
from .devices import choose_device
from .prediction import check_readable_path
from .saved_folders import (
    DETECTION_CLASS,
    check_model_folder,
    configuration_of,
    is_of_auto_class,
    load_saved_processor,
)


if TYPE_CHECKING:
    from PIL import Image

_LARGEST_MASKS = 2**30  # bytes of all masks of an image


def is_detector(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that finds objects by texts."""
    return is_of_auto_class(source, DETECTION_CLASS)


@dataclass(frozen=True)
class Detector:
    """A pipeline that is ready to detect, and the names of its labels."""

    pipeline: AllLabelsObjectDetectionPipeline
    labels: list[str]
    texts: list[str] | None  # what the pipeline is asked for; None: the model's own labels
    masks: bool  # whether the model predicts masks


@dataclass(frozen=True)
class DetectedImage:
    """The objects of one image or frame, or why it could not be read."""

    path: str
    image: Image.Image | None = None  # RGB, upright
    found: Detections | None = None
    error: str | None = None


def load_detector(
    model: str | os.PathLike,
    labels: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> Detector:
    """A detector, in float32 on a CPU.

    Args:
        model: a saved model that finds objects by texts, folder or Hub id.
        labels: what to look for. Default: the model's own.
        templates: prompt templates instead of the processor's.
        device: default: a GPU if there is one.

    Raises:
        ValueError: another kind of model, no labels, a blank or repeated one, templates without labels or for a model
            that takes none.
        OSError: no such folder or Hub repository.
    """
    from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoProcessor

    check_model_folder(model)
    if not is_detector(model):
        known = [row.title for row in methods("model") if DETECTION_CLASS in row.auto_classes]
        kind = configuration_of(model).get("model_type")
        raise ValueError(
            f"model: {model} is a {kind}, which does not find objects by texts; want {' or '.join(known)}"
        )
    device = choose_device(device)
    loaded = AutoModelForZeroShotObjectDetection.from_pretrained(
        model, dtype=torch.float32 if device.type == "cpu" else "auto"
    )
    # Without a text encoder there may be no tokenizer, either.
    only_images = not getattr(loaded, "has_text_encoder", True)
    processor = load_saved_processor(model, AutoImageProcessor if only_images else AutoProcessor)
    if templates is not None:
        if labels is None or only_images:
            raise ValueError("templates: got them without labels; the model's own are encoded already")
        if not hasattr(processor, "templates"):
            raise ValueError(f"templates: {type(loaded).__name__} reads the labels alone, expected none")
        processor.templates = resolve_templates(templates)
    parts = {"image_processor" if only_images else "processor": processor}
    pipeline = AllLabelsObjectDetectionPipeline(
        model=loaded.eval().requires_grad_(False), task=TASK, device=device, **parts
    )
    texts = pipeline.labels_of(labels)
    names = loaded.labels_with_texts() if texts is None else texts
    return Detector(pipeline, names, texts, bool(getattr(loaded, "predicts_masks", False)))


@torch.inference_mode()
def detect_in(
    detector: Detector, images: Sequence[Image.Image], threshold: float = 0.1, max_objects: int = 100
) -> list[Detections]:
    """The objects of RGB images, best first, with masks where the model predicts them (of very large images with many
    objects only as many as fit into 1 GiB have any: then none has)."""
    items = [{"image": image, "labels": detector.texts} for image in images]
    outputs = detector.pipeline.forward({"item": items}, masks=detector.masks)["found"]
    found = []
    for one, image in zip(outputs, images, strict=True):
        rows = one["scores"].argsort(descending=True, stable=True)[:max_objects]
        best = {name: one[name][rows] for name in ("scores", "labels", "boxes", "masks") if name in one}
        count = int((best["scores"] >= threshold).sum())
        size = (image.height, image.width) if count * image.width * image.height <= _LARGEST_MASKS else None
        found.append(Detections.from_boxes(best, detector.labels, size, threshold))
    return found


def detect(
    detector: Detector, paths: Iterable[str], threshold: float = 0.1, batch_size: int = 4
) -> Iterator[DetectedImage]:
    """The objects of each image, in order; `error` is set for one that cannot be read.

    Threads read the images of the next batch while the model runs on this one. Paths may be an endless stream.
    """
    rules = DecodingRules(max_pixels=getattr(detector.pipeline.image_processor, "max_pixels", MAX_PIXELS))

    def read(path: str) -> Image.Image:
        check_readable_path(path)
        image = decode_image(path, rules)
        image.info = {}  # it is upright now, and is not to be turned once more
        return image.convert("RGB")

    def finish(waiting: list) -> Iterator[DetectedImage]:
        read_ones: dict[int, Any] = {}
        errors: dict[int, str] = {}
        for place, (path, future) in enumerate(waiting):
            try:
                read_ones[place] = future.result()
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
                errors[place] = explain(error, path)
        results = dict(zip(read_ones, detect_in(detector, list(read_ones.values()), threshold), strict=True))
        for place, (path, _) in enumerate(waiting):
            if place in errors:
                yield DetectedImage(path, error=errors[place])
            else:
                yield DetectedImage(path, read_ones[place], results[place])

    with ThreadPoolExecutor(min(batch_size, 8, os.cpu_count() or 1)) as pool:
        ready, batch = [], []
        for path in paths:
            batch.append((path, pool.submit(read, path)))
            if len(batch) == batch_size:
                yield from finish(ready)
                ready, batch = batch, []
        yield from finish(ready)
        yield from finish(batch)


__all__ = ["DetectedImage", "Detector", "detect", "detect_in", "is_detector", "load_detector"]
