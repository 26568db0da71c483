"""Retrieval metrics: recall at K, and the median rank (from 1) of the right answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def retrieval(
    similarity: torch.Tensor, ks: Sequence[int] = (1, 5, 10), correct: torch.Tensor | None = None
) -> dict[str, float]:
    """Recall and median rank over the rows of a similarity matrix.

    A row's rank is that of its best correct column, 1 + the number of wrong columns that are at least as similar: a
    tie with a wrong answer counts as a miss, so that constant similarities score nothing.

    Args:
        similarity: (Q, G) of Q queries to G gallery entries.
        ks: K of "recall_at_K".
        correct: (Q, G) bool, the right answers; default: entry i for query i.

    Returns:
        "recall_at_K" in [0, 1] for each K, and "median_rank", the mean of the two middle ranks where Q is even.

    Raises:
        ValueError: not a matrix, NaN, a query without a right answer, or not square where that is needed.

    Example:
        >>> retrieval(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), ks=(1,))
        {'recall_at_1': 0.5, 'median_rank': 1.5}
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
    ranks = 1 + ((similarity >= best) & ~correct).sum(dim=1)
    found = {f"recall_at_{k}": (ranks <= k).float().mean().item() for k in ks}
    return {**found, "median_rank": ranks.double().quantile(0.5).item()}
