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

    A `text` that is a single string, not a list of class names, is how a caption begins that
    [`GLIPv2ForImageTextToText`] goes on with; `""` for nothing.

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
        self,
        images=None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        captions: str | Sequence[str] | None = None,
        phrases: Sequence[Any] | None = None,
        annotations=None,
        names_per_prompt: int | None = None,
        questions: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if questions is None and not isinstance(text, str):
            return super().__call__(images, text, captions, phrases, annotations, names_per_prompt, **kwargs)
        first = "text" if questions is None else "questions"
        for name, value in (("text", text), ("captions", captions), ("phrases", phrases)):
            if name != first and value is not None:
                raise ValueError(f"{first}, {name}: got both, expected one of them")
        found = {} if images is None else dict(super().__call__(images, annotations=annotations, **kwargs))
        count = self._count(found) if found else 1
        if questions is None:
            found |= self._encoded_beginning(text, count)
        else:
            found |= self._encoded_questions([questions] if isinstance(questions, str) else questions)
        if images is not None and len(found["input_ids"]) not in (1, count):
            raise ValueError(f"questions: {len(found['input_ids'])} for {count} images, expected one for each")
        return BatchFeature(found)

    def _encoded_beginning(self, text: str, count: int) -> dict[str, torch.Tensor]:
        """How the captions of `count` images begin: BERT's first mark and `text`, which may be empty."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if len(ids) + 2 > self.max_text_length:
            raise ValueError(f"text: {len(ids)} tokens, expected at most {self.max_text_length - 2}")
        ids = torch.tensor([[self.tokenizer.cls_token_id, *ids]] * count)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens: bool = True, **kwargs: Any):
        """Token ids (B, T) of captions -> their texts."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

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
