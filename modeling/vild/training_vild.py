"""What ViLD's Mask R-CNN is trained on: anchors and regions that are sampled, their targets, and the losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou, roi_align

from ..detection.box_coding import encode_boxes
from ..detection.inputs_detection import ImageTargets


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one image that are trained on: boxes (R, 4), classes (R,) with 0 for background and c + 1 for label
    c, and matched (R,): which object of the image each is compared with."""

    boxes: torch.Tensor
    classes: torch.Tensor
    matched: torch.Tensor


def proposal_losses(
    objectness: Sequence[torch.Tensor],
    codes: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    targets: Sequence[ImageTargets],
    sizes: Sequence[tuple[int, int]],
    config,
) -> dict[str, torch.Tensor]:
    """Losses of the region proposal network.

    Args:
        objectness, codes: of each level (B, A_l) and (B, A_l, 4).
        anchors: of each level (A_l, 4).

    Returns:
        `loss_objectness`: binary cross-entropy, its sum over the sampled anchors by `rpn_samples` and image.
        `loss_proposals`: Huber loss with delta 1/9, mean over the coordinates of objects' anchors in each level, sum
        over levels (as officially, where coordinates with target 0 do not count, either).
    """
    matcher = Matcher(config.rpn_positive_iou, config.rpn_negative_iou, allow_low_quality_matches=True)
    sampler = BalancedPositiveNegativeSampler(config.rpn_samples, config.rpn_positive_share)
    joined = torch.cat(list(anchors))
    labels, wanted = [], []
    for target, (height, width) in zip(targets, sizes, strict=True):
        label, code = joined.new_zeros(len(joined)), torch.zeros_like(joined)
        # Anchors in the padding are neither objects nor background.
        centres = (joined[:, :2] + joined[:, 2:]) / 2
        outside = (centres[:, 0] >= max(width, 1)) | (centres[:, 1] >= max(height, 1))
        if len(target.boxes):
            matched = matcher(box_iou(target.boxes, joined))
            label = torch.where(matched >= 0, 1.0, torch.where(matched == Matcher.BELOW_LOW_THRESHOLD, 0.0, -1.0))
            code = encode_boxes(target.boxes[matched.clamp_min(0)], joined, (1.0,) * 4, config.box_offset)
        label = torch.where(outside, -1.0, label)
        (positive,), (negative,) = sampler([label])
        labels.append(torch.where(positive.bool(), 1.0, torch.where(negative.bool(), 0.0, -1.0)))
        wanted.append(code)
    counts = [one.shape[1] for one in objectness]
    labels = torch.stack(labels).split(counts, dim=1)
    wanted = torch.stack(wanted).split(counts, dim=1)
    score_loss, code_loss = 0.0, 0.0
    for score, code, label, want in zip(objectness, codes, labels, wanted, strict=True):
        known = label >= 0
        losses = F.binary_cross_entropy_with_logits(score.float(), label.clamp_min(0), reduction="none")
        score_loss = score_loss + torch.where(known, losses, 0.0).sum() / (len(score) * config.rpn_samples)
        counted = (label == 1)[..., None] & (want != 0)
        losses = F.huber_loss(code.float(), want, delta=1 / 9, reduction="none")
        code_loss = code_loss + torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)
    return {"loss_objectness": score_loss, "loss_proposals": code_loss}


def sample_regions(proposals: Sequence[torch.Tensor], targets: Sequence[ImageTargets], config) -> list[SampledRegions]:
    """Regions of each image out of its proposals (P, 4) and its objects' own boxes: at most `roi_samples`, of which at
    most `roi_positive_share` overlap an object by `roi_positive_iou`. Random, with torch's generator."""
    sampled = []
    for boxes, target in zip(proposals, targets, strict=True):
        boxes = torch.cat([boxes.float(), target.boxes])
        classes = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        matched = torch.zeros_like(classes)
        if len(target.boxes):
            overlap, matched = box_iou(boxes, target.boxes).max(dim=1)
            classes = torch.where(overlap >= config.roi_positive_iou, target.classes[matched] + 1, 0)
        sampler = BalancedPositiveNegativeSampler(config.roi_samples, config.roi_positive_share)
        (positive,), (negative,) = sampler([classes])
        chosen = torch.cat([positive.nonzero()[:, 0], negative.nonzero()[:, 0]])
        sampled.append(SampledRegions(boxes[chosen], classes[chosen], matched[chosen]))
    return sampled


def box_loss(
    codes: torch.Tensor, sampled: Sequence[SampledRegions], targets: Sequence[ImageTargets], offset: float
) -> torch.Tensor:
    """Huber loss with delta 1 of box codes (R, 4), mean over the coordinates of regions that are objects."""
    wanted = [
        encode_boxes(target.boxes[one.matched], one.boxes, offset=offset)
        if len(target.boxes)
        else torch.zeros_like(one.boxes)
        for one, target in zip(sampled, targets, strict=True)
    ]
    counted = (torch.cat([one.classes for one in sampled]) > 0)[:, None].expand(-1, 4)
    losses = F.huber_loss(codes.float(), torch.cat(wanted).detach(), reduction="none")
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)


def mask_targets(
    sampled: Sequence[SampledRegions], targets: Sequence[ImageTargets], size: int
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Of regions that are objects with masks: boxes of each image, targets (R, size, size) of 0 and 1, and which count
    (R,). There is at least one region if an image has any, so that all weights get a gradient."""
    boxes, wanted, counted = [], [], []
    for one, target in zip(sampled, targets, strict=True):
        if target.masks is None:
            boxes.append(one.boxes[:0])
            continue
        (chosen,) = torch.where(one.classes > 0)
        boxes.append(one.boxes[chosen])
        rois = torch.cat([one.matched[chosen, None].float(), one.boxes[chosen]], dim=1)
        cropped = roi_align(target.masks[:, None].float(), rois, size, aligned=True)[:, 0]
        wanted.append((cropped >= 0.5).float())
        counted.append(torch.ones(len(chosen), dtype=torch.bool, device=rois.device))
    if not any(map(len, boxes)):
        boxes[0] = sampled[0].boxes[:1]
        wanted = [boxes[0].new_zeros(len(boxes[0]), size, size)]
        counted = [torch.zeros(len(boxes[0]), dtype=torch.bool, device=boxes[0].device)]
    return boxes, torch.cat(wanted), torch.cat(counted)


def mask_loss(logits: torch.Tensor, wanted: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of masks (R, S, S), mean over the pixels of those that count."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(dim=(1, 2))
    return torch.where(counted, losses, 0.0).sum() / counted.sum().clamp_min(1)


__all__ = ["SampledRegions", "box_loss", "mask_loss", "mask_targets", "proposal_losses", "sample_regions"]
