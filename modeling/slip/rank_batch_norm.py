"""Batch normalisation over the rows of all ranks."""

import torch
from torch import distributed as dist
from torch import nn

from ..losses.rank_exchange import world_size


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over the ranks of the default group; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class RankBatchNorm1d(nn.BatchNorm1d):
    r"""`nn.BatchNorm1d` on (R, C) whose batch, in training, is the rows of all ranks of the default process group.

    What `nn.SyncBatchNorm` computes, but also on the CPU, with nothing to convert, and with any number of rows on each rank.
    Statistics are taken in float32 under autocast too. A collective operation in training: every rank calls it.

    Raises:
        ValueError: in training, fewer than two rows on all ranks together, of which there is no variance.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            sums = _SumOverRanks.apply(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
            total = round(sums[-1].item())
            if total < 2:
                raise ValueError(f"batch normalisation needs at least 2 rows on all ranks together, got {total}")
            mean = sums[:-1] / total
            # About the mean, in a second exchange: a difference of large numbers would lose digits.
            variance = _SumOverRanks.apply((rows - mean).square().sum(0)) / total
            self._count(mean.detach(), variance.detach() * (total / (total - 1)))
            rows = (rows - mean) * (variance + self.eps).rsqrt()
            if self.affine:
                rows = rows * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)
        return rows.to(x.dtype)

    @torch.no_grad()
    def _count(self, mean: torch.Tensor, variance: torch.Tensor):
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


__all__ = ["RankBatchNorm1d"]
