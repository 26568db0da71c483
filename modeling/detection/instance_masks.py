"""Masks that a detector predicts inside of its boxes, as masks of the whole image."""

from collections.abc import Iterator, Sequence

import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image


def whole_masks(
    masks: torch.Tensor, boxes: torch.Tensor, size: Sequence[int], threshold: float = 0.5
) -> Iterator[torch.Tensor]:
    """(H, W) bool of each of K objects, one at a time: of large images, all together may not fit into memory.

    Args:
        masks: (K, m, m) probabilities inside of the boxes.
        boxes: (K, 4), x1, y1, x2, y2 in pixels of the image.
        size: (H, W) of the image.
        threshold: the smallest probability that is inside.

    Pasted by torchvision's rule, as Mask R-CNN's masks are: up to a pixel more than the box.

    >>> [mask.sum().item() for mask in whole_masks(torch.ones(1, 4, 4), torch.tensor([[2.0, 2, 6, 6]]), (8, 8))]
    [25]
    """
    height, width = map(int, size)
    for mask, box in zip(masks, boxes, strict=True):
        pasted = paste_masks_in_image(mask[None, None].float(), box[None].float(), (height, width), padding=1)
        yield pasted[0, 0] >= threshold


__all__ = ["whole_masks"]
