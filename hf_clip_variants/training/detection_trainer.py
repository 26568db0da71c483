"""`Trainer` for models that find objects by texts, whose evaluation is COCO's average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.crops.detection_rows import DetectionCollator, DetectionRows
from ..data.detection_sets import DetectionSet
from ..metrics.detection import DetectionMetrics
from .atomic_trainer import AtomicTrainer


class TextDetectionCollator(DetectionCollator):
    """Batches of a detector, with the token ids of what is looked for, for models that do not store `labels`.

    Args:
        processor: the model's.
        masks: as `DetectionCollator`.
        labels: class names. By default each image's prompt has all of them.
        others: each image's prompt has the names of its objects, and at most so many others, which are drawn for each
            row and epoch (`processor.draw_names`).

    Rows with a caption have that one for a prompt; each object's `tokens_positive` say which phrase it is.
    """

    def __init__(
        self, processor: Any, masks: bool = False, labels: Sequence[str] | None = None, others: int | None = None
    ):
        super().__init__(processor, masks)
        if others is not None and not hasattr(processor, "draw_names"):
            raise ValueError(f"others: {others}, but {type(processor).__name__} makes no prompts of several names")
        self.processor, self.labels, self.others = processor, list(labels or ()), others
        self.texts = dict(processor(text=self.labels, return_tensors="pt")) if self.labels else {}

    def check_one_prompt(self) -> None:
        """ValueError if all labels make several prompts, which a model cannot be trained with."""
        ids = self.texts.get("input_ids")
        if ids is not None and ids.dim() == 3:
            raise ValueError(
                f"data: {len(self.labels)} class names make {ids.shape[1]} prompts, training takes one; want "
                "--other-names 85: prompts of an image's own names and some others"
            )

    def check_captions(self, captions: Sequence[str]) -> None:
        """ValueError that names the first caption that has too many tokens: nothing is cut off."""
        longest = self.processor.max_text_length
        for start in range(0, len(captions), 1000):
            some = list(captions[start : start + 1000])
            counts = [len(ids) for ids in self.processor.tokenizer(some, split_special_tokens=True).input_ids]
            for i, count in enumerate(counts, start):
                if count > longest:
                    raise ValueError(
                        f"grounding: the caption of image {i} has {count} tokens, the model reads {longest}; shorten "
                        "it or leave the image out"
                    )

    def evaluation_batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """With all labels."""
        return super().__call__(rows) | self.texts

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self.others is None and not any("caption" in row for row in rows):
            return self.evaluation_batch(rows)
        captions, phrases, marked = [], [], []
        for row in rows:
            caption, spans, marks = self._of_caption(row) if "caption" in row else self._of_names(row)
            captions.append(caption)
            phrases.append(spans)
            marked.append({**row, "annotations": marks})
        prompts = dict(self.processor(captions=captions, phrases=phrases, return_tensors="pt"))
        if "is_caption" in prompts:  # class names went in as sentences, too
            prompts["is_caption"] = torch.tensor(["caption" in row for row in rows])
        return super().__call__(marked) | prompts

    def _of_names(self, row: Mapping[str, Any]) -> tuple[str, list, list[dict]]:
        marks = row["annotations"]
        kept = list(range(len(self.labels)))
        if self.others is not None:
            generator = np.random.default_rng([*row["draw"], 1])  # 1: other numbers than the row's own
            present = [mark["category_id"] for mark in marks]
            kept = self.processor.draw_names(self.labels, present, generator, max_others=self.others)
        place = {label: number for number, label in enumerate(kept)}
        marks = [mark | {"category_id": place[mark["category_id"]]} for mark in marks if mark["category_id"] in place]
        return *self.processor.caption_of([self.labels[label] for label in kept]), marks

    def _of_caption(self, row: Mapping[str, Any]) -> tuple[str, list, list[dict]]:
        caption, places = row["caption"], {}
        marks = []
        for mark in row["annotations"]:
            spans = tuple(tuple(span) for span in mark["tokens_positive"])
            marks.append(mark | {"category_id": places.setdefault(spans, len(places))})
        # Of a caption without any object, every word is one that is not there.
        return caption, [list(spans) for spans in places] or [[(0, len(caption))]], marks


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
        model, collate = self.model, getattr(self.data_collator, "evaluation_batch", self.data_collator)
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
