"""Which images a few-shot run learns from, validates on and is tested on. Imports no model and no torch."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.few_shot_sampling import FewShotSplit, sample_few_shot
from ..data.held_out import HELD_OUT, TEST_SHARE, hold_out
from ..data.images.image_set import ImageSet
from ..data.images.labelled_sets import WITH_VIDEOS, align_classes, load_labelled
from ..data.images.sources import load_images
from .named_sources import parse_test_data


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """Images that nothing is chosen on; labels are indices into the run's class names."""

    __test__ = False  # pytest: not a test

    name: str
    images: ImageSet
    source: str | Sequence[str]
    split: str | None = None
    rows: tuple[int, ...] | None = None  # of the source's split; None: all of them


def load_training(
    source: str | Sequence[str], reading: Mapping[str, Any] | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """The images to draw from, and the validation split where the source has one. Nothing is decoded yet."""
    train = load_images(source, verify=False, progress=False, **WITH_VIDEOS | dict(reading or {}))
    if "validation" not in train.available_splits or train.split == "validation":
        return train, None
    return train, train.load_split(split="validation", empty_classes="warn")


@dataclass(frozen=True)
class Draws:
    """The draw of every (shots, seed), from readable images only."""

    splits: dict[tuple[int, int], FewShotSplit]
    skipped: tuple[tuple[str, str], ...]  # (id, reason) of images that were drawn but cannot be read
    remarks: tuple[str, ...]  # what the user should know, such as classes of fewer than K images

    @property
    def rows(self) -> list[int]:
        """Every training row that some draw has, in order."""
        return sorted({row for split in self.splits.values() for row in split.train})

    @property
    def validation_rows(self) -> list[int]:
        return sorted({row for split in self.splits.values() for row in split.validation})


def draw_shots(
    train: ImageSet,
    validation: ImageSet | None,
    shots: Sequence[int],
    seeds: Sequence[int],
    rows: Sequence[int] | None = None,
) -> Draws:
    """CoOp's draw for every number of shots and seed, from `rows` of the training images (default: all); min(K, 4)
    validation images per class from a validation split.

    Only drawn images are decoded. One that cannot be read is left out, and everything is drawn again without it, until
    all drawn images can be read.
    """
    checked: list[dict[int, str | None]] = [{}, {}]  # train, validation: row -> reason why it cannot be read
    allowed = range(len(train)) if rows is None else rows, range(len(validation) if validation is not None else 0)
    while True:
        good = [
            np.array([row for row in rows if not bad.get(row)], dtype=np.int64)
            for rows, bad in zip(allowed, checked, strict=True)
        ]
        splits, remarks = {}, {}
        for count in shots:
            for seed in seeds:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    try:
                        split = sample_few_shot(
                            train.labels[good[0]],
                            count,
                            seed,
                            class_names=train.class_names,
                            val=validation is not None,
                            validation_labels=None if validation is None else validation.labels[good[1]],
                        )
                    except ValueError as error:
                        raise ValueError(f"{error}{_unreadable(train, checked[0])}") from error
                remarks |= {str(w.message): None for w in caught}
                rows = tuple(good[0][list(split.train)].tolist())
                splits[count, seed] = replace(
                    split,
                    train=rows,
                    validation=tuple(good[1][list(split.validation)].tolist()) if split.validation else (),
                )
        draws = Draws(splits, (), tuple(remarks))
        fresh = [
            _check(images, rows, seen)
            for images, rows, seen in zip(
                (train, validation), (draws.rows, draws.validation_rows), checked, strict=True
            )
        ]
        if not any(fresh):
            skipped = tuple((train.ids[row], why) for row, why in sorted(checked[0].items()) if why)
            skipped += tuple((validation.ids[row], why) for row, why in sorted(checked[1].items()) if why)
            return replace(draws, skipped=skipped)


def _unreadable(train: ImageSet, checked: Mapping[int, str | None]) -> str:
    """What may be why there are none left."""
    bad = [f"{train.ids[row]!r} ({why})" for row, why in sorted(checked.items()) if why]
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return f"; cannot be read: {', '.join(bad[:5])}{more}" if bad else ""


def _check(images: ImageSet | None, rows: Sequence[int], checked: dict[int, str | None]) -> bool:
    """Decodes the rows that were not decoded yet. True if one of them cannot be read."""
    new = [row for row in rows if row not in checked]
    if not new:
        return False
    bad = {new[place]: reason for place, reason in images.select(new).unreadable(progress=False)}
    checked.update({row: bad.get(row) for row in new})
    return bool(bad)


def load_test_sets(
    train: ImageSet,
    data: str | Sequence[str],
    test_data: Mapping[str, str],
    reading: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[TestSet]]:
    """The test sets, and the rows of the training images that are left to learn from.

    The named sources; without any, the data's own test split; without that, a share of the images of each class,
    chosen by their names (`hold_out`). Shots and seeds have no part in it: every run on this data is tested on the
    same images.

    Raises ValueError when there is nothing to test on.
    """
    names, rows = train.class_names, list(range(len(train)))
    if test_data:
        return rows, [TestSet(name, load_labelled(s, names, None, reading), s) for name, s in test_data.items()]
    if "test" in train.available_splits and train.split != "test":
        return rows, [TestSet("test", load_labelled(data, names, "test", reading), data, "test")]
    learn, held_out = hold_out(train.labels, train.ids)
    rest = train.select(held_out)
    bad = dict(rest.unreadable(progress=False))
    readable = {int(row) for place, row in enumerate(held_out) if place not in bad}
    if damaged := _unreadable_to_learn_from(train, learn, readable):
        # In these classes, what can be read would all be tested on: held out anew from what can be read.
        sound = np.array([row for row in range(len(train)) if row not in damaged], dtype=np.int64)
        learn, held_out = (sound[rows] for rows in hold_out(train.labels[sound], [train.ids[row] for row in sound]))
        rest = train.select(held_out)
        bad = dict(rest.unreadable(progress=False))
    damaged |= {int(held_out[place]): reason for place, reason in bad.items()}
    for row, reason in sorted(damaged.items()):
        logger.warning("images %r cannot be read and is left out: %s", train.ids[row], reason)
    kept = [place for place in range(len(rest)) if place not in bad]
    if not kept:
        raise ValueError(
            f"test_data: {data} has one readable image of each class and nothing is left to test on; want test images "
            "(--test-data NAME=SOURCE), or two or more images of each class"
        )
    skipped = tuple((train.ids[row], reason) for row, reason in sorted(damaged.items()))
    images = replace(rest.select(kept), skipped=skipped)
    rows_of_test = tuple(int(held_out[place]) for place in kept)
    return learn.tolist(), [TestSet(HELD_OUT, images, data, train.split, rows_of_test)]


def _unreadable_to_learn_from(train: ImageSet, learn: Sequence[int], readable: set[int]) -> dict[int, str]:
    """Row -> reason, of all images of the classes of which nothing to learn from can be read.

    Of each class, images are decoded until one can be. `readable` are the rows of held-out images that can be: a class
    without any stays as it is.
    """
    found: dict[int, str] = {}
    for label in {int(train.labels[row]) for row in readable}:
        of_class: dict[int, str] = {}
        for row in (int(row) for row in learn if train.labels[row] == label):
            reasons = train.select([row]).unreadable(progress=False)
            if not reasons:
                break
            of_class[row] = reasons[0][1]
        else:
            found |= of_class
    return found


def fitting_shots(
    labels: np.ndarray, learn: Sequence[int], shots: Sequence[int], held_out: bool = False
) -> tuple[list[int], list[str]]:
    """The numbers of shots that most classes have images for, and what to say about those that were cut.

    Args:
        labels: (N,) of all training images.
        learn: rows that may be drawn.
        shots: numbers of shots that were asked for.
        held_out: whether the test set is a share of these images, so that more of them are needed.
    """
    counts = np.bincount(labels[list(learn)])
    available = int(np.median(counts[counts > 0]))
    fitting = [k for k in shots if k <= available]
    cut = [k for k in shots if k > available]
    if not cut:
        return fitting, []
    if available not in fitting:
        fitting.append(available)
    needed = max(cut)
    if held_out:  # with the share that is held out
        needed = math.ceil(needed / (1 - TEST_SHARE))
    asked = ", ".join(map(str, cut))
    return sorted(fitting), [
        f"{asked} shots need {needed} images of each class{' with the test set' if held_out else ''}; most "
        f"classes leave {available} to learn from, so the runs have {', '.join(map(str, sorted(fitting)))}"
    ]


@dataclass(frozen=True)
class Division:
    """Everything that a run folder learns from and is tested on."""

    shots: list[int]  # those that the data has images for
    test_sets: list[TestSet]
    draws: Draws
    remarks: tuple[str, ...]  # what the user should know


def divide(
    train: ImageSet,
    validation: ImageSet | None,
    data: str | Sequence[str],
    test_data: Mapping[str, str],
    shots: Sequence[int],
    seeds: Sequence[int],
    reading: Mapping[str, Any] | None = None,
) -> Division:
    """The test sets first, then the draws from what is left. Raises what `load_test_sets` and `draw_shots` raise."""
    learn, test_sets = load_test_sets(train, data, test_data, reading)
    fitting, cut = fitting_shots(train.labels, learn, shots, held_out=test_sets[0].rows is not None)
    draws = draw_shots(train, validation, sorted(fitting), seeds, learn)
    unreadable = (f"{name!r} cannot be read and was not drawn: {why}" for name, why in draws.skipped)
    return Division(fitting, test_sets, draws, (*cut, *draws.remarks, *unreadable))


def reload_test_set(results: Mapping[str, Any], name: str, run_folder: str | Path) -> ImageSet:
    """The images of a test set of a run, in the order of its predictions. Raises what `load_images` raises."""
    about, reading = results["data"]["test_sets"][name], results["settings"].get("reading")
    source = about.get("source") or results["settings"]["test_data"][name]
    class_names = results["data"]["class_names"]
    if not about.get("rows_are_saved"):
        return load_labelled(source, class_names, about.get("split"), reading)
    from safetensors.numpy import load_file

    rows = load_file(Path(run_folder) / "predictions" / "zero_shot.safetensors")[f"{name}.rows"]
    train = load_images(source, about.get("split"), verify=False, progress=False, **WITH_VIDEOS | dict(reading or {}))
    return align_classes(train.select(rows.tolist()), class_names, source)


__all__ = [
    "HELD_OUT",
    "Division",
    "Draws",
    "TestSet",
    "divide",
    "draw_shots",
    "fitting_shots",
    "load_test_sets",
    "load_training",
    "parse_test_data",
    "reload_test_set",
]
