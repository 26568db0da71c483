"""Images of any size and kind to `pixel_values`, label maps to `labels`, and logits back to label maps."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs

from ..decoding.image_decoding import MAX_PIXELS, DecodingRules, decode_image, list_images
from ..decoding.one_pixel import resize_whole_numbers
from ..decoding.opening import open_regular
from ..loading_and_saving.configuration_checks import (
    check_image_settings,
    check_max_pixels,
    with_named_settings,
)
from .label_maps import post_process_semantic_segmentation
from .sliding_window import pad_to


_LARGEST_RESIZED = 64_000_000  # pixels of one resized image


class DenseImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beside those of every transformers image processor; see `DenseImageProcessor`."""

    size_multiple: int | None
    size_divisor: int | None
    pad_mode: str | None
    do_reduce_labels: bool | None
    ignore_index: int | None
    return_original_sizes: bool | None
    max_pixels: int | None


class DenseImageProcessor(TorchvisionBackend):
    r"""
    Image processor of models that answer for each pixel: LSeg, GroupViT and others, with their own defaults.

    Images: any PIL mode, paths, URLs, bytes, arrays and tensors, of any size, mixed in a batch (as in
    `decoding/image_decoding.py`). They are resized, rescaled and normalised, and padded at the right and the bottom
    where their sizes differ. Label maps go the same way, but by the nearest pixel: no label comes out that did not go
    in (transformers' DPT and BEiT processors blend them). `post_process_semantic_segmentation` cuts the padding and
    goes back to the size of the image.

    Args:
        do_resize, size, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std, do_convert_rgb: as
            in transformers; `size` is `{"shortest_edge": 480, "longest_edge": 2048}` (the shape stays), `{"height":
            480, "width": 480}` or `{"max_height": …, "max_width": …}`.
        size_multiple (`int`, *optional*):
            Edges of the resized image are rounded to multiples of it, as DPT's `ensure_multiple_of`.
        do_pad (`bool`, defaults to `True`): pad images of a batch to one size (or to `pad_size`, height and width).
            False refuses a batch of several sizes.
        size_divisor (`int`, *optional*):
            Pad to a multiple of it, also a single image. Models here take any size: it saves their own padding.
        pad_mode (`"mean"`, `"black"` or `"edge"`, defaults to `"mean"`):
            What padding is: the mean colour (0), black, or the last pixel repeated. `labels` are `ignore_index` there.
        do_reduce_labels (`bool`, defaults to `False`):
            0 in label maps becomes `ignore_index`, all other labels one less, as for ADE20K.
        ignore_index (`int`, defaults to 255): the label of pixels that do not count.
        return_original_sizes (`bool`, defaults to `False`):
            Also `original_sizes` (B, 2), the images' heights and widths, for `target_sizes` later.
        max_pixels (`int`, defaults to 178956970): larger images raise.

    `preprocess(images, segmentation_maps=None, return_tensors="pt")` gives `pixel_values` (B, 3, H, W) float32 and,
    with maps, `labels` (B, H, W) int64.

    Raises:
        ValueError: names the image or map: unreadable, empty, not a map of whole numbers, of another size than its
            image; a batch of several sizes with `do_pad=False`.

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor

    >>> processor = DenseImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    >>> maps = [np.zeros((40, 80), dtype=np.uint8), np.full((50, 50), 7)]
    >>> batch = processor([Image.new("RGB", (80, 40)), Image.new("L", (50, 50))], maps, return_tensors="pt")
    >>> batch.pixel_values.shape, batch.labels.shape, batch.labels.unique().tolist()
    (torch.Size([2, 3, 32, 64]), torch.Size([2, 32, 64]), [0, 7, 255])
    ```
    """

    valid_kwargs = DenseImageProcessorKwargs
    model_input_names = ["pixel_values"]

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 480, "longest_edge": 2048}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_pad = True

    size_multiple = None
    size_divisor = None
    pad_mode = "mean"
    do_reduce_labels = False
    ignore_index = 255
    return_original_sizes = False
    max_pixels = MAX_PIXELS

    def __init__(self, **kwargs):
        _check_own(kwargs)
        super().__init__(**kwargs)

    @with_named_settings
    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """See the class."""
        _check_own(kwargs)
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _validate_preprocess_kwargs(self, data_format=None, **kwargs):
        for name in DenseImageProcessorKwargs.__annotations__.keys() - ImagesKwargs.__annotations__.keys():
            kwargs.pop(name, None)
        super()._validate_preprocess_kwargs(**kwargs)
        if data_format not in (None, "channels_first"):
            raise ValueError(f"data_format: {data_format!r}, pixel_values are always 'channels_first'")

    def fetch_images(self, image_url_or_urls):
        """Pass through: `preprocess` reads images one by one, and can then name the one that cannot be read."""
        return image_url_or_urls

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, device=None, return_tensors=None, **options
    ) -> BatchFeature:
        images = list_images(images)
        pixels, labels, originals = [], [], []
        maps = None if segmentation_maps is None else _list_maps(segmentation_maps, len(images))
        for index, image in enumerate(images):
            try:
                decoded = _as_tensor(decode_image(image, self._rules(options)))
            except (ValueError, OSError) as error:
                raise ValueError(f"images[{index}]: {error}") from error
            original = tuple(decoded.shape[-2:])
            size = self._resized_size(original, f"images[{index}]", **options)
            pixels.append(self._finished(decoded if device is None else decoded.to(device), size, **options))
            originals.append(original)
            if maps is not None:
                labels.append(self._label_map(maps[index], index, original, size, **options))
        if options["do_pad"]:
            target = self._padded_size(list(map(_size, pixels)), **options)
            pixels = [self._padded(image, target, **options) for image in pixels]
            labels = [pad_to(one[None, None], target, options["ignore_index"])[0, 0] for one in labels]
        elif return_tensors is not None and len(sizes := {_size(image) for image in pixels}) > 1:
            raise ValueError(
                f"images: {len(sizes)} sizes after resizing, as {' and '.join(map(str, sorted(sizes)[:2]))}, make "
                "no tensor; want do_pad=True, a size with height and width, or return_tensors=None"
            )
        data = {"pixel_values": torch.stack(pixels) if return_tensors is not None else pixels}
        if maps is not None:
            data["labels"] = torch.stack(labels) if return_tensors is not None else labels
        if options["return_original_sizes"]:
            data["original_sizes"] = torch.tensor(originals) if return_tensors is not None else originals
        return BatchFeature(data=data, tensor_type=return_tensors)

    @staticmethod
    def _rules(options: dict) -> DecodingRules:
        return DecodingRules(
            max_pixels=options["max_pixels"],
            convert_rgb=bool(options["do_convert_rgb"]),
            input_data_format=options["input_data_format"],
            expect_0_255=bool(options["do_rescale"] and options["rescale_factor"] < 1),
        )

    @staticmethod
    def _resized_size(
        original: tuple[int, int], what: str, do_resize, size, size_multiple, **unused
    ) -> tuple[int, int]:
        found = original
        if do_resize:
            size = size if isinstance(size, SizeDict) else SizeDict(**size)
            if size.shortest_edge and size.longest_edge:
                found = get_size_with_aspect_ratio(original, size.shortest_edge, size.longest_edge)
            elif size.shortest_edge or size.longest_edge:
                edge, of = (size.shortest_edge, min) if size.shortest_edge else (size.longest_edge, max)
                found = tuple(round(one * edge / of(original)) for one in original)
            elif size.max_height and size.max_width:
                found = get_image_size_for_max_height_width(original, size.max_height, size.max_width)
            elif size.height and size.width:
                found = size.height, size.width
            else:
                raise ValueError(f"size: {size}, expected shortest_edge, longest_edge, or height and width")
        if size_multiple:
            found = tuple(round(edge / size_multiple) * size_multiple for edge in found)
        found = tuple(max(edge, size_multiple or 1) for edge in found)
        if math.prod(found) > _LARGEST_RESIZED:
            raise ValueError(
                f"{what}: {original[1]} x {original[0]} pixels become {found[1]} x {found[0]}, more than "
                f"{_LARGEST_RESIZED}; want a size with longest_edge"
            )
        return found

    def _finished(
        self, image, target, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std, **unused
    ) -> torch.Tensor:
        """A decoded image (3, H, W) -> (3, *target) float32."""
        if target != _size(image):
            image = resize_whole_numbers(self.resize, image, SizeDict(height=target[0], width=target[1]), resample)
        image = self.rescale_and_normalize(
            image[None],
            do_rescale,
            rescale_factor,
            do_normalize,
            tuple(image_mean) if isinstance(image_mean, list) else image_mean,
            tuple(image_std) if isinstance(image_std, list) else image_std,
        )[0]
        return image.float().contiguous()

    def _label_map(self, given, index, original, target, ignore_index, do_reduce_labels, max_pixels, **unused):
        """(*target) int64: the nearest pixel's label, reduced if asked."""
        what = f"segmentation_maps[{index}]"
        label_map = decoded_map(given, what, max_pixels)
        if label_map.shape != original:
            height, width = label_map.shape
            raise ValueError(f"{what}: {width} x {height} pixels, its image has {original[1]} x {original[0]}")
        rows, columns = (nearest_pixels(*edges) for edges in zip(original, target, strict=True))
        label_map = torch.from_numpy(label_map[rows[:, None], columns].astype(np.int64))
        if do_reduce_labels:
            ignored = (label_map == 0) | (label_map == ignore_index)
            label_map = torch.where(ignored, ignore_index, label_map - 1)
        return label_map

    @staticmethod
    def _padded_size(sizes: list[tuple[int, int]], size_divisor, pad_size, **unused) -> tuple[int, int]:
        largest = tuple(map(max, zip(*sizes, strict=True)))
        if pad_size is not None:
            target = pad_size.height, pad_size.width
            if None in target or target[0] < largest[0] or target[1] < largest[1]:
                raise ValueError(f"pad_size: {pad_size}, expected a height and width of at least {largest}")
            return target
        divisor = size_divisor or 1
        return tuple(math.ceil(edge / divisor) * divisor for edge in largest)

    @staticmethod
    def _padded(image, target, pad_mode, image_mean, image_std, do_normalize, **unused) -> torch.Tensor:
        height, width = _size(image)
        if (height, width) == target:
            return image
        if pad_mode == "edge":
            return torch.nn.functional.pad(image, (0, target[1] - width, 0, target[0] - height), mode="replicate")
        mean, std = (torch.tensor(value, device=image.device).view(-1, 1, 1) for value in (image_mean, image_std))
        black = -mean / std if do_normalize else torch.zeros(())
        mean_colour = torch.zeros(()) if do_normalize else mean
        return pad_to(image[None], target, black if pad_mode == "black" else mean_colour)[0]

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: Sequence[tuple[int, int]] | None = None, return_segmentation_scores: bool = False
    ):
        """Label maps (H, W), int64, from a model's `outputs`, as in transformers.

        Args:
            outputs: with `logits` (B, N, h, w).
            target_sizes: (height, width) of the original images; padding is then cut off, if the logits have the size
                of `pixel_values` and those were made with this processor's own settings. None: (h, w), with padding.
            return_segmentation_scores: also the scores (N, H, W); then a list of objects with `segmentation` and
                `segmentation_scores`.
        """
        contents = None if target_sizes is None else self._content_sizes(outputs.logits, target_sizes)
        return post_process_semantic_segmentation(outputs, target_sizes, return_segmentation_scores, contents)

    def _content_sizes(self, logits: torch.Tensor, target_sizes) -> list[tuple[int, int]] | None:
        """The part of the logits that is not padding, by this processor's size rule, if that explains their size."""
        options = {name: getattr(self, name) for name in self._valid_kwargs_names}
        try:
            found = [self._resized_size(tuple(map(int, size)), "target_sizes", **options) for size in target_sizes]
            padded = self._padded_size(found, **options)
        except ValueError:
            return None
        return found if padded == _size(logits) else None


def _size(image: torch.Tensor) -> tuple[int, int]:
    return tuple(image.shape[-2:])


def _as_tensor(image: PIL.Image.Image | torch.Tensor) -> torch.Tensor:
    """(3, H, W); of a PIL image in its own interleaved layout, in which torchvision resizes fastest."""
    if isinstance(image, PIL.Image.Image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return image.contiguous()


def nearest_pixels(length: int, target: int) -> np.ndarray:
    """(target,) the pixel of an edge of `length` at each pixel's centre, as torch's "nearest-exact"."""
    return np.minimum(((np.arange(target) + 0.5) * (length / target)).astype(np.int64), length - 1)


def _list_maps(maps, count: int) -> list:
    if isinstance(maps, np.ndarray | torch.Tensor) and maps.ndim == 3 and maps.shape[-1] not in (1, 3, 4):
        maps = list(maps)
    maps = list(maps) if isinstance(maps, list | tuple) else [maps]
    if len(maps) != count:
        raise ValueError(f"segmentation_maps: {len(maps)} for {count} images, expected one for each")
    return maps


def decoded_map(
    given,
    what: str,
    max_pixels: int,
    modes: Sequence[str] = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"),
    kinds: str = "iub",
    wanted: str = "whole numbers",
) -> np.ndarray:
    """(H, W) numbers of a PIL image (of a palette, its indices), an array, a tensor, or a file.

    Args:
        what: what errors name.
        modes: of PIL images; kinds: of numpy's types; wanted: what these are.
    """
    try:
        if isinstance(given, str):
            with open_regular(given) as file, PIL.Image.open(file) as image:
                return decoded_map(image, what, max_pixels, modes, kinds, wanted)
        if isinstance(given, PIL.Image.Image):
            if math.prod(given.size) > max_pixels:
                raise ValueError(f"{given.width} x {given.height} pixels, more than max_pixels={max_pixels}")
            if given.mode not in modes:
                raise ValueError(f"mode {given.mode}, expected one number a pixel (L, P, I or I;16)")
        values = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
        if values.dtype.kind not in kinds:
            raise ValueError(f"numbers of type {values.dtype}, expected {wanted}")
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
        if values.ndim != 2 or not values.size:
            raise ValueError(f"shape {list(values.shape)}, expected [height, width]")
    except MemoryError:
        raise
    except Exception as error:  # Pillow's are of many kinds
        raise ValueError(f"{what}: {error}") from error
    return values


def _check_own(settings: dict) -> None:
    check_image_settings(settings)
    if settings.get("do_center_crop"):
        raise ValueError("do_center_crop: True, which would cut the label map of an image; want False")
    check_max_pixels(settings.get("max_pixels", MAX_PIXELS))
    for name in ("size_multiple", "size_divisor"):
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: {value!r}, expected a whole number of at least 1")
    if settings.get("pad_mode") not in (None, "mean", "black", "edge"):
        raise ValueError(f"pad_mode: {settings['pad_mode']!r}, expected 'mean', 'black' or 'edge'")
    if not isinstance(settings.get("ignore_index"), int | None):
        raise ValueError(f"ignore_index: {settings['ignore_index']!r}, expected a whole number")


__all__ = ["DenseImageProcessor", "DenseImageProcessorKwargs", "decoded_map", "nearest_pixels"]
