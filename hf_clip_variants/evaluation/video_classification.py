"""Classes of videos, by a model of this package that compares videos with texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import AutoModel, AutoModelForVideoClassification

from ..data.images.image_set import explain
from ..modeling.clip_classifier.classification_loss import MULTI_LABEL
from ..modeling.dual_encoders.prompts import resolve_class_names, resolve_templates
from ..modeling.video.class_texts import class_features
from ..modeling.video.read_ahead import read_ahead
from ..registry import methods
from .devices import choose_device
from .finite_answers import check_answers
from .prediction import Prediction
from .saved_folders import check_model_folder, configuration_of, is_of_auto_class, load_saved_processor


VIDEO_CLASS = "AutoModelForVideoClassification"


def is_video_classifier(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that compares videos with texts."""
    return is_of_auto_class(source, VIDEO_CLASS)


@dataclass(frozen=True)
class VideoClassifier:
    """A model that is ready to classify, its processor, the names of its classes, and their text features; None: the
    model's own classes."""

    model: Any
    processor: Any
    class_names: list[str]
    texts: torch.Tensor | None


def load_video_classifier(
    model: str | os.PathLike,
    class_names: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> VideoClassifier:
    """A classifier of videos, in float32 on a CPU.

    Args:
        model: a saved model that compares videos with texts, folder or Hub id.
        class_names: what to choose from. Default: the model's own classes, set with `set_classes`.
        templates: prompt templates instead of the model's.
        device: default: a GPU if there is one.

    Raises:
        ValueError: another kind of model, no classes, a blank or repeated one, a template without {}.
        OSError: no such folder or Hub repository.
    """
    check_model_folder(model)
    if not is_video_classifier(model):
        known = [row.title for row in methods("model") if VIDEO_CLASS in row.auto_classes]
        kind = configuration_of(model).get("model_type")
        raise ValueError(f"model: {model} is a {kind}, which does not read videos; want {' or '.join(known)}")
    if class_names is None and not configuration_of(model).get("num_class_features"):
        raise ValueError(f"class_names: none given, and {model} has none of its own; name them (--classes)")
    if class_names is None and templates is not None:
        raise ValueError("templates: got some without class names, but the model's own classes are encoded already")
    device = choose_device(device)
    auto = AutoModelForVideoClassification if class_names is None else AutoModel
    loaded = auto.from_pretrained(model, dtype=torch.float32 if device.type == "cpu" else "auto")
    loaded, processor = loaded.to(device).eval().requires_grad_(False), load_saved_processor(model, of=("videos",))
    if class_names is None:
        names = [name for _, name in sorted(loaded.config.id2label.items())]
        return VideoClassifier(loaded, processor, names, None)
    names = resolve_class_names(class_names)
    chosen = resolve_templates(templates or list(getattr(loaded, "default_templates", ("{}",))))
    with torch.inference_mode():
        texts = class_features(loaded, processor.tokenizer, names, chosen, "class_names")
    return VideoClassifier(loaded, processor, names, texts)


def classify_videos(
    loaded: VideoClassifier, paths: Iterable[str | bytes], top: int = 5, batch_size: int = 8
) -> Iterator[Prediction]:
    """A prediction for each path, or content of a file, in order; `error` is set for a video that cannot be read.

    Scores add up to 1, or, of a model for several labels a video, are each by itself. As `logits_of_videos` otherwise.
    """
    top = min(top, len(loaded.class_names))
    several = loaded.texts is None and loaded.model.config.problem_type == MULTI_LABEL
    for path, logits in logits_of_videos(loaded, paths, batch_size):
        name = path if isinstance(path, str) else ""
        if isinstance(logits, Exception):
            yield Prediction(name, error=explain(logits, name))
            continue
        scores = (logits.sigmoid() if several else logits.softmax(0)).topk(top)
        best = zip(scores.indices.tolist(), scores.values.tolist(), strict=True)
        yield Prediction(name, tuple((loaded.class_names[c], value) for c, value in best))


@torch.inference_mode()
def logits_of_videos(
    loaded: VideoClassifier, paths: Iterable[str | bytes], batch_size: int = 8
) -> Iterator[tuple[str | bytes, torch.Tensor | Exception]]:
    """(path or content of a file, logits (C,)) of each, in order; the error instead for a video that cannot be read.

    Threads read the videos of the next batch while the model runs on this one; videos of as many frames go through it
    together.
    """

    def read(path: str | bytes) -> Any:
        try:
            if isinstance(path, str) and os.path.isfile(path) and not os.path.getsize(path):
                raise OSError("the file is empty")
            return path, loaded.processor(videos=[path], return_tensors="pt")
        except (OSError, ValueError, ImportError) as error:
            return path, error

    reading = read_ahead(paths, read)
    while read_now := list(islice(reading, batch_size)):
        found: dict[int, Any] = {}
        together: dict[tuple, list[int]] = {}
        for place, (_, one) in enumerate(read_now):
            if isinstance(one, Exception):
                found[place] = one
            else:
                together.setdefault(tuple(one["pixel_values_videos"].shape), []).append(place)
        for places in together.values():
            logits = _logits(loaded, [read_now[place][1] for place in places])
            found |= zip(places, logits, strict=True)
        yield from ((path, found[place]) for place, (path, _) in enumerate(read_now))


def _logits(loaded: VideoClassifier, inputs: Sequence[Any]) -> torch.Tensor:
    """(V, C)"""
    model = loaded.model
    pixels, mask = (
        torch.cat([one[name] for one in inputs]).to(model.device) for name in ("pixel_values_videos", "video_mask")
    )
    if loaded.texts is None:
        logits = model(pixels, video_mask=mask).logits.float()
    else:
        logits = model.video_text_logits(pixels, loaded.texts, mask).float()
    check_answers(logits, model, pixel_values_videos=pixels)
    return logits


__all__ = ["VideoClassifier", "classify_videos", "is_video_classifier", "load_video_classifier", "logits_of_videos"]
