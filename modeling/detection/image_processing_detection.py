"""Images and COCO annotations to a detector's inputs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DetrImageProcessor
from transformers.image_processing_base import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import AnnotationFormat, SizeDict
from transformers.models.detr.image_processing_detr import DetrImageProcessorKwargs

from ..decoding.image_decoding import DecodingRules, decode_image, list_images
from ..decoding.one_pixel import resize_whole_numbers
from ..loading_and_saving.configuration_checks import check_image_settings, with_named_settings


_THINNEST = 1e-3  # pixels of an edge: in float32, less has no length beside coordinates of a large image
_LARGEST = 1e18  # of numbers that are multiplied in float32


class DetectionImageProcessorKwargs(DetrImageProcessorKwargs, total=False):
    """Options, as DETR's."""


class DetectionImageProcessor(DetrImageProcessor):
    r"""
    DETR's image processor for detectors of this package, with their own sizes: ImageNet's mean and standard deviation,
    padding at the right and the bottom.

    Unlike in DETR's, files are read as everywhere in this package; boxes are relative to the image without its
    padding; crowds are left out with their masks; a segmentation may also be a run-length encoding or an array (H, W);
    a box that is not finite, inverted or without area is an error, unless it only loses its area by being clipped to
    the image, or is thinner than a thousandth of a pixel: then its object is left out.
    """

    valid_kwargs = DetectionImageProcessorKwargs

    def __init__(self, **kwargs):
        _check_settings(kwargs)
        super().__init__(**kwargs)

    @with_named_settings
    def preprocess(self, images, annotations=None, *args, **kwargs) -> BatchFeature:
        """See the class."""
        _check_settings(kwargs)
        options = {
            name: kwargs.get(name, getattr(self, name, None))
            for name in ("do_convert_rgb", "do_rescale", "rescale_factor")
        }
        rules = DecodingRules(
            convert_rgb=options["do_convert_rgb"] is not False,
            input_data_format=kwargs.get("input_data_format"),
            expect_0_255=bool(options["do_rescale"] and options["rescale_factor"] < 1),
        )
        decoded = []
        for number, image in enumerate(list_images(images)):
            try:
                decoded.append(decode_image(image, rules))
            except (ValueError, OSError) as error:
                raise ValueError(f"images[{number}]: {error}") from error
        if annotations is not None:
            annotations = _checked_annotations(annotations, len(decoded))
        kwargs.pop("input_data_format", None)  # arrays are (3, H, W) now
        try:
            return super().preprocess(decoded, annotations, *args, **kwargs)
        except RuntimeError as error:
            if kwargs.get("do_pad", self.do_pad) or len(decoded) == 1:
                raise
            raise ValueError(
                "do_pad: False, but images of more than one size after resizing make no tensor; want True, or one "
                "image at a time"
            ) from error

    def prepare_annotation(
        self,
        image: torch.Tensor,
        target: dict,
        format: AnnotationFormat | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: Any = None,
        input_data_format: Any = None,
    ) -> dict:
        """COCO's annotations of an image (3, H, W) -> labels in pixels."""
        height, width = image.shape[-2:]
        name = f"annotations of image {target['image_id']}"
        boxes, classes, areas, masks = [], [], [], []
        for number, one in enumerate(target["annotations"]):
            if one.get("iscrowd"):
                continue
            left, top, right, bottom = _checked_box(one["bbox"], f"{name}: bbox of object {number}")
            clipped = [max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)]
            if clipped[2] - clipped[0] < _THINNEST or clipped[3] - clipped[1] < _THINNEST:
                continue
            boxes.append(clipped)
            classes.append(_whole_number(one["category_id"], f"{name}: category_id of object {number}"))
            area = one.get("area", (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]))
            areas.append(_checked_area(area, f"{name}: area of object {number}"))
            if return_segmentation_masks:
                what = f"{name}: segmentation of object {number}"
                masks.append(_checked_mask(one.get("segmentation"), height, width, what))
        found = {
            "image_id": torch.tensor([target["image_id"]], device=image.device),
            "class_labels": torch.tensor(classes, dtype=torch.int64, device=image.device),
            "boxes": torch.tensor(boxes, dtype=torch.float32, device=image.device).reshape(-1, 4),
            "area": torch.tensor(areas, dtype=torch.float32, device=image.device),
            "iscrowd": torch.zeros(len(classes), dtype=torch.int64, device=image.device),
            "orig_size": torch.tensor([height, width], device=image.device),
        }
        if return_segmentation_masks:
            array = np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)
            found["masks"] = torch.from_numpy(array).to(image.device)
        return found

    def resize(self, image: torch.Tensor, size, resample=None, **kwargs) -> torch.Tensor:
        """As DETR's; an edge has at least one pixel."""
        if size.shortest_edge and size.longest_edge:
            edges = get_size_with_aspect_ratio(tuple(image.shape[-2:]), size.shortest_edge, size.longest_edge)
            height, width = (max(edge, 1) for edge in edges)
            size = SizeDict(height=height, width=width)
        return resize_whole_numbers(super().resize, image, size, resample=resample, **kwargs)

    def resize_annotation(self, annotation: dict, orig_size, target_size, threshold: float = 0.5, **kwargs) -> dict:
        """As DETR's, which fails for an image without objects."""
        rows, columns = (new / old for new, old in zip(target_size, orig_size, strict=True))
        found = annotation | {"size": torch.tensor(tuple(target_size))}
        found["boxes"] = annotation["boxes"] * annotation["boxes"].new_tensor([columns, rows, columns, rows])
        found["area"] = annotation["area"] * (rows * columns)
        if "masks" in annotation:
            masks = annotation["masks"][:, None].float()
            if len(masks):
                masks = torch.nn.functional.interpolate(masks, size=tuple(target_size), mode="nearest-exact")
            else:
                masks = masks.new_zeros(0, 1, *target_size)
            found["masks"] = masks[:, 0] > threshold
        return found

    def pad(self, image, padded_size, annotation=None, update_bboxes: bool = True, fill: int = 0):
        """As DETR's; boxes stay relative to the image without padding."""
        return super().pad(image, padded_size, annotation=annotation, update_bboxes=False, fill=fill)


def check_selection(thresholds: Mapping[str, Any], pre_nms: Any, max_detections: Any) -> None:
    """ValueError for options of a post-processing that are no numbers, or a number of boxes below 1."""
    for name, value in (thresholds | {"pre_nms": pre_nms, "max_detections": max_detections}).items():
        whole = "threshold" not in name
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or math.isnan(value) or (whole and value < 1):
            wanted = "a whole number of at least 1" if whole else "a number"
            raise ValueError(f"{name}: {value!r}, expected {wanted}")


def check_target_sizes(target_sizes, count: int) -> list[tuple[float, float]] | None:
    """(height, width) of each image, if they were given."""
    if target_sizes is None:
        return None
    try:
        sizes = [tuple(map(float, size)) for size in target_sizes]
    except (TypeError, ValueError) as error:
        raise ValueError(f"target_sizes: {target_sizes!r}, expected (height, width) of each image") from error
    if len(sizes) != count:
        raise ValueError(f"target_sizes: {len(sizes)} for {count} images, expected one for each")
    for number, size in enumerate(sizes):
        if len(size) != 2 or not all(edge > 0 and math.isfinite(edge) for edge in size):
            raise ValueError(f"target_sizes[{number}]: {size}, expected a height and a width above 0")
    return sizes


def _check_settings(settings: dict) -> None:
    check_image_settings(settings)
    if settings.get("rescale_factor", 1) is None and settings.get("do_rescale") is not False:
        raise ValueError("rescale_factor: None, expected a number such as 1/255, or do_rescale=False")
    format = settings.get("format", AnnotationFormat.COCO_DETECTION)
    if format not in (AnnotationFormat.COCO_DETECTION, AnnotationFormat.COCO_DETECTION.value):
        raise ValueError(f"format: {format!r}, expected 'coco_detection'")


def _checked_annotations(annotations: Any, count: int) -> list[dict]:
    """COCO's, one dictionary for each image; `image_id` as a whole number."""
    given = [annotations] if isinstance(annotations, Mapping) else annotations
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) != count:
        got = f"{len(given)} of them" if isinstance(given, Sequence) else type(given).__name__
        raise ValueError(f"annotations: got {got} for {count} images, expected a dictionary for each")
    found = []
    for number, target in enumerate(given):
        what = f"annotations[{number}]"
        objects = target.get("annotations") if isinstance(target, Mapping) else None
        if "image_id" not in (target if isinstance(target, Mapping) else ()) or not isinstance(objects, list | tuple):
            raise ValueError(f"{what}: expected a dictionary with 'image_id' and 'annotations', a list of objects")
        for place, one in enumerate(objects):
            missing = [name for name in ("bbox", "category_id") if not isinstance(one, Mapping) or name not in one]
            if missing:
                raise ValueError(f"{what}: object {place} has no {missing[0]!r}")
        image_id = target["image_id"]
        found.append(
            {**target, "image_id": _whole_number(image_id, f"{what}: image_id"), "annotations": list(objects)}
        )
    return found


def _whole_number(value: Any, what: str) -> int:
    try:
        number = int(value)
        fits = not isinstance(value, bool | str) and number == value and 0 <= number < 2**63
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{what}: {str(value)[:60]!r}, expected a whole number of at least 0")
    return number


def _checked_area(value: Any, what: str) -> float:
    try:
        area = float(value)
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    if isinstance(value, str) or not 0 <= area <= _LARGEST:
        raise ValueError(f"{what}: {str(value)[:60]!r}, expected a number of at least 0")
    return area


def _checked_box(box: Sequence[float], what: str) -> list[float]:
    """x1, y1, x2, y2 of x, y, width, height."""
    try:
        numbers = [] if isinstance(box, str | Mapping) else [float(number) for number in box]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    wrong = len(numbers) != 4 or isinstance(box[0], str) or not all(abs(number) <= _LARGEST for number in numbers)
    if wrong or numbers[2] <= 0 or numbers[3] <= 0:
        shown = list(box) if numbers else box
        raise ValueError(f"{what}: {str(shown)[:60]}, expected x, y and a width and height above 0")
    left, top, width, height = numbers
    return [left, top, left + width, top + height]


def _checked_mask(segmentation: Any, height: int, width: int, what: str) -> np.ndarray:
    """As `_mask`; ValueError for what is none."""
    try:
        return _mask(segmentation, height, width, what)
    except (TypeError, KeyError, OverflowError, ValueError, SystemError) as error:
        if str(error).startswith(what):
            raise
        raise ValueError(
            f"{what}: expected polygons, a run-length encoding, or an array [{height}, {width}] ({error})"
        ) from error


def _mask(segmentation: Any, height: int, width: int, what: str) -> np.ndarray:
    """(H, W) bool of polygons, a run-length encoding or an array."""
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, str | bytes):
            try:
                from pycocotools import mask as coco
            except ImportError as error:
                raise ImportError(f"{what}: a compressed run-length encoding needs pycocotools") from error
            found = coco.decode({"size": [height, width], "counts": counts}).astype(bool)
        else:
            values = np.arange(len(counts)) % 2 == 1
            if sum(counts) != height * width:
                raise ValueError(f"{what}: {sum(counts)} pixels, the image has {height * width}")
            found = np.repeat(values, counts).reshape(width, height).T
        return found
    if isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], list | tuple | Mapping):
        from PIL import Image, ImageDraw

        if not isinstance(segmentation[0], Mapping) and len(segmentation[0]) % 2 == 0 and len(segmentation) != height:
            canvas = Image.new("1", (width, height))
            for polygon in segmentation:
                ImageDraw.Draw(canvas).polygon([float(number) for number in polygon], fill=1)
            return np.asarray(canvas).copy()
    array = np.asarray(segmentation) if segmentation is not None else np.zeros(0)
    if array.shape != (height, width):
        raise ValueError(f"{what}: expected polygons, a run-length encoding, or an array [{height}, {width}]")
    return array.astype(bool)


__all__ = ["DetectionImageProcessor", "DetectionImageProcessorKwargs", "check_selection"]
__all__ += ["check_target_sizes"]
