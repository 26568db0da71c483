"""Batches whose rows are of one group, such as images of one orientation, which are padded to one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class GroupedBatches(Sampler[list[int]]):
    """A batch sampler for `DataLoader`: each row once an epoch, and in a batch only rows of one group.

    The official sampler of CLIP's vision-and-language models repeats rows to fill up batches and drops others; here
    each row comes once, and a group's last batch may be smaller.

    Args:
        groups: of each row a number, such as `image_processor.orientation(height, width)`.
        batch_size: rows of a batch.
        shuffle: the order of rows, and of batches, is drawn anew for each epoch.
        seed: of the draws.
        drop_last: batches that are not full are left out: in training with several processes or batch statistics.

    Example:

    ```python
    >>> from hf_clip_variants.data.grouped_batches import GroupedBatches

    >>> list(GroupedBatches([0, 1, 0, 0, 1], batch_size=2))
    [[0, 2], [1, 4], [3]]
    ```
    """

    def __init__(
        self, groups: Sequence[int], batch_size: int, shuffle: bool = False, seed: int = 0, drop_last: bool = False
    ):
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: {batch_size!r}, expected a whole number of at least 1")
        if not len(groups):
            raise ValueError("groups: none, expected a number for each row")
        self.groups, self.batch_size = list(groups), batch_size
        self.shuffle, self.seed, self.drop_last, self.epoch = shuffle, seed, drop_last, 0

    def set_epoch(self, epoch: int) -> None:
        """For another order; `Trainer` and accelerate call it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        count = len(self.groups)
        order = torch.randperm(count, generator=generator).tolist() if self.shuffle else range(count)
        waiting: dict[int, list[int]] = {}
        batches = []
        for row in order:
            batch = waiting.setdefault(self.groups[row], [])
            batch.append(row)
            if len(batch) == self.batch_size:
                batches.append(waiting.pop(self.groups[row]))
        if not self.drop_last:
            batches += waiting.values()
        yield from batches

    def __len__(self) -> int:
        counts: dict[int, int] = {}
        for group in self.groups:
            counts[group] = counts.get(group, 0) + 1
        size = self.batch_size
        return sum(count // size if self.drop_last else -(-count // size) for count in counts.values())


__all__ = ["GroupedBatches"]
