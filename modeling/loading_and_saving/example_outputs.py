"""What a converted model is compared on, in memory, after saving and with the official code: example inputs, and
every output that given inputs suffice for, un-normalised features among them.

A `ModelFormat` holds one function of each kind; those for images and texts are here, others in their method's folder.
"""

from collections.abc import Mapping
from typing import Any

import torch


Tensors = dict[str, torch.Tensor]

TEXT_INPUTS = ("input_ids", "attention_mask")


def random_images(size: int) -> torch.Tensor:
    """Two images of noise, always the same: (2, 3, size, size)."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def noise_pictures(size: int, *frames: int) -> torch.Tensor:
    """(*frames, size, 2 size, 3) uint8: an image as a file may hold it, or frames of a video; always the same."""
    shape = (*frames, size, 2 * size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_texts(text_config: Any) -> Tensors:
    """Three texts of random tokens; at the end the last token of the vocabulary, where CLIP pools."""
    generator, length = torch.Generator().manual_seed(0), min(8, text_config.max_position_embeddings)
    ids = torch.randint(1, text_config.vocab_size - 2, (3, length), generator=generator)
    ids[:, -1] = text_config.vocab_size - 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def texts_of(inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """The inputs that are a text's."""
    return {name: inputs[name] for name in TEXT_INPUTS if name in inputs}


def processed_texts(prompts: tuple[str, ...], processor, **media) -> Tensors:
    """What a processor with a tokenizer makes of texts and of `images` or `videos`."""
    return dict(processor(text=list(prompts), **media, padding=True, truncation=True, return_tensors="pt"))


def images_and_texts(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    """An image of noise and the prompts; without a tokenizer two images and random tokens."""
    size = model.config.vision_config.image_size
    if tokenizer is None:
        return {"pixel_values": random_images(size)} | random_texts(model.config.text_config)
    return processed_texts(prompts, processor, images=noise_pictures(size).numpy())


def dual_encoder_outputs(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Features of images and texts, and their similarities."""
    pixels, text, found = inputs.get("pixel_values"), texts_of(inputs), {}
    if pixels is not None:
        found["image_features"] = model.get_image_features(pixel_values=pixels).pooler_output
    if "input_ids" in text:
        found["text_features"] = model.get_text_features(**text).pooler_output
        if pixels is not None:
            output = model(pixel_values=pixels, **text, return_loss=False)
            found |= {name: output[name] for name in ("logits_per_image", "logits_per_text")}
    return found


def classifier_images(model) -> Tensors:
    """Images of noise for a classifier with a CLIP inside of it."""
    return {"pixel_values": random_images(model.family.image_size(model.config))}


def classifier_outputs(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Of an adapted classifier: features of images and classes, and scores."""
    base, found = model.get_base_model(), {}
    if (pixels := inputs.get("pixel_values")) is not None:
        found["image_features"] = base.get_image_features(pixel_values=pixels).pooler_output
        if base.config.templates:
            output = model(pixel_values=pixels)
            found |= {"logits": output.logits, "text_features": output.text_embeds}
            if not base.prompt_embedder.depends_on_images:
                found["text_features"] = base.get_class_features()
    return found


def class_embedding_outputs(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Of a model that scores each pixel or region: embeddings of classes, and scores."""
    pixels, text, found = inputs.get("pixel_values"), texts_of(inputs), {}
    if not getattr(model, "has_text_encoder", True):
        return found if pixels is None else {"logits": model(pixel_values=pixels).logits}
    if "input_ids" in text:
        found["text_features"] = model.get_class_embeddings(**text)
        if pixels is not None:
            found["logits"] = model(pixel_values=pixels, **text).logits
    return found


__all__ = [
    "class_embedding_outputs",
    "classifier_images",
    "classifier_outputs",
    "dual_encoder_outputs",
    "images_and_texts",
    "noise_pictures",
    "processed_texts",
    "random_images",
    "random_texts",
    "texts_of",
]
