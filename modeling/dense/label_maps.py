"""From logits to label maps at the size of the image, without logits of that size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput


CHUNK = 16  # labels whose scores are resized at once


def argmax_labels(
    logits: torch.Tensor, size: tuple[int, int] | None = None, align_corners: bool = False, chunk: int = CHUNK
) -> torch.Tensor:
    """Logits (B, N, h, w) -> the label of each pixel (B, H, W), int64, at `size` (H, W) or (h, w).

    The same as `argmax_labels_reference`, which resizes all logits (bilinear) and takes the largest, the first of
    equal ones. Here `chunk` labels of one image are resized at a time, beside the best score so far: at 150 labels a
    tenth of the memory.

    >>> argmax_labels(torch.eye(3).view(1, 3, 1, 3), size=(1, 6))
    tensor([[[0, 0, 1, 1, 2, 2]]])
    """
    if size is None or tuple(size) == tuple(logits.shape[-2:]):
        return logits.argmax(dim=1)
    maps = torch.empty(len(logits), *size, dtype=torch.int64, device=logits.device)
    for image, label_map in zip(logits, maps, strict=True):
        best = None
        for first in range(0, len(image), chunk):
            value, label = _resized(image[None, first : first + chunk], size, align_corners)[0].max(dim=0)
            if best is None:
                best = value
                label_map.copy_(label)
                continue
            better = value > best
            best = torch.where(better, value, best)
            label_map.copy_(torch.where(better, label.add_(first), label_map))
    return maps


def argmax_labels_reference(
    logits: torch.Tensor, size: tuple[int, int] | None = None, align_corners: bool = False
) -> torch.Tensor:
    """The plain way of `argmax_labels`."""
    return (logits if size is None else _resized(logits, size, align_corners)).argmax(dim=1)


def _resized(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    return F.interpolate(logits.contiguous(), size=tuple(size), mode="bilinear", align_corners=align_corners)


def post_process_semantic_segmentation(
    outputs,
    target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    return_segmentation_scores: bool = False,
    content_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
    """Label maps from a model's output, as the methods of this name in transformers.

    Args:
        outputs: anything with `logits` (B, N, h, w).
        target_sizes: (height, width) of each result, for a PIL image `image.size[::-1]`. None: (h, w).
        return_segmentation_scores: also the resized logits, which take N times the memory of the map.
        content_sizes: of each image the (height, width) of `logits`, from the top left, that is not padding.

    Returns:
        For each image a map (H, W) of labels, int64; or, with scores, an object with `segmentation` and
        `segmentation_scores` (N, H, W).

    Raises:
        ValueError: not a size for each image.

    >>> from hf_clip_variants.modeling.dense.outputs_dense import PromptableSegmentationOutput
    >>> output = PromptableSegmentationOutput(logits=torch.eye(2).view(1, 2, 1, 2))
    >>> post_process_semantic_segmentation(output, target_sizes=[(2, 4)])[0]
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]])
    """
    logits = outputs.logits
    sizes = [None] * len(logits) if target_sizes is None else [_pair(size) for size in target_sizes]
    contents = [tuple(logits.shape[-2:])] * len(logits) if content_sizes is None else list(content_sizes)
    for name, given in (("target_sizes", sizes), ("content_sizes", contents)):
        if len(given) != len(logits):
            raise ValueError(f"{name}: {len(given)} sizes for {len(logits)} images, expected one for each")
    results = []
    for image, size, (height, width) in zip(logits, sizes, contents, strict=True):
        image = image[None, :, :height, :width]
        if not return_segmentation_scores:
            results.append(argmax_labels(image, size)[0])
            continue
        scores = (image if size is None else _resized(image, size, align_corners=False))[0]
        results.append(
            SemanticSegmentationPostProcessorOutput(
                data={"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}
            )
        )
    return results


def _pair(size) -> tuple[int, int]:
    try:
        height, width = map(int, size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"target_sizes: {size!r}, expected (height, width), both at least 1")
    return height, width


__all__ = ["CHUNK", "argmax_labels", "argmax_labels_reference", "post_process_semantic_segmentation"]
