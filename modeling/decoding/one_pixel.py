"""Resizing to a single pixel."""

from collections.abc import Callable

import torch


def resize_whole_numbers(resize: Callable[..., torch.Tensor], image: torch.Tensor, size, *args, **kwargs):
    """`resize(image, size, ...)`, also where uint8 pixels become one pixel: PyTorch's antialiased kernel for uint8
    fails there with an internal assertion, so that floats are resized and rounded.

    Args:
        resize: an image processor's own, for a (..., C, H, W) tensor.
        size: a `SizeDict` with height and width, or any other, which is passed on as it is.
    """
    if image.dtype is not torch.uint8 or (size.height, size.width) != (1, 1):
        return resize(image, size, *args, **kwargs)
    return resize(image.float(), size, *args, **kwargs).round().clamp(0, 255).to(torch.uint8)


__all__ = ["resize_whole_numbers"]
