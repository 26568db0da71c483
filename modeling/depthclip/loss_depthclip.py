"""The loss with which DepthCLIP's bins and words are calibrated.

Eigen et al. 2014, "Depth Map Prediction from a Single Image using a Multi-Scale Deep Network",
https://arxiv.org/abs/1406.2283, equation 4.
"""

import torch


_SMALLEST = 1e-6


def scale_invariant_loss(depth: torch.Tensor, labels: torch.Tensor, invariance: float = 0.5) -> torch.Tensor:
    """(): mean over images of mean(d²) - invariance mean(d)², d the difference of logarithms where depth is known.

    Args:
        depth: (B, H, W), above 0.
        labels: (B, H, W) floats; 0 or less, NaN and infinite: not known.
        invariance: 0: of absolute depths; 1: a factor that an image has in common costs nothing.

    Raises:
        ValueError: labels of another shape, or no floats. Where nothing is known in any image, the loss is 0.

    Example:

    >>> depth = torch.tensor([[[1.0, 2.0]]])
    >>> [round(scale_invariant_loss(depth, 2 * depth, share).item(), 4) for share in (0.0, 0.5, 1.0)]
    [0.4805, 0.2402, 0.0]
    """
    is_tensor = isinstance(labels, torch.Tensor)
    if not is_tensor or labels.shape != depth.shape:
        got = list(labels.shape) if is_tensor else type(labels).__name__
        raise ValueError(f"labels: got {got}, expected depths {list(depth.shape)}, one a pixel")
    if not labels.is_floating_point():
        raise ValueError(f"labels: got {labels.dtype}, expected depths as floats")
    labels = labels.to(depth.device).float()
    known = labels.isfinite() & (labels > 0)
    ratio = depth.float().clamp_min(_SMALLEST).log() - torch.where(known, labels, 1.0).log()
    difference = torch.where(known, ratio, 0.0).flatten(1)
    pixels = known.flatten(1).sum(1)
    counted = pixels.clamp_min(1)
    each = difference.square().sum(1) / counted - invariance * (difference.sum(1) / counted).square()
    return each.sum() / (pixels > 0).sum().clamp_min(1)


__all__ = ["scale_invariant_loss"]
