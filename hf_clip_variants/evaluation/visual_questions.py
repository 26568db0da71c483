"""Loads models that answer questions about images, or write captions, and runs them on files that may be broken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..data.images.image_set import explain
from ..modeling.decoding.image_decoding import DecodingRules, decode_image
from ..modeling.questions.image_question_answering import TASK, ImageQuestionAnsweringPipeline
from ..registry import methods
from .devices import choose_device
from .prediction import check_readable_path
from .saved_folders import check_model_folder, configuration_of, is_of_auto_class, load_saved_processor


if TYPE_CHECKING:
    from PIL import Image

ANSWERS_CLASS, CAPTIONS_CLASS = "AutoModelForVisualQuestionAnswering", "AutoModelForImageTextToText"
_CLASSIFIES_TEXT = "AutoModelForSequenceClassification"  # an image with a sentence, where a row has it beside answers


@dataclass(frozen=True)
class AnsweredImage:
    """The answers about one image or its caption, or why it could not be read."""

    path: str
    image: Image.Image | None = None  # RGB, upright
    answers: tuple[tuple[str, float], ...] = ()  # best first, with their scores
    caption: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ImageReader:
    """A model and its processor; `answers` is the pipeline of a model that answers."""

    model: Any
    processor: Any
    answers: ImageQuestionAnsweringPipeline | None = None


def kind_of_questions(source: str | os.PathLike) -> str | None:
    """The Auto class of a saved model that answers questions or writes captions, by the class that saved it; None for
    other models, and for weights of a model without a head."""
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        return None
    values = configuration_of(source)
    saved = set(values.get("architectures") or ())
    for row in methods("model"):
        if row.model_type == values.get("model_type"):
            for auto_class in (ANSWERS_CLASS, CAPTIONS_CLASS, _CLASSIFIES_TEXT):
                if row.auto_classes.get(auto_class, ":").rpartition(":")[2] in saved:
                    return ANSWERS_CLASS if auto_class == _CLASSIFIES_TEXT else auto_class
    return None


def load_image_reader(
    model: str | os.PathLike, captions: bool = False, device: str | torch.device | None = None
) -> ImageReader:
    """A model that answers questions, or with `captions` one that writes them, in float32 on a CPU.

    Args:
        model: folder or Hub id.
        captions: what it is asked for.
        device: default: a GPU if there is one.

    Raises:
        ValueError: another kind of model.
        OSError: no such folder or Hub repository.
    """
    import transformers

    check_model_folder(model)
    wanted = CAPTIONS_CLASS if captions else ANSWERS_CLASS
    found = kind_of_questions(model)
    if not is_of_auto_class(model, wanted) or found != wanted:
        does = "writes no captions" if captions else "answers no questions"
        known = [row.title for row in methods("model") if wanted in row.auto_classes]
        kind = ", ".join(configuration_of(model).get("architectures") or ["an unnamed class"])
        raise ValueError(f"model: {model} is a {kind}, which {does}; want {' or '.join(known)} that does")
    device = choose_device(device)
    dtype = torch.float32 if device.type == "cpu" else "auto"
    loaded = getattr(transformers, wanted).from_pretrained(model, dtype=dtype).eval().requires_grad_(False)
    processor = load_saved_processor(model)
    if captions:
        return ImageReader(loaded.to(device), processor)
    pipeline = ImageQuestionAnsweringPipeline(model=loaded, task=TASK, processor=processor, device=device)
    return ImageReader(loaded, processor, pipeline)


@torch.inference_mode()
def read_images(
    reader: ImageReader, paths: Iterable[str], question: str | None = None, top: int = 5, max_words: int = 30
) -> Iterator[AnsweredImage]:
    """The best answers to a question about each image, or its caption, in order; `error` is set for one that cannot be
    read.

    Raises:
        ValueError: a model that answers without a question, or one that writes with one.
    """
    if (question is None) != (reader.answers is None):
        raise ValueError(f"question: got {question!r}, expected {'none' if reader.answers is None else 'a text'}")
    for path in paths:
        try:
            check_readable_path(path)
            image = decode_image(path, DecodingRules())
            image.info = {}  # it is upright now, and is not to be turned once more
            image = image.convert("RGB")
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
            yield AnsweredImage(path, error=explain(error, path))
            continue
        if reader.answers is not None:
            found = reader.answers(image, question, top_k=top)
            yield AnsweredImage(path, image, tuple((one["answer"], one["score"]) for one in found))
            continue
        inputs = reader.processor(images=[image], text="", return_tensors="pt").to(reader.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(reader.model.dtype)
        ids = reader.model.generate(**inputs, max_new_tokens=max_words)
        yield AnsweredImage(path, image, caption=reader.processor.post_process_image_text_to_text(ids)[0].strip())


__all__ = ["AnsweredImage", "ImageReader", "kind_of_questions", "load_image_reader", "read_images"]
