"""Zero-shot classification of labelled images; the model may still be in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.images.image_set import ImageSet
from ..modeling.clip.text_clip import encode_texts
from ..modeling.clip_classifier.adapter_places import ensemble_prompts
from ..modeling.dual_encoders.backbones import unit_norm
from ..modeling.dual_encoders.forward_checks import why_not_finite
from ..modeling.dual_encoders.prompts import check_names_differ, format_prompts, prompt_counts, resolve_templates


Templates = str | Sequence[str] | Mapping[str, Sequence[str]] | None
_IDS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class ZeroShotSet:
    """
    Labelled images to classify by their class names.

    Args:
        templates: as in `resolve_templates`.
    """

    name: str
    images: ImageSet
    templates: Templates = None


def text_features(model: nn.Module, tokens: Any) -> torch.Tensor:
    """Token ids and their mask -> (N, D) float32, not normalised."""
    tokens = tokens.to(next(model.parameters()).device)
    return model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output.float()


def image_features(model: nn.Module, processor: Any, images: list | torch.Tensor) -> torch.Tensor:
    """PIL images, or pixels that are normalised already -> (B, D) float32, not normalised."""
    weight = next(model.parameters())
    if not isinstance(images, torch.Tensor):
        images = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return model.get_image_features(images.to(weight.device, weight.dtype)).pooler_output.float()


def tokenize_prompts(
    processor: Any, class_names: Sequence[str], templates: Templates, batch_size: int = 1024
) -> list[Any]:
    """The prompts of C classes in T templates (or of each class) as tokens, class by class, in batches; as
    `CLIPClassifier.set_classes` does it.

    Raises:
        ValueError: bad templates or class names, see `resolve_templates`, `tokenize_texts` and `check_names_differ`.
    """
    templates = resolve_templates(templates, class_names)
    prompts = format_prompts(class_names, templates)
    options = {"what": "class prompts", "padding": True, "truncation": True, "return_tensors": "pt"}
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    tokens = [encode_texts(processor.tokenizer, batch, **options) for batch in batches]
    rows = (ids[mask > 0].numpy().tobytes() for t in tokens for ids, mask in zip(*map(t.get, _IDS), strict=True))
    counts = prompt_counts(class_names, templates)
    check_names_differ(class_names, [tuple(next(rows) for _ in range(count)) for count in counts])
    return tokens


def class_embeddings(
    model: nn.Module,
    processor: Any,
    class_names: Sequence[str],
    templates: Templates = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """(C, D) unit-norm embeddings of classes: those of a `CLIPClassifier` of the same weights.

    Prompts, tokens and ensemble are those of the classifier (but a model with `normalises_before_the_mean = False`
    averages features as they are); the encoder is the model's own `get_text_features`. The classifier itself cannot be
    used here: SLIP and AudioCLIP have no family, and FSDP gathers sharded weights only for registered methods.
    """
    tokens = tokenize_prompts(processor, class_names, templates, batch_size)
    features = torch.cat([text_features(model, batch) for batch in tokens])
    counts = prompt_counts(class_names, resolve_templates(templates, class_names))
    if not getattr(model, "normalises_before_the_mean", True):
        return unit_norm(torch.stack([of_class.mean(dim=0) for of_class in features.split(list(counts))]))
    return unit_norm(ensemble_prompts(features, counts))


@torch.no_grad()
def zero_shot_accuracy(
    model: nn.Module,
    processor: Any,
    images: ImageSet,
    templates: Templates = None,
    batch_size: int = 64,
    *,
    rank: int = 0,
    world_size: int = 1,
    summed: Callable[[torch.Tensor], torch.Tensor] = lambda counts: counts,
) -> dict[str, float]:
    """Top-1 and top-5 of classification by class names (Radford et al. 2021, section 3.1).

    Args:
        model: anything with `get_text_features` and `get_image_features`, in eval mode.
        processor: a processor with image processor and tokenizer.
        templates: as in `resolve_templates`.
        rank, world_size: this process takes every `world_size`-th image, from the `rank`-th on.
        summed: counts of this process -> counts of all.

    Raises:
        ValueError: answers with NaN or infinity; the cause is named.
    """
    classes = class_embeddings(model, processor, images.class_names, templates, batch_size)
    device, k = classes.device, min(5, len(classes))
    # Every process takes the same number of images, since the forward pass of a sharded encoder is a collective
    # operation. If the number does not divide, the last image is repeated and counted once.
    rows = range(rank, -(-len(images) // world_size) * world_size, world_size)
    counts = torch.zeros(3, device=device)  # top-1 hits, top-5 hits, images
    for start in range(0, len(rows), batch_size):
        batch = [min(row, len(images) - 1) for row in rows[start : start + batch_size]]
        counted = torch.tensor([row < len(images) for row in rows[start : start + batch_size]], device=device)
        labels = torch.tensor([int(images.labels[i]) for i in batch], device=device)
        embeddings = unit_norm(image_features(model, processor, [images.image(i) for i in batch]))
        similarity = embeddings @ classes.T
        hits = (similarity.topk(k, dim=1).indices == labels[:, None]) & counted[:, None]
        # What is no number makes the sum of all processes none: all of them stop, and no one waits for another.
        seen = counted.sum() + 0 * similarity.sum()
        counts += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), seen])
    top1, top5, number = summed(counts).tolist()
    if number != number:
        raise ValueError(why_not_finite(model, "similarity of images and classes"))
    return {"top1": top1 / number, "top5": top5 / number}


__all__ = [
    "ZeroShotSet",
    "class_embeddings",
    "image_features",
    "text_features",
    "tokenize_prompts",
    "zero_shot_accuracy",
]
