"""Images and free-text labels to the inputs of a model that segments by texts."""

from collections.abc import Sequence

import torch
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from ..dual_encoders.prompts import check_texts, encode_texts, resolve_templates
from ..loading_and_saving.checkpoints import save_all_at_once
from ..loading_and_saving.processors import CheckedParts
from .promptable_segmentation import fill_templates


class DenseProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class DenseProcessor(CheckedParts):
    r"""
    A [`DenseImageProcessor`] and a tokenizer in one.

    Args:
        image_processor ([`DenseImageProcessor`]).
        tokenizer: any fast tokenizer; CLIP's for CLIP.
        templates (`str` or `list[str]`, *optional*):
            What labels are put into, such as `"a photo of a {}."`; None: the label alone. Saved in
            processor_config.json.

    `processor(images=None, text=None, segmentation_maps=None, **kwargs)` returns what the image processor does, and
    for N labels `input_ids` and `attention_mask` (N, L), with T templates (N, T, L). Labels of each image, a list of
    B lists, give (B, N, T, L); images with fewer labels have rows without attention.

    Raises:
        ValueError: no input at all; a single string instead of a list of labels; or as in the two parts, naming
            `images[7]` or `text[7]`.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
    >>> from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor
    >>> from hf_clip_variants.modeling.dense.processing_dense import DenseProcessor

    >>> processor = DenseProcessor(DenseImageProcessor(), official_tokenizer(), templates="a photo of a {}.")
    >>> inputs = processor(Image.new("RGB", (640, 480)), ["cat", "sky"], return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'pixel_values': (1, 3, 480, 640), 'input_ids': (2, 8), 'attention_mask': (2, 8)}
    ```
    """

    valid_processor_kwargs = DenseProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, templates=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.templates = None if templates is None else resolve_templates(templates)

    def __call__(
        self,
        images=None,
        text: Sequence[str] | Sequence[Sequence[str]] | None = None,
        segmentation_maps=None,
        **kwargs,
    ) -> BatchFeature:
        if images is None and text is None:
            raise ValueError("images, text: got neither, expected at least one of them")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        inputs = {}
        if images is not None:
            inputs |= self.image_processor(images, segmentation_maps, **merged["images_kwargs"])
        if text is not None:
            inputs |= self._encoded(text, **merged["text_kwargs"])
        return BatchFeature(inputs)

    def _encoded(self, text, **kwargs) -> dict:
        if isinstance(text, str | bytes):
            raise ValueError(f"text: got the single string {text!r}, expected a list of labels")
        text, templates = list(text), self.templates or ["{}"]
        of_each_image = bool(text) and all(isinstance(labels, list | tuple) for labels in text)
        rows = text if of_each_image else [text]
        names = [f"text[{i}]" for i in range(len(rows))] if of_each_image else ["text"]
        rows = [check_texts(labels, name) for labels, name in zip(rows, names, strict=True)]
        joined = [label for labels in rows for label in labels]
        for label in joined:
            if ";" in label:
                raise ValueError(f"text: {label!r} has synonyms, which only model.set_labels takes; want one text")
        encoded = encode_texts(self.tokenizer, fill_templates(joined, templates), **kwargs)
        if len(templates) == 1 and not of_each_image:
            return dict(encoded)
        if kwargs.get("return_tensors") != "pt" or not kwargs.get("padding"):
            raise ValueError("return_tensors: labels of several templates or images want 'pt', and padding")
        counts, longest = [len(labels) for labels in rows], max(map(len, rows))
        found = {}
        for name, values in encoded.items():
            values = values.view(-1, len(templates), values.shape[-1])
            if of_each_image:
                by_image = values.new_zeros(len(rows), longest, *values.shape[1:])
                if name == "input_ids":  # rows without attention hold the first label, which any text encoder takes
                    by_image[:] = values[0]
                for row, own in zip(by_image, torch.split(values, counts), strict=True):
                    row[: len(own)] = own
                values = by_image
            found[name] = values
        return found

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, return_segmentation_scores: bool = False):
        """As `DenseImageProcessor.post_process_semantic_segmentation`."""
        return self.image_processor.post_process_semantic_segmentation(
            outputs, target_sizes, return_segmentation_scores
        )

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers; but all at once, see `save_all_at_once`."""
        return save_all_at_once(self, super().save_pretrained, save_directory, push_to_hub=push_to_hub, **kwargs)


__all__ = ["DenseProcessor", "DenseProcessorKwargs"]
