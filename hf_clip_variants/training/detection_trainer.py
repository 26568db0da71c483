"""`Trainer` for models that find objects by texts, whose evaluation is COCO's average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..data.crops.detection_rows import DetectionCollator, DetectionRows
from ..data.detection_sets import DetectionSet
from ..metrics.detection import DetectionMetrics
from .atomic_trainer import AtomicTrainer


class TextDetectionCollator(DetectionCollator):
    """Batches of a detector: also with the token ids of `labels`, for models that do not store them (`set_labels`)."""

    def __init__(self, processor: Any, masks: bool = False, labels: Sequence[str] | None = None):
        super().__init__(processor, masks)
        self.texts = {} if labels is None else dict(processor(text=list(labels), return_tensors="pt"))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return super().__call__(rows) | self.texts


class DetectionTrainer(AtomicTrainer):
    """
    An [`AtomicTrainer`] whose `evaluate` gives AP, AP50, AP75, AR, and those of groups of classes.

    Every process evaluates its share of the images, and all get the numbers that one process would.

    Args:
        eval_dataset ([`DetectionSet`], *optional*).
        groups: name -> labels, such as `{"base": […], "novel": […]}`.
        freeze_batch_norm: batch norm keeps its statistics, as fine-tuning with small batches wants it.
        eval_images: of a batch in the evaluation; its images are padded to one size.
        **kwargs: `AtomicTrainer`'s; `data_collator` is a [`TextDetectionCollator`], `processing_class` the processor.
    """

    def __init__(
        self,
        *args: Any,
        eval_dataset: DetectionSet | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        freeze_batch_norm: bool = False,
        eval_images: int = 1,
        **kwargs: Any,
    ):
        super().__init__(*args, eval_dataset=eval_dataset, **kwargs)
        self.groups, self.eval_images = dict(groups or {}), eval_images
        self.frozen = [
            module
            for module in self.model.modules()
            if freeze_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]

    def compute_loss(self, model, inputs, *args, **kwargs):
        for module in self.frozen:
            module.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """`<prefix>_AP`, … and `<prefix>_<group>/AP`, …"""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        model, collate = self.model, self.data_collator
        processor = self.processing_class
        rows = DetectionRows(data.images, [[] for _ in range(len(data))])
        metrics = DetectionMetrics(num_labels=len(data.class_names), groups=self.groups)
        training = model.training
        model.eval()
        mine = range(self.args.process_index, len(data), self.args.world_size)
        for start in range(0, len(mine), self.eval_images):
            chosen = mine[start : start + self.eval_images]
            items = [rows[i] for i in chosen]
            batch = self._prepare_inputs(collate(items))
            batch.pop("labels")
            with self.compute_loss_context_manager():
                outputs = model(**batch)
            sizes = [(item["image"].height, item["image"].width) for item in items]
            find = getattr(processor, "post_process_grounded_object_detection", None)
            find = find or processor.post_process_object_detection
            for i, one in zip(chosen, find(outputs, threshold=0.0, target_sizes=sizes), strict=True):
                found = {name: one[name].float().cpu().numpy() for name in ("scores", "labels", "boxes")}
                metrics.add(i, found, data.target(i))
        model.train(training)
        found = {f"{metric_key_prefix}_{name}": value for name, value in metrics.compute().items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


__all__ = ["DetectionTrainer", "TextDetectionCollator"]
