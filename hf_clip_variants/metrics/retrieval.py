"""Retrieval metrics: recall at K, and the median and mean rank (from 1) of the right answer; exact, also in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import distributed as dist


def retrieval(
    similarity: torch.Tensor, ks: Sequence[int] = (1, 5, 10), correct: torch.Tensor | None = None
) -> dict[str, float]:
    """Recall, median and mean rank over the rows of a similarity matrix.

    A row's rank is that of its best correct column, 1 + the number of wrong columns that are at least as similar: a
    tie with a wrong answer counts as a miss, so that constant similarities score nothing.

    Args:
        similarity: (Q, G) of Q queries to G gallery entries.
        ks: K of "recall_at_K".
        correct: (Q, G) bool, the right answers; default: entry i for query i.

    Returns:
        of `rank_summary`.

    Raises:
        ValueError: not a matrix, NaN, a query without a right answer, or not square where that is needed.

    Example:
        >>> retrieval(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), ks=(1,))
        {'recall_at_1': 0.5, 'median_rank': 1.5, 'mean_rank': 1.5}
    """
    if similarity.dim() != 2 or not similarity.numel():
        raise ValueError(f"similarity: got shape {tuple(similarity.shape)}; want (queries, gallery), neither empty")
    if torch.isnan(similarity).any():
        raise ValueError("similarity: got NaN; want numbers")
    if correct is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise ValueError(
                f"correct: got none for similarities of shape {tuple(similarity.shape)}; want it where queries and "
                "gallery are not pairs"
            )
        correct = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if correct.shape != similarity.shape or not correct.any(dim=1).all():
        raise ValueError(
            f"correct: got shape {tuple(correct.shape)}; want {tuple(similarity.shape)} with a right answer in each "
            "row"
        )
    # The rank of a query's best right answer: the wrong entries that are at least as similar come before it.
    best = similarity.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    return rank_summary(1 + ((similarity >= best) & ~correct).sum(dim=1), ks)


def rank_summary(ranks: torch.Tensor, ks: Sequence[int] = (1, 5, 10), lower_median: bool = False) -> dict[str, float]:
    """Ranks (Q,), from 1 -> "recall_at_K" in [0, 1] for each K, "median_rank" and "mean_rank".

    Args:
        lower_median: of an even number of ranks, the lower one of the two in the middle, not their mean.

    >>> rank_summary(torch.tensor([1, 2, 4, 9]), ks=(1, 5))
    {'recall_at_1': 0.25, 'recall_at_5': 0.75, 'median_rank': 3.0, 'mean_rank': 4.0}
    """
    if ranks.dim() != 1 or not len(ranks) or int(ranks.min()) < 1:
        raise ValueError(f"ranks: got shape {tuple(ranks.shape)}; want whole numbers (Q,) from 1, at least one")
    ranks = ranks.double()
    found = {f"recall_at_{k}": (ranks <= k).double().mean().item() for k in ks}
    median = ranks.median() if lower_median else ranks.quantile(0.5)
    return {**found, "median_rank": median.item(), "mean_rank": ranks.mean().item()}


@torch.no_grad()
def ranks_in_tiles(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    entries: torch.Tensor,
    num_entries: int | None = None,
    rows: int = 256,
    columns: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of the right answers in both directions, without the whole matrix of scores; for instance of captions
    and videos, where a video has one caption or several.

    Each query's right answer is one entry. An entry's right answer is the group of its queries: candidates are all
    groups, each by the best of its queries, as in CLIP's successors for video retrieval. As in `retrieval`, a tie with
    a wrong answer counts as a miss. Tiles with right answers are scored twice, as their scores are needed first.

    With torch.distributed running, each rank scores a share of the tiles and all return the same; every rank must be
    able to score all of them.

    Args:
        score: numbers of queries (R,) and of entries (C,) -> their similarities (R, C).
        entries: (Q,), the number of each query's entry.
        num_entries: how many entries there are; None: up to the largest in `entries`.
        rows, columns: size of a tile. A group of queries is never split, so that a tile may have more rows.

    Returns:
        ranks of the queries (Q,), and of the entries that have queries, in the order of their numbers.

    Raises:
        ValueError: no queries, an entry out of range, or NaN scores.

    Example:
        >>> texts, videos = torch.eye(3), torch.eye(3)[[0, 2, 1]]
        >>> ranks_in_tiles(lambda t, v: texts[t] @ videos[v].T, torch.arange(3))
        (tensor([1, 3, 3]), tensor([1, 3, 3]))
    """
    if entries.dim() != 1 or not len(entries) or entries.is_floating_point():
        raise ValueError(f"entries: got shape {tuple(entries.shape)}, {entries.dtype}; want whole numbers (Q,)")
    device, entries = entries.device, entries.long()
    num_entries = int(entries.max()) + 1 if num_entries is None else num_entries
    if int(entries.min()) < 0 or int(entries.max()) >= num_entries:
        raise ValueError(f"entries: numbers {int(entries.min())}..{int(entries.max())}; want 0..{num_entries - 1}")
    size, rank = (dist.get_world_size(), dist.get_rank()) if _distributed() else (1, 0)
    blocks = list(_whole_groups(entries, rows))[rank::size]
    parts = torch.arange(num_entries, device=device).split(columns)

    def tile(block: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        scores = score(block, part).to(device)
        if scores.shape != (len(block), len(part)):
            raise ValueError(f"score: got shape {tuple(scores.shape)}; want {(len(block), len(part))}")
        if scores.isnan().any():
            raise ValueError("score: got NaN; want numbers")
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    # 1. What the right answers score.
    best_of_query = torch.full((len(entries),), -torch.inf, dtype=torch.float64, device=device)
    best_of_entry = torch.full((num_entries,), -torch.inf, dtype=torch.float64, device=device)
    for block in blocks:
        own = entries[block]
        for part in parts:
            inside = (own >= part[0]) & (own <= part[-1])
            if inside.any():
                found = tile(block, part)[inside, own[inside] - part[0]].double()
                best_of_query[block[inside]] = found
                best_of_entry.scatter_reduce_(0, own[inside], found, "amax")
    _all_reduce(dist.ReduceOp.MAX if _distributed() else None, best_of_query, best_of_entry)
    # 2. How many wrong answers score as much or more.
    before_query = torch.zeros_like(best_of_query, dtype=torch.long)
    before_entry = torch.zeros_like(best_of_entry, dtype=torch.long)
    for block in blocks:
        own = entries[block]
        groups, group_of_row = own.unique(return_inverse=True)
        for part in parts:
            scores = tile(block, part).double()
            wrong = own[:, None] != part
            before_query[block] += ((scores >= best_of_query[block, None]) & wrong).sum(1)
            best = scores.new_full((len(groups), len(part)), -torch.inf)
            best.scatter_reduce_(0, group_of_row[:, None].expand_as(scores), scores, "amax")
            before_entry[part] += ((best >= best_of_entry[part]) & (groups[:, None] != part)).sum(0)
    _all_reduce(dist.ReduceOp.SUM if _distributed() else None, before_query, before_entry)
    return 1 + before_query, 1 + before_entry[entries.unique()]


def _whole_groups(entries: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
    """Numbers of about `rows` queries at a time; those of one entry stay together."""
    order = entries.argsort(stable=True)
    counts = torch.unique_consecutive(entries[order], return_counts=True)[1].tolist()
    start = end = 0
    for count in counts:
        if end > start and end + count - start > rows:
            yield order[start:end]
            start = end
        end += count
    yield order[start:end]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_reduce(operation, *tensors: torch.Tensor) -> None:
    for tensor in tensors if operation is not None else ():
        dist.all_reduce(tensor, op=operation)


__all__ = ["rank_summary", "ranks_in_tiles", "retrieval"]
