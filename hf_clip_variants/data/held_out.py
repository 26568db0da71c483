"""Divides labelled images into a part to learn from and a test set that stays the same from run to run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


TEST_SHARE = 0.2  # of each class: 20 images leave 16 to learn from
HELD_OUT = "held-out"  # name of a split that `hold_out` made


def hold_out(
    labels: Sequence[int] | np.ndarray, ids: Sequence[str], share: float = TEST_SHARE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and rows to test on: of each class a share, chosen by the images' names.

    An image's place depends on its name and the seed alone, not on the order of the rows, so the same images give the
    same test set on every machine. Of a class of n images, `round(share * n)` are held out, but at least one, and a
    class of one image keeps it.

    Args:
        labels: (N,) class of each image.
        ids: N names (`ImageSet.ids`).
        share: part of each class that is held out.
        seed: another seed holds out other images.

    Returns:
        Two int64 arrays of row numbers in increasing order: to learn from, held out.

    Raises:
        ValueError: a share outside 0..1, or another number of names than of labels.

    Example:

    ```python
    >>> learn, test = hold_out([0] * 5 + [1] * 5, [f"{i}.png" for i in range(10)])
    >>> len(learn), len(test)
    (8, 2)

    ```
    """
    labels = np.asarray(labels, dtype=np.int64)
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}; want a number between 0 and 1")
    if len(labels) != len(ids):
        raise ValueError(f"ids: got {len(ids)} for {len(labels)} labels; want one each")
    keys = [hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest() for name in ids]
    held_out = []
    for label in np.unique(labels):
        # Names may repeat in some sources; equal ones go by row, as nothing else tells them apart.
        rows = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: (keys[row], row))
        held_out += rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]
    test = np.zeros(len(labels), dtype=bool)
    test[held_out] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


__all__ = ["HELD_OUT", "TEST_SHARE", "hold_out"]
