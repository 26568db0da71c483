"""Decodes an image in any form to an upright RGB PIL image, or an array to a (3, H, W) tensor.

The rules are the same for every image processor: EXIF orientation is applied, transparency is blended on a background,
16-bit values become 8-bit ones, the first frame of an animation is used, large images are refused, and the channel
axis must be clear. All errors are `ValueError`s that say what came; the caller adds which image it was.
"""

import base64
import contextlib
import functools
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torchvision.transforms.v2 import functional as tvF

from ..loading_and_saving.optional_modules import needed_module, optional_module


# Exported code opens no URL, and decodes large images as Pillow does.
_opening = optional_module(".opening", __package__)
_stored = optional_module(".stored_images", __package__)


StoredImage = type("NoImage", (), {}) if _stored is None else _stored.StoredImage

MAX_PIXELS = 178_956_970  # the limit above which PIL itself refuses to open a file: twice its MAX_IMAGE_PIXELS

_COUNTED_PIXELS = 1_000_000  # smaller images do not wait for memory
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_SHORTEST_BASE64 = 64  # the smallest PNG needs more; shorter strings are taken for file names


@dataclass(frozen=True)
class DecodingRules:
    """The options of `decode_image`."""

    max_pixels: int = MAX_PIXELS  # images with more are refused; of a file only the header is read before
    background: tuple[int, int, int] = (255, 255, 255)  # RGB colour behind transparent pixels
    keep_mode: bool = False  # PIL images keep their mode, palette and transparency; uint8 arrays become PIL images
    convert_rgb: bool = True  # False refuses images in other modes than RGB
    input_data_format: str | None = None  # "channels_first" or "channels_last", for arrays whose shape fits both
    expect_0_255: bool = True  # the caller divides by 255 later, so that a float image within [0, 1] is an error
    allow_local_urls: bool | None = None  # URLs of loopback and private addresses; see `opening.download`


def list_images(images) -> list:
    """An image, a batch array (B, ...) or nested sequences of images -> one flat list of images, not decoded.

    Strings and bytes are single images (a path, a URL, an encoded file). Raises ValueError if there is no image.
    """
    flat = list(_flatten(images))
    if not flat:
        raise ValueError("images: no images")
    return flat


def _flatten(images):
    if isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview):
        for image in images:
            yield from _flatten(image)
    elif isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        yield from images
    else:
        yield images


def decode_image(image, rules: DecodingRules | None = None) -> PIL.Image.Image | torch.Tensor:
    """Decodes one image.

    16-bit values are divided by 257 (65535 becomes 255); other integers must be in 0..255. Transparent pixels are
    blended on `rules.background`.

    Args:
        image: a PIL image; an encoded file (its first frame) as bytes, a path, an http(s) or `data:` URL, base64 or an
            open binary file; a NumPy array or a tensor (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.
        rules: `None` is `DecodingRules()`.

    Returns:
        A PIL image in mode RGB (any 8-bit mode with `keep_mode`) or, for arrays, a (3, H, W) tensor: uint8, or
        float32/float64.

    Raises:
        ValueError: unreadable, truncated, more than `max_pixels`, empty, NaN or infinite, floats in [0, 1] where
            0..255 are expected, or an ambiguous channel axis.
    """
    with opened_image(image, rules) as decoded:
        return decoded.taken() if isinstance(decoded, StoredImage) else decoded


@contextlib.contextmanager
def opened_image(image, rules: DecodingRules | None = None) -> Iterator[PIL.Image.Image | torch.Tensor | StoredImage]:
    """What `decode_image` gives; but a file of a large image as a `StoredImage`, whose parts are converted when they
    are asked for. Memory is reserved for it as long as the context lasts: not for two images at once in one thread.
    """
    rules = rules or DecodingRules()
    if isinstance(image, torch.Tensor | np.ndarray):
        yield _decode_array(image, rules)
        return
    if isinstance(image, PIL.Image.Image):
        _check_size(image.height, image.width, rules)
        unloaded = bool(getattr(image, "tile", None)) and _stored is not None
        with _memory_for(image, _stored.decoding_bytes(image) if unloaded else 0):
            yield _decode_pil(image, rules, "")
        return
    source, name = _open(image, rules)
    with source:
        with _first_frame(source, name) as opened:
            # The size is known from the header; `load` decodes the pixels.
            _check_size(opened.height, opened.width, rules, name)
            with _memory_for(opened, _prepared(opened, name)):
                decoded = _decode_pil(opened, rules, name)
                try:
                    yield decoded
                finally:
                    if isinstance(decoded, StoredImage):
                        decoded.close()


def _first_frame(source, name: str) -> PIL.Image.Image:
    try:
        opened = PIL.Image.open(source)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"too large{name}: {error}") from error
    except PIL.UnidentifiedImageError as error:
        source.seek(0)
        raise ValueError(_why_unidentified(source.read(16), name)) from error
    except Exception as error:
        raise _damaged(error, name) from error
    return opened


def _prepared(image: PIL.Image.Image, name: str) -> int:
    """Bytes that `load` of an opened file will take, as far as they are known; ValueError for what must not load."""
    if _stored is not None:
        return _stored.prepare(image, name)
    if image.format == "EPS":
        raise ValueError(f"an EPS file{name}: it is a program, which Ghostscript would run; want an image")
    return 0


def _memory_for(image: PIL.Image.Image, needed: int):
    """Reserves what decoding takes, and then the conversion of the whole image or of a part at a time."""
    if _stored is None or image.width * image.height < _COUNTED_PIXELS:
        return contextlib.nullcontext()
    return _stored.DECODED_IMAGES.reserve(needed + _stored.conversion_bytes(image))


def _open(image, rules: DecodingRules):
    """A binary file, and its name for error messages, with " in " before it."""
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image), ""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        opening = needed_module(".opening", __package__, f"cannot fetch {image[:200]}")
        return io.BytesIO(opening.download(image, rules.allow_local_urls)), f" in {image}"
    if isinstance(image, str) and image.startswith("data:"):
        return io.BytesIO(_from_base64(image.partition(",")[2])), " in a data: URL"
    # A string may be a path or base64: it is a path if it can be opened.
    if isinstance(image, str | os.PathLike):
        try:
            return _opened_file(image), f" in {os.fspath(image)!r}"
        except (OSError, ValueError) as error:
            if isinstance(image, str) and len(image) > _SHORTEST_BASE64:
                try:
                    return io.BytesIO(_from_base64(image)), " in a base64 string"
                except ValueError:
                    pass
            problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot read file ({error})"
            raise ValueError(f"{problem}: {os.fspath(image)[:200]!r}") from error
    if hasattr(image, "read"):
        return io.BytesIO(image.read()), ""
    raise ValueError(
        f"got {type(image).__name__}, expected a PIL image, an array, a tensor, a path, a URL or the bytes of a file"
    )


def _opened_file(path):
    if _opening is not None:
        return _opening.open_regular(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")
    return open(path, "rb")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"invalid base64 ({error})") from error


def _why_unidentified(head: bytes, name: str) -> str:
    if not head:
        return f"empty file{name}"
    if head.startswith(_SIGNATURES):
        return f"truncated image{name}: it ends within its header"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif"):
        return f"a HEIC image{name}, which Pillow reads with the package pillow-heif only"
    return f"not an image{name}, or in a format that PIL cannot read: it starts with {head!r}"


def _damaged(error: Exception, name: str) -> Exception:
    return error if isinstance(error, MemoryError) else ValueError(f"truncated or corrupt image{name} ({error})")


def _check_size(height: int, width: int, rules: DecodingRules, name: str = ""):
    if height * width > rules.max_pixels:
        raise ValueError(
            f"{width} x {height} = {height * width} pixels{name}, more than max_pixels={rules.max_pixels}; resize it, "
            "or raise max_pixels"
        )
    if height * width == 0:
        raise ValueError(f"empty image{name}: {width} x {height} pixels")


def _decode_pil(
    image: PIL.Image.Image, rules: DecodingRules, name: str
) -> PIL.Image.Image | torch.Tensor | StoredImage:
    _check_size(image.height, image.width, rules, name)
    try:
        image.load()
    except Exception as error:
        raise _damaged(error, name) from error
    _check_size(image.height, image.width, rules, name)  # of icons, the size in their header may be another
    is_rgb = image.mode == "RGB" and image.info.get("transparency") is None
    if not is_rgb and not rules.convert_rgb:
        raise ValueError(f"mode {image.mode}{name} with do_convert_rgb=False, expected RGB")
    can_be_large = _stored is not None and not rules.keep_mode
    if can_be_large and image.width * image.height > _stored.LARGE_PIXELS and image.mode != "F":
        return StoredImage(image, functools.partial(_as_rgb, rules=rules, eight_bit=_is_eight_bit(image)))
    image = _upright(image)
    # Mode F holds floats. If the values stay as they are (`expect_0_255` is False), they are returned as a tensor,
    # because a conversion to RGB would round them.
    if image.mode == "F":
        pixels = torch.from_numpy(np.array(image))
        _check_float(pixels, rules)
        if not rules.expect_0_255:
            return pixels.expand(3, -1, -1)
    if rules.keep_mode:
        return image if is_rgb else _eight_bit(image, _is_eight_bit(image))
    return _as_rgb(image, rules, _is_eight_bit(image))


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    if _stored is not None:
        return _stored.turned(image, _stored.orientation_of(image))
    with contextlib.suppress(Exception):  # damaged metadata: the pixels may be fine
        return PIL.ImageOps.exif_transpose(image)
    return image


def _as_rgb(image: PIL.Image.Image, rules: DecodingRules, eight_bit: bool) -> PIL.Image.Image:
    if image.mode == "RGB" and image.info.get("transparency") is None:
        return image
    return _on_background(_eight_bit(image, eight_bit), rules)


def _is_eight_bit(image: PIL.Image.Image) -> bool:
    """PIL uses mode I for 16-bit files (PGM) and for int32 arrays: only the values show which range is meant.

    ValueError for values of neither.
    """
    if image.mode not in (*_SIXTEEN_BIT_MODES, "I"):
        return True
    try:
        lowest, highest = image.getextrema()
    except ValueError:  # not in each byte order
        values = np.array(image)
        lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(f"mode {image.mode}: values {lowest}..{highest}, expected 0..255 or 0..65535")
    return image.mode == "I" and highest <= 255


def _eight_bit(image: PIL.Image.Image, is_eight_bit: bool) -> PIL.Image.Image:
    """Modes that PIL converts wrongly or cannot resize, as modes that it handles: 16-bit grey as 8-bit grey (PIL would
    clip it to white), premultiplied alpha and palettes with alpha as LA or RGBA."""
    if image.mode in ("RGBa", "La", "PA"):
        return image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in (*_SIXTEEN_BIT_MODES, "I"):
        return image
    values = np.array(image)
    grey = PIL.Image.fromarray((values if is_eight_bit else (values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    # PNG can mark one grey value as transparent.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _on_background(image: PIL.Image.Image, rules: DecodingRules) -> PIL.Image.Image:
    """RGB, with transparent pixels blended on the background, as transformers' `convert_to_rgb` does on white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = PIL.Image.new("RGBA", image.size, (*rules.background, 255))
    return PIL.Image.alpha_composite(background, image).convert("RGB")


def _decode_array(image: np.ndarray | torch.Tensor, rules: DecodingRules) -> PIL.Image.Image | torch.Tensor:
    pixels = _channels_first(_as_tensor(image), rules.input_data_format)
    _check_size(*pixels.shape[-2:], rules)
    if not rules.convert_rgb and pixels.shape[0] != 3:
        raise ValueError(f"{pixels.shape[0]} channel(s) with do_convert_rgb=False, expected 3")
    pixels = _supported_dtype(pixels)
    if pixels.is_floating_point():
        _check_float(pixels, rules)
    elif rules.keep_mode:
        array = pixels.permute(1, 2, 0).cpu().numpy()
        return PIL.Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array))
    if pixels.shape[0] == 4:
        return _blend(pixels, rules)
    return pixels.expand(3, -1, -1)


def _as_tensor(image: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image.detach().as_subclass(torch.Tensor)
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    try:
        # torch has no negative strides, and warns about read-only memory: such arrays are copied.
        return torch.from_numpy(
            image if image.flags.writeable and min(image.strides, default=0) >= 0 else image.copy()
        )
    except TypeError as error:
        raise ValueError(f"array of dtype {image.dtype}, expected numbers") from error


def _channels_first(pixels: torch.Tensor, input_data_format: str | None) -> torch.Tensor:
    """(H, W), (H, W, C) or (C, H, W) -> (C, H, W). The axis of length 1, 3 or 4 is that of the channels; if the first
    and the last axis both have such a length, `input_data_format` must say which it is."""
    shape = tuple(pixels.shape)
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim != 3:
        raise ValueError(f"array of shape {shape}, expected (H, W), (H, W, C) or (C, H, W)")
    if input_data_format is None:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if first and last:
            raise ValueError(
                f"shape {shape}: the channels may be first or last; pass input_data_format='channels_first' or "
                "'channels_last'"
            )
        if not first and not last:
            raise ValueError(f"shape {shape}: neither the first nor the last axis has 1, 3 or 4 channels")
    else:
        first = input_data_format == "channels_first"
        if not first and input_data_format != "channels_last":
            raise ValueError(f"input_data_format: {input_data_format!r}, expected 'channels_first' or 'channels_last'")
        if shape[0 if first else 2] not in (1, 3, 4):
            raise ValueError(f"shape {shape} with {input_data_format!r}: expected 1, 3 or 4 channels")
    return pixels if first else pixels.permute(2, 0, 1)


def _supported_dtype(pixels: torch.Tensor) -> torch.Tensor:
    """To uint8, float32 or float64. Bool becomes 0 and 255, uint16 is divided by 257, other integers are 0..255."""
    if pixels.dtype in (torch.uint8, torch.float32, torch.float64):
        return pixels
    if pixels.is_floating_point():
        return pixels.float()
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        return ((pixels.int() + 128) // 257).to(torch.uint8)
    if pixels.is_complex():
        raise ValueError(f"array of dtype {pixels.dtype}, expected real numbers")
    lowest, highest = (int(value) for value in pixels.long().aminmax())
    if lowest < 0 or highest > 255:
        raise ValueError(f"{pixels.dtype} values {lowest}..{highest}, expected 0..255 (or uint16, or float)")
    return pixels.to(torch.uint8)


def _check_float(pixels: torch.Tensor, rules: DecodingRules):
    """ValueError for NaN, infinity, and values in [0, 1] where 0..255 is expected (0 and 1 only may be either)."""
    lowest, highest = (float(value) for value in pixels.aminmax())  # aminmax propagates NaN
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError(f"NaN or infinite pixel values (minimum {lowest}, maximum {highest})")
    if rules.expect_0_255 and 0 <= lowest and highest <= 1 and not torch.equal(pixels, pixels.round()):
        raise ValueError(
            f"float image with values in [0, 1] (minimum {lowest:.4g}, maximum {highest:.4g}): pass do_rescale=False"
        )


def _blend(pixels: torch.Tensor, rules: DecodingRules) -> torch.Tensor:
    """(4, H, W) -> (3, H, W), blended on the background with the operations of transformers' `convert_to_rgb`, and
    bit-equal to it: rgb * alpha + background * (1 - alpha)."""
    dtype = pixels.dtype
    # Integers are scaled to 0..1 first; floats keep their range, 0..255 or 0..1.
    highest = 255.0 if pixels.is_floating_point() and rules.expect_0_255 else 1.0
    if not pixels.is_floating_point():
        pixels = tvF.to_dtype(pixels, torch.float32, scale=True)
    alpha = pixels[3:] / highest
    if float(alpha.min()) < 0 or float(alpha.max()) > 1:
        raise ValueError(f"alpha values outside [0, {highest:g}]")
    background = pixels.new_tensor(rules.background).view(3, 1, 1) / (255.0 / highest)
    pixels = pixels[:3] * alpha + background * (1 - alpha)
    return tvF.to_dtype(pixels, dtype, scale=True)


__all__ = ["MAX_PIXELS", "DecodingRules", "StoredImage", "decode_image", "list_images", "opened_image"]
