"""What pipelines that look for free-text labels in images are called with, in every form that transformers' take."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.image_utils import valid_images


_SINGLE = (str, bytes)


def images_with_labels(image, labels) -> Any:
    """Dictionaries of `image` and `candidate_labels`: one, a list (maybe empty), or a generator of them.

    Args:
        image: a path, URL, PIL image, array or tensor; `{"image": …, "candidate_labels": […]}`; or a list, generator
            or data set of these.
        labels: for all images, or with a list of images a list for each.

    Raises:
        ValueError: no image, a dictionary without one, or another number of lists of labels than of images.
    """
    if image is None:
        raise ValueError("image: got None, expected a path, a URL, a PIL image, or a list of them")
    if isinstance(image, Mapping) or isinstance(image, _SINGLE) or hasattr(image, "getbbox"):
        return with_labels(image, labels)
    if isinstance(image, list | tuple):
        return [with_labels(*pair) for pair in zip(image, _of_each(labels, len(image)), strict=True)]
    if isinstance(image, torch.Tensor) or (hasattr(image, "shape") and valid_images(image)):
        return with_labels(image, labels)
    return (with_labels(one, labels) for one in image)


def with_labels(image, labels) -> dict[str, Any]:
    """One image with its labels; a dictionary keeps its own."""
    if isinstance(image, Mapping):
        if "image" not in image:
            raise ValueError(f"image: got a dict with {', '.join(map(repr, image))}, expected the key 'image'")
        return {"candidate_labels": labels, **image}
    return {"image": image, "candidate_labels": labels}


def _of_each(labels, count: int) -> list:
    """Labels for each of `count` images."""
    if isinstance(labels, list | tuple) and labels and all(_is_list_of_labels(one) for one in labels):
        if len(labels) != count:
            raise ValueError(f"candidate_labels: {len(labels)} lists for {count} images, expected one for each")
        return list(labels)
    return [labels] * count


def _is_list_of_labels(value) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, _SINGLE)


__all__ = ["images_with_labels", "with_labels"]
