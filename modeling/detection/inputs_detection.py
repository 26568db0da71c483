"""What detectors are given beside pixels: the sizes of images without their padding, and the objects of a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.image_transforms import center_to_corners_format


@dataclass(frozen=True)
class ImageTargets:
    """The objects of one image: boxes (K, 4) in pixels, classes (K,) int64, masks (K, H, W) or None."""

    boxes: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor | None = None


def check_tensor(name: str, value: object) -> None:
    """ValueError unless the argument is a tensor of real numbers."""
    if not isinstance(value, torch.Tensor) or value.is_complex():
        got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected a tensor of numbers, got {got}")


def check_prompt_rows(name: str, prompts: torch.Tensor, dimensions: Sequence[int], batch: int) -> None:
    """ValueError unless a tensor has one of the numbers of `dimensions`, and one row or a row for each image."""
    if prompts.dim() not in dimensions or len(prompts) not in (1, batch) or not prompts.numel():
        raise ValueError(f"{name}: got {list(prompts.shape)}, expected one row for each of {batch} images, or one")


def content_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """(height, width) of each image without padding, of (B, 3, H, W) and a mask (B, H, W) that is 1 where an image is.

    ValueError for a mask of another shape, or one without any pixel of an image.
    """
    if pixel_mask is None:
        return [tuple(pixel_values.shape[-2:])] * len(pixel_values)
    check_tensor("pixel_mask", pixel_mask)
    expected = [len(pixel_values), *pixel_values.shape[-2:]]
    if list(pixel_mask.shape) != expected:
        raise ValueError(f"pixel_mask: got {list(pixel_mask.shape)}, expected {expected} (batch, height, width)")
    mask = pixel_mask.bool()
    heights, widths = mask.any(dim=2).sum(dim=1).tolist(), mask.any(dim=1).sum(dim=1).tolist()
    if 0 in heights or 0 in widths:
        raise ValueError("pixel_mask: an image without any pixel")
    return list(zip(heights, widths, strict=True))


def read_labels(
    labels: Sequence[Mapping[str, torch.Tensor]],
    sizes: Sequence[tuple[int, int]],
    num_labels: int | None,
    device,
    what: str = "",
) -> list[ImageTargets]:
    """`labels` as DETR's processors give them -> the objects in pixels.

    Args:
        labels: of each image a dictionary with `class_labels` (K,), `boxes` (K, 4) (centre, width and height, relative
            to the image without padding) and maybe `masks` (K, H, W).
        sizes: (height, width) of the images without padding.
        num_labels: classes are 0..num_labels - 1; None: anything.
        what: what they are numbers of, for messages.

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
                f"labels[{i}]['class_labels']: {int(classes.min())}..{int(classes.max())}, expected "
                f"{what}0..{num_labels - 1}"
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


__all__ = ["ImageTargets", "check_tensor", "content_sizes", "read_labels"]
