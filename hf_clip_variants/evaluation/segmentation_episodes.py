"""Few-shot segmentation by the name of the class: two texts for each image, the mean IoU of the fold's classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch

from ..data.segmentation_episodes import Episode
from ..metrics.segmentation import MeanIoU


@torch.no_grad()
def evaluate_episodes(
    model: Any,
    processor: Any,
    episodes: Iterable[Episode],
    class_names: Sequence[str],
    *,
    classes: Sequence[int] | None = None,
    background: str = "others",
    size: int | None = 480,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Segments each image by the two texts `[background, name of its class]`, and compares the foreground.

    The class embeddings are computed once for each class.

    Args:
        model: that segments by text, such as [`LSegForSemanticSegmentation`].
        processor: its processor.
        episodes: as `draw_episodes` gives them; every one counts.
        class_names: name of each class, by `class_id`.
        classes: of the fold, over which the mean is; default: those that have an episode.
        background: the text for everything else. LSeg was trained with "others".
        size: images become squares of this side, as in the official evaluation, which does not keep their shape; None
            leaves that to the processor.
        batch_size: images at once.

    Returns:
        `mean_iou` (of the foreground, over classes), `fb_iou` (mean of the IoU of background and foreground, pooled
        over classes), `per_category_iou` (one for each of `class_names`), `episodes`: how many.

    Raises:
        ValueError: no episodes, or a class without name.
    """
    device = next(model.parameters()).device
    metric = MeanIoU(len(class_names), "few_shot", classes=classes)
    texts: dict[int, torch.Tensor] = {}
    options = {} if size is None else {"size": {"height": size, "width": size}}
    training, count, remaining = model.training, 0, iter(episodes)
    model.eval()
    try:
        while batch := list(islice(remaining, batch_size)):
            for one in {episode.class_id for episode in batch} - texts.keys():
                if not 0 <= one < len(class_names):
                    raise ValueError(f"class_names: {len(class_names)} names, but an episode has class {one}")
                texts[one] = model.embed_texts([background, class_names[one]], processor)
            images = getattr(processor, "image_processor", processor)
            inputs = images(
                [episode.image for episode in batch],
                [episode.mask for episode in batch],
                return_tensors="pt",
                **options,
            )
            embeddings = torch.stack([texts[episode.class_id] for episode in batch])
            logits = model(
                pixel_values=inputs["pixel_values"].to(device), class_embeddings=embeddings.to(device)
            ).logits
            metric.update(logits.argmax(1).cpu(), inputs["labels"], [episode.class_id for episode in batch])
            count += len(batch)
    finally:
        model.train(training)
    if not count:
        raise ValueError("episodes: none, expected at least one")
    found = metric.compute()
    return {name: found[name] for name in ("mean_iou", "fb_iou", "per_category_iou")} | {"episodes": count}


__all__ = ["evaluate_episodes"]
