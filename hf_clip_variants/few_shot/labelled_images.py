"""Labelled pictures as a training sees them: features computed once, or pixels through the image tower at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from ..data.augmentation.views import Augmentation, AugmentedViews
from ..data.images.feature_cache import Features
from ..data.images.image_set import ImageSet


# V views, N pictures, B rows, D joint width


class Pictures(Protocol):
    """N labelled pictures in V views: `CachedPictures` or `LivePictures`."""

    labels: torch.Tensor  # (N,) int64

    def __len__(self) -> int: ...

    def batch(self, rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        """Keyword arguments of the classifier's forward for the pictures `rows` (B,), each in the view of `epoch`."""

    def all_features(self) -> torch.Tensor:
        """(V, N, D) un-normalised features."""

    def select(self, rows: torch.Tensor) -> Pictures:
        """The pictures `rows`, in that order."""


def views_of_epoch(count: int, num_views: int, seed: int, epoch: int) -> torch.Tensor:
    """(count,) int64: the view of each picture, as `FeatureDataset(views="cycle")` has it: V epochs show each view once."""
    return torch.from_numpy((np.random.default_rng(seed).integers(0, num_views, count) + epoch) % num_views)


class CachedPictures:
    """Features that were computed once; the image tower is not run any more.

    Args:
        features ([`Features`]): (V, N, D), from `compute_features`.
        num_views (`int`, *optional*): batches show the first so many views only. Default: all.
        seed (`int`): of which view comes when.
        device: where batches are made.
    """

    def __init__(self, features: Features, num_views: int | None = None, seed: int = 0, device: Any = None):
        self._source = replace(
            features, features=features.features.to(device, torch.float32), labels=features.labels.to(device)
        )
        self.num_views = min(num_views or features.num_views, features.num_views)
        self.seed = seed
        self.labels = self._source.labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        views = views_of_epoch(len(self), self.num_views, self.seed, epoch)
        rows = rows.cpu()
        return {"image_features": self._source.features[views[rows], rows]}

    def all_features(self) -> torch.Tensor:
        return self._source.features

    def select(self, rows: torch.Tensor) -> CachedPictures:
        features = Features(self._source.features[:, rows], self.labels[rows])
        return CachedPictures(features, self.num_views, self.seed, features.features.device)


class LivePictures:
    """Pictures that go through the image tower whenever they are asked for: what the official trainings do.

    View v of a picture is the same as in the features that `compute_features` makes with the same seed, so training on these equals
    training on cached features. Needed by methods that change the image tower; for the others it only costs time.

    Args:
        classifier (`CLIPClassifier`): its tower is run.
        image_set ([`ImageSet`]), processor, augmentation, view_seed: see `AugmentedViews`.
        total_views (`int`): V; `num_views` of them are shown in batches (default: all).
        seed (`int`): of which view comes when.
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

    def select(self, rows: torch.Tensor) -> LivePictures:
        source = self._views
        return LivePictures(
            self.classifier, source.image_set.select(rows.tolist()), source.processor, source.augmentation, source.num_views,
            self.num_views, source.seed, self.seed,
        )  # fmt: skip


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    pictures: Pictures,
    batch_size: int = 1024,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) int64 predicted classes and (N,) float32 probabilities of them. `on_batch` is called with the number of pictures done."""
    model.eval()
    predicted, confidence = [], []
    for rows in torch.arange(len(pictures)).split(batch_size):
        best = model(**pictures.batch(rows, 0)).logits.float().softmax(dim=1).max(dim=1)
        predicted.append(best.indices.cpu())
        confidence.append(best.values.cpu())
        if on_batch is not None:
            on_batch(int(rows[-1]) + 1)
    return torch.cat(predicted), torch.cat(confidence)


__all__ = ["CachedPictures", "LivePictures", "Pictures", "predict", "views_of_epoch"]
