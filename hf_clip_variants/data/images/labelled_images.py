"""Labelled images as a model's input: cached features, or pixels that go through the image encoder each time."""

from __future__ import annotations

from dataclasses import replace
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

    def all_features(self) -> torch.Tensor:
        """(V, N, D) un-normalised features."""

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
        self._source = replace(
            features, features=features.features.to(device, torch.float32), labels=features.labels.to(device)
        )
        self.num_views = min(num_views or features.num_views, features.num_views)
        self.seed = seed
        self.labels = self._source.labels
        self._views: tuple[int, torch.Tensor | None] = (-1, None)  # epoch -> the view of each image

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        features = self._source.features
        rows = rows.to(features.device)
        if len(features) == 1 or self.num_views == 1:
            return {"image_features": features[0][rows]}
        known, views = self._views
        if known != epoch:  # once an epoch: it draws a number for each image
            views = views_of_epoch(len(self), self.num_views, self.seed, epoch).to(features.device)
            self._views = epoch, views
        return {"image_features": features[views[rows], rows]}

    def all_features(self) -> torch.Tensor:
        return self._source.features

    def select(self, rows: torch.Tensor) -> CachedImages:
        features = Features(self._source.features[:, rows], self.labels[rows])
        return CachedImages(features, self.num_views, self.seed, features.features.device)


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
    def all_features(self) -> torch.Tensor:
        rows = []
        for row in range(len(self)):
            pixels = self._views.views(row, range(self._views.num_views)).to(self.classifier.device)
            rows.append(self.classifier.get_image_features(pixels).pooler_output.float())
        return torch.stack(rows, dim=1)

    def select(self, rows: torch.Tensor) -> LiveImages:
        source = self._views
        images = source.image_set.select(rows.tolist())
        about = source.processor, source.augmentation, source.num_views, self.num_views, source.seed, self.seed
        return LiveImages(self.classifier, images, *about)


__all__ = ["CachedImages", "LabelledImages", "LiveImages", "views_of_epoch"]
