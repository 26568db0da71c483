"""Boxes: anchors, suppression of overlaps. Pure functions.

Boxes are (…, 4) float: x1, y1, x2, y2 in pixels.
"""

from collections.abc import Sequence

import torch
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms


def make_anchors(
    shape: Sequence[int], stride: int, scale: float, ratios: Sequence[float], centred: bool, device=None
) -> torch.Tensor:
    """(h * w * A, 4) anchors of a feature map (h, w), position by position.

    Their area is (scale * stride)², their ratio of width to height one of `ratios`. `centred`: around pixel centres
    (stride / 2 + i * stride), else around i * stride.
    """
    side = scale * stride
    halves = torch.tensor(
        [[side * ratio**0.5 / 2, side * ratio**-0.5 / 2] for ratio in ratios], dtype=torch.float32, device=device
    )
    start = stride / 2 if centred else 0.0
    y, x = (start + stride * torch.arange(n, dtype=torch.float32, device=device) for n in shape)
    centres = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).view(-1, 1, 2)
    return torch.cat([centres - halves, centres + halves], dim=-1).view(-1, 4)


def keep_best(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float, count: int
) -> torch.Tensor:
    """Indices of the `count` best of (R, 4) boxes, best first, of which no two of a group overlap by more than
    `threshold`."""
    return box_ops.batched_nms(boxes.float(), scores.float(), groups, threshold)[:count]


def select_detections(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    *,
    pre_nms: int = 1000,
    nms_threshold: float = 0.5,
    score_threshold: float = 0.0,
    max_detections: int = 300,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The final detections of one image, as the official `GenericDetectionGenerator` (version "v1") selects them.

    Of each label the `pre_nms` best regions with a score above `score_threshold`, without those that overlap a better
    one by more than `nms_threshold`; of all labels together the `max_detections` best.

    Args:
        scores: (R, N) of R regions and N labels.
        boxes: (R, 4), the same for all labels.

    Returns:
        scores (K,) best first, labels (K,) from 0, boxes (K, 4), and rows (K,): which region each comes from.
    """
    scores, boxes = scores.float(), boxes.float()
    kept_scores, kept_labels, kept_rows = [], [], []
    best, order = scores.t().sort(dim=1, descending=True, stable=True)
    for label in range(scores.shape[1]):
        fine = best[label, :pre_nms] > score_threshold
        rows, values = order[label, :pre_nms][fine], best[label, :pre_nms][fine]
        kept = nms(boxes[rows], values, nms_threshold)[:max_detections]
        kept_scores.append(values[kept])
        kept_rows.append(rows[kept])
        kept_labels.append(torch.full_like(rows[kept], label))
    if not kept_scores:
        empty = order.new_zeros(0)
        return scores.new_zeros(0), empty, boxes[empty], empty
    values, labels, rows = torch.cat(kept_scores), torch.cat(kept_labels), torch.cat(kept_rows)
    values, chosen = values.sort(descending=True, stable=True)
    values, chosen = values[:max_detections], chosen[:max_detections]
    return values, labels[chosen], boxes[rows[chosen]], rows[chosen]


def select_by_objectness(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    objectness: torch.Tensor,
    *,
    nms_threshold: float = 0.6,
    min_objectness: float = 0.9,
    min_area: float = 220.0,
    max_detections: int = 25,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The detections of one image as the official demo selects them: what is an object is for the proposals to say,
    and its class is the text that fits best.

    Args:
        scores: (R, 1 + N) of R regions; column 0 is a text for the background, and regions that it fits best are left
            out.
        boxes: (R, 4) in pixels of the image.
        objectness: (R,).

    Returns:
        scores (K,) best first, labels (K,) from 0 (without the background), boxes (K, 4), and rows (K,).
    """
    scores, boxes = scores.float(), boxes.float()
    kept = nms(boxes, objectness.float(), nms_threshold)
    areas = (boxes[kept, 2:] - boxes[kept, :2]).prod(dim=1)
    kept = kept[(objectness[kept] >= min_objectness) & (areas > min_area)]
    values, labels = scores[kept].max(dim=1)
    kept, values, labels = kept[labels > 0], values[labels > 0], labels[labels > 0] - 1
    values, order = values.sort(descending=True, stable=True)
    order = order[:max_detections]
    return values[:max_detections], labels[order], boxes[kept[order]], kept[order]


__all__ = ["keep_best", "make_anchors", "select_by_objectness", "select_detections"]
