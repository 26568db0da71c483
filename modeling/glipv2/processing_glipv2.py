"""Images and texts to GLIPv2's inputs, and its outputs back to named boxes and masks."""

from typing import Any

import torch

from ..glip.processing_glip import GLIPProcessor, GLIPProcessorKwargs
from .image_processing_glipv2 import GLIPv2ImageProcessor


class GLIPv2ProcessorKwargs(GLIPProcessorKwargs, total=False):
    _defaults = GLIPProcessorKwargs._defaults


class GLIPv2Processor(GLIPProcessor):
    r"""
    GLIP's processor, which also says which prompts are sentences: `is_caption`, one for each prompt. In training the
    model takes class names for the same in all images, and phrases of a sentence not.

    Args:
        image_processor ([`GLIPv2ImageProcessor`]).
        tokenizer: of the model's text encoder; a fast one.
        max_text_length (`int`, defaults to 256): the longest prompt in tokens.

    Example:

    ```python
    >>> from transformers import BertTokenizerFast
    >>> from hf_clip_variants import GLIPv2ImageProcessor, GLIPv2Processor

    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "cat", "dog"]
    >>> tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    >>> processor = GLIPv2Processor(GLIPv2ImageProcessor(), tokenizer)
    >>> processor(text=["cat", "dog"]).is_caption.tolist(), processor(captions=["a cat"]).is_caption.tolist()
    ([False], [True])
    ```
    """

    valid_processor_kwargs = GLIPv2ProcessorKwargs

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "is_caption"]

    def _encoded(self, prompts, what: str, options) -> dict[str, torch.Tensor]:
        found = super()._encoded(prompts, what, options)
        return found | {"is_caption": torch.full((len(prompts),), what == "captions")}


def glipv2_processor(tokenizer=None, **settings: Any) -> GLIPv2Processor | GLIPv2ImageProcessor:
    """The processor, or without a tokenizer the image processor; `settings` are of the image processor."""
    images = GLIPv2ImageProcessor(**settings)
    return images if tokenizer is None else GLIPv2Processor(images, tokenizer)


__all__ = ["GLIPv2Processor", "GLIPv2ProcessorKwargs", "glipv2_processor"]
