"""How much detections of a name depend on the other names in its prompt: the same names in prompts of other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..metrics.detection import DetectionMetrics


if TYPE_CHECKING:
    from ..data.detection_sets import DetectionSet


@dataclass(frozen=True)
class PromptDrift:
    """The detections with prompts of one size, compared with those of the first size.

    Of each image and name the best score counts, 0 where nothing was found.

    Attributes:
        names_per_prompt: the most names in a prompt; None: as many as fit.
        prompts: how many prompts of an image there were.
        mean_change, max_change: of a best score, over the pairs of image and name where one of the two is above 0.
        same_best: share of images whose best detection has the same name.
        metrics: AP and AR, where the images have objects.
    """

    names_per_prompt: int | None
    prompts: int
    mean_change: float
    max_change: float
    same_best: float
    metrics: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def measure_prompt_drift(
    model: Any,
    processor: Any,
    data: DetectionSet,
    splits: Sequence[int | None] = (None, 10, 1),
    **options: Any,
) -> list[PromptDrift]:
    """Finds all class names of a data set with prompts of several sizes.

    Args:
        model: a detector that reads names in prompts, in eval mode.
        processor: its processor, which takes `names_per_prompt`.
        data: images, their objects, which may be none, and class names.
        splits: the most names in a prompt, of which the first is what others are compared with; None: as many as fit.
        options: of `processor.post_process_grounded_object_detection`.

    Raises:
        ValueError: no image, no split, or one that is no number of at least 1.
    """
    if not len(data):
        raise ValueError("data: no image, expected at least one")
    if not splits or any(one is not None and (not isinstance(one, int) or one < 1) for one in splits):
        raise ValueError(f"splits: {list(splits)}, expected numbers of at least 1, or None")
    names = list(data.class_names)
    found, first = [], None
    for count in splits:
        prompt = processor(text=names, names_per_prompt=count).to(model.device)
        prompts = prompt["input_ids"].shape[1] if prompt["input_ids"].dim() == 3 else 1
        best = torch.zeros(len(data), len(names))
        metrics = DetectionMetrics(num_labels=len(names))
        for i in range(len(data)):
            image = data.images[i].convert("RGB")
            inputs = processor(images=[image]).to(model.device)
            outputs = model(**inputs, **prompt)
            (one,) = processor.post_process_grounded_object_detection(
                outputs, target_sizes=[(image.height, image.width)], text_labels=names, **options
            )
            scores, labels = one["scores"].float().cpu(), one["labels"].cpu()
            best[i].scatter_reduce_(0, labels, scores, "amax")
            prediction = {
                "scores": scores.numpy(),
                "labels": labels.numpy(),
                "boxes": one["boxes"].float().cpu().numpy(),
            }
            metrics.add(i, prediction, data.target(i))
        first = best if first is None else first
        changes = (best - first).abs()[(best > 0) | (first > 0)]
        same = (best.argmax(dim=1) == first.argmax(dim=1)) & ((best.amax(dim=1) > 0) == (first.amax(dim=1) > 0))
        found.append(
            PromptDrift(
                names_per_prompt=count,
                prompts=prompts,
                mean_change=float(changes.mean()) if len(changes) else 0.0,
                max_change=float(changes.max()) if len(changes) else 0.0,
                same_best=float(same.float().mean()),
                metrics=metrics.compute() if any(data.annotations) else {},
            )
        )
    return found


__all__ = ["PromptDrift", "measure_prompt_drift"]
