"""Mean IoU of any model that segments, and the analysis of what limits one that groups pixels first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, AutoProcessor

from ..data.images.image_set import name_some
from ..data.images.label_maps import BACKGROUND, LabelMaps
from ..metrics.group_oracle import GroupOracle
from ..metrics.segmentation import MeanIoU
from ..modeling.dense.group_counts import group_ids
from ..modeling.dense.label_maps import post_process_semantic_segmentation
from ..modeling.dense.promptable_segmentation import PromptableSegmentationMixin
from .devices import choose_device
from .saved_folders import check_model_folder, load_saved_processor


@dataclass(frozen=True)
class Windows:
    """How an image is cut, see `sliding_window_scores`; without a window it is seen whole.

    Attributes:
        window, stride: pixels of the model's input.
        scales, flip: sizes to add up, and the mirrored image.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def several_views(self) -> bool:
        return self.window is not None or tuple(self.scales) != (1.0,) or self.flip


@dataclass(frozen=True)
class SegmentationModel:
    """A model that segments, its processor, its labels' names in order. Made by `load_segmentation_model`."""

    model: torch.nn.Module
    processor: Any
    labels: tuple[str, ...] = field(default=())

    @property
    def background(self) -> int | None:
        """The label of the background where it comes from no text; else None."""
        config = self.model.config
        return config.background_index if getattr(config, "background_has_own_channel", False) else None


def load_segmentation_model(
    model: str | os.PathLike,
    labels: Sequence[str] | None = None,
    background: float | str | None = None,
    templates: Any = None,
    default_labels: Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> SegmentationModel:
    """Any model behind `AutoModelForSemanticSegmentation`, in float32 on a CPU.

    Args:
        model: folder or Hub id.
        labels: what it is to look for; only for a model that takes texts. Default: the labels that it was saved with.
        background: of a model that takes texts: a threshold, or a text; see `PromptableSegmentationFields`.
        templates: of the labels; default: the model's.
        default_labels: for a model that takes texts and has none; "background" among them is left out where
            `background` or the model's configuration says what that is.

    Raises:
        ValueError: labels for a model that takes none, no labels at all.
        OSError: no such folder or Hub repository.
    """
    check_model_folder(model)
    found = AutoModelForSemanticSegmentation.from_pretrained(model).eval().requires_grad_(False)
    device = choose_device(device)
    found = found.to(device, torch.float32 if device.type == "cpu" else None)
    if not isinstance(found, PromptableSegmentationMixin):
        for argument, given in (("labels", labels), ("background", background), ("templates", templates)):
            if given is not None:
                raise ValueError(f"{argument}: got {given!r}, but {model} has fixed labels; leave it out")
        processor = load_saved_processor(model, AutoImageProcessor)
        return SegmentationModel(found, processor, _names(found))
    processor = load_saved_processor(model, AutoProcessor)
    has_own = getattr(found, "class_embeddings", None) is not None
    if labels is None and not has_own:
        labels = default_labels
    if labels is None and (background is not None or templates is not None):
        labels = _own_labels(found)
    if labels is not None:
        if background is None:
            background = found.config.background
        if background is not None:
            labels = [name for name in labels if name.lower() != BACKGROUND]
        if isinstance(background, Mapping) and set(background) != set(labels):
            raise ValueError(
                f"background: {model} has thresholds of {name_some(background)}, the labels are {name_some(labels)}; "
                "want one threshold"
            )
        found.set_labels(list(labels), processor, templates=templates, background=background)
    elif not has_own:
        raise ValueError(f"labels: {model} has none; name them")
    return SegmentationModel(found, processor, _names(found))


def _names(model) -> tuple[str, ...]:
    return tuple(model.config.id2label[label] for label in range(len(model.config.id2label)))


def _own_labels(model) -> list[list[str]]:
    """The texts of the labels that a model was saved with."""
    texts, config = model.config.label_texts, model.config
    if texts is None:
        return model.labels_with_texts()
    names = _names(model)
    own = config.background is not None and not config.background_has_own_channel  # the background is a text, too
    return [text for text, name in zip(texts, names, strict=False) if not (own and name == config.background_label)]


@dataclass(frozen=True)
class LabelsOfData:
    """Which class of the data each label of a model is.

    Attributes:
        classes: (labels,) int64; a label that the data does not have is C, which no pixel is.
        unknown: the labels that the data does not have. missing: the classes that the model does not have.
    """

    classes: torch.Tensor
    unknown: tuple[str, ...]
    missing: tuple[str, ...]


def match_labels(labels: Sequence[str], class_names: Sequence[str], background: int | None = None) -> LabelsOfData:
    """By name, in any case.

    Args:
        background: the label that is the background whatever its name.

    Raises:
        ValueError: no label is a class.

    Example:
        >>> match_labels(["Sky", "cat"], ["background", "cat", "sky"]).classes
        tensor([2, 1])
    """
    place = {name.lower(): number for number, name in enumerate(class_names)}
    names = [BACKGROUND if number == background else name.lower() for number, name in enumerate(labels)]
    classes = torch.tensor([place.get(name, len(class_names)) for name in names])
    if not any(name in place for name in names if name != BACKGROUND):
        raise ValueError(f"labels: none of {name_some(labels)} is a class of the data, {name_some(class_names)}")
    unknown = tuple(label for label, name in zip(labels, names, strict=True) if name not in place)
    return LabelsOfData(classes, unknown, tuple(n for n in class_names if n.lower() not in names))


@torch.no_grad()
def measure_segmentation(
    segmenter: SegmentationModel,
    data: LabelMaps,
    windows: Windows | None = None,
    oracle: bool = False,
    boundary: int = 5,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Mean IoU over a data set, at the size of its label maps; over all ranks, the same numbers as one process.

    Args:
        windows: default: images are seen whole.
        oracle: also "oracle" and "oracle_without_boundaries", figures of `GroupOracle`; for models whose outputs have
            `group_maps`, `group_scores` and `group_embeds`. Groups are those of whole images.
        boundary: pixels around borders that the second leaves out.
        advance: called with the number of images done by this process.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy`, `per_class_iou` and `per_class_accuracy` (class -> number or
        None), `images`, `missing_classes`, `unknown_labels`, and the oracles' figures.

    Raises:
        ValueError: labels that do not fit, a model without groups for the oracle, unreadable images or maps.
    """
    windows = windows or Windows()
    names = data.class_names
    matched = match_labels(segmenter.labels, names, segmenter.background)
    metric = MeanIoU(len(names), ignore_index=data.ignore_index)
    analyses = [_oracle_for(segmenter, data, matched, width) for width in (0, boundary)] if oracle else []
    count = torch.zeros(1, dtype=torch.int64)
    for done, index in enumerate(_own_rows(len(data)), start=1):
        image, label_map = data.image(index), torch.from_numpy(data.label_map(index))
        size = tuple(label_map.shape)
        if image.size != size[::-1]:
            of_image = f"{image.width} x {image.height}"
            raise ValueError(f"label map {index}: {size[1]} x {size[0]} pixels, its image {of_image}")
        inputs = segmenter.processor(images=image, return_tensors="pt").to(segmenter.model.device)
        outputs = segmenter.model(**inputs) if analyses or not windows.several_views else None
        predicted = _label_map(segmenter, inputs, outputs, windows, size)
        metric.update(matched.classes[predicted.cpu()], label_map)
        for analysis in analyses:
            _analyse(analysis, outputs, label_map, segmenter, matched)
        count += 1
        if advance is not None:
            advance(done)
    metric.all_reduce()
    _sum_over_ranks(count)
    found = metric.compute()
    result: dict[str, Any] = {name: found[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    for name, values in (("per_class_iou", "per_category_iou"), ("per_class_accuracy", "per_category_accuracy")):
        result[name] = dict(zip(names, map(_number, found[values]), strict=True))
    result |= {"images": int(count), "missing_classes": matched.missing, "unknown_labels": matched.unknown}
    for name, analysis in zip(("oracle", "oracle_without_boundaries"), analyses, strict=False):
        analysis.load_state(_sum_over_ranks(analysis.state()))
        result[name] = analysis.figures()
    return result


def calibrate_background(segmenter: SegmentationModel, data: LabelMaps, **options: Any) -> dict[str, float]:
    """Give each label of a model that has `calibrate_background` a threshold of its own, on these images; returns
    label -> threshold. The model has them afterwards.

    Args:
        options: of the model's `calibrate_background`: shrinkage, window, …

    Raises:
        ValueError: another model, a class that the model does not have, or as in `calibrate_background`.
    """
    if not hasattr(segmenter.model, "calibrate_background"):
        raise ValueError(f"calibrate: {type(segmenter.model).__name__} has no thresholds of labels to calibrate")
    matched = match_labels(segmenter.labels, data.class_names, segmenter.background)
    if matched.missing:
        raise ValueError(f"calibrate: the model has no label {name_some(matched.missing)}")
    ignored = segmenter.model.config.semantic_loss_ignore_index
    of_class = torch.full((max(len(data.class_names), data.ignore_index + 1),), ignored)
    for label, c in enumerate(matched.classes.tolist()):
        if c < len(data.class_names):
            of_class[c] = label

    def labelled() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in range(len(data)):
            label_map = of_class[torch.from_numpy(data.label_map(index))].numpy()
            inputs = segmenter.processor(
                images=data.image(index), segmentation_maps=label_map, return_tensors="pt", do_reduce_labels=False
            )
            yield inputs["pixel_values"][0], inputs["labels"][0]

    return segmenter.model.calibrate_background(labelled(), **options)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _own_rows(count: int) -> Iterator[int]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return iter(range(rank, count, ranks))


def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        there = values.cuda() if dist.get_backend() == "nccl" else values
        dist.all_reduce(there)
        values.copy_(there)
    return values


def _label_map(segmenter, inputs, outputs, windows: Windows, size: tuple[int, int]) -> torch.Tensor:
    """(H, W) of the model's labels, at the size of the image."""
    if windows.several_views:
        pixels = inputs["pixel_values"]
        window = windows.window or max(round(max(windows.scales) * edge) for edge in pixels.shape[-2:])
        if not isinstance(segmenter.model, PromptableSegmentationMixin):
            raise ValueError("windows: a model with fixed labels sees images whole; want one that takes texts")
        logits = segmenter.model.sliding_window_logits(
            pixels, window, windows.stride, scales=windows.scales, flip=windows.flip
        )
        outputs = type("Logits", (), {"logits": logits})
    process = getattr(segmenter.processor, "post_process_semantic_segmentation", post_process_semantic_segmentation)
    return process(outputs, target_sizes=[size])[0]


def _oracle_for(segmenter, data: LabelMaps, matched: LabelsOfData, boundary: int) -> GroupOracle:
    if (matched.classes == len(data.class_names)).any() or matched.missing:
        unknown, missing = name_some(matched.unknown), name_some(matched.missing)
        raise ValueError(
            f"labels: the oracle analysis wants the classes of the data; unknown: {unknown or 'none'}, missing: "
            f"{missing or 'none'}"
        )
    background = None if segmenter.background is None else int(matched.classes[segmenter.background])
    return GroupOracle(len(data.class_names), background, data.ignore_index, boundary)


def _analyse(analysis: GroupOracle, outputs, label_map, segmenter: SegmentationModel, matched: LabelsOfData) -> None:
    parts = [getattr(outputs, name, None) for name in ("group_maps", "group_scores", "group_embeds")]
    if any(part is None for part in parts):
        raise ValueError(
            f"oracle: {type(segmenter.model).__name__} does not group pixels; want a model with group_maps and "
            "group_scores in its output"
        )
    maps, scores, embeds = (part[0].float().cpu() for part in parts)
    groups = group_ids(maps[None], tuple(label_map.shape))[0]
    texts = outputs.class_embeddings.float().cpu()
    counts = segmenter.model.config.label_texts
    if counts is not None and any(len(one) > 1 for one in counts):  # a label's synonyms as one
        texts = torch.stack([part.mean(0) for part in texts.split(list(map(len, counts)))])
    # From the model's order of labels to the data's of classes.
    own = [label for label in range(len(segmenter.labels)) if label != segmenter.background]
    order = matched.classes[own].argsort()
    is_background = getattr(outputs, "group_background", None)
    is_background = None if is_background is None else is_background[0].cpu()
    full = embeds @ texts.T
    analysis.add(groups, label_map, scores[:, order], is_background, embeds, texts[order], full[:, order] + 1)


__all__ = [
    "LabelsOfData",
    "SegmentationModel",
    "Windows",
    "calibrate_background",
    "load_segmentation_model",
    "match_labels",
    "measure_segmentation",
]
