"""Anchors, scores of labels and the final detections. Pure functions.

Boxes are (…, 4) float: x1, y1, x2, y2 in pixels, of width x2 - x1 + 1 (the official code's convention).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torchvision.ops import batched_nms


def make_anchors(shape: Sequence[int], stride: int, size: int, device=None) -> torch.Tensor:
    """(h * w, 4): one square of side `size` around the middle of each cell of a map (h, w), row by row.

    >>> make_anchors((1, 2), 8, 16)
    tensor([[-4., -4., 11., 11.],
            [ 4., -4., 19., 11.]])
    """
    y, x = (stride * torch.arange(n, dtype=torch.float32, device=device) + (stride - 1) / 2 for n in shape)
    centres = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).view(-1, 2)
    half = (size - 1) / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def label_scores(
    token_scores: torch.Tensor, phrase_map: torch.Tensor, rule: Literal["mean", "max", "power"] = "mean"
) -> torch.Tensor:
    """Scores of tokens (…, A, T) -> of labels (…, A, K).

    Args:
        token_scores: in 0..1.
        phrase_map: (…, K, T), not 0 where a token belongs to a label. A label without tokens has score 0.
        rule: mean, largest or geometric mean over the label's tokens.
    """
    members = (phrase_map != 0).to(token_scores.dtype)
    counts = members.sum(dim=-1)[..., None, :]
    if rule == "max":
        parts = [
            (token_scores * members[..., k : k + 1, :]).amax(dim=-1, keepdim=True) for k in range(members.shape[-2])
        ]
        return torch.cat(parts, dim=-1) if parts else token_scores[..., :0]
    values = token_scores.clamp_min(torch.finfo(token_scores.dtype).tiny).log() if rule == "power" else token_scores
    means = values @ members.transpose(-1, -2) / counts.clamp_min(1)
    return torch.where(counts > 0, means.exp(), 0.0) if rule == "power" else means


def select_detections(
    scores: torch.Tensor,
    centerness: torch.Tensor,
    boxes: torch.Tensor,
    level_sizes: Sequence[int],
    *,
    score_threshold: float = 0.05,
    pre_nms: int = 1000,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    prompt_of_label: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The final detections of one image, as the official post-processor for ATSS selects them on a GPU.

    A score above `score_threshold` makes a candidate; of each level the `pre_nms` best by score times centerness are
    kept, whose square root is the final score; of a label no two may overlap by more than `nms_threshold`; the
    `max_detections` best of all are the result, and all that are as good as the last of them.

    Args:
        scores: (A, K) of A anchors and K labels, from 0 to 1.
        centerness: (A,) from 0 to 1; (A, P) of P prompts.
        boxes: (A, 4), the same for all labels; (A, P, 4) of P prompts.
        level_sizes: how many of the A anchors each level has.
        prompt_of_label: (K,) int64, the prompt of each label, if there are several.

    Returns:
        scores (N,) best first, labels (N,), boxes (N, 4) and anchors (N,) int64.
    """
    values, labels, anchors = [], [], []
    start, count = 0, scores.shape[1]
    centerness = centerness[:, None] if prompt_of_label is None else centerness[:, prompt_of_label]
    for size in level_sizes if count else ():
        of_level, centre = scores[start : start + size], centerness[start : start + size]
        joint = torch.where(of_level > score_threshold, of_level * centre, -1.0).flatten()
        best, chosen = joint.topk(min(pre_nms, len(joint)))
        chosen, best = chosen[best >= 0], best[best >= 0]
        values.append(best.sqrt())
        labels.append(chosen % count)
        anchors.append(chosen // count + start)
        start += size
    if not values:
        none = torch.zeros(0, dtype=torch.int64, device=scores.device)
        return scores.new_zeros(0), none, boxes.new_zeros(0, 4), none
    values, labels, anchors = torch.cat(values), torch.cat(labels), torch.cat(anchors)
    found = boxes[anchors] if prompt_of_label is None else boxes[anchors, prompt_of_label[labels]]
    # A width of x2 - x1 + 1 is the width of a box that ends one pixel later.
    kept = batched_nms(found + found.new_tensor([0, 0, 1, 1]), values, labels, nms_threshold)
    if len(kept) > max_detections:
        kept = kept[values[kept] >= values[kept[max_detections - 1]]]
    return values[kept], labels[kept], found[kept], anchors[kept]


__all__ = ["label_scores", "make_anchors", "select_detections"]
