"""Processor of `CLIPClassifier`: any image and any text to model inputs."""

import os

from transformers import AutoProcessor
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ..dual_encoders.prompts import encode_texts
from ..loading_and_saving.optional_modules import optional_module
from .image_processing_clip_classifier import CLIPClassifierImageProcessor


_safe = optional_module("..loading_and_saving.checkpoints", __package__)
_checked = optional_module("..loading_and_saving.processors", __package__)


class CLIPClassifierProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class CLIPClassifierProcessor(ProcessorMixin if _checked is None else _checked.CheckedParts):
    r"""
    A `CLIPClassifierImageProcessor` and the dual encoder's tokenizer in one; `CLIPProcessor` with safe text.

    Text goes through `encode_texts`: special tokens that users type stay text, long text is cut before the end token
    with one warning, blanks and broken Unicode raise. What `save_pretrained` writes carries the first rule to every
    tokenizer loaded from it (as `split_special_tokens`), because transformers' zero-shot pipeline calls the tokenizer
    without its processor. The pipeline does not truncate: there, labels beyond the model's length reach the model.

    Args:
        image_processor ([`CLIPClassifierImageProcessor`]).
        tokenizer: any fast tokenizer; CLIP's for CLIP.
        clean_text (`bool`, defaults to `False`):
            Clean text as OpenAI does (`modeling/dual_encoders/text_cleaning.py`: Unicode repair, HTML, white space)
            before tokenising. Needs ftfy to be exact. Saved in processor_config.json.

    `processor(images=None, text=None, **kwargs)` returns `pixel_values` (B, 3, H, W) and `input_ids`, `attention_mask`
    (N, L). Keyword arguments are those of both parts (`return_tensors="pt"`, `padding`, `max_length`, ...).

    Raises:
        ValueError: neither images nor text; or as in the two parts, naming `images[7]` or `text[7]`.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer

    >>> processor = CLIPClassifierProcessor(CLIPClassifierImageProcessor(), official_tokenizer())
    >>> inputs = processor(images=Image.new("RGB", (640, 480)), text=["a cat", "a dog"], return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'input_ids': (2, 4), 'attention_mask': (2, 4), 'pixel_values': (1, 3, 224, 224)}
    ```
    """

    valid_processor_kwargs = CLIPClassifierProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, clean_text: bool = False, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.clean_text = clean_text

    @classmethod
    def from_clip(cls, processor: ProcessorMixin | str | os.PathLike, clean_text: bool = False, **image_kwargs):
        """The processor of a dual encoder, or the folder or Hub id of one, as ours: same settings, same tokenizer.

        Images of SigLIP 2 become squares of as many patches as it takes at most, because batches here have one size;
        use its own processor (and pass what it returns to the model) to keep their shapes.

        Args:
            processor: a `CLIPProcessor` or the like, or what `AutoProcessor.from_pretrained` takes.
            clean_text: see the class.
            image_kwargs: settings of the image processor to change, such as `resample_backend="pil"`.
        """
        if isinstance(processor, str | os.PathLike):
            processor = AutoProcessor.from_pretrained(processor)
        known = CLIPClassifierImageProcessor.valid_kwargs.__annotations__
        values = processor.image_processor.to_dict()
        settings = {name: value for name, value in values.items() if name in known and value is not None}
        settings.setdefault("do_center_crop", False)  # SigLIP's knows no crop, and the default of ours is CLIP's
        if values.get("max_num_patches") is not None:
            side = values["patch_size"] * int(values["max_num_patches"] ** 0.5)
            settings["size"] = {"height": side, "width": side}
        return cls(CLIPClassifierImageProcessor(**settings | image_kwargs), processor.tokenizer, clean_text=clean_text)

    def __call__(self, images=None, text: str | list[str] | None = None, **kwargs) -> BatchFeature:
        if images is None and text is None:
            raise ValueError("images, text: got neither, expected at least one of them")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        inputs = {}
        if text is not None:
            text_kwargs = merged["text_kwargs"]
            single = isinstance(text, str)
            inputs |= encode_texts(self.tokenizer, [text] if single else text, clean=self.clean_text, **text_kwargs)
            if single and text_kwargs.get("return_tensors") is None:
                inputs = {name: values[0] for name, values in inputs.items()}  # as a tokenizer does
        if images is not None:
            inputs |= self.image_processor(images, **merged["images_kwargs"])
        return BatchFeature(inputs)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers; but the saved tokenizer (not this object's) takes special tokens in text as text."""
        tokenizer, name = self.tokenizer, "split_special_tokens"
        before, was_given = tokenizer.split_special_tokens, name in tokenizer.init_kwargs
        tokenizer.split_special_tokens = tokenizer.init_kwargs[name] = True
        try:
            save, kwargs = super().save_pretrained, kwargs | {"push_to_hub": push_to_hub}
            if _safe is None:
                return save(save_directory, **kwargs)
            return _safe.save_all_at_once(self, save, save_directory, **kwargs)
        finally:
            tokenizer.split_special_tokens = tokenizer.init_kwargs[name] = before
            if not was_given:
                del tokenizer.init_kwargs[name]


__all__ = ["CLIPClassifierProcessor", "CLIPClassifierProcessorKwargs"]
