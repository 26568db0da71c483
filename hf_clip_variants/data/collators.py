"""Collators: rows of a data set to batches for `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


LABEL_KEYS = ("labels", "label")


def _column(rows: Sequence[Mapping], keys: Sequence[str], collator: str) -> list:
    if not rows:
        raise ValueError(f"{collator}: got an empty batch")
    key = next((k for k in keys if k in rows[0]), None)
    if key is None:
        raise ValueError(
            f"{collator}: rows have {sorted(rows[0])}; want {' or '.join(map(repr, keys))}. "
            "With Trainer, pass remove_unused_columns=False."
        )
    return [row[key] for row in rows]


class ImageClassificationCollator:
    """Rows of a PIL image and a label -> `{"pixel_values": (B, 3, H, W) float, "labels": (B,) int64}`.

    Where a label is a list, of 0 and 1 for each class, labels are (B, C) float32. Reads rows of `ImageSet.dataset`.
    `Trainer` needs `remove_unused_columns=False`: it would drop the column `image`.

    Args:
        processor: an image processor, or a processor that holds one.
        image_column (`str`): default "image".
    """

    def __init__(self, processor: Any, image_column: str = "image"):
        self.processor = getattr(processor, "image_processor", processor)
        self.image_column = image_column

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        images = _column(rows, [self.image_column], type(self).__name__)
        labels = _column(rows, LABEL_KEYS, type(self).__name__)
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        one_each = not isinstance(labels[0], Sequence)
        dtype = torch.long if one_each else torch.float32
        return {"pixel_values": pixel_values, "labels": torch.as_tensor(labels, dtype=dtype)}


class FeatureCollator:
    """Rows of a [`FeatureDataset`] -> `{"image_features": (B, D), "labels": (B,) int64}`."""

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        features = torch.stack(_column(rows, ["image_features"], type(self).__name__))
        labels = torch.as_tensor(_column(rows, LABEL_KEYS, type(self).__name__), dtype=torch.long)
        return {"image_features": features, "labels": labels}


class ImageTextCollator:
    """Rows of an image and a text -> what contrastive training takes, with `return_loss=True`.

    Without `return_loss` a CLIP-style model returns no loss, since there are no labels, and `Trainer` stops.
    Texts are padded to the longest of the batch and cut at the tokenizer's maximum.

    Args:
        processor: a processor with image processor and tokenizer.
        image_column, text_column (`str`): default "image" and "text".
    """

    def __init__(self, processor: Any, image_column: str = "image", text_column: str = "text"):
        self.processor = processor
        self.image_column = image_column
        self.text_column = text_column

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Any]:
        images = _column(rows, [self.image_column], type(self).__name__)
        texts = _column(rows, [self.text_column], type(self).__name__)
        batch = self.processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
        return {**batch, "return_loss": True}


class TwoViewsCollator:
    """Rows of [`TwoViews`] and a text -> what [`SLIPForPreTraining`] takes; texts as in [`ImageTextCollator`].

    Args:
        tokenizer: a tokenizer, or a processor that holds one.
        text_column (`str`): default "text".
    """

    def __init__(self, tokenizer: Any, text_column: str = "text"):
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.text_column = text_column

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Any]:
        names = ("pixel_values", "pixel_values_aug1", "pixel_values_aug2")
        pixels = {name: torch.stack(_column(rows, [name], type(self).__name__)) for name in names}
        texts = _column(rows, [self.text_column], type(self).__name__)
        return {
            **self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt"),
            **pixels,
            "return_loss": True,
        }


class SegmentationCollator:
    """Rows of an image and a label map -> `{"pixel_values": (B, 3, H, W), "labels": (B, H, W)}`, padded to one size.

    For a model that segments by text, with `class_embeddings`: also those of the batch's labels, (n, D), and `labels`
    are numbers of these. A step then costs as much as its labels, not as all of a large data set: those that are in
    the batch, the `always` ones, and others by chance up to `labels_at_once`. `Trainer` needs
    `remove_unused_columns=False`.

    Args:
        processor: a [`DenseImageProcessor`], or a processor that holds one.
        class_embeddings: (N, D), as `model.embed_texts(names, processor)` gives them. None: the model's own labels.
        labels_at_once (`int`, *optional*): labels of a batch; more if more are in it. None: all N.
        always (`Sequence[int]`): labels of every batch, such as that of the background.
        image_column, label_column (`str`): default "image" and "label_map".

    Raises:
        ValueError: rows without these columns, a label that `class_embeddings` does not have.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants import DenseImageProcessor
    >>> from hf_clip_variants.data import SegmentationCollator, make_scenes

    >>> scenes = make_scenes(8, class_names=["cat", "taco", "whale", "dog"], size=64)
    >>> collate = SegmentationCollator(DenseImageProcessor(), torch.randn(5, 256), labels_at_once=3, always=[0])
    >>> batch = collate([scenes[0]])
    >>> batch["class_embeddings"].shape, int(batch["labels"].max()) < 3
    (torch.Size([3, 256]), True)
    ```
    """

    def __init__(
        self,
        processor: Any,
        class_embeddings: torch.Tensor | None = None,
        labels_at_once: int | None = None,
        always: Sequence[int] = (),
        image_column: str = "image",
        label_column: str = "label_map",
    ):
        if labels_at_once is not None and (class_embeddings is None or labels_at_once < 1):
            wanted = "class_embeddings with it" if class_embeddings is None else "at least 1"
            raise ValueError(f"labels_at_once: got {labels_at_once}; want {wanted}")
        self.processor = getattr(processor, "image_processor", processor)
        self.class_embeddings = class_embeddings
        self.labels_at_once, self.always = labels_at_once, torch.as_tensor(list(always), dtype=torch.long)
        self.image_column, self.label_column = image_column, label_column

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        images, maps = (_column(rows, [name], type(self).__name__) for name in (self.image_column, self.label_column))
        batch = dict(self.processor(images, maps, return_tensors="pt"))
        if self.class_embeddings is None:
            return batch
        if self.labels_at_once is None:
            return batch | {"class_embeddings": self.class_embeddings}
        labels, ignored = batch["labels"], self.processor.ignore_index
        chosen = self._chosen(labels[labels != ignored].unique())
        numbers = torch.full((len(self.class_embeddings),), ignored)
        numbers[chosen] = torch.arange(len(chosen))
        counted = labels != ignored
        labels[counted] = numbers[labels[counted]]
        return batch | {"class_embeddings": self.class_embeddings[chosen]}

    def _chosen(self, present: torch.Tensor) -> torch.Tensor:
        """Labels of the batch, in their order."""
        count = len(self.class_embeddings)
        if len(present) and not 0 <= present.min() <= present.max() < count:
            wrong = present[(present < 0) | (present >= count)].tolist()
            raise ValueError(f"{self.label_column}: label {wrong[0]}; want 0..{count - 1}, as class_embeddings has")
        needed = torch.cat([self.always, present]).unique()
        others = torch.randperm(count)
        others = others[~torch.isin(others, needed)][: max(self.labels_at_once - len(needed), 0)]
        return torch.cat([needed, others]).sort().values
