"""Images and texts to ViLD's inputs, and its outputs back to named boxes."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from ..dense.processing_dense import DenseProcessor
from .image_processing_vild import ViLDImageProcessor


# Of the 63 templates of the official demo, those that hold for any object and any image.
VILD_TEMPLATES = ("a photo of a {}.", "This is a {}.", "There is a {} in the scene.")


class ViLDProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class ViLDProcessor(DenseProcessor):
    r"""
    A [`ViLDImageProcessor`] and a tokenizer in one.

    Args:
        image_processor ([`ViLDImageProcessor`]).
        tokenizer: of the model's text encoder.
        templates (`str` or `list[str]`, *optional*): what labels are put into; None: the label alone.

    `processor(images=None, text=None, annotations=None, **kwargs)` returns what the image processor does, and the
    token ids of the labels as [`DenseProcessor`] does.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_clip_variants import ViLDProcessor
    >>> from hf_clip_variants.modeling.clip.text_clip import official_tokenizer
    >>> from hf_clip_variants.modeling.vild.image_processing_vild import ViLDImageProcessor

    >>> images = ViLDImageProcessor(size={"longest_edge": 128, "shortest_edge": 128})
    >>> processor = ViLDProcessor(images, official_tokenizer(), templates="a photo of a {}.")
    >>> inputs = processor(Image.new("RGB", (64, 40)), ["cat", "dog"], return_tensors="pt")
    >>> sorted(inputs)
    ['attention_mask', 'input_ids', 'pixel_mask', 'pixel_values']
    ```
    """

    valid_processor_kwargs = ViLDProcessorKwargs

    def __call__(
        self,
        images=None,
        text: Sequence[str] | Sequence[Sequence[str]] | None = None,
        annotations=None,
        return_segmentation_masks: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        if images is None and text is None:
            raise ValueError("images, text: got neither, expected at least one of them")
        merged = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        inputs = {}
        if images is not None:
            options = merged["images_kwargs"]
            if return_segmentation_masks is not None:
                options = options | {"return_segmentation_masks": return_segmentation_masks}
            inputs |= self.image_processor(images, annotations=annotations, **options)
        if text is not None:
            inputs |= self._encoded(text, **merged["text_kwargs"])
        return BatchFeature(inputs)

    def post_process_grounded_object_detection(
        self,
        outputs,
        threshold: float = 0.0,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """The final detections of each image, as of OWL-ViT in transformers.

        Args:
            outputs: a model's.
            threshold: the smallest score.
            target_sizes: (height, width) of the images; None: boxes are relative (0..1).
            text_labels: names of the labels, one list, or one of each image.
            options: of `ViLDImageProcessor.post_process_object_detection`.

        Returns:
            dictionaries of `scores` (K,), `labels` (K,), `boxes` (K, 4) as x1, y1, x2, y2, `text_labels` (K names or
            None) and maybe `masks` (K, 28, 28).

        Raises:
            ValueError: `target_sizes` or `text_labels` of another number of images, or fewer names than labels.
        """
        found = self.image_processor.post_process_object_detection(outputs, threshold, target_sizes, **options)
        if text_labels is not None and (isinstance(text_labels, str) or not isinstance(text_labels, Sequence)):
            raise ValueError(f"text_labels: {text_labels!r}, expected a list of names, or a list for each image")
        if text_labels and isinstance(text_labels[0], str):
            text_labels = [text_labels] * len(found)
        if text_labels is not None and len(text_labels) != len(found):
            raise ValueError(f"text_labels: {len(text_labels)} lists for {len(found)} images, expected one for each")
        for i, one in enumerate(found):
            if text_labels is not None and not isinstance(text_labels[i], Sequence):
                raise ValueError(f"text_labels[{i}]: {text_labels[i]!r}, expected a list of names")
            names = None if text_labels is None else list(text_labels[i])
            if names is not None and len(one["labels"]) and int(one["labels"].max()) >= len(names):
                raise ValueError(f"text_labels[{i}]: {len(names)} names, a detection has label {one['labels'].max()}")
            one["text_labels"] = None if names is None else [names[label] for label in one["labels"].tolist()]
        return found

    post_process_semantic_segmentation = None


def vild_processor(tokenizer=None, **settings: Any) -> ViLDProcessor | ViLDImageProcessor:
    """The processor, or without a tokenizer the image processor; `settings` are of the image processor."""
    images = ViLDImageProcessor(**settings)
    return images if tokenizer is None else ViLDProcessor(images, tokenizer, templates=list(VILD_TEMPLATES))


__all__ = ["VILD_TEMPLATES", "ViLDProcessor", "ViLDProcessorKwargs", "vild_processor"]
