"""Videos and texts to the inputs of a model that compares them."""

import os

from transformers import AutoProcessor
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ..clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from .video_processing import CLIPVideoProcessor


class VideoTextProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class VideoTextProcessor(CLIPClassifierProcessor):
    r"""
    A [`CLIPVideoProcessor`] and a dual encoder's tokenizer in one. Texts are read as by [`CLIPClassifierProcessor`].

    Args:
        video_processor ([`CLIPVideoProcessor`]).
        tokenizer: any fast tokenizer; CLIP's for CLIP.
        clean_text (`bool`, defaults to `False`): see [`CLIPClassifierProcessor`].

    `processor(text=None, videos=None, **kwargs)` returns `input_ids`, `attention_mask` (N, L), and
    `pixel_values_videos` (B, T, 3, H, W), `video_mask` (B, T). Keyword arguments are those of both parts.

    Raises:
        ValueError: neither texts nor videos; or as in the two parts, naming `videos[7]` or `text[7]`.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
    >>> from hf_clip_variants.modeling.video.processing_video import VideoTextProcessor
    >>> from hf_clip_variants.modeling.video.video_processing import CLIPVideoProcessor

    >>> processor = VideoTextProcessor(CLIPVideoProcessor(), official_tokenizer())
    >>> inputs = processor(["a cat", "a dog runs"], np.zeros((5, 32, 32, 3), np.uint8), return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items() if name != "attention_mask"}
    {'input_ids': (2, 5), 'pixel_values_videos': (1, 5, 3, 224, 224), 'video_mask': (1, 5)}

    ```
    """

    valid_processor_kwargs = VideoTextProcessorKwargs

    def __init__(self, video_processor=None, tokenizer=None, clean_text: bool = False, **kwargs):
        ProcessorMixin.__init__(self, video_processor, tokenizer, **kwargs)
        self.clean_text = clean_text

    @classmethod
    def from_clip(cls, processor: ProcessorMixin | str | os.PathLike, clean_text: bool = False, **video_kwargs):
        """For videos, from the processor of a dual encoder, or the folder or Hub id of one: same look, same tokenizer.

        Args:
            processor: a `CLIPProcessor` or the like, or what `AutoProcessor.from_pretrained` takes.
            clean_text: see the class.
            video_kwargs: settings of the video processor, such as `num_frames=64`.
        """
        if isinstance(processor, str | os.PathLike):
            processor = AutoProcessor.from_pretrained(processor)
        videos = CLIPVideoProcessor.from_image_processor(processor.image_processor, **video_kwargs)
        return cls(videos, processor.tokenizer, clean_text=clean_text)

    def __call__(self, text: str | list[str] | None = None, videos=None, **kwargs) -> BatchFeature:
        if text is None and videos is None:
            raise ValueError("text, videos: got neither, expected at least one of them")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        inputs = {} if text is None else dict(super().__call__(text=text, **merged["text_kwargs"]))
        if videos is not None:
            inputs |= self.video_processor(videos, **merged["videos_kwargs"])
        return BatchFeature(inputs)


__all__ = ["VideoTextProcessor", "VideoTextProcessorKwargs"]
