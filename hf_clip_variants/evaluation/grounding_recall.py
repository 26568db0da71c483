"""How well a detector finds the phrases of sentences: recall of its best boxes, as for Flickr30K Entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..metrics.detection import phrase_recall


if TYPE_CHECKING:
    from ..data.detection_sets import DetectionSet


@torch.inference_mode()
def measure_grounding_recall(
    model: Any,
    processor: Any,
    data: DetectionSet,
    groups: Mapping[str, Sequence[int]] | None = None,
    counts: Sequence[int] = (1, 5, 10),
    batch_size: int = 4,
    progress: Any = None,
) -> dict[str, float]:
    """Finds the phrases of each caption and compares their best boxes with the objects that they speak of.

    A phrase is found if one of its best boxes overlaps one of its objects by at least 0.5 (the "any box" protocol).
    The 1000 best detections of an image count, without a smallest score. Images without objects are left out.

    Args:
        model: a detector that reads captions, in eval mode.
        processor: its processor.
        data: from `load_grounding_set`: captions, objects with `tokens_positive`.
        groups: name -> labels (`category_id`), such as `{"base": […], "novel": […]}`: the recall of phrases that speak
            of such objects.
        counts: K of R@K.
        batch_size: images in one pass, which are padded to one size.
        progress: called with the number of images after each pass.

    Returns:
        `R@K` and `<group>/R@K` in 0..1; NaN where there is no phrase.

    Raises:
        ValueError: no caption.
    """
    if data.captions is None:
        raise ValueError("data: no captions, expected a set of load_grounding_set")
    found: dict[str, tuple[list, list]] = {name: ([], []) for name in ("", *(f"{one}/" for one in groups or {}))}
    chosen = [i for i in range(len(data)) if data.annotations[i]]
    for start in range(0, len(chosen), batch_size):
        some = chosen[start : start + batch_size]
        images = [data.images[i].convert("RGB") for i in some]
        phrases = [_phrases(data, i) for i in some]
        spans = [[[tuple(span) for span in one] for one in own] for own in phrases]
        inputs = processor(images, captions=[data.captions[i] for i in some], phrases=spans, return_tensors="pt")
        detections = processor.post_process_grounded_object_detection(
            model(**inputs.to(model.device)),
            target_sizes=[(image.height, image.width) for image in images],
            score_threshold=0.0,
            max_detections=1000,
        )
        for own, one in zip(phrases, detections, strict=True):
            labels, boxes = one["labels"].cpu(), one["boxes"].float().cpu()
            for place, (wanted, categories) in enumerate(own.values()):
                best = boxes[labels == place].numpy()
                names = [""] + [f"{name}/" for name, members in (groups or {}).items() if categories & {*members}]
                for name in names:
                    found[name][0].append(best)
                    found[name][1].append(wanted)
        if progress is not None:
            progress(start + len(some))
    return {
        f"{name}R@{count}": phrase_recall(boxes, wanted, count)
        for name, (boxes, wanted) in found.items()
        for count in counts
    }


def _phrases(data: DetectionSet, index: int) -> dict[tuple, tuple[list, set[int]]]:
    """Spans of each phrase -> its objects' boxes, and their classes."""
    target, found = data.target(index), {}
    for mark, box in zip(data.annotations[index], target["boxes"], strict=True):
        spans = tuple(tuple(span) for span in mark["tokens_positive"])
        boxes, categories = found.setdefault(spans, ([], set()))
        boxes.append(box)
        categories.add(mark["category_id"])
    return found


__all__ = ["measure_grounding_recall"]
