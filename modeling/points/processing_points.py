"""Clouds of points and texts to the inputs of a model that compares them."""

import os

from transformers import AutoProcessor
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ..clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from .point_processing import PointCloudProcessor


class PointTextProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class PointTextProcessor(CLIPClassifierProcessor):
    r"""
    A [`PointCloudProcessor`] and a dual encoder's tokenizer in one. Texts are read as by [`CLIPClassifierProcessor`].

    Args:
        feature_extractor ([`PointCloudProcessor`], *optional*): defaults to one with the published settings.
        tokenizer: any fast tokenizer; CLIP's for CLIP.
        clean_text (`bool`, defaults to `False`): see [`CLIPClassifierProcessor`].

    `processor(text=None, points=None, points_kwargs=None, **kwargs)` returns `input_ids`, `attention_mask` (T, L), and
    `points` (B, N, 3), `points_mask` (B, N). Settings of the former go into `points_kwargs`.

    Raises:
        ValueError: neither texts nor points; or as in the two parts, naming `points[7]` or `text[7]`.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
    >>> from hf_clip_variants.modeling.points.processing_points import PointTextProcessor

    >>> processor = PointTextProcessor(tokenizer=official_tokenizer())
    >>> inputs = processor(["a chair", "a lamp on a table"], np.random.rand(2048, 3), return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items() if name != "attention_mask"}
    {'input_ids': (2, 7), 'points': (1, 1024, 3), 'points_mask': (1, 1024)}
    ```
    """

    valid_processor_kwargs = PointTextProcessorKwargs

    def __init__(self, feature_extractor=None, tokenizer=None, clean_text: bool = False, **kwargs):
        feature_extractor = PointCloudProcessor() if feature_extractor is None else feature_extractor
        ProcessorMixin.__init__(self, feature_extractor, tokenizer, **kwargs)
        self.clean_text = clean_text

    @classmethod
    def from_clip(cls, processor: ProcessorMixin | str | os.PathLike, clean_text: bool = False, **point_kwargs):
        """For clouds of points, with the tokenizer of a dual encoder's processor, or of the folder or Hub id of one.

        Args:
            processor: a `CLIPProcessor` or the like, or what `AutoProcessor.from_pretrained` takes.
            clean_text: see the class.
            point_kwargs: settings of the [`PointCloudProcessor`], such as `up_axis="z"`.
        """
        if isinstance(processor, str | os.PathLike):
            processor = AutoProcessor.from_pretrained(processor)
        return cls(PointCloudProcessor(**point_kwargs), processor.tokenizer, clean_text=clean_text)

    def __call__(self, text: str | list[str] | None = None, points=None, **kwargs) -> BatchFeature:
        if text is None and points is None:
            raise ValueError("text, points: got neither, expected at least one of them")
        point_kwargs = {"return_tensors": kwargs.get("return_tensors")} | dict(kwargs.pop("points_kwargs", None) or {})
        inputs = {} if text is None else dict(super().__call__(text=text, **kwargs))
        if points is not None:
            inputs |= self.feature_extractor(points, **point_kwargs)
        return BatchFeature(inputs)


__all__ = ["PointTextProcessor", "PointTextProcessorKwargs"]
