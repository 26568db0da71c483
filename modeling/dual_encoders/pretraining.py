"""
What pre-training has to know of a method.

A method that can be trained from scratch says so in its own `pretraining_<method>.py`, and its row in the table of
methods points there; the trainer, the data pipeline and `scripts/pretrain.py` ask the descriptor and name no method.
Descriptors import torch and transformers only when they make a model. No model imports this module, so it does not
travel to the Hub.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


ImageEncoderKind = Literal["vit", "resnet"]
Scale = Literal["mini", "tiny", "published"]


def load_with_auto_classes(source: str, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """A trained model and its processor, float32, with `fields` of its configuration changed."""
    import torch
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(source, dtype=torch.float32, **fields)
    return model, AutoProcessor.from_pretrained(source)


def clip_image_processor(size: int, **settings: Any) -> Any:
    """OpenAI's preprocessing to squares of `size` pixels, changed by `settings`."""
    from transformers import CLIPImageProcessor

    square = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return CLIPImageProcessor(**square | settings)


def clip_processor(size: int, tokenizer: Any) -> Any:
    from transformers import CLIPProcessor

    return CLIPProcessor(clip_image_processor(size), tokenizer)


def no_extra_views(config: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """
    How a method is trained from scratch.

    Several rows may have descriptors of one name, for image encoders of different kinds; the architecture decides
    between them.

    Args:
        name: the method in commands, `pretrain.py --method`.
        image_encoders: the kinds of image encoders that it can be built on.
        new_model: (fields of a `CLIPConfig`-like configuration, kind of the image encoder, scale) -> a model with
            random weights (torch's global generator). The fields are the user's, then the architecture's; the
            method's own defaults apply to all others.
        new_processor: (image size, tokenizer) -> the processor that is saved with the model.
        load: (folder or Hub id, fields to change) -> a trained model and its processor, to go on from.
        load_for_use: folder of the trained model -> the model as users load it, where training needs more than they do
            (a self-supervised head, say). None: the trained model.
        modalities: what a pair consists of; `"audio"` takes a column of audio and a processor with a feature
            extractor.
        views: the published augmentation of images: `"one"` view (CLIP's crop), or `"two"` more for a self-supervised
            loss (SLIP's).
        extra_views: configuration -> the model's arguments for the views besides `pixel_values`.
        learning_rate, small_learning_rate: the paper's, and one for the scales mini and tiny.
        weight_decay: the paper's.
        max_grad_norm: 0 does not clip.
        has_batch_norm: the loss of a batch cannot be computed from parts of it (`--micro-batch-size`).
    """

    name: str
    image_encoders: tuple[ImageEncoderKind, ...]
    new_model: Callable[[dict[str, Any], ImageEncoderKind, Scale], Any]
    new_processor: Callable[[int, Any], Any] = clip_processor
    load: Callable[[str, Mapping[str, Any]], tuple[Any, Any]] = load_with_auto_classes
    load_for_use: Callable[[str], Any] | None = None
    modalities: tuple[str, ...] = ("image", "text")
    views: Literal["one", "two"] = "one"
    extra_views: Callable[[Any], tuple[str, ...]] = no_extra_views
    learning_rate: float
    small_learning_rate: float
    weight_decay: float
    max_grad_norm: float = 1.0
    has_batch_norm: bool = False


__all__ = ["Pretraining", "clip_image_processor", "clip_processor", "load_with_auto_classes", "no_extra_views"]
