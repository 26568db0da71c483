"""Loads models that read depth from images by words, and estimates the depth of many files, some of them broken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.images.image_set import explain
from ..modeling.decoding.image_decoding import DecodingRules, decode_image
from ..registry import load_reference, methods
from .devices import choose_device
from .prediction import check_readable_path
from .saved_folders import check_model_folder, configuration_of, is_of_auto_class, load_saved_processor


if TYPE_CHECKING:
    from PIL import Image

DEPTH_CLASS = "AutoModelForDepthEstimation"


def is_depth_model(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that reads depth from images."""
    return is_of_auto_class(source, DEPTH_CLASS)


@dataclass(frozen=True)
class DepthEstimator:
    """A model that is ready, and its image processor."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class EstimatedDepth:
    """The depth of one image, or why it could not be read.

    Attributes:
        path: of the file.
        image: RGB, upright, H x W.
        depth: (H, W) float32, in the unit of the model's bins.
        words: the share of each word in the image, the softmax averaged over it, in the order of the words.
    """

    path: str
    image: Image.Image | None = None
    depth: np.ndarray | None = None
    words: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def load_depth_estimator(
    model: str | os.PathLike,
    words: Mapping[str, float] | None = None,
    templates: list[str] | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> DepthEstimator:
    """An estimator, in float32 on a CPU.

    Args:
        model: a saved DepthCLIP, or a saved CLIP (with a ResNet or a Vision Transformer) to make one of; folder or Hub
            id.
        words: a text for each distance, and the depth that it stands for. Default: the model's own, of a CLIP the
            paper's. The folder needs its tokenizer for other words.
        templates: sentences with {distance}, and {object} if they want.
        device: default: a GPU if there is one.
        options: fields of the configuration, such as `flip_average=False` or `panorama=True`.

    Raises:
        ValueError: another kind of model, words that are none. OSError: no such folder.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    row = next(row for row in methods("model") if DEPTH_CLASS in row.auto_classes)
    check_model_folder(model)
    device = choose_device(device)
    dtype = torch.float32 if device.type == "cpu" else "auto"
    if is_depth_model(model):
        loaded = row.load("model").from_pretrained(model, dtype=dtype, **options)
        processor = load_saved_processor(model, AutoImageProcessor)
        encoded = loaded.config.encoded_texts is not None
    else:
        kind = configuration_of(model).get("model_type")
        if kind not in row.load("config").backbones:
            wanted = ", ".join((row.model_type, *row.load("config").backbones))
            raise ValueError(f"model: {model} is a {kind}, of which no depth can be read; want one of {wanted}")
        loaded = row.load("model").from_clip(AutoModel.from_pretrained(model, dtype=dtype), **options)
        processor, encoded = load_reference(row.image_processors["torchvision"])(), False
    if words is not None or templates is not None or not encoded:
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise OSError(f"{model}: has no tokenizer, which other words need ({str(error)[:200]})") from error
        given = {} if words is None else {"words": list(words), "bins": list(words.values())}
        loaded.set_depth_words(tokenizer, **given, templates=templates)
    return DepthEstimator(loaded.eval().requires_grad_(False).to(device), processor)


@torch.inference_mode()
def estimate_depth(estimator: DepthEstimator, paths: Iterable[str]) -> Iterator[EstimatedDepth]:
    """The depth of each path, in order; `error` is set for an image that cannot be read. One image at a time: sizes
    differ, and a photograph fills a processor."""
    model, processor = estimator.model, estimator.processor
    rules = DecodingRules(max_pixels=processor.max_pixels)
    for path in paths:
        try:
            check_readable_path(path)
            image = decode_image(path, rules)
            image.info = {}  # it is upright now, and is not to be turned once more
            inputs = processor(images=image, return_tensors="pt")
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
            yield EstimatedDepth(path, error=explain(error, path))
            continue
        outputs = model(**inputs.to(model.device))
        (found,) = processor.post_process_depth_estimation(outputs, [image.size[::-1]])
        shares = outputs.word_logits.softmax(1).mean((0, 2, 3)).tolist()
        words = tuple(zip(model.config.depth_words, shares, strict=True))
        yield EstimatedDepth(path, image, found["predicted_depth"].float().cpu().numpy(), words)


__all__ = ["DepthEstimator", "EstimatedDepth", "estimate_depth", "is_depth_model", "load_depth_estimator"]
