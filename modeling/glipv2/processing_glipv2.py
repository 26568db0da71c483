"""Images and texts to GLIPv2's inputs, and its outputs back to named boxes and masks."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_base import BatchFeature

from ..dual_encoders.prompts import check_texts
from ..glip.processing_glip import GLIPProcessor, GLIPProcessorKwargs
from .image_processing_glipv2 import GLIPv2ImageProcessor


class GLIPv2ProcessorKwargs(GLIPProcessorKwargs, total=False):
    _defaults = GLIPProcessorKwargs._defaults


class GLIPv2Processor(GLIPProcessor):
    r"""
    GLIP's processor, which also says which prompts are sentences: `is_caption`, one for each prompt. In training the
    model takes class names for the same in all images, and phrases of a sentence not.

    `questions` are questions to images, for [`GLIPv2ForVisualQuestionAnswering`]: a mask stands behind each, which is
    the only phrase.

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

    def __call__(
        self, images=None, *args: Any, questions: str | Sequence[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        if questions is None:
            return super().__call__(images, *args, **kwargs)
        given = [name for name in ("text", "captions", "phrases") if kwargs.get(name) is not None]
        if args or given:
            raise ValueError(f"questions, {given[0] if given else 'text'}: got both, expected one of them")
        kwargs = {name: value for name, value in kwargs.items() if name not in ("text", "captions", "phrases")}
        found = self._encoded_questions([questions] if isinstance(questions, str) else questions)
        if images is not None:
            found = dict(super().__call__(images, **kwargs)) | found
            if len(found["input_ids"]) not in (1, self._count(found)):
                raise ValueError(
                    f"questions: {len(found['input_ids'])} for {self._count(found)} images, expected one for each"
                )
        return BatchFeature(found)

    def _encoded_questions(self, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids of the questions with a mask behind each, which `phrase_map` (B, 1, T) marks."""
        tokenizer = self.tokenizer
        texts = check_texts(questions, "questions")
        ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        for i, one in enumerate(ids):
            if len(one) + 3 > self.max_text_length:
                raise ValueError(
                    f"questions[{i}]: {len(one)} tokens, expected at most {self.max_text_length - 3}: "
                    f"{texts[i][:60]!r}…"
                )
        ids = [[tokenizer.cls_token_id, *one, tokenizer.mask_token_id, tokenizer.sep_token_id] for one in ids]
        padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        places = torch.tensor([len(one) - 2 for one in ids])
        return {
            "input_ids": padded["input_ids"],
            "attention_mask": padded["attention_mask"],
            "phrase_map": torch.nn.functional.one_hot(places, padded["input_ids"].shape[1]).float()[:, None],
            "is_caption": torch.ones(len(ids), dtype=torch.bool),
        }

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
