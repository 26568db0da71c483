"""Batch normalisation over the rows of all ranks.

Heads and projections use it where official code converts them to `nn.SyncBatchNorm`.
"""

import torch
from torch import distributed as dist
from torch import nn

from .rank_exchange import world_size


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over the ranks of the default group. Every rank's output depends on every rank's input, so the
    gradient of the input is the sum of all ranks' output gradients.
    """

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
    r"""`nn.BatchNorm1d` on (R, C) that, in training, takes its statistics over the rows of all ranks of the default
    process group. Output: (R, C), in the dtype of the input.

    Computes what `nn.SyncBatchNorm` computes, and also works on the CPU, without converting a model, and with
    different numbers of rows on the ranks. Statistics are computed in float32 under autocast as well. In training it
    is a collective operation: every rank must call it.

    Raises:
        ValueError: in training, fewer than two rows on all ranks together; their variance is not defined.

    Example:

        >>> import torch
        >>> norm = RankBatchNorm1d(3).train()  # on one process: `nn.BatchNorm1d`
        >>> norm(torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.0, 6.0]])).round()
        tensor([[-1., -1., -1.],
                [ 1.,  1.,  1.]], grad_fn=<RoundBackward0>)
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            # One exchange for the sums of all channels and the number of rows, which may differ over the ranks.
            sums = _SumOverRanks.apply(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
            total = round(sums[-1].item())
            if total < 2:
                raise ValueError(f"batch normalisation needs at least 2 rows on all ranks together, got {total}")
            mean = sums[:-1] / total
            # A second exchange for the squared differences from the mean: E[x^2] - E[x]^2 would save it, but is a
            # difference of large numbers and loses digits.
            variance = _SumOverRanks.apply((rows - mean).square().sum(0)) / total
            # As in PyTorch: rows are normalised by the biased variance, running statistics keep the unbiased one.
            self._update_running_statistics(mean.detach(), variance.detach() * (total / (total - 1)))
            rows = (rows - mean) * (variance + self.eps).rsqrt()
            if self.affine:
                rows = rows * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)
        return rows.to(x.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor):
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


__all__ = ["RankBatchNorm1d"]
