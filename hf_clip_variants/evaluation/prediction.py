"""Loads models that classify, with or without an adapter, and classifies many files, some of which may be broken."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.images.folders import walk
from ..data.images.heic import heic_is_readable
from ..data.images.image_set import explain
from ..data.images.names import count_left_out, is_image_name, left_out_suffix
from ..data.images.video_frames import frames_of, is_video_name, read_video_frames, stacked
from ..files.recommended_run import is_run_folder, recommended_run
from ..modeling.clip_classifier.label_calibration import MULTI_LABEL
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from .calibration import PRIOR_TEMPERATURE, Calibration
from .devices import choose_device
from .finite_answers import check_answers
from .multi_label import label_thresholds
from .saved_folders import check_model_folder, configuration_of, load_saved_processor, read_json
from .video_features import with_mean_of_frames


logger = logging.getLogger(__name__)

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Loaded:
    """A model that classifies, its image processor, its classes."""

    model: torch.nn.Module
    processor: Any
    class_names: list[str]
    several_labels: bool = False  # of an image
    calibration: Calibration | None = None  # None: scores are no probabilities


def load_for_prediction(
    model: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    class_names: str | Sequence[str] | None = None,
    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    device: str | torch.device | None = None,
    default_class_names: Sequence[str] | None = None,
    base: str | os.PathLike | None = None,
    several_labels: bool = False,
) -> Loaded:
    """A classifier ready to predict, in float32 on a CPU.

    Args:
        model: a saved `CLIPClassifier` or any CLIP, folder or Hub id; a run folder: what it recommends. With `adapter`
            it may be left out.
        adapter: an adapter, folder or Hub id. Its base model is the one that it names; if that folder is gone, `base/`
            of the run folder that holds the adapter.
        class_names: classes instead of the saved ones (needed for a plain CLIP). An adapter for fixed classes refuses
            others.
        templates: prompt templates, or prompts of each class, instead of the saved ones.
        device: default: a GPU if there is one.
        default_class_names: for a model that has no classes of its own.
        base: the model under the adapter, if it is not where the adapter says; the same as `model` beside `adapter`.
        several_labels: of an image. Where the model or the adapter was made for several, it is so in any case.

    Raises:
        ValueError: neither model nor adapter, no classes, an adapter that does not fit.
        OSError: no such file, folder or Hub repository; the adapter's base model has moved.
    """
    if model is None and adapter is None:
        raise ValueError("model: name a run folder, a model (--model), an adapter (--adapter) or both")
    device = choose_device(device)
    options = {"problem_type": MULTI_LABEL} if several_labels or _is_multi_label_adapter(adapter or model) else {}
    if adapter is None and _is_adapter_folder(model):
        model, adapter = None, model
    elif adapter is None and is_run_folder(model):
        (model, adapter), base = _recommended(model, base), None
    if adapter is None:
        if base is not None:
            raise ValueError(f"base: got {base} without an adapter; want an adapter (--adapter) that was made on it")
        if class_names is None and default_class_names is not None and not _has_classes(model):
            class_names = default_class_names
        classifier = loaded = _load_classifier(model, class_names, templates, **options)
    else:
        from ..adapters import load_adapter

        if base is not None and model is not None:
            raise ValueError(f"base: got {base} beside the model {model}; an adapter is on one of them")
        source = base or model or base_of_adapter(adapter)
        classifier = (
            None
            if source is None
            else _load_classifier(source, *_classes_of(adapter, source, class_names, templates), **options)
        )
        loaded = load_adapter(adapter, classifier)
        classifier = loaded.get_base_model()
        if class_names is None and templates is not None and classifier.config.templates:
            class_names = classifier.class_names
        if class_names is not None:
            classifier.set_classes(class_names, templates)
    if not classifier.config.templates:
        raise ValueError(f"class_names: {model} is a plain CLIP without classes; name them (--classes 'cat, dog')")
    loaded = loaded.to(device, torch.float32 if device.type == "cpu" else None).eval().requires_grad_(False)
    classifier.faster_images = True
    if several_labels:
        classifier.config.problem_type = MULTI_LABEL
    several = classifier.config.problem_type == MULTI_LABEL
    processor = load_processor(classifier.config._name_or_path)
    calibration = None if several else _calibration_of(loaded, classifier)
    return Loaded(loaded, processor, list(classifier.class_names), several, calibration)


def _calibration_of(loaded: torch.nn.Module, classifier: CLIPClassifier) -> Calibration | None:
    """What was measured for the model or its adapter, if it was for these classes and templates."""
    config = loaded.config
    if loaded is not classifier:
        config, own = loaded.peft_config[loaded.active_adapter], classifier.config
        made_for = getattr(config, "class_names", None), getattr(config, "templates", None)
        if made_for != (list(classifier.class_names), own.templates):
            return None
    temperature = getattr(config, "temperature", None)
    return None if temperature is None else Calibration(temperature, config.rejection_threshold)


def _recommended(run, base=None) -> tuple[Any, Path | None]:
    """Model and adapter that a run folder recommends."""
    chosen = recommended_run(run)
    return base or chosen.base, chosen.adapter


def _is_adapter_folder(path: str | os.PathLike) -> bool:
    return (Path(path) / _ADAPTER_CONFIG).is_file()


def _has_classes(source) -> bool:
    return bool(configuration_of(source).get("templates"))


def _load_classifier(source, class_names, templates, **options) -> CLIPClassifier:
    check_model_folder(source)
    return CLIPClassifier.from_pretrained(source, class_names=class_names, templates=templates, **options)


def _adapter_values(adapter) -> dict[str, Any]:
    path = Path(adapter) / _ADAPTER_CONFIG
    return read_json(path) if path.is_file() else {}


def was_made_for_several_labels(model: str | os.PathLike | None, adapter: str | os.PathLike | None = None) -> bool:
    """Whether the adapter in this folder, or else the model, is for several labels an image."""
    if adapter is None and is_run_folder(model):
        model, adapter = _recommended(model)
    if adapter is None and model is not None and not _is_adapter_folder(model):
        return configuration_of(model).get("problem_type") == MULTI_LABEL
    return _is_multi_label_adapter(adapter or model)


def _is_multi_label_adapter(adapter) -> bool:
    return adapter is not None and "label_calibration" in (_adapter_values(adapter).get("modules_to_save") or ())


def base_of_adapter(adapter) -> Path | None:
    """`base/` of the run folder that holds the adapter, if the folder it was trained on is gone.

    None: load the base model that the adapter's configuration names. FileNotFoundError: it has moved.
    """
    named = _adapter_values(adapter).get("base_model_name_or_path")
    if not named or not os.path.isabs(named) or os.path.exists(named):
        return None
    for parent in Path(adapter).absolute().parents:
        if (parent / "base" / "config.json").is_file():
            return parent / "base"
    raise FileNotFoundError(
        f"{adapter}: the adapter's base model was {named}, which is not there any more; name the folder or Hub id "
        "where it is now (--base)"
    )


def _classes_of(adapter, source, class_names, templates) -> tuple[Any, Any]:
    """Class names and templates to load the base model with: those of the adapter, if the base has none."""
    if class_names is None and not _has_classes(source):
        values = _adapter_values(adapter)
        return values.get("class_names"), templates or values.get("templates")
    return None, None  # set later, so that an adapter can refuse


def load_processor(source: str | os.PathLike) -> CLIPClassifierProcessor:
    """A `CLIPClassifierProcessor` with the settings of the processor that `source` has."""
    processor = load_saved_processor(source)
    if not isinstance(processor, CLIPClassifierProcessor):
        processor = CLIPClassifierProcessor.from_clip(processor)
    return processor


def find_images(inputs: Iterable[str], videos: bool = False) -> Iterator[str]:
    """Paths of files unchanged; for a folder, every image file (and with `videos` every video) below it, sorted; a
    warning counts its other files.

    Links are followed as `load_images` does. A link that leads nowhere is among the paths if it has an image's name.
    """
    for item in inputs:
        if not os.path.isdir(item):
            yield item
            continue
        files = sorted(Path(place, name) for place, names in walk(Path(item)) for name in names if name[0] != ".")
        found = [path for path in files if is_image_name(path.name) or (videos and is_video_name(path.name))]
        yield from map(str, found)
        left_out = Counter(filter(None, (left_out_suffix(path.name) for path in set(files).difference(found))))
        if left_out:
            logger.warning("%s: left out %s", item, count_left_out(left_out))


def check_readable_path(path: str) -> None:
    """OSError for a folder or an empty file; what else cannot be read, the reader of images tells."""
    if os.path.isdir(path):
        raise IsADirectoryError("a folder")
    if os.path.isfile(path) and not os.path.getsize(path):
        raise OSError("the file is empty")
    heic_is_readable()  # after this, by Pillow


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, best first, or why it could not be read.

    With several labels an image, these are all classes that reach their thresholds; there may be none.
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@torch.inference_mode()
def classify(loaded: Loaded, paths: Iterable[str], top: int = 5, batch_size: int = 32) -> Iterator[Prediction]:
    """A prediction for each path, in order; `error` is set for an image that cannot be read.

    Scores are softmax(logits / temperature). Without a calibrated temperature it is `PRIOR_TEMPERATURE`, and they are
    no probabilities.

    Threads read the images of the next batch while the model runs on this one. Paths may be an endless stream.
    """
    device = next(loaded.model.parameters()).device
    top = min(top, len(loaded.class_names))
    temperature = loaded.calibration.temperature if loaded.calibration else PRIOR_TEMPERATURE
    thresholds = label_thresholds(loaded.model).to(device) if loaded.several_labels else None

    def scores_of(logits: torch.Tensor) -> torch.Tensor:
        """(B, C) in 0..1, with 0 for classes that are not in the image."""
        if thresholds is None:
            return (logits / temperature).softmax(dim=1)
        probabilities = logits.sigmoid()
        return probabilities.masked_fill(probabilities < thresholds, 0)

    def read(path: str) -> torch.Tensor:
        check_readable_path(path)
        if not is_video_name(path):
            return loaded.processor.image_processor([path], return_tensors="pt")["pixel_values"]
        with_mean_of_frames(loaded.model)
        frames = frames_of(read_video_frames(path))
        return stacked(loaded.processor.image_processor(frames, return_tensors="pt")["pixel_values"])[None]

    def finish(waiting: list[tuple[str, Future]]) -> list[Prediction]:
        outcomes: dict[int, Prediction] = {}
        pixels: list[tuple[int, torch.Tensor]] = []
        for place, (path, future) in enumerate(waiting):
            try:
                pixels.append((place, future.result()))
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
                outcomes[place] = Prediction(path, error=explain(error, path))
        # Videos are of another size than images.
        for shape in dict.fromkeys(values.shape for _, values in pixels):
            alike = [(place, values) for place, values in pixels if values.shape == shape]
            batch = torch.cat([values for _, values in alike]).to(device)
            logits = loaded.model(pixel_values=batch).logits.float()
            check_answers(logits, loaded.model, pixel_values=batch)
            best = scores_of(logits).topk(top, dim=1)
            for (place, _), scores, classes in zip(alike, best.values.tolist(), best.indices.tolist(), strict=True):
                named = tuple((loaded.class_names[c], score) for c, score in zip(classes, scores, strict=True))
                if thresholds is not None:
                    named = tuple((name, score) for name, score in named if score > 0)
                outcomes[place] = Prediction(waiting[place][0], named)
        return [outcomes[place] for place in range(len(waiting))]

    # Two batches at a time: `ready` goes through the model while the threads read `batch`.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ready: list[tuple[str, Future]] = []
        batch: list[tuple[str, Future]] = []
        for path in paths:
            batch.append((path, pool.submit(read, path)))
            if len(batch) == batch_size:
                yield from finish(ready)
                ready, batch = batch, []
        yield from finish(ready)
        yield from finish(batch)


__all__ = [
    "Loaded",
    "Prediction",
    "base_of_adapter",
    "check_readable_path",
    "classify",
    "find_images",
    "load_for_prediction",
    "load_processor",
    "was_made_for_several_labels",
]
