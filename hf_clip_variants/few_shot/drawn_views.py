"""Which augmented views of its images a fit draws. It is known before the fit starts, so no other view is encoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from ..data.images.labelled_images import views_of_epoch
from .fitting import MEASURED_FOLDS, fold_rows
from .recipes import Recipe
from .training_loop import batches


# N images, V views


def views_of_fit(
    values: Recipe, labels: torch.Tensor, seed: int, on_split: bool, asked: Collection[str] = ()
) -> np.ndarray:
    """(N, V) bool: the views that a fit to N images by `values` draws, in training and in the trainings of its folds.

    Args:
        values: the recipe, with `views` V.
        labels: (N,) of the images that the fit learns from.
        seed: of the run.
        on_split: whether there is a validation split; otherwise the fit measures itself on folds.
        asked: settings that the user gave. Where they are about a search, every fold may be trained.
    """
    drawn = np.zeros((len(labels), max(values.views, values.first_views)), dtype=bool)
    drawn[:, : values.first_views] = True
    if not values.epochs:
        return drawn
    trainings = [torch.arange(len(labels))]
    if not on_split:
        folds = fold_rows(labels)
        trainings += [kept for kept, _ in (folds if values.search_fields & set(asked) else folds[:MEASURED_FOLDS])]
    for rows in trainings:
        for epoch in range(values.epochs):
            if drawn[:, : values.views].all():
                return drawn
            views = views_of_epoch(len(rows), values.views, seed, epoch)
            if values.drop_last and len(rows) > values.batch_size:
                seen = torch.cat(list(batches(len(rows), values.batch_size, seed, epoch, drop_last=True)))
            else:
                seen = torch.arange(len(rows))
            drawn[rows[seen], views[seen]] = True
    return drawn


class DrawnViews:
    """The views that several fits draw from the images of one set: row of the set and augmentation -> views."""

    def __init__(self) -> None:
        self._views: dict[str, dict[int, set[int]]] = {}

    def add(self, augmentation: str, rows: Sequence[int], drawn: np.ndarray) -> None:
        """`drawn` (N, V) of the images `rows` (N,)."""
        views = self._views.setdefault(augmentation, {})
        for row, of_row in zip(rows, drawn, strict=True):
            views.setdefault(int(row), set()).update(np.flatnonzero(of_row).tolist())

    def lists(self, augmentation: str, rows: Sequence[int]) -> list[list[int]]:
        """The views of each of `rows`, in ascending order."""
        views = self._views.get(augmentation, {})
        return [sorted(views.get(row, ())) for row in rows]

    def __len__(self) -> int:
        """How many views of images there are."""
        return sum(len(views) for of_rows in self._views.values() for views in of_rows.values())


__all__ = ["DrawnViews", "views_of_fit"]
