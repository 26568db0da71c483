"""Validation and test sets with the labels of a model's or a training set's class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .class_labels import UnnamedLabels
from .coop_layout import PREFIX as COOP_PREFIX
from .image_set import ImageSet, name_some
from .sources import load_images


WITH_VIDEOS = {"videos": True}  # of `load_images`, where models are fitted or tested that see their frames


def absolute_source(source: str | Sequence[str]) -> str | list[str]:
    """An absolute path for a source that is a path; other sources unchanged. A list of sources: each of them."""
    if isinstance(source, list | tuple):
        return [absolute_source(one) for one in source]
    if source.startswith(COOP_PREFIX):
        return COOP_PREFIX + str(Path(source.removeprefix(COOP_PREFIX)).expanduser().absolute())
    path = Path(source).expanduser()
    return str(path.absolute()) if not source.startswith("emoji") and path.exists() else source


def align_classes(images: ImageSet, class_names: Sequence[str], what: str) -> ImageSet:
    """The same images with labels that are indices into `class_names`, matched by name.

    ValueError for images of other classes.
    """
    if tuple(images.class_names) == tuple(class_names):
        return images
    index_of = {name: index for index, name in enumerate(class_names)}
    used = used_classes(images)
    unknown = [name for name in used if name not in index_of]
    if unknown:
        raise ValueError(
            f"{what}: {len(unknown)} of {len(used)} classes are not among the {len(class_names)} trained ones: "
            f"{name_some(unknown)}; the trained ones are {name_some(class_names)}. Rename them, or keep the common "
            "classes only (--common-classes)"
        )
    from datasets import ClassLabel

    labels = np.array([index_of.get(name, -1) for name in images.class_names], dtype=np.int64)[images.labels]
    dataset = images.dataset.remove_columns("label").add_column("label", labels)
    dataset = dataset.cast_column("label", ClassLabel(names=list(class_names)))
    return replace(images, dataset=dataset, class_names=tuple(class_names))


def used_classes(images: ImageSet) -> list[str]:
    """The classes that have images, in the order of the class list."""
    return [images.class_names[label] for label in np.unique(images.labels)]


def shared_classes(
    train: str | Sequence[str],
    tests: Sequence[str] = (),
    reading: Mapping[str, Any] | None = None,
    splits: tuple[str | None, str | None] = (None, None),
) -> tuple[list[str], list[str]]:
    """The classes that have images in the training data and in every test set, and the others.

    Args:
        train, tests: what `load_images` reads; without tests, the test split of the training data.
        reading: further arguments of `load_images`.
        splits: of training and test data; default: train, and test where there is one.

    Raises:
        ValueError: fewer than two classes are shared.
    """
    options = {"verify": False, "progress": False, "empty_classes": "warn"} | dict(reading or {})
    images = load_images(train, splits[0], **options)
    tested = [_test_images(source, images.class_names, splits[1], options) for source in tests]
    if not tests and (splits[1] or ("test" in images.available_splits and images.split != "test")):
        tested = [images.load_split(split=splits[1] or "test")]
    kept = set.intersection(*(set(used_classes(each)) for each in (images, *tested)))
    if len(kept) < 2:
        some = [name_some(used_classes(each), 3) for each in (images, *tested)]
        raise ValueError(
            f"common classes: {len(kept)} are in all of training and test data; want at least two. "
            f"Training data has {some[0]}; test data has {', '.join(some[1:])}"
        )
    every = dict.fromkeys(name for each in (images, *tested) for name in used_classes(each))
    return [name for name in every if name in kept], [name for name in every if name not in kept]


def _test_images(source: str, class_names: Sequence[str], split: str | None, options: Mapping[str, Any]) -> ImageSet:
    images = read_labelled(source, class_names, split, options)
    if split is None and images.split == "train" and "test" in images.available_splits:
        return images.load_split(split="test")
    return images


def load_labelled(
    source: str, class_names: Sequence[str], split: str | None = None, reading: Mapping[str, Any] | None = None
) -> ImageSet:
    """A validation or test set; images that cannot be read are left out and listed in `skipped`. Videos are read."""
    reading = WITH_VIDEOS | dict(reading or {})
    return align_classes(read_labelled(source, class_names, split, reading), class_names, source)


def read_labelled(
    source: str, class_names: Sequence[str], split: str | None = None, reading: Mapping[str, Any] | None = None
) -> ImageSet:
    """The same with the class list of the source. `class_names` serve for integer labels without names."""
    options = {"on_error": "skip", "empty_classes": "warn", "progress": False} | dict(reading or {})
    try:
        return load_images(source, split, **options)
    except UnnamedLabels:
        return load_images(source, split, **options | {"class_names": list(class_names)})


__all__ = [
    "WITH_VIDEOS",
    "absolute_source",
    "align_classes",
    "load_labelled",
    "read_labelled",
    "shared_classes",
    "used_classes",
]
