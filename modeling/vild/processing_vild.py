"""Images and texts to ViLD's inputs, and its outputs back to named boxes."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import ProcessingKwargs

from ..dense.processing_dense import DenseProcessor
from ..dual_encoders.prompts import encode_texts
from .image_processing_vild import ViLDImageProcessor


# Of the 63 templates of the official demo, those that hold for any object and any image.
VILD_TEMPLATES = ("a photo of a {}.", "This is a {}.", "There is a {} in the scene.")


_PHOTOS = ("good", "bad", "bright", "dark", "low resolution", "cropped", "close-up", "jpeg corrupted", "blurry")
_PHOTOS += ("pixelated", "black and white")
_OBJECTS = ("nice", "cool", "weird", "small", "large", "clean", "dirty", "hard to see")
_ONE = "{article} {}"
# The demo's 63, with a name's article.
_TEMPLATES = (
    f"There is {_ONE} in the scene.",
    "There is the {} in the scene.",
    *(f"a photo of {one} {{}} in the scene." for one in ("{article}", "the", "one")),
    *(f"itap of {one} {{}}." for one in ("{article}", "my", "the")),
    *(f"a photo of {one} {{}}." for one in ("{article}", "my", "the", "one", "many")),
    *(f"a {kind} photo of {one} {{}}." for kind in _PHOTOS for one in ("{article}", "the")),
    *(f"a photo of {one} {kind} {{}}." for kind in _OBJECTS for one in ("a", "the")),
    *(f"{one} {kind} {{}}." for kind in ("plastic", "toy", "plushie", "cartoon") for one in ("a", "the")),
    *(f"{one} embroidered {{}}." for one in ("an", "the")),
    *(f"a painting of {one} {{}}." for one in ("the", "a")),
)


def demo_prompts(name: str) -> list[str]:
    """The 63 prompts of the official demo for one label.

    `_` becomes a space, `/` becomes " or "; the name is in lower case, without a dot at its end, with "an" before a
    vowel; what starts with "a" or "the" becomes a sentence.

    >>> demo_prompts("Apple_pie")[0], demo_prompts("cat/dog")[8], len(demo_prompts("cat"))
    ('There is an apple pie in the scene.', 'This is a photo of a cat or dog.', 63)
    """
    text = name.replace("_", " ").replace("/", " or ").lower().rstrip(".")
    article = "an" if text[:1] in tuple("aeiou") else "a"
    prompts = [template.format(text, article=article) for template in _TEMPLATES]
    return [f"This is {one}" if one.startswith(("a", "the")) else one for one in prompts]


@torch.no_grad()
def embed_demo_labels(model, processor, labels: Sequence[str]) -> torch.Tensor:
    """(N, D) embeddings of labels by `demo_prompts`, as `class_embeddings` of a model's forward, or to be stored:
    `model.set_labels(labels, processor)`, then `model.class_embeddings.copy_(...)`.

    `processor` is a processor or a tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    found = []
    for label in labels:
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        encoded = encode_texts(tokenizer, demo_prompts(label), what="labels", **options)
        encoded = {name: encoded[name][None].to(model.device) for name in ("input_ids", "attention_mask")}
        found.append(model.get_class_embeddings(**encoded))
    return torch.cat(found)


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

    def post_process_demo_detection(
        self, outputs, target_sizes, text_labels: Sequence[str] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """As `ViLDImageProcessor.post_process_demo_detection`, with the names of labels: of `text_labels`, the first
        of which is the background's."""
        found = self.image_processor.post_process_demo_detection(outputs, target_sizes, **options)
        for one in found:
            labels = one["labels"].tolist()
            one["text_labels"] = None if text_labels is None else [text_labels[label + 1] for label in labels]
        return found

    post_process_semantic_segmentation = None


def vild_processor(tokenizer=None, **settings: Any) -> ViLDProcessor | ViLDImageProcessor:
    """The processor, or without a tokenizer the image processor; `settings` are of the image processor."""
    images = ViLDImageProcessor(**settings)
    return images if tokenizer is None else ViLDProcessor(images, tokenizer, templates=list(VILD_TEMPLATES))


__all__ = ["VILD_TEMPLATES", "ViLDProcessor", "ViLDProcessorKwargs", "demo_prompts", "embed_demo_labels"]
__all__ += ["vild_processor"]
