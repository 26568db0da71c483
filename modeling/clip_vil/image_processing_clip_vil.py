"""Images to CLIP-ViL's inputs: resized by their short side, black around them, one size for each orientation."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from ..clip_classifier.image_processing_clip_classifier import (
    CLIPClassifierImageProcessor,
    CLIPClassifierImageProcessorKwargs,
)
from ..decoding.image_decoding import list_images, opened_image


class ClipViLImageProcessorKwargs(CLIPClassifierImageProcessorKwargs, total=False):
    """Options beside those of every transformers image processor; see `ClipViLImageProcessor`."""

    return_pixel_mask: bool | None


class ClipViLImageProcessor(CLIPClassifierImageProcessor):
    r"""
    The official preprocessing for questions: the short side becomes 384 pixels, or fewer, so that the long one has at
    most 640; then black around the image, in its centre (an odd pixel goes to the left and the top), to 640 x 384, or
    for portraits and squares to 384 x 640; then CLIP's mean and standard deviation. So the padding is not 0 but black.

    A batch of both orientations is filled up with zeros at the right and the bottom to 640 x 640, as officially:
    slower, and not the numbers of an image alone. `GroupedBatches` keeps orientations apart.

    Images of all kinds are read as by [`CLIPClassifierImageProcessor`]; `resample_backend="pil"` gives the official
    pixels bit by bit.

    Args:
        size (`dict`, defaults to `{"shortest_edge": 384, "longest_edge": 640}`):
            Short and long side; or `{"height": 448, "width": 448}`, to which images are squashed without padding: the
            paper's for captions, with `resample=3` (bicubic).
        do_pad (`bool`, defaults to `True`): False: images keep the size after resizing.
        return_pixel_mask (`bool`, defaults to `True`): also `pixel_mask`, 1 where an image is.
        resample (defaults to bilinear), resample_backend, do_rescale, rescale_factor, do_normalize, image_mean,
            image_std, do_convert_rgb, background, max_pixels: as in [`CLIPClassifierImageProcessor`].

    `preprocess(images, return_tensors="pt")` gives `pixel_values` (B, 3, H, W) float32, `pixel_mask` (B, H, W) int64.

    Raises:
        ValueError: as in [`CLIPClassifierImageProcessor`]: names the image; with `do_pad=False`, several sizes.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants.modeling.clip_vil.image_processing_clip_vil import ClipViLImageProcessor

    >>> found = ClipViLImageProcessor()(Image.new("RGB", (640, 480)), return_tensors="pt")
    >>> found.pixel_values.shape, int(found.pixel_mask.sum()) == 512 * 384
    (torch.Size([1, 3, 384, 640]), True)
    ```
    """

    valid_kwargs = ClipViLImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]

    resample = PILImageResampling.BILINEAR
    size = {"shortest_edge": 384, "longest_edge": 640}
    do_center_crop = False
    do_pad = True
    return_pixel_mask = True

    def _validate_preprocess_kwargs(self, return_pixel_mask=None, **kwargs):
        if not isinstance(return_pixel_mask, bool):
            raise ValueError(f"return_pixel_mask: {return_pixel_mask!r}, expected true or false")
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess_image_like_inputs(self, images, device=None, return_tensors=None, **options) -> BatchFeature:
        images = list_images(images)
        size = options["size"] if isinstance(options["size"], SizeDict) else SizeDict(**options["size"])
        edges = _edges(size, options["do_resize"])
        pads = options["do_pad"] and edges is not None
        if device is None:
            device = next((image.device for image in images if isinstance(image, torch.Tensor)), None)
        rules, affine = self._rules(options), self._affine(device, **options)
        pixels, masks = [], []
        for index, image in enumerate(images):
            try:
                with opened_image(image, rules) as decoded:
                    one = self._resized(decoded, edges, device, options)
            except (ValueError, OSError) as error:
                raise ValueError(f"images[{index}]: {error}") from error
            mask = torch.ones(one.shape[-2:], dtype=torch.int64, device=one.device)
            if pads:
                margins = centred_margins(*one.shape[-2:], *edges)
                one, mask = F.pad(one, margins), F.pad(mask, margins)
            pixels.append(self._normalized(one, None, affine, **options))
            masks.append(mask)
        sizes = sorted({tuple(one.shape[-2:]) for one in pixels})
        if return_tensors is not None and len(sizes) > 1:
            if not options["do_pad"]:
                raise ValueError(
                    f"images: {len(sizes)} sizes after resizing, as {sizes[0]} and {sizes[1]}, make no tensor; want "
                    "do_pad=True, a size with height and width, or return_tensors=None"
                )
            target = [max(side) for side in zip(*sizes, strict=True)]
            pixels, masks = ([_filled_up(one, target) for one in many] for many in (pixels, masks))
        data = {"pixel_values": torch.stack(pixels) if return_tensors is not None else pixels}
        if options["return_pixel_mask"]:
            data["pixel_mask"] = torch.stack(masks) if return_tensors is not None else masks
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _resized(self, decoded, edges, device, options) -> torch.Tensor:
        """(3, h, w) of an image that was opened."""
        if edges is not None:
            height, width = (
                decoded.shape[-2:] if isinstance(decoded, torch.Tensor) else (decoded.height, decoded.width)
            )
            height, width = resized_size(height, width, *edges)
            options = options | {"size": SizeDict(height=height, width=width)}
        return self._cropped(decoded, device, **options)

    def orientation(self, height: int, width: int) -> int:
        """0 for an image that is padded to a landscape, 1 for a portrait or square: the group of its batch."""
        return int(width <= height)


def _edges(size: SizeDict, resizes: bool) -> tuple[int, int] | None:
    """Short and long side; None where images have a fixed size, keep theirs, or have no longest side: without padding
    to one size."""
    if not resizes or not (size.shortest_edge and size.longest_edge):
        return None
    if size.shortest_edge > size.longest_edge:
        raise ValueError(f"size: {dict(size)}, expected a longest_edge not below shortest_edge")
    return size.shortest_edge, size.longest_edge


def resized_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width after the official resize: rounded down, at least 1."""
    short, long = min(height, width), max(height, width)
    edge = shortest
    if long / short * shortest > longest:
        edge = max(1, round(longest * short / long))
    if short == edge:
        return height, width
    other = min(max(1, int(edge * long / short)), 2 * longest)  # a thin line is not enlarged without bound
    return (other, edge) if width < height else (edge, other)


def centred_margins(height: int, width: int, shortest: int, longest: int) -> tuple[int, int, int, int]:
    """Margins left, right, top, bottom to `longest` x `shortest`, or for portraits and squares the other way round;
    an odd pixel at the left and the top. Below 0: pixels that are cut, as officially."""
    wide, high = (longest, shortest) if width > height else (shortest, longest)
    left, top = math.ceil((wide - width) / 2), math.ceil((high - height) / 2)
    return left, wide - width - left, top, high - height - top


def _filled_up(one: torch.Tensor, target: Sequence[int]) -> torch.Tensor:
    return F.pad(one, (0, target[1] - one.shape[-1], 0, target[0] - one.shape[-2]))


__all__ = ["ClipViLImageProcessor", "ClipViLImageProcessorKwargs", "centred_margins", "resized_size"]
