"""The logits and the most likely class of each of many labelled images. Imports torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .finite_answers import check_answers


if TYPE_CHECKING:
    from ..data.images.labelled_images import LabelledImages


@dataclass(frozen=True)
class ClassLogits:
    """What a classifier says about N images."""

    logits: torch.Tensor  # (N, C) float32
    image_embeds: torch.Tensor  # (N, D) float32, unit norm
    text_embeds: torch.Tensor  # (C, D) float32, unit norm; of the last batch where they depend on the images


@torch.no_grad()
def class_logits(model: torch.nn.Module, images: LabelledImages, batch_size: int = 1024) -> ClassLogits:
    """Logits and embeddings of N images, in the plain view. The model is left in eval mode."""
    model.eval()
    outputs = [model(**images.batch(rows, 0)) for rows in torch.arange(len(images)).split(batch_size)]
    for output in outputs:
        check_answers(output.logits, model)
    together = [torch.cat([getattr(o, name).float() for o in outputs]) for name in ("logits", "image_embeds")]
    return ClassLogits(*together, outputs[-1].text_embeds.float())


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    images: LabelledImages,
    batch_size: int = 1024,
    on_batch: Callable[[int], None] | None = None,
    columns: Sequence[int] | None = None,
    top: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify N images.

    Args:
        model: a classifier, with or without an adapter. Left in eval mode.
        images: `CachedImages` or `LiveImages`.
        batch_size: images per forward pass.
        on_batch: called with the number of images done.
        columns: choose among these classes of the model only. Default: all of them.
        top: return this many classes of each image, or all of them where there are fewer.

    Returns:
        (N,) int64, the most likely class as its index in `columns`, and (N,) float32, its probability among them.
        With `top`, both are (N, top), best first.
    """
    model.eval()
    predicted, confidence = [], []
    for rows in torch.arange(len(images)).split(batch_size):
        inputs = images.batch(rows, 0)
        logits = model(**inputs).logits.float()
        check_answers(logits, model, **inputs)
        logits = logits if columns is None else logits[:, list(columns)]
        best = logits.topk(min(top or 1, logits.shape[1]), dim=1)  # many probabilities may be 0
        predicted.append(best.indices.cpu())
        confidence.append(logits.softmax(dim=1).gather(1, best.indices).cpu())
        if on_batch is not None:
            on_batch(int(rows[-1]) + 1)
    found = torch.cat(predicted), torch.cat(confidence)
    return found if top is not None else (found[0][:, 0], found[1][:, 0])


__all__ = ["ClassLogits", "class_logits", "predict"]
