"""Draws K images per class as the published few-shot protocols do, and divides classes into base and new ones."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .images.image_set import name_some


MAX_VALIDATION_SHOTS = 4  # CoOp: min(K, 4) validation images per class


@dataclass(frozen=True)
class FewShotSplit:
    """Row numbers of a few-shot draw.

    Attributes:
        train (`tuple[int, ...]`): rows of the training images, class by class.
        validation (`tuple[int, ...]`): rows of the validation images; of which set, `validation_from` says.
        validation_from (`str`, *optional*): "validation" (rows of the separate validation split), "train" (rows of the
            training images that were not drawn), or `None` (there are none).
        shots (`int`), seed (`int`), protocol (`str`): what was asked for.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    validation_from: Literal["validation", "train"] | None
    shots: int
    seed: int
    protocol: str

    @property
    def val(self) -> tuple[int, ...]:
        """The same as `validation`."""
        return self.validation


def sample_few_shot(
    labels: Sequence[int] | np.ndarray,
    shots: int,
    seed: int,
    *,
    protocol: Literal["coop", "tip"] = "coop",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    validation_labels: Sequence[int] | np.ndarray | None = None,
    val: bool = True,
) -> FewShotSplit:
    """Draw `shots` training rows per class, and validation rows.

    "coop" (CoOp, Zhou et al. 2022, and later papers; published seeds 1, 2, 3): `random.sample` of K rows per class; a
    smaller class gives all its rows, with a warning; then, with the same generator, min(K, 4) validation rows per
    class. "tip" (Tip-Adapter, Zhang et al. 2022; published seed 1): as above, but a smaller class is filled up by
    repetition (`random.choices`), and the whole validation split is used.

    Both come from one `random.Random(seed)`, class after class in the order in which classes first appear in `labels`,
    as the official code does: the same list of images and the same seed give the official draw. Nothing depends on
    Python's hash seed or on the global generators.

    Where there is no validation split (`validation_labels=None`), validation rows come from the training images that
    were not drawn, min(K, 4) per class under either protocol. A class with no images left gets none; a warning names
    it.

    Args:
        labels: (N,) integers, the class of each training image.
        shots: K >= 1.
        seed: any integer.
        num_classes: C. Default: the highest label + 1.
        class_names: C names for messages; also sets `num_classes`.
        validation_labels: (M,) classes of a separate validation split.
        val: `False`: no validation rows.

    Raises:
        ValueError: no labels, a label outside 0..C-1, a class without images (named), one class only, shots < 1.

    Example:

    ```python
    >>> draw = sample_few_shot([0, 0, 0, 1, 1, 1], shots=2, seed=1)
    >>> len(draw.train), len(draw.validation), draw.validation_from
    (4, 2, 'train')
    ```
    """
    if protocol not in ("coop", "tip"):
        raise ValueError(f"protocol: got {protocol!r}; want 'coop' or 'tip'")
    if isinstance(shots, bool) or not isinstance(shots, int | np.integer) or shots < 1:
        raise ValueError(f"shots: got {shots!r}; want a whole number of at least 1")
    shots, seed = int(shots), int(seed)
    if class_names is not None:
        if num_classes not in (None, len(class_names)):
            raise ValueError(f"num_classes: got {num_classes}, but there are {len(class_names)} class names")
        num_classes = len(class_names)
    rows_of = _rows_by_class(labels, num_classes, "labels")
    count = num_classes if num_classes is not None else max(rows_of, default=-1) + 1

    def named(classes) -> str:
        return name_some(class_names[c] if class_names is not None else f"class {c}" for c in classes)

    if not rows_of:
        raise ValueError("labels: got none; want one for each image")
    empty = [c for c in range(count) if c not in rows_of]
    if empty:
        raise ValueError(f"labels: no images for {len(empty)} of {count} classes: {named(empty)}")
    if count < 2:
        raise ValueError(f"labels: one class only ({named([0])}); want at least two")
    short = sorted(c for c, rows in rows_of.items() if len(rows) < shots)
    if short:
        how = "they give all they have" if protocol == "coop" else "images are repeated"
        warnings.warn(f"fewer than {shots} images in {len(short)} classes: {named(short)}; {how}", stacklevel=2)

    # One generator for both draws, training first: that is what makes the draw equal to the official one.
    generator = random.Random(seed)
    train = _draw(rows_of, shots, generator, repeat=protocol == "tip")
    validation: list[int] = []
    if val and validation_labels is not None:
        validation_rows = _rows_by_class(validation_labels, count, "validation_labels")
        if protocol == "tip":
            validation = list(range(len(validation_labels)))
        else:
            validation = _draw(validation_rows, min(shots, MAX_VALIDATION_SHOTS), generator)
    elif val:
        drawn = set(train)
        rest = {c: [row for row in rows if row not in drawn] for c, rows in rows_of.items()}
        validation = _draw(rest, min(shots, MAX_VALIDATION_SHOTS), generator)
        without = sorted(c for c, rows in rest.items() if not rows)
        if without:
            what = "no image is left for validation" if len(without) == count else "no validation image is left"
            warnings.warn(f"{what} in {len(without)} of {count} classes: {named(without)}", stacklevel=2)
    origin = None if not validation else "train" if validation_labels is None else "validation"
    return FewShotSplit(tuple(train), tuple(validation), origin, shots, seed, protocol)


def _rows_by_class(labels, num_classes: int | None, argument: str) -> dict[int, list[int]]:
    """class -> rows; classes in order of first appearance, as the official code groups them."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(f"{argument}: got {labels.dtype} of shape {labels.shape}; want integers of shape (N,)")
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        if label < 0 or (num_classes is not None and label >= num_classes):
            high = "" if num_classes is None else f"..{num_classes - 1}"
            raise ValueError(f"{argument}[{row}]: got {label}, which is out of range; want 0{high or ' or more'}")
        rows.setdefault(label, []).append(row)
    return rows


def _draw(rows_of: dict[int, list[int]], shots: int, generator: random.Random, repeat: bool = False) -> list[int]:
    """`shots` rows of each class. The generator's state goes from class to class, so their order counts."""
    drawn: list[int] = []
    for rows in rows_of.values():
        if len(rows) >= shots:
            drawn += generator.sample(rows, shots)
        else:
            drawn += generator.choices(rows, k=shots) if repeat else rows
    return drawn


def split_base_new(num_classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Base classes (the first ceil(C / 2)) and new classes (the rest), as CoCoOp's base-to-new protocol divides them.

    >>> split_base_new(5)
    ((0, 1, 2), (3, 4))
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: got {num_classes}; want at least 2, one base and one new class")
    middle = math.ceil(num_classes / 2)
    return tuple(range(middle)), tuple(range(middle, num_classes))
