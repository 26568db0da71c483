"""Labelled clouds of points for training: batches with PointCLIP's augmentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..modeling.points.point_sampling import augment_points


class PointCloudCollator:
    """Rows with `points` (N, 3) and `label` -> a batch of `points` (B, N, 3), `points_mask` (B, N) and `labels`.

    Args:
        processor: a `PointCloudProcessor` or `PointTextProcessor`.
        augment: scale, move and shuffle each cloud as PointCLIP does (`augment_points`); for training only.
        seed: of the augmentation. Processes of one training need different ones: add the rank.

    Example:

    ```python
    >>> from hf_clip_variants import PointCloudProcessor

    >>> collate = PointCloudCollator(PointCloudProcessor(num_points=64), augment=True)
    >>> batch = collate([{"points": np.random.rand(100, 3), "label": label} for label in (1, 0)])
    >>> batch["points"].shape, batch["labels"].tolist()
    (torch.Size([2, 64, 3]), [1, 0])
    ```
    """

    def __init__(self, processor: Any, augment: bool = False, seed: int = 0):
        self.points = getattr(processor, "feature_extractor", processor)
        self.augment = augment
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.points([np.asarray(row["points"], dtype=np.float32) for row in rows], return_tensors="pt")
        found = {"points": batch["points"], "points_mask": batch["points_mask"]}
        if self.augment:
            # Each cloud by itself: points that are not there stay at its end, where the mask says so.
            counts = found["points_mask"].sum(1).tolist()
            for cloud, count in zip(found["points"], counts, strict=True):
                cloud[:count] = augment_points(cloud[None, :count], self.generator)[0]
        if "label" in rows[0]:
            found["labels"] = torch.tensor([int(row["label"]) for row in rows])
        return found


__all__ = ["PointCloudCollator"]
