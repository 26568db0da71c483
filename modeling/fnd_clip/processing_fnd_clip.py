"""Posts of a text and an image to FND-CLIP's inputs."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoProcessor
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ..clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor
from ..clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from ..dual_encoders.prompts import encode_texts
from ..loading_and_saving.checkpoints import save_all_at_once
from ..loading_and_saving.processors import CheckedParts


class FNDCLIPProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class FNDCLIPProcessor(CheckedParts):
    r"""
    BERT's tokenizer, the dual encoder's tokenizer and an image processor in one.

    Args:
        image_processor ([`CLIPClassifierImageProcessor`]): as the dual encoder's.
        tokenizer: BERT's; longer texts than `max_text_length` are cut.
        clip_tokenizer: the dual encoder's.
        max_text_length (`int`, defaults to 300): tokens of a text for BERT at most.
        clean_text (`bool`, defaults to `False`): see [`CLIPClassifierProcessor`]; for the dual encoder's text.

    `processor(images=None, text=None, clip_text=None, **kwargs)` returns `input_ids`, `attention_mask`,
    `token_type_ids` (B, T) of BERT, `clip_input_ids`, `clip_attention_mask` (B, M), `pixel_values` (B, 3, S, S) and
    `image_mask` (B,). `clip_text` is the text for a dual encoder that does not read the language of `text`: its
    translation; by default it is `text`. An image may be None: then its `image_mask` is 0. It may be a list, for a
    post with several: the first is taken. Keyword arguments are those of the parts.

    Raises:
        ValueError: neither images nor text, a blank text (`text[7]`, `clip_text[7]`), other numbers of images or
            second texts than of texts, an image that cannot be read (`images[7]`), no image in any post.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import BertTokenizerFast
    >>> from hf_clip_variants import CLIPClassifierImageProcessor, FNDCLIPProcessor
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sleeps"]
    >>> bert = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    >>> processor = FNDCLIPProcessor(CLIPClassifierImageProcessor(), bert, official_tokenizer())
    >>> inputs = processor(Image.new("RGB", (64, 40)), "a cat sleeps", return_tensors="pt")
    >>> inputs["input_ids"].tolist(), inputs["clip_input_ids"].shape, inputs["image_mask"].tolist()
    ([[2, 5, 6, 7, 3]], torch.Size([1, 5]), [1])
    ```
    """

    valid_processor_kwargs = FNDCLIPProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        clip_tokenizer=None,
        max_text_length: int = 300,
        clean_text: bool = False,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, clip_tokenizer, **kwargs)
        if type(max_text_length) is not int or not 2 < max_text_length <= 1_000_000:
            raise ValueError(f"max_text_length: {max_text_length!r}, expected a whole number of at least 3")
        self.max_text_length = max_text_length
        self.clean_text = clean_text

    @property
    def model_input_names(self) -> list[str]:
        of_clip = ["clip_input_ids", "clip_attention_mask"]
        return [*self.tokenizer.model_input_names, *of_clip, "pixel_values", "image_mask"]

    def __call__(
        self,
        images=None,
        text: str | Sequence[str] | None = None,
        clip_text: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if images is None and text is None and clip_text is None:
            raise ValueError("images, text: got neither, expected at least one of them")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        for what, value in (("text", text), ("clip_text", clip_text)):
            if value is not None and not isinstance(value, str | Sequence):
                raise ValueError(f"{what}: got {type(value).__name__}, expected a text or a list of them")
        texts = [text] if isinstance(text, str) else text
        clip_texts = texts if clip_text is None else [clip_text] if isinstance(clip_text, str) else clip_text
        if texts is not None and clip_texts is not None and len(clip_texts) != len(texts):
            raise ValueError(f"clip_text: {len(clip_texts)} for {len(texts)} texts, expected one for each")
        inputs: dict[str, Any] = {}
        if texts is not None:
            options = {"max_length": self._longest_text()} | merged["text_kwargs"]
            inputs |= encode_texts(self.tokenizer, texts, **options)
        if clip_texts is not None:
            what = "text" if clip_text is None else "clip_text"
            options = {n: v for n, v in merged["text_kwargs"].items() if n not in ("max_length", "text_pair")}
            encoded = encode_texts(self.clip_tokenizer, clip_texts, what=what, clean=self.clean_text, **options)
            inputs |= {f"clip_{name}": encoded[name] for name in ("input_ids", "attention_mask")}
        if images is not None:
            inputs |= self._images(images, None if texts is None else len(texts), merged["images_kwargs"])
        return BatchFeature(inputs)

    def _longest_text(self) -> int:
        return min(self.max_text_length, self.tokenizer.model_max_length)

    def _images(self, images, count: int | None, options: dict) -> dict[str, Any]:
        """`pixel_values` and `image_mask`."""
        several = isinstance(images, list | tuple)
        posts = list(images) if several else images
        if several and count is not None:
            if len(posts) != count:
                raise ValueError(f"images: {len(posts)} for {count} texts, expected one for each, or None")
            posts = [one[0] if isinstance(one, list | tuple) and one else one for one in posts]
        there = (
            [not (one is None or (isinstance(one, list | tuple) and not one)) for one in posts] if several else [True]
        )
        if several and not any(there) and posts:
            raise ValueError(f"images: none in any of {len(posts)} posts, expected at least one")
        shown = [one for one, is_there in zip(posts, there, strict=True) if is_there] if several else posts
        if several and not all(there) and options.get("return_tensors") not in (None, "pt"):
            raise ValueError("return_tensors: posts without an image need 'pt' or None")
        found = self.image_processor(shown, **options)["pixel_values"]
        if count is not None and len(found) + there.count(False) != count:
            raise ValueError(f"images: {len(found)} for {count} texts, expected one for each, or None")
        if not all(there):
            of_images = iter(found)
            empty = torch.zeros_like(torch.as_tensor(found[0]))
            found = [next(of_images) if is_there else empty for is_there in there]
            found = torch.stack(found) if options.get("return_tensors") == "pt" else found
        mask = [int(one) for one in there] if several and len(there) == len(found) else [1] * len(found)
        if (kind := options.get("return_tensors")) is not None:
            mask = BatchFeature({"mask": mask}, tensor_type=kind)["mask"]
        return {"pixel_values": found, "image_mask": mask}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers; the folder is written as a whole."""
        save, kwargs = super().save_pretrained, kwargs | {"push_to_hub": push_to_hub}
        return save_all_at_once(self, save, save_directory, **kwargs)


def fnd_clip_processor(
    tokenizer, dual_encoder: ProcessorMixin | str | os.PathLike, max_text_length: int = 300, **image_settings: Any
) -> FNDCLIPProcessor | CLIPClassifierImageProcessor:
    """The processor of a model with this BERT and this dual encoder.

    Args:
        tokenizer: BERT's; None: the image processor alone is returned.
        dual_encoder: its processor, or the folder or Hub id of one.
        max_text_length: see [`FNDCLIPProcessor`].
        image_settings: changes of the image processor, such as `resample_backend="pil"`.
    """
    if isinstance(dual_encoder, str | os.PathLike):
        dual_encoder = AutoProcessor.from_pretrained(dual_encoder)
    own = CLIPClassifierProcessor.from_clip(dual_encoder, **image_settings)
    if tokenizer is None:
        return own.image_processor
    return FNDCLIPProcessor(own.image_processor, tokenizer, own.tokenizer, max_text_length)


__all__ = ["FNDCLIPProcessor", "FNDCLIPProcessorKwargs", "fnd_clip_processor"]
