"""GLIP's training: which anchor belongs to which object (ATSS), and the losses. Pure functions.

Boxes are (…, 4) float: x1, y1, x2, y2 in pixels, of width x2 - x1 + 1.
"""

from collections.abc import Sequence

import torch
from torch import distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss


NO_OBJECT = -1  # the object of an anchor that has none
_LEAST_DISTANCE = 0.01  # pixels between an anchor's middle and the sides of its object


def assign_anchors(
    boxes: torch.Tensor, anchors: torch.Tensor, level_sizes: Sequence[int], num_candidates: int = 9
) -> torch.Tensor:
    """(K, 4) objects and (A, 4) anchors -> (A,) int64, the object of each anchor or `NO_OBJECT` (ATSS).

    Of each level the `num_candidates` anchors are taken whose middles are nearest to an object's; those become its own
    that overlap it by at least the mean plus the standard deviation over all candidates, and whose middle lies in it.
    An anchor of several objects belongs to the one that it overlaps most.
    """
    owners = torch.full((len(anchors),), NO_OBJECT, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return owners
    one = boxes.new_tensor([0, 0, 1, 1])
    overlaps = box_iou(anchors + one, boxes + one)
    middles, wanted = (anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = (middles[:, None] - wanted).square().sum(dim=-1).sqrt()
    candidates, start = [], 0
    for size in level_sizes:
        nearest = distances[start : start + size].topk(min(num_candidates, size), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += size
    candidates = torch.cat(candidates)  # (M, K)
    of_candidates = overlaps.gather(0, candidates)
    thresholds = of_candidates.mean(dim=0) + of_candidates.std(dim=0)
    points = middles[candidates]
    sides = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=-1)
    fine = (of_candidates >= thresholds) & (sides.amin(dim=-1) > _LEAST_DISTANCE)
    own = torch.full_like(overlaps, -torch.inf)
    own.scatter_(0, candidates, torch.where(fine, of_candidates, -torch.inf))
    best, objects = own.max(dim=1)
    return torch.where(best.isfinite(), objects, NO_OBJECT)


def token_targets(owners: torch.Tensor, positive_map: torch.Tensor, no_object: bool = False) -> torch.Tensor:
    """(A,) objects of anchors and (K, T) tokens of objects -> (A, T) of 0 and 1.

    Args:
        no_object: anchors without object get the last token, as in the official code, where that column is padding
            (which is not trained on) unless the prompt has all 256 tokens.
    """
    targets = positive_map.new_zeros(len(owners), positive_map.shape[1])
    present = owners != NO_OBJECT
    targets[present] = (positive_map[owners[present]] != 0).to(targets.dtype)
    if no_object:
        targets[~present, -1] = 1
    return targets


def token_loss(
    logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> torch.Tensor:
    """Focal loss of regions and words, summed: logits and targets (B, A, T), mask (B, T) of the words that count.

    Masked places cost nothing and get no gradient, whatever stands there.
    """
    seen = (mask > 0)[:, None].expand_as(logits)
    logits, targets = logits.masked_fill(~seen, 0.0).float(), targets.masked_fill(~seen, 0.0).float()
    losses = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
    return losses.masked_fill(~seen, 0.0).sum()


def centerness_targets(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """(R,): 1 where an anchor's middle is its object's, towards 0 at its sides."""
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, behind = middles - boxes[:, :2], boxes[:, 2:] - middles
    return (torch.minimum(before, behind) / torch.maximum(before, behind)).prod(dim=1).sqrt()


def box_losses(predicted: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """(R,): 1 - generalised overlap. Here a width is x2 - x1, as in the official code."""
    return generalized_box_iou_loss(predicted, boxes, reduction="none", eps=1e-7)


def centerness_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(R,) logits and targets -> (), summed."""
    return binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """`values`, averaged over the ranks of the process group, without gradient: what a loss is divided by, so that
    the mean of the ranks' gradients is that of one process with all images."""
    values = values.detach()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


__all__ = ["NO_OBJECT", "assign_anchors", "box_losses", "centerness_loss", "centerness_targets", "mean_over_ranks"]
__all__ += ["token_loss", "token_targets"]
