"""Classes of posts of a text and an image, and what counted, with a loaded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..data.images.image_set import explain
from ..data.images.names import is_image_name
from ..data.posts import Post, read_posts
from ..registry import methods
from .devices import choose_device
from .saved_folders import check_model_folder, configuration_of, load_saved_processor


TASK = "text-and-image-classification"
TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class ClassifiedPost:
    """
    Attributes:
        name: of the post: its file, or the table and the post's id.
        post: None if it could not be read.
        answer: as of the pipeline: label, score, scores, similarity, weights, layers.
        error: why there is no answer.
    """

    name: str
    post: Post | None = None
    answer: dict[str, Any] | None = None
    error: str | None = None


def is_post_model(source: str | os.PathLike) -> bool:
    """Whether the folder or Hub id holds a model of this package that reads a text and an image in one."""
    kinds = {row.model_type for row in methods("model") if row.task == TASK}
    return configuration_of(source).get("model_type") in kinds


def load_post_classifier(model: str | os.PathLike, device: str | torch.device | None = None) -> Any:
    """The pipeline of a saved model, in float32 on a CPU.

    Raises:
        ValueError: another kind of model. OSError: no such folder.
    """
    from transformers import AutoModelForSequenceClassification

    from ..modeling.posts.text_and_image_classification import TextAndImageClassificationPipeline

    check_model_folder(model)
    if not is_post_model(model):
        kind = configuration_of(model).get("model_type")
        raise ValueError(f"model: {model} is a {kind}, which does not read a text and an image in one")
    device = choose_device(device)
    dtype = torch.float32 if device.type == "cpu" else "auto"
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).eval()
    return TextAndImageClassificationPipeline(model=loaded, processor=load_saved_processor(model), device=device)


def find_posts(inputs: Iterable[str]) -> Iterator[ClassifiedPost]:
    """Posts of tables (.csv, .tsv, .jsonl), of images with a .txt of the same name beside them, and of folders of
    these; without answers. What cannot be read has an error."""
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file()]
            found = [p for p in inside if p.suffix.lower() in TABLES or is_image_name(p.name)]
            if any(p.suffix.lower() in TABLES for p in found):  # the images are the tables'
                found = [p for p in found if p.suffix.lower() in TABLES]
            yield from find_posts(map(str, found))
        elif path.suffix.lower() in TABLES:
            try:
                posts = read_posts(path, without_image="keep")
            except (OSError, ValueError) as error:
                yield ClassifiedPost(item, error=str(error))
                continue
            yield from (ClassifiedPost(f"{item}#{post.id}", post) for post in posts)
        else:
            yield _of_image(path)


def _of_image(path: Path) -> ClassifiedPost:
    words = path.with_suffix(".txt")
    if not path.is_file():
        return ClassifiedPost(str(path), error="no such file")
    try:
        text = words.read_text(encoding="utf-8")
    except OSError:
        return ClassifiedPost(str(path), error=f"no text: want {words.name} beside it, or a table of posts")
    except UnicodeDecodeError:
        return ClassifiedPost(str(path), error=f"{words.name}: not UTF-8 text")
    if not text.strip():
        return ClassifiedPost(str(path), error=f"{words.name}: an empty text")
    return ClassifiedPost(str(path), Post(path.stem, text.strip(), (str(path),)))


def classify_posts(
    classifier: Any, posts: Iterable[ClassifiedPost], several_images: str = "first", batch_size: int = 8
) -> Iterator[ClassifiedPost]:
    """Each post with its answer, in order; `error` is set for one without an image, or whose image cannot be read."""
    posts = iter(posts)
    while batch := list(islice(posts, batch_size)):
        readable = [one for one in batch if one.error is None and one.post.images]
        rows = [
            {"text": p.text, "image": list(p.images), "clip_text": p.clip_text} for p in (o.post for o in readable)
        ]
        try:
            answers = classifier(rows, several_images=several_images, batch_size=len(rows)) if rows else []
            found: dict[int, Any] = {id(one): answer for one, answer in zip(readable, answers, strict=True)}
        except (ValueError, OSError):  # one of them: alone
            found = {id(one): _alone(classifier, row, several_images) for one, row in zip(readable, rows, strict=True)}
        for one in batch:
            if one.error is not None:
                yield one
            elif id(one) not in found:
                yield ClassifiedPost(one.name, one.post, error="no image: none of those in its row is a file")
            elif isinstance(answer := found[id(one)], str):
                yield ClassifiedPost(one.name, one.post, error=answer)
            else:
                yield ClassifiedPost(one.name, one.post, answer)


def _alone(classifier: Any, row: dict[str, Any], several_images: str) -> dict[str, Any] | str:
    try:
        return classifier(row, several_images=several_images)
    except (ValueError, OSError) as error:
        return explain(error)


__all__ = ["ClassifiedPost", "classify_posts", "find_posts", "is_post_model", "load_post_classifier"]
