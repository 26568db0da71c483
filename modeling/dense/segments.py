"""From logits to segments: the label of each pixel, its probability, and one segment a label with its score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


NO_LABEL = -1  # the background
_PIXELS_AT_ONCE = 1 << 26  # scores that are resized at once: 256 MB


@dataclass(frozen=True)
class Segments:
    """The segments of an image of H x W pixels.

    Attributes:
        label_map (`torch.Tensor`): (H, W) int32; -1: the background.
        areas (`torch.Tensor`): (N,) int64, pixels of each label.
        scores (`torch.Tensor`): (N,) float32: the mean, over a label's pixels, of its probability (the softmax over
            the N labels); 0 for a label without pixels.
    """

    label_map: torch.Tensor
    areas: torch.Tensor
    scores: torch.Tensor

    def cpu(self) -> "Segments":
        return Segments(self.label_map.cpu(), self.areas.cpu(), self.scores.cpu())


def find_segments(
    logits: torch.Tensor,
    size: Sequence[int],
    background: torch.Tensor | None = None,
    chunk: int | None = None,
    are_probabilities: bool = False,
) -> Segments:
    """Logits of one image to segments at the size of the image.

    As `post_process_semantic_segmentation` (bilinear, the first of equal labels wins), and with the scores; never with
    logits of all labels at that size: `chunk` labels at a time, beside the best score and the sum of exponentials so
    far.

    Args:
        logits: (N, h, w) of N labels.
        size: (H, W).
        background: (h, w); pixels where it is larger than all logits have no label.
        chunk: labels at once; default: as many as make 256 MB.
        are_probabilities: the logits are in 0..1 already; scores are then their means, without a softmax.

    >>> found = find_segments(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]), (1, 4))
    >>> found.label_map.tolist(), found.areas.tolist(), found.scores[0].item() > 0.9
    ([[0, 0, 1, 1]], [2, 2], True)
    """
    count, (height, width) = len(logits), (int(edge) for edge in size)
    if logits.dim() != 3 or not count:
        raise ValueError(f"logits: got {list(logits.shape)}, expected [labels, height, width]")
    chunk = chunk or max(1, min(count, _PIXELS_AT_ONCE // (height * width)))
    best = total = label = None
    for first in range(0, count, chunk):
        scores = _resized(logits[first : first + chunk], (height, width))
        value, place = scores.max(dim=0)
        place = place.to(torch.int32) + first
        part = None if are_probabilities else scores.logsumexp(dim=0)
        if best is None:
            best, label, total = value, place, part
            continue
        label = torch.where(value > best, place, label)
        best = torch.maximum(best, value)
        total = None if are_probabilities else torch.logaddexp(total, part)
    probability = best if are_probabilities else (best - total).exp_()
    if background is not None:
        label = torch.where(_resized(background[None], (height, width))[0] > best, NO_LABEL, label)
    flat, inside = label.flatten().long(), (label != NO_LABEL).flatten()
    areas = torch.bincount(flat[inside], minlength=count)
    sums = torch.zeros(count, dtype=torch.float64, device="cpu")
    sums.index_add_(0, flat[inside].cpu(), probability.flatten()[inside].double().cpu())
    scores = (sums / areas.cpu().clamp_min(1)).float()
    return Segments(label, areas, scores.to(areas.device))


def _resized(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(n, h, w) -> (n, *size) float32, the values themselves where the size is right."""
    scores = scores.float()
    if tuple(scores.shape[-2:]) == size:
        return scores
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


__all__ = ["NO_LABEL", "Segments", "find_segments"]
