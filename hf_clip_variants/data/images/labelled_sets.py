"""Validation and test sets with the labels of a model's or a training set's class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .coop_layout import PREFIX as COOP_PREFIX
from .image_set import ImageSet, name_some
from .sources import UnnamedLabels, load_images


def absolute_source(source: str) -> str:
    """An absolute path for a source that is a path; other sources unchanged."""
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
    used = [images.class_names[label] for label in np.unique(images.labels)]
    unknown = [name for name in used if name not in index_of]
    if unknown:
        raise ValueError(
            f"{what}: {len(unknown)} of {len(used)} classes are not among the {len(class_names)} trained ones: "
            f"{name_some(unknown)}; the trained ones are {name_some(class_names)}"
        )
    from datasets import ClassLabel

    labels = np.array([index_of.get(name, -1) for name in images.class_names], dtype=np.int64)[images.labels]
    dataset = images.dataset.remove_columns("label").add_column("label", labels)
    dataset = dataset.cast_column("label", ClassLabel(names=list(class_names)))
    return replace(images, dataset=dataset, class_names=tuple(class_names))


def load_labelled(
    source: str, class_names: Sequence[str], split: str | None = None, reading: Mapping[str, Any] | None = None
) -> ImageSet:
    """A validation or test set; images that cannot be read are left out and listed in `skipped`."""
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


__all__ = ["absolute_source", "align_classes", "load_labelled", "read_labelled"]
