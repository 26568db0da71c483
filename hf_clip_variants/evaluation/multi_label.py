"""Several labels an image: scores of many images, their metrics, and the calibration of a classifier."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..data.images.image_set import ImageSet, name_some
from ..data.images.labelled_images import LiveImages
from ..metrics.multi_label import average_precision, best_f1_thresholds, f1_scores, mean_average_precision
from ..modeling.clip_classifier.label_calibration import MULTI_LABEL, LabelCalibration, label_logits
from .finite_answers import check_answers


logger = logging.getLogger(__name__)

# N images, C classes


@dataclass(frozen=True)
class LabelScores:
    """What a classifier says of N images: uncalibrated `scores`, `probabilities` and true `labels`, (N, C) each."""

    scores: torch.Tensor
    probabilities: torch.Tensor
    labels: torch.Tensor


@torch.no_grad()
def score_labels(
    model: torch.nn.Module,
    images: ImageSet,
    processor: Any,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> LabelScores:
    """Scores of every image and class.

    Args:
        model: a `CLIPClassifier` for several labels an image, with or without an adapter. Left in eval mode.
        images: from `load_multi_label_images`, with the classes of the model.
        processor: of the model.
        batch_size: images in one pass.
        on_batch: called with the number of images done.

    Raises:
        ValueError: the model is for one label an image, or the classes differ.
    """
    base = _base_of(model)
    if base.config.problem_type != MULTI_LABEL:
        raise ValueError(
            f"model: its problem_type is {base.config.problem_type!r}; want {MULTI_LABEL!r}, as from_pretrained("
            "..., problem_type=...) sets it"
        )
    if tuple(images.class_names) != tuple(base.class_names):
        raise ValueError(
            f"images: their classes, {name_some(images.class_names)}, are not the model's, "
            f"{name_some(base.class_names)}, in the same order"
        )
    live = LiveImages(base, images, processor)
    model.eval()
    scores, probabilities = [], []
    for rows in torch.arange(len(live)).split(batch_size):
        inputs = live.batch(rows, 0)
        output = model(**inputs)
        check_answers(output.logits, model, **inputs)
        scores.append(output.logits_per_image.float().cpu())
        probabilities.append(output.logits.float().sigmoid().cpu())
        if on_batch is not None:
            on_batch(int(rows[-1]) + 1)
    return LabelScores(torch.cat(scores), torch.cat(probabilities), live.labels.cpu())


def calibrate_labels(
    model: torch.nn.Module,
    images: ImageSet,
    processor: Any,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> LabelScores:
    """Fit the scale, the bias of each class and the thresholds of a classifier to labelled images.

    Afterwards the sigmoid of its logits is the probability that a class is in an image, and `label_thresholds(model)`
    are those with the best F1 on these images. Both are saved with the model, or with the adapter if there is one.
    Take images that the model was not trained on, or its probabilities will be too sure.

    Args:
        model: a `CLIPClassifier`, with or without an adapter. Its `config.problem_type` becomes
            "multi_label_classification".
        images, processor, batch_size, on_batch: see `score_labels`.

    Returns:
        What the model says of these images before calibration.

    Raises:
        ValueError: as in `score_labels`; no image has a label.
    """
    base = _base_of(model)
    base.config.problem_type = MULTI_LABEL
    calibration = _own_calibration(model)
    before = score_labels(model, images, processor, batch_size, on_batch)
    unseen = [name for name, count in zip(base.class_names, before.labels.sum(0).tolist(), strict=True) if not count]
    if len(unseen) == len(base.class_names):
        raise ValueError("images: none of them has a label; want some for each class")
    if unseen:
        logger.warning(
            "%d of %d classes are in no image: their calibration is that of the other classes: %s",
            len(unseen),
            len(base.class_names),
            name_some(unseen),
        )
    fitted = fit_calibration(before.scores, before.labels, calibration.initial)
    thresholds = best_f1_thresholds(label_logits(before.scores, **fitted).sigmoid(), before.labels)
    with torch.no_grad():
        for name, value in (fitted | {"thresholds": thresholds}).items():
            getattr(calibration, name).copy_(value)
    return before


@torch.no_grad()
def recalibrated(model: torch.nn.Module, said: LabelScores) -> LabelScores:
    """What the model says of the same images after it was calibrated; no encoder is run."""
    calibration = _own_calibration(model)
    logits = calibration(said.scores.to(calibration.scale.device))
    return LabelScores(said.scores, logits.sigmoid().cpu(), said.labels)


def fit_calibration(
    scores: torch.Tensor, labels: torch.Tensor, initial: tuple[float, float, float], strength: float = 0.1
) -> dict[str, torch.Tensor]:
    """`scale` (), `level_scale` () and `bias` (C,) of `label_logits` with the least binary cross-entropy.

    It is a logistic regression, so the answer is unique. A Gaussian prior holds what few images do not determine: the
    classes' biases to their mean (`strength`), the two scales to their initial values, in units of the first.

    Args:
        scores: (N, C), uncalibrated.
        labels: (N, C) of 0 and 1.
        initial: scale, level_scale, bias; see `initial_calibration`.

    Example:
        >>> labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
        >>> fitted = fit_calibration(20 + 4 * labels, labels, (0.5, 0.0, 0.0))
        >>> label_logits(torch.tensor([[24.0, 20.0]]), **fitted).sigmoid().round()
        tensor([[1., 0.]])
    """
    scores, labels = scores.double(), labels.double()
    center, unit = scores.mean(), initial[0]
    scale = torch.tensor(initial[0], dtype=torch.float64, requires_grad=True)
    level_scale = torch.tensor(initial[1], dtype=torch.float64, requires_grad=True)
    mean = torch.logit(labels.mean().clamp(1e-3, 1 - 1e-3)).requires_grad_()
    offsets = scores.new_zeros(scores.shape[1]).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scale, level_scale, mean, offsets], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )
    centered = scores - center  # the level moves with the scores, so that `mean` means the same for any scores

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = label_logits(centered, scale, level_scale, mean + offsets)
        likelihood = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        scales = torch.stack([scale - initial[0], level_scale - initial[1]]) / unit
        total = likelihood + 0.5 * (strength * offsets.square().sum() + scales.square().sum())
        total.backward()
        return total

    optimizer.step(loss)
    bias = mean + offsets - (scale - level_scale) * center
    return {
        "scale": scale.detach().float(),
        "level_scale": level_scale.detach().float(),
        "bias": bias.detach().float(),
    }


def label_thresholds(model: torch.nn.Module) -> torch.Tensor:
    """(C,) the probability from which on the model names each class: 0.5 unless it was calibrated."""
    base = _base_of(model)
    if base.label_calibration is None:
        return torch.full((len(base.class_names),), 0.5)
    return base.label_calibration.thresholds.float().cpu()


def measure_labels(said: LabelScores, thresholds: torch.Tensor) -> dict[str, Any]:
    """mAP, and at the thresholds (C,) "f1_micro" and "f1_macro"; "by_class" has the numbers of each class."""
    f1 = f1_scores(said.probabilities >= thresholds, said.labels)
    return {
        "mAP": mean_average_precision(said.probabilities, said.labels),
        "f1_micro": f1["f1_micro"],
        "f1_macro": f1["f1_macro"],
        "by_class": {
            "average_precision": average_precision(said.probabilities, said.labels),
            "f1": f1["f1_by_class"],
            "images": said.labels.sum(0).long().tolist(),
        },
    }


def _base_of(model: torch.nn.Module) -> torch.nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _own_calibration(model: torch.nn.Module) -> torch.nn.Module:
    """The model's `label_calibration`, made if there is none; the active adapter's own if there is an adapter."""
    base = _base_of(model)
    if base.label_calibration is None:
        base.label_calibration = base.new_label_calibration()
    if base is not model and type(base.label_calibration) is LabelCalibration:
        from peft.utils.other import set_additional_trainable_modules

        config = model.peft_config[model.active_adapter]
        config.modules_to_save = [*(config.modules_to_save or ()), "label_calibration"]
        set_additional_trainable_modules(base, config, base.config.to_dict(), model.active_adapter)
    return base.label_calibration


__all__ = [
    "LabelScores",
    "calibrate_labels",
    "fit_calibration",
    "label_thresholds",
    "measure_labels",
    "recalibrated",
    "score_labels",
]
