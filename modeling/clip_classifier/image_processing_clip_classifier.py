"""Image processor of `CLIPClassifier`: transformers' `CLIPImageProcessor` bit by bit, faster, safe on any image."""

import math

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    torch_pil_interpolation_mapping,
)
from transformers.processing_utils import ImagesKwargs

from ..decoding.image_decoding import MAX_PIXELS, DecodingRules, StoredImage, list_images, opened_image
from ..loading_and_saving.optional_modules import optional_checks


_checks = optional_checks("..loading_and_saving.configuration_checks", __package__)

# A resized image larger than this is never built: only the band that the centre crop keeps (aspect ratios beyond 400
# at 224 pixels).
_LARGEST_RESIZED_BYTES = 64 * 2**20
_LARGEST_RESULT = 2**24  # pixels of a resized image that is not cropped


class CLIPClassifierImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beside those of every transformers image processor; see `CLIPClassifierImageProcessor`."""

    resample_backend: str | None
    convert_rgb_last: bool | None
    background: tuple[int, ...] | list[int] | None
    max_pixels: int | None


class CLIPClassifierImageProcessor(TorchvisionBackend):
    r"""
    Images of any kind to `pixel_values`: resize the shortest edge (antialiased bicubic), crop the centre, rescale,
    normalise.

    The default path equals transformers' `CLIPImageProcessor` bit by bit and is 2 to 5 times faster: images stay in
    the interleaved layout that torchvision's uint8 kernel is fast on, and are reduced one by one, so a batch never
    holds more than one full-size image. With `resample_backend="pil"` the result equals OpenAI's own transform bit
    by bit instead (antialiasing by Pillow, which differs by a grey level or so, and OpenAI's rounding of odd crop
    offsets); prefer it to reproduce published numbers.

    Accepted: PIL images of every mode, paths, URLs, encoded bytes, NumPy arrays and tensors, mixed as you like, nested
    or not; each gives the same as alone. (URLs: see `decoding/opening.py` for the limits; addresses that are not
    public need the environment variable `HF_CLIP_VARIANTS_ALLOW_LOCAL_URLS=1`.) EXIF orientation is applied to all of
    them, first frames are taken, 16-bit images are scaled to 8 bit.

    Args:
        do_resize, size, resample, do_center_crop, crop_size, do_rescale, rescale_factor, do_normalize, image_mean,
            image_std, do_convert_rgb, do_pad, pad_size: as in `CLIPImageProcessor`; but `do_convert_rgb=False` refuses
            images that are not RGB.
        resample_backend (`str`, defaults to `"torchvision"`):
            `"torchvision"` or `"pil"`, see above.
        convert_rgb_last (`bool`, defaults to `False`):
            Convert to RGB after the crop, as OpenAI does: transparency is dropped, not blended, and palettes are
            resized by the nearest pixel. Needs `resample_backend="pil"`.
        background (`tuple[int, int, int]`, defaults to white):
            Colour behind transparent pixels. White is transformers' rule.
        max_pixels (`int`, defaults to 178956970):
            Larger images raise. The default is where Pillow gives up; for encoded files Pillow's own limit stays in
            force.

    `preprocess(images, return_tensors="pt")` gives `pixel_values` (B, 3, crop height, crop width) float32.

    Raises:
        ValueError: `images: no images`; `images[7]: ...` for an image that is missing, truncated, too large, empty,
            not finite, has floats in [0, 1] although `do_rescale`, or whose channel axis is ambiguous
            (`input_data_format` settles that).

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants import CLIPClassifierImageProcessor

    >>> processor = CLIPClassifierImageProcessor()
    >>> processor(Image.new("RGBA", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 224, 224])
    ```
    """

    valid_kwargs = CLIPClassifierImageProcessorKwargs

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    resample_backend = "torchvision"
    convert_rgb_last = False
    background = (255, 255, 255)
    max_pixels = MAX_PIXELS

    def __init__(self, **kwargs):
        _checks.check_image_settings(kwargs)
        super().__init__(**kwargs)
        self._validate_own_kwargs(self.resample_backend, self.convert_rgb_last, self.background, self.max_pixels)

    @_checks.with_named_settings
    def preprocess(self, images, *args, **kwargs) -> BatchFeature:
        """As in transformers; a setting of a wrong type is a ValueError that names it."""
        return super().preprocess(images, *args, **kwargs)

    def _standardize_kwargs(self, background=None, **kwargs) -> dict:
        kwargs = super()._standardize_kwargs(**kwargs)
        kwargs["background"] = tuple(background) if isinstance(background, list) else background  # JSON has no tuples
        return kwargs

    def _validate_preprocess_kwargs(self, data_format=None, **kwargs):
        _checks.check_image_settings(kwargs)
        own = [kwargs.pop(n) for n in ("resample_backend", "convert_rgb_last", "background", "max_pixels")]
        super()._validate_preprocess_kwargs(**kwargs)
        self._validate_own_kwargs(*own)
        if data_format not in (None, "channels_first"):
            raise ValueError(f"data_format: {data_format!r}, pixel_values are always 'channels_first'")

    @staticmethod
    def _validate_own_kwargs(resample_backend, convert_rgb_last, background, max_pixels):
        if resample_backend not in ("torchvision", "pil"):
            raise ValueError(f"resample_backend: {resample_backend!r}, expected 'torchvision' or 'pil'")
        if convert_rgb_last and resample_backend != "pil":
            raise ValueError(
                "convert_rgb_last=True needs resample_backend='pil' (only Pillow resizes palettes and transparency as "
                f"OpenAI does), got {resample_backend!r}"
            )
        if (
            not isinstance(background, list | tuple)
            or len(background) != 3
            or not all(isinstance(value, int) and 0 <= value <= 255 for value in background)
        ):
            raise ValueError(f"background: {background!r}, expected three integers in 0..255")
        _checks.check_max_pixels(max_pixels)

    def fetch_images(self, image_url_or_urls):
        """Pass through: `preprocess` reads images one by one, and can then name the one that cannot be read."""
        return image_url_or_urls

    def _preprocess_image_like_inputs(self, images, device=None, return_tensors=None, **options) -> BatchFeature:
        images = list_images(images)
        if device is None:
            device = next((image.device for image in images if isinstance(image, torch.Tensor)), None)
        rules, affine = self._rules(options), self._affine(device, **options)
        finished, shape = [], self._known_shape(**options)
        batch = torch.empty((len(images), *shape), device=device) if shape else None
        for index, image in enumerate(images):
            try:
                with opened_image(image, rules) as decoded:
                    pixels = self._cropped(decoded, device, **options)
            except (ValueError, OSError) as error:
                raise ValueError(f"images[{index}]: {error}") from error
            finished.append(self._normalized(pixels, batch[index] if shape else None, affine, **options))
        if options["do_pad"]:
            finished = self.pad(finished, pad_size=options["pad_size"])
        elif shape and return_tensors is not None:
            finished = batch
        elif return_tensors is not None and len(sizes := {tuple(pixels.shape[-2:]) for pixels in finished}) > 1:
            raise ValueError(
                f"images: {len(sizes)} sizes after resizing, as {' and '.join(map(str, sorted(sizes)[:2]))}, make "
                "no tensor; want do_center_crop=True, a size with height and width, or return_tensors=None"
            )
        return BatchFeature(data={"pixel_values": finished}, tensor_type=return_tensors)

    @staticmethod
    def _rules(options: dict) -> DecodingRules:
        return DecodingRules(
            max_pixels=options["max_pixels"],
            background=options["background"],
            keep_mode=options["convert_rgb_last"],
            convert_rgb=bool(options["do_convert_rgb"]),
            input_data_format=options["input_data_format"],
            expect_0_255=bool(options["do_rescale"] and options["rescale_factor"] < 1),
        )

    @staticmethod
    def _known_shape(do_center_crop, crop_size, do_resize, size, do_rescale, do_normalize, **unused):
        """(3, H, W) of every result, or None where it depends on the image (or no floats are made)."""
        if not (do_rescale or do_normalize):
            return None
        if do_center_crop:
            return 3, crop_size.height, crop_size.width
        return (3, size.height, size.width) if do_resize and size.height and size.width else None

    def _cropped(
        self, image, device, do_resize, size, resample, resample_backend, do_center_crop, crop_size, **unused
    ) -> torch.Tensor:
        """A decoded image, resized and cropped: (3, h, w), in the interleaved layout for uint8."""
        exact_pil = resample_backend == "pil"
        if isinstance(image, PIL.Image.Image | StoredImage):
            height, width = image.height, image.width
        else:
            height, width = image.shape[-2:]
        target = _resized_size(height, width, size) if do_resize else (height, width)
        crop = (crop_size.height, crop_size.width) if do_center_crop else target
        element_size = image.element_size() if isinstance(image, torch.Tensor) else 1
        too_large = math.prod(target) * 3 * element_size > _LARGEST_RESIZED_BYTES
        if math.prod(target) > _LARGEST_RESULT and do_resize and not do_center_crop:
            raise ValueError(
                f"size: {dict(size)} makes {target[1]} x {target[0]} pixels of {width} x {height}; want a smaller "
                "one, or do_center_crop=True"
            )
        if too_large and do_center_crop and target[0] >= crop[0] and target[1] >= crop[1]:
            return _to_tensor(_resize_band(_to_pil(image), target, crop, resample, _crop_offset(exact_pil)), device)
        if isinstance(image, StoredImage):
            if exact_pil or target[1] == width or _is_accelerator(device):
                image = image.whole(grey_stays=exact_pil)
            else:
                image = self._narrowed(image, target[1], resample)
                height, width = image.shape[-2:]
        if exact_pil:
            planes = [_centre_crop_pil(_resize_pil(plane, target, resample), crop) for plane in _to_pil(image)]
            return _to_tensor(planes, device)
        if isinstance(image, PIL.Image.Image):
            image = _to_tensor([image], device) if _is_accelerator(device) else _interleaved(image)
        image = image.to(device)
        if image.dtype != torch.uint8 or _is_accelerator(image.device):
            image = image.contiguous()  # as transformers does: these kernels may round differently in another layout
        elif image.stride(0) != 1:
            image = image[None].contiguous(memory_format=torch.channels_last)[0]
        if target != (height, width):
            image = self.resize(image, SizeDict(height=target[0], width=target[1]), resample)
        return (self.center_crop(image, crop_size) if do_center_crop else image)[:3]

    def _narrowed(self, image: StoredImage, width: int, resample) -> torch.Tensor:
        """(3, height, width) uint8, interleaved: resized in one direction, a strip of rows after the other.

        torchvision's kernel resizes rows first and rounds to 8 bits before it resizes columns, so nothing else comes
        out. (But for its bilinear one on processors without AVX2, which rounds once: a grey level at the most.)
        Pillow's takes either direction first.
        """
        narrowed = torch.empty((1, 3, image.height, width), dtype=torch.uint8, memory_format=torch.channels_last)[0]
        top = 0
        for strip in image.strips():
            size = SizeDict(height=strip.height, width=width)
            narrowed[:, top : top + strip.height] = self.resize(_to_tensor([strip]), size, resample)
            top += strip.height
        return narrowed

    @staticmethod
    def _affine(
        device, resample_backend, do_rescale, rescale_factor, do_normalize, image_mean, image_std, **unused
    ) -> tuple[float | None, torch.Tensor | None, torch.Tensor | None]:
        """(divisor, mean, std), any of them None, of (x / divisor - mean) / std: the order decides the last bit.

        transformers folds the rescaling into mean and std; OpenAI (ToTensor, Normalize) divides by 255 first.
        """
        if not do_normalize:
            return None, None, None
        mean, std = (
            torch.tensor(value, dtype=torch.float32, device=device).view(-1, 1, 1) for value in (image_mean, image_std)
        )
        if not do_rescale:
            return None, mean, std
        divisor = 1.0 / rescale_factor
        return (divisor, mean, std) if resample_backend == "pil" else (None, mean * divisor, std * divisor)

    @staticmethod
    def _normalized(pixels, out, affine, do_rescale, rescale_factor, do_normalize, **unused) -> torch.Tensor:
        """(3, h, w) float32, written to `out` if there is one; the images' own values if nothing is asked for."""
        if not (do_rescale or do_normalize):
            return pixels.clone(memory_format=torch.contiguous_format)  # never the image's own memory
        out = torch.empty(pixels.shape, device=pixels.device) if out is None else out
        if not do_normalize:
            return out.copy_(pixels * rescale_factor)
        divisor, mean, std = affine
        out.copy_(pixels)  # from uint8 to float32 and from interleaved to planar at once
        return (out if divisor is None else out.div_(divisor)).sub_(mean).div_(std)


def _resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    if size.shortest_edge and size.longest_edge:
        return _at_least_one(*get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge))
    if size.shortest_edge:
        long_edge = int(size.shortest_edge * max(height, width) / min(height, width))
        return (long_edge, size.shortest_edge) if width <= height else (size.shortest_edge, long_edge)
    if size.max_height and size.max_width:
        return _at_least_one(*get_image_size_for_max_height_width((height, width), size.max_height, size.max_width))
    if size.height and size.width:
        return size.height, size.width
    raise ValueError(f"size: {size}, expected shortest_edge, height and width, or max_height and max_width")


def _at_least_one(height: int, width: int) -> tuple[int, int]:
    """Deviation from transformers, which rounds the short edge of a thin image to 0 and then cannot resize it."""
    return max(1, height), max(1, width)


def _crop_offset(exact_pil: bool):
    """torchvision (and so OpenAI) rounds half an odd margin to even, transformers down."""
    return (lambda margin: int(round(margin / 2.0))) if exact_pil else (lambda margin: int(margin / 2.0))


def _to_pil(image: PIL.Image.Image | StoredImage | torch.Tensor) -> list:
    """One image, or three planes of mode F for floats (Pillow has no float RGB)."""
    if isinstance(image, PIL.Image.Image | StoredImage):
        return [image]
    if image.dtype == torch.uint8:
        return [PIL.Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))]
    return [PIL.Image.fromarray(plane.contiguous().numpy()) for plane in image.float().cpu()]


def _to_tensor(planes: list[PIL.Image.Image], device=None) -> torch.Tensor:
    """(3, H, W): a uint8 image without leaving the interleaved layout, or three float planes."""
    if len(planes) == 3:
        return torch.stack([torch.from_numpy(np.array(plane)) for plane in planes]).to(device)
    image = planes[0] if planes[0].mode == "RGB" else planes[0].convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device)


def _is_accelerator(device) -> bool:
    return device is not None and torch.device(device).type != "cpu"


def _interleaved(image: PIL.Image.Image) -> torch.Tensor:
    """(3 or 4, H, W) uint8 of an RGB image, channels innermost, the layout of torchvision's fast kernel.

    Pillow keeps RGB in four bytes a pixel and hands that memory out through Arrow: nothing is copied, and resizing the
    fourth channel along is free. Images in several memory blocks (above 16 MB) and installations without pyarrow
    take the copy.
    """
    if hasattr(image, "__arrow_c_array__"):
        try:
            import pyarrow

            pixels = torch.from_dlpack(pyarrow.array(image).values)  # `to_numpy()` would import pandas
            return pixels.view(image.height, image.width, 4).permute(2, 0, 1)
        except (ImportError, AttributeError, ValueError, TypeError, BufferError, RuntimeError):
            pass
    return _to_tensor([image])


def _pil_filter(resample) -> PIL.Image.Resampling:
    return torch_pil_interpolation_mapping[resample] if resample in torch_pil_interpolation_mapping else resample


def _resize_pil(image: PIL.Image.Image, target: tuple[int, int], resample) -> PIL.Image.Image:
    width_first = (target[1], target[0])
    return image.resize(width_first, _pil_filter(resample)) if width_first != image.size else image


def _centre_crop_pil(image: PIL.Image.Image, crop: tuple[int, int]) -> PIL.Image.Image:
    return tvF.center_crop(image, list(crop)) if crop != (image.height, image.width) else image


def _resize_band(planes: list, target, crop, resample, offset) -> list[PIL.Image.Image]:
    """What the centre crop would keep of the resized image, and no more: same sampling positions, tiny memory.

    Pillow's `box` takes fractions of a pixel and still filters over the neighbours outside of it.
    """
    height, width = planes[0].height, planes[0].width
    top, left = (offset(whole - kept) for whole, kept in zip(target, crop, strict=True))
    steps = width / target[1], height / target[0]
    ends = min((left + crop[1]) * steps[0], width), min((top + crop[0]) * steps[1], height)
    # Cut first, with the neighbours that filters reach: boxes are float32 in Pillow, too coarse far out in an image.
    near = [math.ceil(3 * max(step, 1.0)) + 1 for step in steps]
    first = [max(math.floor(at * step) - by, 0) for at, step, by in zip((left, top), steps, near, strict=True)]
    last = [min(math.ceil(end) + by, most) for end, by, most in zip(ends, near, (width, height), strict=True)]
    box = left * steps[0] - first[0], top * steps[1] - first[1], ends[0] - first[0], ends[1] - first[1]
    return [plane.crop((*first, *last)).resize(crop[::-1], _pil_filter(resample), box=box) for plane in planes]


__all__ = ["CLIPClassifierImageProcessor", "CLIPClassifierImageProcessorKwargs"]
