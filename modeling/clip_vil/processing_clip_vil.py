"""Images with questions, sentences or captions to CLIP-ViL's inputs."""

from typing import Any

from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from ..clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
from .image_processing_clip_vil import ClipViLImageProcessor, ClipViLImageProcessorKwargs


MAX_TEXT_LENGTH = 20  # tokens of the published models' texts


class ClipViLProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: ClipViLImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class ClipViLProcessor(CLIPClassifierProcessor):
    r"""
    A [`ClipViLImageProcessor`] and BERT's tokenizer in one. Texts are read as by [`CLIPClassifierProcessor`]: longer
    ones than the tokenizer's `model_max_length` (20 tokens in the published models) are cut, with one warning.

    Args:
        image_processor ([`ClipViLImageProcessor`]).
        tokenizer: of the model's BERT.
        clean_text (`bool`, defaults to `False`): see [`CLIPClassifierProcessor`].

    `processor(images=None, text=None, questions=None, **kwargs)` returns `pixel_values` (B, 3, H, W), `pixel_mask`
    (B, H, W) and `input_ids`, `attention_mask` (B, T). `questions` is another name of `text`; `text=""`, or texts of
    which one is blank, are only allowed as `beginning`: how a caption begins that [`ClipViLForImageCaptioning`] goes
    on with, [CLS] and its tokens without [SEP]. A single `text` beside images is for all of them.

    Raises:
        ValueError: neither images nor text; another number of texts than of images; a blank text; or as in the two
            parts, naming `images[7]` or `text[7]`.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import BertTokenizerFast
    >>> from hf_clip_variants import ClipViLImageProcessor, ClipViLProcessor

    >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "?"]
    >>> tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    >>> processor = ClipViLProcessor(ClipViLImageProcessor(), tokenizer)
    >>> inputs = processor(Image.new("RGB", (64, 48)), "what is it?", return_tensors="pt")
    >>> inputs.input_ids.tolist(), inputs.pixel_values.shape
    ([[2, 5, 6, 7, 8, 3]], torch.Size([1, 3, 384, 640]))
    ```
    """

    valid_processor_kwargs = ClipViLProcessorKwargs

    def __call__(
        self, images=None, text: Any = None, questions: Any = None, beginning: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        given = {"text": text, "questions": questions, "beginning": beginning}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: got {len(given)} of them, expected one")
        if text == "":  # of transformers' pipeline
            beginning, text = "", None
        texts = questions if text is None else text
        if beginning is None:
            if questions is not None and images is None:
                raise ValueError("images: missing, expected an image of each question")
            found = super().__call__(images, texts, **kwargs)
        else:
            found = self._begun(images, beginning, kwargs)
        pixels, ids = found.get("pixel_values"), found.get("input_ids")
        if pixels is not None and ids is not None and hasattr(ids, "shape") and len(ids) != len(pixels):
            if len(ids) != 1:
                name = "questions" if questions is not None else "text"
                raise ValueError(f"{name}: {len(ids)} for {len(pixels)} images, expected one for each")
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                if name in found:
                    found[name] = found[name].expand(len(pixels), -1)
        return found

    def _begun(self, images, beginning: str, kwargs: dict) -> BatchFeature:
        if images is None:
            raise ValueError("images: missing, expected an image that is described")
        kwargs = {"return_tensors": "pt"} | kwargs
        found = super().__call__(images, None, **kwargs)
        ids = self.tokenizer(beginning, add_special_tokens=False, split_special_tokens=True).input_ids
        longest = self.tokenizer.model_max_length
        if len(ids) + 2 > longest:
            raise ValueError(f"beginning: {len(ids)} tokens, expected at most {longest - 2}")
        ids = found["pixel_values"].new_tensor([[self.tokenizer.cls_token_id, *ids]] * len(found["pixel_values"]))
        found["input_ids"] = ids.long()
        found["attention_mask"] = found["input_ids"] * 0 + 1
        return found

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "pixel_mask", "input_ids", "attention_mask"]

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens: bool = True, **kwargs: Any):
        """Token ids (B, T) of captions -> their texts."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


def clip_vil_processor(tokenizer=None, **settings: Any) -> ClipViLProcessor | ClipViLImageProcessor:
    """The processor, or without a tokenizer the image processor; `settings` are of the image processor."""
    images = ClipViLImageProcessor(**settings)
    if tokenizer is None:
        return images
    names = ["input_ids", "attention_mask"]  # there is one segment
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TEXT_LENGTH)
    return ClipViLProcessor(images, tokenizer)


__all__ = ["MAX_TEXT_LENGTH", "ClipViLProcessor", "ClipViLProcessorKwargs", "clip_vil_processor"]
