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
