"""What ranks of a process group exchange for a loss over the pairs of all ranks.

A batch of B pairs is spread over W ranks: rank r has `counts[r]` consecutive ones. Counts may differ, and be 0. On one
process every exchange is the identity, so that a loss is written once. Nothing here is differentiable: losses call it
inside their own forward and backward passes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed as dist


# torch before 2.14 knows these two only by the names that 2.14 deprecates; code that travelled to the Hub meets older
# ones.
_all_gather = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


@dataclass(frozen=True)
class Ranks:
    """Which rank holds which rows of the whole batch."""

    counts: tuple[int, ...]
    rank: int = 0
    group: "dist.ProcessGroup | None" = None  # None: the default group

    @property
    def world_size(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def first(self) -> int:
        """This rank's first row in the whole batch."""
        return sum(self.counts[: self.rank])

    @property
    def own(self) -> slice:
        """This rank's rows in the whole batch."""
        return slice(self.first, self.first + self.counts[self.rank])

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's rows (counts[rank], D) -> the rows of all ranks (B, D)."""
        if self.world_size == 1:
            return x
        # The collective wants as many rows of every rank: shorter blocks are padded, and cut again afterwards.
        longest = max(self.counts)
        x = x.contiguous() if len(x) == longest else torch.cat([x, x.new_zeros(longest - len(x), x.shape[1])])
        everything = x.new_empty(self.world_size * longest, x.shape[1])
        _all_gather(everything, x, group=self.group)
        if min(self.counts) == longest:
            return everything
        return torch.cat([block[:count] for block, count in zip(everything.split(longest), self.counts, strict=True)])

    def reduce_scatter(self, x: torch.Tensor) -> torch.Tensor:
        """Of the sum over ranks of their (B, D), this rank's rows (counts[rank], D)."""
        if self.world_size == 1:
            return x
        # As in `gather`: each rank's block of (B, D) is padded to the longest, so that all blocks are of one size.
        longest = max(self.counts)
        if min(self.counts) < longest:
            padded = x.new_zeros(self.world_size, longest, x.shape[1])
            for block, rows in zip(padded, x.split(self.counts), strict=True):
                block[: len(rows)] = rows
            x = padded.flatten(0, 1)
        own = x.new_empty(longest, x.shape[1])
        _reduce_scatter(own, x, group=self.group)
        return own[: self.counts[self.rank]]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, element by element; may overwrite `x`."""
        if self.world_size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def logsumexp(self, x: torch.Tensor) -> torch.Tensor:
        """log of the sum over ranks of exp(x), element by element."""
        if self.world_size == 1:
            return x
        # log sum exp(x) = m + log sum exp(x - m), with m the largest of all ranks: no term overflows.
        largest = x.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return largest + self.sum((x - largest).exp_()).log_()


def world_size(group: "dist.ProcessGroup | None" = None) -> int:
    """Ranks in `group` (the default group if None); 1 where torch.distributed is not running."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def sync_batch_sizes(
    rows: torch.Tensor, check: Callable[[], None], what: str, group: "dist.ProcessGroup | None" = None
) -> Ranks:
    """Runs `check` on every rank and tells all how many rows each brings; `rows` (counts[rank], D) if `check` passes.

    Raises on every rank, so that none waits for one that gave up: what `check` raised here; RuntimeError where it
    raised elsewhere or where a rank does not come; ValueError if widths or dtypes differ.
    """
    size = world_size(group)
    if size == 1:
        check()
        return Ranks((len(rows),))
    rank, problem = dist.get_rank(group), None
    try:
        check()
    except (ValueError, FloatingPointError) as error:
        problem = error
    # What each rank tells: whether it refused its input, rows, width, bytes of a number. A rank with a problem still
    # takes part in this one exchange, and raises after it, so that the others learn of it instead of waiting.
    facts = [1, 0, 0, 0] if problem else [0, *rows.shape, rows.element_size()]
    everyone = torch.empty(size * len(facts), dtype=torch.int64, device=rows.device)
    try:
        _all_gather(everyone, torch.tensor(facts, device=rows.device), group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"{what}: rank {rank} of {size} waited for the others in vain. Every rank must take the same number of "
            "steps (drop the last batches or use Accelerate's even_batches); otherwise look for another rank's error"
        ) from error
    if problem:
        raise problem
    refused, counts, widths, sizes = torch.stack(everyone.split(len(facts))).T.tolist()
    if any(refused):
        ranks = [r for r in range(size) if refused[r]]
        raise RuntimeError(
            f"{what}: ranks {ranks} of {size} refused their input, see their error; rank {rank} stops too"
        )
    for name, values in (("width", widths), ("bytes of one number", sizes)):
        if len(set(values)) > 1:
            raise ValueError(f"{what}: {name} differs over the ranks: {values}")
    return Ranks(tuple(counts), rank, group)


__all__ = ["Ranks", "sync_batch_sizes", "world_size"]
