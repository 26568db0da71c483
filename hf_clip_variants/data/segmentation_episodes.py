"""Few-shot segmentation: which classes a fold of PASCAL-5i, COCO-20i and FSS-1000 holds out, and episodes of them.

An episode is an image, one class that is in it, and the class's mask. Methods that segment by text need no support
images: they get the class's name (the "zero-shot" mode of their papers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import datasets

IGNORED = 255
# Spelled as in the few-shot literature's lists; with other spellings, texts and so results are others.
PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "trafficlight"),
    *("firehydrant", "stopsign", "parkingmeter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant"),
    *("bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis"),
    *("snowboard", "sportsball", "kite", "baseballbat", "baseballglove", "skateboard", "surfboard", "tennisracket"),
    *("bottle", "wineglass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange"),
    *("broccoli", "carrot", "hotdog", "pizza", "donut", "cake", "chair", "couch", "pottedplant", "bed"),
    *("diningtable", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cellphone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddybear", "hairdrier", "toothbrush"),
)
_FSS_PARTS = {"train": range(520), "validation": range(520, 760), "test": range(760, 1000)}


def fold_classes(benchmark: str, fold: int | str) -> tuple[int, ...]:
    """The classes, from 0, that a fold tests on; the others of the benchmark are trained on.

    Args:
        benchmark: `"pascal"` (PASCAL-5i, 20 classes of `PASCAL_CLASSES`), `"coco"` (COCO-20i, 80 of `COCO_CLASSES`) or
            `"fss"` (FSS-1000).
        fold: 0 to 3; of FSS-1000 `"train"`, `"validation"` or `"test"`.

    Raises:
        ValueError: no such benchmark or fold.

    Example:

    ```python
    >>> [PASCAL_CLASSES[c] for c in fold_classes("pascal", 1)]
    ['bus', 'car', 'cat', 'chair', 'cow']
    >>> fold_classes("coco", 2)[:3], len(fold_classes("fss", "test"))
    ((2, 6, 10), 240)
    ```
    """
    if benchmark == "fss":
        if fold not in _FSS_PARTS:
            raise ValueError(f"fold: {fold!r}, expected one of {', '.join(_FSS_PARTS)}")
        return tuple(_FSS_PARTS[fold])
    if benchmark not in ("pascal", "coco"):
        raise ValueError(f"benchmark: {benchmark!r}, expected pascal, coco or fss")
    if fold not in (0, 1, 2, 3):
        raise ValueError(f"fold: {fold!r}, expected 0, 1, 2 or 3")
    # PASCAL's folds are blocks of five, COCO's every fourth class.
    return tuple(range(5 * fold, 5 * fold + 5) if benchmark == "pascal" else range(fold, 80, 4))


@dataclass(frozen=True, eq=False)
class Episode:
    """
    Attributes:
        image: as the data set gives it.
        mask (`np.ndarray`): (H, W) uint8; 1 is the class, 0 all else, 255 does not count.
        class_id: which class, from 0.
    """

    image: Any
    mask: np.ndarray
    class_id: int


def draw_episodes(
    images: datasets.Dataset,
    classes: Sequence[int],
    count: int = 1000,
    seed: int = 0,
    label_column: str = "label_map",
) -> Iterator[Episode]:
    """`count` episodes: each time a class of the fold at random, then an image at random in which it is.

    Args:
        images: with the columns image and `label_column`: maps whose values are 0 (background), class + 1, and 255
            where a pixel does not count.
        classes: of the fold, from 0.
        seed: the same seed gives the same episodes.

    Raises:
        ValueError: none of the classes is in an image, or `count` is below 1.

    Example:

    ```python
    >>> from hf_clip_variants.data.scenes.scenes import make_scenes
    >>> scenes = make_scenes(4, styles="fluentflat", class_names=["cat", "taco", "whale"])
    >>> episode = next(draw_episodes(scenes, classes=[0, 2], count=1))
    >>> episode.mask.shape, sorted(set(episode.mask.ravel().tolist())), episode.class_id in (0, 2)
    ((128, 128), [0, 1], True)
    ```
    """
    if count < 1:
        raise ValueError(f"count: got {count}, expected at least 1")
    rows_of: dict[int, list[int]] = {int(one): [] for one in classes}
    for row, label_map in enumerate(images[label_column]):
        for value in np.unique(np.asarray(label_map)).tolist():
            if value - 1 in rows_of:
                rows_of[value - 1].append(row)
    present = [one for one, rows in rows_of.items() if rows]
    if not present:
        raise ValueError(f"classes: none of {list(rows_of)[:10]} is in an image of the data set")
    return _episodes(images, {one: rows_of[one] for one in present}, count, seed, label_column)


def _episodes(images, rows_of, count, seed, label_column) -> Iterator[Episode]:
    generator, known = np.random.default_rng(seed), list(rows_of)
    for _ in range(count):
        one = known[int(generator.integers(len(known)))]
        row = images[rows_of[one][int(generator.integers(len(rows_of[one])))]]
        label_map = np.asarray(row[label_column])
        mask = np.where(label_map == IGNORED, IGNORED, label_map == one + 1).astype(np.uint8)
        yield Episode(row["image"], mask, one)


__all__ = ["COCO_CLASSES", "PASCAL_CLASSES", "Episode", "draw_episodes", "fold_classes"]
