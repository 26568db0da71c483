"""Classes and parts of clouds of points and meshes, with a loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..modeling.dual_encoders.prompts import resolve_class_names, resolve_templates
from ..modeling.points.point_decoding import ARRAY_FORMATS, MESH_FORMATS, read_shapes
from ..modeling.video.class_texts import class_features
from ..registry import methods
from .devices import choose_device
from .saved_folders import check_model_folder, configuration_of, load_saved_processor


TEMPLATE = "point cloud depth map of a {}."


def is_point_model(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that compares clouds of points with texts."""
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        return False
    kinds = {row.model_type for row in methods("model") if row.point_processor}
    return configuration_of(source).get("model_type") in kinds


@dataclass(frozen=True)
class PointClassifier:
    """A model that is ready to classify clouds.

    Attributes:
        model, processor.
        class_names: in the order of `texts` (C, D), features of their texts.
        part_names: of `part_texts` (K, D); both None where parts are not asked for.
    """

    model: Any
    processor: Any
    class_names: list[str]
    texts: torch.Tensor
    part_names: list[str] | None = None
    part_texts: torch.Tensor | None = None
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ClassifiedCloud:
    """The classes of one object, best first, or why it could not be read.

    Attributes:
        path: of the file; of an .h5 file with several clouds with "#" and the number behind it.
        points: (N, 3) as the model saw them, in the unit sphere with +y up.
        pictures: (V, S, S) depth maps.
        parts: (N,) index in the parts' names.
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    points: np.ndarray | None = None
    pictures: np.ndarray | None = None
    parts: np.ndarray | None = None
    error: str | None = None


def load_point_classifier(
    model: str | os.PathLike,
    labels: Sequence[str] | None = None,
    templates: str | Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    device: str | torch.device | None = None,
    adapter: str | os.PathLike | None = None,
    **options: Any,
) -> PointClassifier:
    """A classifier of clouds, in float32 on a CPU.

    Args:
        model: a saved model that compares clouds with texts, folder or Hub id.
        labels: classes to choose from. Default: those that are set in the model.
        templates: of `labels`; also a JSON file of each label's own sentences.
        parts: names of parts, to divide each cloud into.
        device: default: a GPU if there is one.
        adapter: a folder or Hub id, loaded on the model.
        options: settings of the processor of points, such as `up_axis="z"`.

    Raises:
        ValueError: another kind of model, no labels, a blank or repeated one. OSError: no such folder.
    """
    from transformers import AutoModel

    check_model_folder(model)
    if not is_point_model(model):
        kind = configuration_of(model).get("model_type")
        raise ValueError(f"model: {model} is a {kind}, which does not compare clouds of points with texts")
    device = choose_device(device)
    loaded = AutoModel.from_pretrained(model, dtype=torch.float32 if device.type == "cpu" else "auto")
    loaded = loaded.eval().requires_grad_(False).to(device)
    if adapter is not None:
        from ..adapters.loading import load_adapter

        loaded = load_adapter(adapter, loaded).get_base_model().eval()
    processor = load_saved_processor(model, of=("points",))

    def encoded(names: list[str], chosen, argument: str) -> torch.Tensor:
        with torch.inference_mode():
            return class_features(loaded, processor.tokenizer, names, resolve_templates(chosen, names), argument)

    if labels is not None:
        names = resolve_class_names(labels, "labels")
        texts = encoded(names, templates or TEMPLATE, "labels")
    elif loaded.class_features is None:
        raise ValueError(f"labels: {model} has no classes of its own; name some (--labels)")
    else:
        names, texts = [loaded.config.id2label[i] for i in range(loaded.config.num_labels)], loaded.class_features
    found = {"part_names": None, "part_texts": None}
    if parts is not None:
        part_names = resolve_class_names(parts, "parts")
        found = {"part_names": part_names, "part_texts": encoded(part_names, "{}", "parts")}
    return PointClassifier(loaded, processor, names, texts, **found, options=options)


def find_clouds(inputs: Iterable[str]) -> Iterator[str]:
    """Paths of files unchanged; for a folder, every file of a cloud or mesh below it, sorted."""
    for item in inputs:
        if not os.path.isdir(item):
            yield item
            continue
        known = ARRAY_FORMATS + MESH_FORMATS
        yield from (str(p) for p in sorted(Path(item).rglob("*")) if p.suffix.lower() in known and p.is_file())


@torch.inference_mode()
def classify_clouds(
    classifier: PointClassifier, paths: Iterable[str], top: int = 1, pictures: bool = True
) -> Iterator[ClassifiedCloud]:
    """A result for each object, in order; `error` is set for a file that cannot be read."""
    model = classifier.model
    for path in paths:
        try:
            shapes = read_shapes(path)
        except (OSError, ValueError, ImportError) as error:
            yield ClassifiedCloud(path, error=str(error))
            continue
        for number, shape in enumerate(shapes):
            name = path if len(shapes) == 1 else f"{path}#{number}"
            batch = classifier.processor(points=[shape], points_kwargs=classifier.options, return_tensors="pt").to(
                model.device
            )
            scores = model.point_text_logits(batch["points"], classifier.texts, batch["points_mask"])[0]
            scores = scores.float().softmax(-1).cpu()
            best = scores.argsort(descending=True, stable=True)[:top].tolist()
            parts = None
            if classifier.part_texts is not None:
                logits = model.segment_parts(batch["points"], classifier.part_texts)
                parts = logits[0].argmax(-1).cpu().numpy()
            drawn = model.project_points(batch["points"])[0, :, 0].cpu().numpy() if pictures else None
            yield ClassifiedCloud(
                name,
                tuple((classifier.class_names[i], float(scores[i])) for i in best),
                batch["points"][0].cpu().numpy(),
                drawn,
                parts,
            )


__all__ = [
    "ClassifiedCloud",
    "PointClassifier",
    "classify_clouds",
    "find_clouds",
    "is_point_model",
    "load_point_classifier",
]
