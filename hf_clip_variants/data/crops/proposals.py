"""Class-agnostic boxes of each image of a data set, from a region proposal network or from anywhere else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...files.atomic_writes import replacing


_FORMAT = "proposals-1"


@dataclass(frozen=True, eq=False)
class Proposals:
    """
    Boxes of N images, best first, in pixels of the ORIGINAL images.

    Attributes:
        boxes (`torch.Tensor`): (P, 4) float32, x1, y1, x2, y2, image after image.
        scores (`torch.Tensor`): (P,) float32, the objectness.
        counts (`torch.Tensor`): (N,) int64, how many each image has.

    Raises:
        ValueError: shapes that do not fit; a box that is not finite or is inverted.

    Example:

    ```python
    >>> proposals = Proposals.from_lists([[[0, 0, 8, 8]], [], [[1, 2, 3, 4], [0, 0, 2, 2]]])
    >>> len(proposals), proposals[2][0].tolist()
    (3, [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 2.0, 2.0]])
    ```
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    counts: torch.Tensor

    def __post_init__(self):
        total = int(self.counts.sum())
        if tuple(self.boxes.shape) != (total, 4) or tuple(self.scores.shape) != (total,) or (self.counts < 0).any():
            raise ValueError(
                f"proposals: boxes {list(self.boxes.shape)} and scores {list(self.scores.shape)} for counts that add "
                f"up to {total}"
            )
        bad = ~self.boxes.isfinite().all(dim=1) | (self.boxes[:, 2:] < self.boxes[:, :2]).any(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"boxes[{row}]: {self.boxes[row].tolist()}, expected finite x1 <= x2 and y1 <= y2")
        object.__setattr__(self, "_ends", self.counts.cumsum(0).tolist())

    @classmethod
    def from_lists(cls, boxes: Sequence[Any], scores: Sequence[Any] | None = None) -> Proposals:
        """From boxes (R, 4) of each image: of any detector, a segmenter, or a file. Without scores they are 1."""
        rows = [torch.as_tensor(np.asarray(one, dtype=np.float32)).reshape(-1, 4) for one in boxes]
        counts = torch.tensor([len(one) for one in rows], dtype=torch.int64)
        joined = torch.cat(rows) if rows else torch.zeros(0, 4)
        if scores is None:
            return cls(joined, torch.ones(len(joined)), counts)
        given = [torch.as_tensor(np.asarray(one, dtype=np.float32)).reshape(-1) for one in scores]
        return cls(joined, torch.cat(given) if given else torch.zeros(0), counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (R, 4) and scores (R,) of image `index`."""
        rows = self.rows(index)
        return self.boxes[rows], self.scores[rows]

    def rows(self, index: int) -> slice:
        """Where the boxes of image `index` are."""
        index = range(len(self))[index]
        return slice(self._ends[index] - int(self.counts[index]), self._ends[index])

    def best(self, count: int) -> Proposals:
        """At most `count` of each image."""
        kept = [self[i] for i in range(len(self))]
        return Proposals.from_lists([b[:count] for b, _ in kept], [s[:count] for _, s in kept])

    @property
    def digest(self) -> str:
        """SHA-256 of boxes and counts."""
        digest = hashlib.sha256(self.counts.numpy().tobytes())
        digest.update(self.boxes.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> Path:
        """Writes one safetensors file, in one step."""
        tensors = {name: getattr(self, name).contiguous() for name in ("boxes", "scores", "counts")}
        with replacing(path, self.boxes.nbytes) as aside:
            save_file(tensors, aside, {"format": _FORMAT})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Proposals:
        """Reads a file of `save`, memory-mapped. OSError for another or a damaged file."""
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("format") != _FORMAT:
                    raise ValueError(f"no file of proposals ({_FORMAT})")
                return cls(*(file.get_tensor(name) for name in ("boxes", "scores", "counts")))
        except (SafetensorError, ValueError) as error:
            raise OSError(f"{path}: {error}") from error


def compute_proposals(
    model: Any,
    image_processor: Any,
    images: Sequence[Any],
    *,
    count: int = 300,
    batch_size: int = 8,
    progress: bool | Callable[[int, int], None] = True,
) -> Proposals:
    """The `count` best proposals of each image from a model's region proposal network (`model.propose`).

    Args:
        model: a ViLD detector; only its backbone and its proposals are used, so it needs no labels.
        image_processor: its own.
        images: whatever the processor reads, by number.
        batch_size: images at once. They are padded to one size; a proposal may differ by rounding for that.
        progress: `True` shows a bar, a function is called with (images done, N).
    """
    from ..images.feature_cache import _Progress

    boxes, scores = [], []
    training, total = model.training, len(images)
    model.eval()
    try:
        with _Progress(progress, total) as report:
            for start in range(0, total, batch_size):
                batch = [images[i] for i in range(start, min(start + batch_size, total))]
                inputs = image_processor(batch, return_tensors="pt").to(model.device)
                found = model.propose(inputs["pixel_values"], inputs["pixel_mask"])
                for image, mask, box, score in zip(batch, inputs["pixel_mask"], *found, strict=True):
                    width, height = image.size
                    inner = box.new_tensor([mask.any(dim=0).sum(), mask.any(dim=1).sum()])
                    scale = (box.new_tensor([width, height]) / inner).repeat(2)
                    boxes.append((box[:count] * scale).float().cpu().numpy())
                    scores.append(score[:count].float().cpu().numpy())
                report(len(batch))
    finally:
        model.train(training)
    return Proposals.from_lists(boxes, scores)


__all__ = ["Proposals", "compute_proposals"]
