"""What ViLD's Mask R-CNN is trained on: anchors and regions that are sampled, their targets, and the losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou, roi_align
from transformers.image_transforms import center_to_corners_format

from ..detection.box_coding import encode_boxes


@dataclass(frozen=True)
class ImageTargets:
    """The objects of one image: boxes (K, 4) in pixels, classes (K,) int64, masks (K, H, W) or None."""

    boxes: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor | None = None


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one image that are trained on: boxes (R, 4), classes (R,) with 0 for background and c + 1 for label
    c, and matched (R,): which object of the image each is compared with."""

    boxes: torch.Tensor
    classes: torch.Tensor
    matched: torch.Tensor


def read_labels(
    labels: Sequence[Mapping[str, torch.Tensor]], sizes: Sequence[tuple[int, int]], num_labels: int | None, device
) -> list[ImageTargets]:
    """`labels` as DETR's processors give them -> the objects in pixels.

    Args:
        labels: of each image a dictionary with `class_labels` (K,), `boxes` (K, 4) (centre, width and height, relative
            to the image without padding) and maybe `masks` (K, H, W).
        sizes: (height, width) of the images without padding.
        num_labels: classes are 0..num_labels - 1; None: anything.

    Raises:
        ValueError: names the image and what is wrong: a missing entry, numbers of boxes, classes and masks that
            differ, an unknown class, a box that is not finite or has no area.
    """
    if not isinstance(labels, Sequence) or isinstance(labels, str | bytes):
        raise ValueError(f"labels: got {type(labels).__name__}, expected a list of dictionaries, one for each image")
    if len(labels) != len(sizes):
        raise ValueError(f"labels: {len(labels)} dictionaries for {len(sizes)} images, expected one for each")
    found = []
    for i, (label, (height, width)) in enumerate(zip(labels, sizes, strict=True)):
        if not isinstance(label, Mapping):
            raise ValueError(f"labels[{i}]: got {type(label).__name__}, expected a dictionary")
        if missing := [name for name in ("class_labels", "boxes") if name not in label]:
            raise ValueError(f"labels[{i}]: no {missing[0]!r}, expected 'class_labels' (K,) and 'boxes' (K, 4)")
        classes = _numbers(label, "class_labels", i, device)
        if classes.is_floating_point() and len(classes):
            raise ValueError(f"labels[{i}]['class_labels']: {classes.dtype}, expected whole numbers")
        classes = classes.long().flatten()
        boxes = _numbers(label, "boxes", i, device).float()
        if boxes.dim() != 2 or boxes.shape[-1] != 4:
            if boxes.numel():
                raise ValueError(f"labels[{i}]['boxes']: got {list(boxes.shape)}, expected [objects, 4]")
            boxes = boxes.reshape(0, 4)
        if len(classes) != len(boxes):
            raise ValueError(f"labels[{i}]: {len(classes)} class_labels for {len(boxes)} boxes")
        if num_labels is not None and len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_labels:
            raise ValueError(
                f"labels[{i}]['class_labels']: {int(classes.min())}..{int(classes.max())}, expected 0.."
                f"{num_labels - 1}"
            )
        bad = ~boxes.isfinite().all(dim=1) | (boxes[:, 2:] <= 0).any(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"labels[{i}]['boxes'][{row}]: {boxes[row].tolist()}, expected finite numbers, and a width and height "
                "above 0"
            )
        masks = label.get("masks")
        if masks is not None:
            masks = _numbers(label, "masks", i, device)
            if masks.dim() != 3 or len(masks) != len(boxes):
                raise ValueError(f"labels[{i}]['masks']: {list(masks.shape)}, expected [{len(boxes)}, height, width]")
        scale = boxes.new_tensor([width, height, width, height])
        found.append(ImageTargets(center_to_corners_format(boxes) * scale, classes, masks))
    return found


def _numbers(label: Mapping, name: str, image: int, device) -> torch.Tensor:
    try:
        found = torch.as_tensor(label[name], device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = None
    if found is None or found.is_complex():
        raise ValueError(f"labels[{image}][{name!r}]: got {type(label[name]).__name__}, expected a tensor of numbers")
    return found


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


__all__ = ["ImageTargets", "SampledRegions", "box_loss", "mask_loss", "mask_targets", "proposal_losses"]
__all__ += ["read_labels", "sample_regions"]
