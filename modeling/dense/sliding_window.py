"""Scores of an image from windows of it, at several scales and mirrored: one function for all models.

Two published conventions:

    "shift"   mmsegmentation's (GroupViT): windows start every `stride` pixels, the last one is moved back inside; an
              image smaller than the window is one window of its own size. The whole image is mirrored.
    "pad"     LSeg's (PyTorch-Encoding): the last window is cut by the border; what is smaller than the window is
              padded to it at the right and the bottom, and its scores are cut again. Each window is mirrored.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F


Forward = Callable[[torch.Tensor], torch.Tensor]
# Of one image at one scale, each a forward pass: 300 megapixels in windows of 480 are 2,916. Many tiny windows are a
# mistake that would take minutes.
_MOST_WINDOWS, _MOST_TINY_WINDOWS, _TINY = 20_000, 1_000, 16


def sliding_window_scores(
    forward: Forward,
    pixel_values: torch.Tensor,
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    mode: Literal["shift", "pad"] = "shift",
    scales: Sequence[float] = (1.0,),
    base_size: int | None = None,
    flip: bool = False,
    reduce: Literal["sum", "mean"] = "mean",
    align_corners: bool = False,
    batch_size: int = 1,
    pad_value: float | Sequence[float] | torch.Tensor = 0.0,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Scores (B, N, H, W), float32, of images (B, C, H, W).

    Windows of a scale are averaged where they overlap; scales and mirrored images are added, and divided by their
    number with `reduce="mean"`. If one window holds the whole image at its own size, the result is
    `forward(pixel_values)` bit by bit.

    Args:
        forward: normalised windows (b, C, h, w) -> scores (b, N, h, w), logits or probabilities. Called without
            gradients only if the caller says so.
        window, stride: pixels, or (height, width). The stride's default is two thirds of the window.
        mode: see the top of this file.
        scales: factors of the image's size. LSeg: 0.5, 0.75, 1, 1.25, 1.5, 1.75.
        base_size: the longer edge at scale 1; None: the image's own. LSeg: 520.
        flip: add the scores of the mirrored image.
        align_corners: how images and scores are resized. LSeg: True.
        batch_size: windows in one call of `forward`.
        pad_value: of the padding, after normalisation; one number, or one for each channel. LSeg: black, -mean / std.
        device: where scores are added up; None: that of `pixel_values`.

    Raises:
        ValueError: a size, factor or number below 1; more than 20,000 windows, or 1,000 of less than 16 pixels;
            `forward` gives another size than it got.

    >>> image = torch.arange(12.0).view(1, 1, 3, 4)
    >>> torch.equal(sliding_window_scores(lambda x: x, image, window=2, stride=1, flip=True), image)
    True
    """
    if mode not in ("shift", "pad"):
        raise ValueError(f"mode: {mode!r}, expected 'shift' or 'pad'")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce: {reduce!r}, expected 'sum' or 'mean'")
    if not scales or not all(scale > 0 for scale in scales):
        raise ValueError(f"scales: {tuple(scales)}, expected factors above 0")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}, expected at least 1")
    window = _pair("window", window)
    stride = _pair("stride", tuple(max(edge * 2 // 3, 1) for edge in window) if stride is None else stride)
    device = pixel_values.device if device is None else torch.device(device)
    size = tuple(pixel_values.shape[-2:])
    padding = torch.as_tensor(pad_value, dtype=pixel_values.dtype, device=pixel_values.device)
    padding = padding.view(1, -1, 1, 1) if padding.dim() else padding
    total, terms = None, 0
    for scale in scales:
        scaled = _resize(pixel_values, _scaled_size(size, scale, base_size), align_corners)
        mirrors = (False, True) if flip and mode == "shift" else (False,)
        for mirrored in mirrors:
            scores = _windows_of_one_scale(
                forward,
                scaled.flip(-1) if mirrored else scaled,
                window,
                stride,
                mode,
                flip and mode == "pad",
                batch_size,
                padding,
                device,
            )
            scores = _resize(scores.flip(-1) if mirrored else scores, size, align_corners)
            total = scores if total is None else total + scores  # not in place: `scores` may be the caller's
        terms += 2 if flip else 1
    return total / terms if reduce == "mean" and terms > 1 else total


def _windows_of_one_scale(forward, images, window, stride, mode, flip, batch_size, padding, device) -> torch.Tensor:
    """(B, N, H, W) float32 for `images` (B, C, H, W), averaged over the windows; `flip` mirrors each window."""
    height, width = images.shape[-2:]
    if mode == "pad":
        images = pad_to(images, window, padding)  # at least one window
    starts = [_starts(n, w, s, mode) for n, w, s in zip(images.shape[-2:], window, stride, strict=True)]
    most = _MOST_WINDOWS if min(window) >= _TINY else _MOST_TINY_WINDOWS
    if (count := len(starts[0]) * len(starts[1])) > most:
        raise ValueError(
            f"window: windows of {window[0]} x {window[1]} pixels every {stride[0]} x {stride[1]} are {count} for "
            f"{height} x {width} pixels, more than {most}; want larger ones"
        )
    places = [(image, top, left) for top in starts[0] for left in starts[1] for image in range(len(images))]
    total, counts = None, None
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        cuts = [images[i : i + 1, :, y : y + window[0], x : x + window[1]] for i, y, x in batch]
        sizes = [tuple(cut.shape[-2:]) for cut in cuts]
        if mode == "pad":
            cuts = [pad_to(cut, window, padding) for cut in cuts]
        pixels = torch.cat(cuts) if len(cuts) > 1 else cuts[0]
        scores = forward(pixels)
        if scores.dim() != 4 or scores.shape[-2:] != pixels.shape[-2:] or len(scores) != len(pixels):
            raise ValueError(
                f"forward: gave {list(scores.shape)} for windows of {list(pixels.shape)}, expected scores for each "
                "pixel"
            )
        if flip:
            scores = scores + forward(pixels.flip(-1)).flip(-1)
        scores = scores.to(device, torch.promote_types(scores.dtype, torch.float32))
        if len(places) == 1:
            total = scores
            break
        if total is None:
            total = scores.new_zeros(len(images), scores.shape[1], *images.shape[-2:])
            counts = scores.new_zeros(1, 1, *images.shape[-2:])
        for (image, top, left), (h, w), score in zip(batch, sizes, scores, strict=True):
            total[image, :, top : top + h, left : left + w] += score[:, :h, :w]
            if image == 0:
                counts[:, :, top : top + h, left : left + w] += 1
    total = total if counts is None else total.div_(counts)
    return total[..., :height, :width]


def _starts(length: int, window: int, stride: int, mode: str) -> list[int]:
    """Where windows start on an edge of `length` pixels."""
    if mode == "pad":
        return [stride * i for i in range(math.ceil((length - window) / stride) + 1)]
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(stride * i + window, length) - window, 0) for i in range(count)]


def window_places(
    size: tuple[int, int], window: int | tuple[int, int], stride: int | tuple[int, int] | None = None
) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows of an image of `size` (H, W), as `mode="shift"` cuts them.

    >>> window_places((4, 6), 4, 2)
    [(slice(0, 4, None), slice(0, 4, None)), (slice(0, 4, None), slice(2, 6, None))]
    """
    window = _pair("window", window)
    stride = _pair("stride", tuple(max(edge * 2 // 3, 1) for edge in window) if stride is None else stride)
    rows, columns = (
        [slice(start, min(start + w, n)) for start in _starts(n, w, s, "shift")]
        for n, w, s in zip(size, window, stride, strict=True)
    )
    return [(row, column) for row in rows for column in columns]


def pad_to(images: torch.Tensor, size: tuple[int, int], value: torch.Tensor | float = 0.0) -> torch.Tensor:
    """(B, C, H, W) -> at least (B, C, *size), padded at the right and the bottom. `value` is () or (1, C, 1, 1).

    >>> pad_to(torch.ones(1, 1, 1, 2), (2, 3))
    tensor([[[[1., 1., 0.],
              [0., 0., 0.]]]])
    """
    height, width = images.shape[-2:]
    target = max(height, size[0]), max(width, size[1])
    if target == (height, width):
        return images
    padded = images.new_empty(*images.shape[:2], *target)
    padded[:] = value
    padded[..., :height, :width] = images
    return padded


def pad_to_multiple(
    pixel_values: torch.Tensor, multiple: int, value: torch.Tensor | float | None = None
) -> torch.Tensor:
    """(B, C, H, W) -> edges that are multiples of `multiple`, longer at the right and the bottom.

    By default the border pixels are repeated; else by `value`, 0 after normalisation being the mean colour. For
    encoders that need such sizes: pad, run, and cut the logits to (H, W).
    """
    height, width = pixel_values.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    if not rows and not columns:
        return pixel_values
    if value is None:
        return F.pad(pixel_values, (0, columns, 0, rows), mode="replicate")
    return pad_to(pixel_values, (height + rows, width + columns), value)


def _scaled_size(size: tuple[int, int], scale: float, base_size: int | None) -> tuple[int, int]:
    if base_size is None:
        return tuple(max(int(edge * scale + 0.5), 1) for edge in size)
    # PyTorch-Encoding's rounding: the long edge up, the short one to the nearest.
    long = math.ceil(base_size * scale)
    height, width = size
    if height > width:
        return long, max(int(1.0 * width * long / height + 0.5), 1)
    return max(int(1.0 * height * long / width + 0.5), 1), long


def _resize(images: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=align_corners)


def _pair(name: str, value) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(edge, int) and edge >= 1 for edge in pair):
        raise ValueError(f"{name}: {value!r}, expected pixels, or (height, width), at least 1")
    return pair


__all__ = ["pad_to", "pad_to_multiple", "sliding_window_scores", "window_places"]
