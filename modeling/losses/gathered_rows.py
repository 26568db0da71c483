"""Rows of all ranks, with gradient, for losses that autograd differentiates."""

import torch
from torch.autograd.function import once_differentiable

from .rank_exchange import Ranks


class GatheredRows(torch.autograd.Function):
    """This rank's rows (R, D) -> the rows of all ranks (B, D), with gradient: a row is used on every rank, so its
    gradient is the sum over ranks of their gradients for it.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return ranks.gather(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return ctx.ranks.reduce_scatter(grad.contiguous()), None


__all__ = ["GatheredRows"]
