"""Labelled images as a model's input: cached features, or pixels that go through the image encoder each time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from ..augmentation.views import Augmentation, AugmentedViews
from .feature_cache import Features
from .image_set import ImageSet


# V views, N images, B rows, D joint width


class LabelledImages(Protocol):
    """N labelled images in V views: `CachedImages` or `LiveImages`."""

    labels: torch.Tensor  # (N,) int64

    def __len__(self) -> int: ...

    def batch(self, rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        """Keyword arguments of the classifier's forward for the images `rows` (B,), each in the view of `epoch`."""

    def all_features(self, views: int | None = None) -> torch.Tensor:
        """(V, N, D) un-normalised features; with `views`, of that many views, the first ones."""

    def select(self, rows: torch.Tensor) -> LabelledImages:
        """The images `rows`, in that order."""


def views_of_epoch(count: int, num_views: int, seed: int, epoch: int) -> torch.Tensor:
    """(count,) int64: the view of each image, as in `FeatureDataset(views="cycle")`: V epochs show each view once."""
    return torch.from_numpy((np.random.default_rng(seed).integers(0, num_views, count) + epoch) % num_views)


class CachedImages:
    """Features that were computed once; the image encoder does not run again.

    Args:
        features ([`Features`]): (V, N, D), from `compute_features`.
        num_views (`int`, *optional*): batches show only this many views, the first ones. Default: all.
        seed (`int`): of the order in which views come.
        device: where batches are made.
    """

    def __init__(self, features: Features, num_views: int | None = None, seed: int = 0, device: Any = None):
        table = features.features.flatten(0, 1)  # (V N, D)
        place = torch.arange(len(table)).view(features.num_views, len(features))
        self._fill(table.to(device, torch.float32), place, features.labels.to(device), num_views, seed)

    @classmethod
    def of_views(
        cls,
        features: Features,
        place: torch.Tensor,
        labels: torch.Tensor,
        num_views: int | None = None,
        seed: int = 0,
        device: Any = None,
    ) -> CachedImages:
        """Images of which only some views were encoded: `features` (1, P, D), from `compute_features(drawn=…)`.

        `place` (V, N) int64: where in them each view of each image is; -1: not encoded. `labels` (N,).
        """
        made = cls.__new__(cls)
        table = features.features[0].to(device, torch.float32)
        made._fill(table, place, labels.to(device), num_views, seed)
        return made

    def _fill(self, table, place, labels, num_views, seed) -> None:
        self._table, self._place, self.labels, self.seed = table, place, labels, seed
        self.num_views = min(num_views or len(place), len(place))
        self._whole = bool((place >= 0).all())
        self._of_epoch: tuple[int, torch.Tensor | None] = (-1, None)  # epoch -> where the view of each image is

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        known, place = self._of_epoch
        if known != epoch:  # once an epoch: it draws a number for each image
            views = views_of_epoch(len(self), self.num_views, self.seed, epoch)
            place = self._place[views, torch.arange(len(self))].to(self._table.device)
            self._of_epoch = epoch, place
        return {"image_features": self._features_at(place[rows.to(place.device)])}

    def all_features(self, views: int | None = None) -> torch.Tensor:
        return self._features_at(self._place[:views])

    def _features_at(self, place: torch.Tensor) -> torch.Tensor:
        place = place.to(self._table.device)
        if not self._whole and place.is_cpu and (place < 0).any():
            raise ValueError(
                f"features: {int((place < 0).sum())} of {place.numel()} views that are asked for were not encoded"
            )
        if not self._whole and not place.is_cpu:  # without waiting for the device
            torch._assert_async((place >= 0).all(), "features: views that are asked for were not encoded")
        return self._table[place]

    def select(self, rows: torch.Tensor) -> CachedImages:
        part = CachedImages.__new__(CachedImages)
        place, labels = self._place[:, rows.cpu()], self.labels[rows.to(self.labels.device)]
        part._fill(self._table, place, labels, self.num_views, self.seed)
        return part


class LiveImages:
    """Images that go through the image encoder at every step, as in the official trainings.

    View v of an image is the same as in the features that `compute_features` makes with the same seed, so training on
    these equals training on cached features. Methods that train the image encoder need it; for the others it is only
    slower.

    Args:
        classifier (`CLIPClassifier`): its image encoder is run.
        image_set ([`ImageSet`]), processor, augmentation, view_seed: see `AugmentedViews`.
        total_views (`int`): V; `num_views` of them are shown in batches (default: all).
        seed (`int`): of the order in which views come.
    """

    def __init__(
        self,
        classifier: torch.nn.Module,
        image_set: ImageSet,
        processor: Any,
        augmentation: str | Augmentation | None = "none",
        total_views: int = 1,
        num_views: int | None = None,
        view_seed: int = 0,
        seed: int = 0,
    ):
        self._views = AugmentedViews(image_set, processor, total_views, augmentation, view_seed)
        self.classifier = classifier
        self.num_views = min(num_views or total_views, total_views)
        self.seed = seed
        self.labels = torch.from_numpy(image_set.labels.copy()).to(classifier.device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        views = views_of_epoch(len(self), self.num_views, self.seed, epoch)
        pixels = [self._views.views(row, [int(views[row])]) for row in rows.tolist()]
        return {"pixel_values": torch.cat(pixels).to(self.classifier.device)}

    @torch.no_grad()
    def all_features(self, views: int | None = None) -> torch.Tensor:
        rows, count = [], min(views or self._views.num_views, self._views.num_views)
        for row in range(len(self)):
            pixels = self._views.views(row, range(count)).to(self.classifier.device)
            rows.append(self.classifier.pooled_image_features(pixels).float())
        return torch.stack(rows, dim=1)

    def select(self, rows: torch.Tensor) -> LiveImages:
        source = self._views
        images = source.image_set.select(rows.tolist())
        about = source.processor, source.augmentation, source.num_views, self.num_views, source.seed, self.seed
        return LiveImages(self.classifier, images, *about)


__all__ = ["CachedImages", "LabelledImages", "LiveImages", "views_of_epoch"]
