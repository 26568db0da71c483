"""Mean IoU of label maps, in three conventions, streamed over batches and merged over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import distributed as dist

from ..modeling.dense.label_maps import argmax_labels


CONVENTIONS = ("mmseg", "encoding", "few_shot")
PADDING = -100  # what Trainer pads label maps of different sizes with


class MeanIoU:
    r"""
    Counts of pixels over a whole data set, and the IoU of each class from them.

    Args:
        num_labels: N, labels 0..N-1.
        convention: how the mean is taken.

            - `"mmseg"`: mmsegmentation's and evaluate's (`mean_iou`): over the classes that are labelled or predicted
              somewhere. A class that is predicted and never labelled counts 0, one that is neither is left out.
            - `"encoding"`: PyTorch-Encoding's (LSeg): over all N; a class that is neither counts 0.
            - `"few_shot"`: of episodes (LSeg on PASCAL-5i, COCO-20i, FSS-1000): predictions and labels are 0
              (background) and 1, each image has a class; the mean over the classes of their foreground IoU, with
              `fb_iou`, the mean of the IoU of background and foreground pooled over the classes.
        ignore_index: pixels with this label do not count, nor do those with -100 (Trainer's padding).
        reduce_labels: 0 in labels becomes `ignore_index`, all others one less; predictions stay.
        label_map: other labels for some, before that.
        nan_to_num: what stands for the IoU of a class that is neither labelled nor predicted; None: NaN.
        classes: for `"few_shot"`, the classes of the fold; None: those that had an image.

    Example:
        >>> metric = MeanIoU(num_labels=3)
        >>> metric.update(torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([[[0, 1], [1, 255]]]))
        >>> result = metric.compute()
        >>> result["mean_iou"], result["overall_accuracy"], result["per_category_iou"].tolist()
        (0.5, 0.6666666666666666, [0.5, 0.5, nan])
    """

    def __init__(
        self,
        num_labels: int,
        convention: Literal["mmseg", "encoding", "few_shot"] = "mmseg",
        ignore_index: int = 255,
        reduce_labels: bool = False,
        label_map: Mapping[int, int] | None = None,
        nan_to_num: float | None = None,
        classes: Iterable[int] | None = None,
    ):
        if convention not in CONVENTIONS:
            raise ValueError(f"convention: {convention!r}, expected one of {', '.join(CONVENTIONS)}")
        if num_labels < 1:
            raise ValueError(f"num_labels: {num_labels}, expected at least 1")
        self.num_labels, self.convention, self.ignore_index = num_labels, convention, ignore_index
        self.reduce_labels, self.label_map, self.nan_to_num = reduce_labels, dict(label_map or {}), nan_to_num
        self.classes = None if classes is None else list(classes)
        self.reset()

    def reset(self) -> None:
        # Pixels that are both, predicted, labelled; of "few_shot", first the backgrounds of all classes, then the
        # foregrounds.
        rows = 2 * self.num_labels if self.convention == "few_shot" else self.num_labels
        self.counts = torch.zeros(3, rows, dtype=torch.int64)

    def update(self, predictions: Any, labels: Any, class_ids: Any = None) -> None:
        """Counts a batch: two arrays or tensors of whole numbers of one shape, (H, W) or (B, H, W), or two lists of
        such; `class_ids` (B,) for `"few_shot"`.

        ValueError for other shapes, or predictions that are no labels.
        """
        if isinstance(predictions, list | tuple):
            ids = [None] * len(predictions) if class_ids is None else list(class_ids)
            for prediction, label, one in zip(predictions, labels, ids, strict=True):
                self.update(prediction, label, None if one is None else [one])
            return
        predictions, labels = _whole_numbers("predictions", predictions), _whole_numbers("labels", labels)
        if predictions.shape != labels.shape or predictions.dim() not in (2, 3):
            raise ValueError(
                f"predictions: shape {list(predictions.shape)} for labels {list(labels.shape)}, expected one shape, "
                "[height, width] or [batch, height, width]"
            )
        mapped = labels.clone()
        for old, new in self.label_map.items():
            mapped[labels == old] = new
        valid = (labels != PADDING) & (mapped != self.ignore_index)
        if self.reduce_labels:
            valid &= mapped != 0
            mapped = mapped - 1
        offset = torch.zeros((), dtype=torch.int64)
        if self.convention == "few_shot":
            offset = self._class_offset(class_ids, mapped)
        side = 2 if self.convention == "few_shot" else self.num_labels
        step = self.num_labels if self.convention == "few_shot" else 1
        predicted_in = valid & (predictions >= 0) & (predictions < side)
        labelled_in = valid & (mapped >= 0) & (mapped < side)
        rows = self.counts.shape[1]
        for row, (chosen, values) in enumerate(
            (
                (predicted_in & labelled_in & (predictions == mapped), predictions),
                (predicted_in, predictions),
                (labelled_in, mapped),
            )
        ):
            numbers = (values * step + offset)[chosen]
            self.counts[row] += torch.bincount(numbers, minlength=rows).cpu()

    def _class_offset(self, class_ids, labels: torch.Tensor) -> torch.Tensor:
        images = labels.shape[0] if labels.dim() == 3 else 1
        ids = torch.as_tensor([] if class_ids is None else class_ids).reshape(-1).to(labels.device)
        if len(ids) != images or not bool(((ids >= 0) & (ids < self.num_labels)).all()):
            raise ValueError(
                f"class_ids: {ids.tolist()} for {images} images, expected a class 0..{self.num_labels - 1} for each"
            )
        return ids.view(-1, 1, 1) if labels.dim() == 3 else ids.view(1, 1)

    def merge(self, *others: MeanIoU) -> MeanIoU:
        """Adds what others have counted; returns itself."""
        for other in others:
            if other.counts.shape != self.counts.shape or other.convention != self.convention:
                raise ValueError(
                    f"others: {other.num_labels} labels by {other.convention!r}, expected {self.num_labels} by "
                    f"{self.convention!r}"
                )
            self.counts += other.counts
        return self

    def all_reduce(self, group: Any = None) -> MeanIoU:
        """Adds the counts of all ranks, on each of them; returns itself. Call it once, after the last batch.

        The sums are whole numbers: the result is that of one process with all images, to the last bit.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
            on_gpu = dist.get_backend(group) == "nccl"
            counts = self.counts.cuda() if on_gpu else self.counts
            dist.all_reduce(counts, group=group)
            self.counts = counts.cpu()
        return self

    def compute(self) -> dict[str, Any]:
        """`mean_iou`, `mean_accuracy`, `overall_accuracy`, and for the N classes `per_category_iou` and
        `per_category_accuracy` (float64 arrays), as `evaluate.load("mean_iou")`; for `"few_shot"` also `fb_iou`.
        """
        both, predicted, labelled = (counts.double().numpy() for counts in self.counts)
        union = predicted + labelled - both
        if self.convention == "few_shot":
            return self._few_shot(both, labelled, union)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou, accuracy = both / union, both / labelled
            overall = both.sum() / labelled.sum()
        if self.convention == "encoding":
            iou, accuracy = np.nan_to_num(iou, nan=0.0), np.nan_to_num(accuracy, nan=0.0)
            means = iou.mean(), accuracy.mean()
        else:
            means = _nanmean(iou), _nanmean(accuracy)
        found = {"mean_iou": float(means[0]), "mean_accuracy": float(means[1]), "overall_accuracy": float(overall)}
        found |= {"per_category_iou": iou, "per_category_accuracy": accuracy}
        if self.nan_to_num is None:
            return found
        return {name: np.nan_to_num(value, nan=self.nan_to_num) for name, value in found.items()}

    def _few_shot(self, both, labelled, union) -> dict[str, Any]:
        both, labelled, union = (values.reshape(2, self.num_labels) for values in (both, labelled, union))
        seen = [c for c in range(self.num_labels) if union[:, c].any()]
        classes = seen if self.classes is None else self.classes
        iou, accuracy = both / np.maximum(union, 1), both / np.maximum(labelled, 1)
        pooled = both[:, classes].sum(axis=1) / np.maximum(union[:, classes].sum(axis=1), 1)
        return {
            "mean_iou": float(iou[1, classes].mean()) if classes else float("nan"),
            "mean_accuracy": float(accuracy[1, classes].mean()) if classes else float("nan"),
            "overall_accuracy": float(both[:, classes].sum() / max(labelled[:, classes].sum(), 1)),
            "per_category_iou": iou[1],
            "per_category_accuracy": accuracy[1],
            "fb_iou": float(pooled.mean()),
        }


def argmax_for_metrics(logits: Any, labels: torch.Tensor | None = None) -> torch.Tensor:
    """`preprocess_logits_for_metrics` for `Trainer`: (B, N, h, w) logits, or a tuple that begins with them, to label
    maps (B, H, W) at the size of `labels`. Without it, evaluation keeps the logits of all images.

    >>> argmax_for_metrics(torch.eye(2).view(1, 2, 1, 2), torch.zeros(1, 1, 4)).tolist()
    [[[0, 0, 1, 1]]]
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    if labels is None:
        return argmax_labels(logits)
    height, padded = logits.shape[-2], labels.shape[-2]
    if height < padded and logits.shape[-1] == labels.shape[-1] and bool((labels[:, height:] == PADDING).all()):
        # Of several ranks, Trainer pads the labels' height to the largest rank's, not that of logits.
        return torch.nn.functional.pad(argmax_labels(logits), (0, 0, 0, padded - height), value=PADDING)
    return argmax_labels(logits, tuple(labels.shape[-2:]))


def mean_iou_metrics(num_labels: int, **options: Any) -> Callable[..., dict[str, float]]:
    """A `compute_metrics` for `Trainer`: the scalars of `MeanIoU.compute`.

    Needs `preprocess_logits_for_metrics=argmax_for_metrics`. With `batch_eval_metrics=True` batches are counted one by
    one; without it, Trainer keeps all maps, and can join those of one width only. `options` are those of `MeanIoU`.

    >>> from transformers import EvalPrediction
    >>> compute_metrics = mean_iou_metrics(2)
    >>> compute_metrics(EvalPrediction(np.array([[[0, 1]]]), np.array([[[0, 255]]])))["mean_iou"]
    1.0
    """
    metric = MeanIoU(num_labels, **options)

    def compute_metrics(prediction: Any, compute_result: bool = True) -> dict[str, float]:
        predictions = prediction.predictions
        metric.update(predictions[0] if isinstance(predictions, tuple) else predictions, prediction.label_ids)
        if not compute_result:
            return {}
        found = metric.compute()
        metric.reset()
        return {name: float(value) for name, value in found.items() if np.ndim(value) == 0}

    return compute_metrics


def _nanmean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _whole_numbers(argument: str, values: Any) -> torch.Tensor:
    values = values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
    if values.is_floating_point() or values.is_complex():
        raise ValueError(f"{argument}: numbers of type {values.dtype}, expected whole numbers (an argmax)")
    return values.detach().long()


__all__ = ["CONVENTIONS", "MeanIoU", "argmax_for_metrics", "mean_iou_metrics"]
