"""Losses between two augmented views of the same pictures: SimCLR, MoCo v3, BYOL and SimSiam, exact over any number of ranks.

Shapes: R rows (pictures of this rank), B pictures on W ranks, D width; row r of both views is the same picture. On one process R = B.

Ranks: as in `contrastive_loss.py`. Each rank returns the loss of the whole batch, and gradients are W times the whole batch's, so
that after DDP's average every parameter has the gradient of one process with all pictures. With `gather="exact"` these are collective
operations, forward and backward; `"none"` takes this process's rows alone. Computed in float32 (float64 for float64 inputs),
whatever the inputs' dtype and autocast.
"""

import math
from typing import Literal

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm
from ..losses.rank_exchange import Ranks, sync_batch_sizes


class _GatheredRows(torch.autograd.Function):
    """This rank's rows (R, D) -> those of all ranks (B, D); each rank's rows get the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, rows, ranks):
        ctx.ranks = ranks
        return ranks.gather(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return ctx.ranks.reduce_scatter(grad), None


class _MeanOfAll(torch.autograd.Function):
    """Values of this rank's rows (R,) -> their mean over the rows of all ranks (); the gradient is W times the mean's."""

    @staticmethod
    def forward(ctx, values, ranks):
        ctx.ranks, ctx.rows = ranks, len(values)
        return ranks.sum(values.sum()) / ranks.total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return (grad * (ctx.ranks.world_size / ctx.ranks.total)).expand(ctx.rows), None


def simclr_loss(
    view1: torch.Tensor,
    view2: torch.Tensor,
    temperature: float = 0.1,
    *,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NT-Xent: every row of both views must find its other view among the 2B - 1 other rows by cosine; the mean of the 2B
    cross-entropies.

    Args:
        view1, view2: (R, D), what the projection head gives for this rank's pictures; any length.
        temperature: the cosines are divided by it.
        gather, group: see the top of this file, and `contrastive_loss`.

    Returns the loss, and the share of this rank's rows of `view1` that find their other view.

    Raises:
        ValueError: shapes or options that do not fit, an empty batch. Like `contrastive_loss`, on all ranks if on one.

    Example:

        >>> import torch
        >>> loss, accuracy = simclr_loss(torch.eye(4), torch.eye(4))
        >>> round(loss.item(), 6), accuracy.item()
        (0.000272, 1.0)

    Paper: "A Simple Framework for Contrastive Learning of Visual Representations", https://arxiv.org/abs/2002.05709, equation 1.
    """
    ranks, (view1, view2) = _meet("simclr_loss", gather, group, temperature, view1=view1, view2=view2)
    with torch.autocast(view1.device.type, enabled=False):
        view1, view2 = unit_norm(view1), unit_norm(view2)
        all1, all2 = _GatheredRows.apply(torch.cat([view1, view2], dim=1), ranks).chunk(2, dim=1)
        own = _own_rows(ranks, view1)
        itself = F.one_hot(own, ranks.total).bool()

        def logits(rows, other_view, same_view):
            # Minus infinity, not a large number: that would overflow in half precision.
            same = (rows @ same_view.T).masked_fill(itself, -math.inf)
            return torch.cat([rows @ other_view.T, same], dim=1) / temperature

        logits1, logits2 = logits(view1, all2, all1), logits(view2, all1, all2)
        losses = [F.cross_entropy(each, own, reduction="none") for each in (logits1, logits2)]
        return _MeanOfAll.apply(sum(losses) / 2, ranks), _accuracy(logits1, own)


def moco_v3_loss(
    prediction1: torch.Tensor,
    prediction2: torch.Tensor,
    target1: torch.Tensor,
    target2: torch.Tensor,
    temperature: float = 0.2,
    *,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """2t (CE(p1 z2^T / t) + CE(p2 z1^T / t)): a prediction of one view must find the momentum encoder's projection of the other
    among those of all B pictures.

    Args:
        prediction1, prediction2: (R, D), the predictor's outputs.
        target1, target2: (R, D), the momentum encoder's outputs; no gradient reaches them.
        temperature: t.
        gather, group: as `simclr_loss`.

    Returns the loss, and the share of this rank's rows of `prediction1` that find their target. Raises as `simclr_loss`.

    Example:

        >>> import torch
        >>> loss, accuracy = moco_v3_loss(*4 * [torch.eye(4)])
        >>> round(loss.item(), 6), accuracy.item()
        (0.01601, 1.0)

    Paper: "An Empirical Study of Training Self-Supervised Vision Transformers", https://arxiv.org/abs/2104.02057, section 3.
    """
    given = {"prediction1": prediction1, "prediction2": prediction2, "target1": target1, "target2": target2}
    ranks, views = _meet("moco_v3_loss", gather, group, temperature, **given)
    with torch.autocast(views[0].device.type, enabled=False):
        p1, p2, z1, z2 = map(unit_norm, views)
        all1, all2 = ranks.gather(torch.cat([z1, z2], dim=1).detach()).chunk(2, dim=1)
        own = _own_rows(ranks, p1)
        logits1, logits2 = p1 @ all2.T / temperature, p2 @ all1.T / temperature
        losses = [F.cross_entropy(each, own, reduction="none") for each in (logits1, logits2)]
        return _MeanOfAll.apply(2 * temperature * sum(losses), ranks), _accuracy(logits1, own)


def byol_loss(
    prediction1: torch.Tensor,
    prediction2: torch.Tensor,
    target1: torch.Tensor,
    target2: torch.Tensor,
    *,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    """Mean of 2 - 2 cos(p1, z2) and 2 - 2 cos(p2, z1), the squared distances of unit vectors. Arguments: as `moco_v3_loss`.

    Example:

        >>> import torch
        >>> byol_loss(*2 * [torch.eye(4)], *2 * [-torch.eye(4)]).item()
        4.0

    Paper: "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", https://arxiv.org/abs/2006.07733, equation 2
    (there the sum of both).
    """
    return 2 - 2 * _mean_cosine("byol_loss", gather, group, prediction1, prediction2, target1, target2)


def simsiam_loss(
    prediction1: torch.Tensor,
    prediction2: torch.Tensor,
    target1: torch.Tensor,
    target2: torch.Tensor,
    *,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    """-(cos(p1, z2) + cos(p2, z1)) / 2. Arguments: as `moco_v3_loss`; the targets are the projector's own outputs, and no
    gradient reaches them here.

    Example:

        >>> import torch
        >>> simsiam_loss(*4 * [torch.eye(4)]).item()
        -1.0

    Paper: "Exploring Simple Siamese Representation Learning", https://arxiv.org/abs/2011.10566, equation 4.
    """
    return -_mean_cosine("simsiam_loss", gather, group, prediction1, prediction2, target1, target2)


def _mean_cosine(what, gather, group, prediction1, prediction2, target1, target2) -> torch.Tensor:
    """(cos(p1, z2) + cos(p2, z1)) / 2, the mean over all ranks' rows."""
    given = {"prediction1": prediction1, "prediction2": prediction2, "target1": target1, "target2": target2}
    ranks, views = _meet(what, gather, group, **given)
    with torch.autocast(views[0].device.type, enabled=False):
        p1, p2, z1, z2 = map(unit_norm, views)
        cosines = (p1 * z2.detach()).sum(1) + (p2 * z1.detach()).sum(1)
        return _MeanOfAll.apply(cosines / 2, ranks)


def _meet(what, gather, group, temperature: float = 1.0, **views) -> tuple[Ranks, list[torch.Tensor]]:
    """Who has which rows, and the views in the precision of the computation; raises on all ranks if on one."""
    if gather not in ("exact", "none"):
        raise ValueError(f"gather: expected 'exact' or 'none', got {gather!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number > 0, got {temperature}")
    shapes = [tuple(view.shape) for view in views.values()]

    def check():
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(
                f"{', '.join(views)}: expected the same shape (pictures, width), got {', '.join(map(str, shapes))}"
            )

    dtype = torch.float32
    for view in views.values():
        dtype = torch.promote_types(dtype, view.dtype)
    cast = [view.to(dtype) for view in views.values()]
    if gather == "none":
        check()
        ranks = Ranks((shapes[0][0],))
    else:
        ranks = sync_batch_sizes(cast[0], check, what, group)
    if ranks.total == 0:
        raise ValueError(f"{', '.join(views)}: the batch is empty")
    return ranks, cast


def _own_rows(ranks: Ranks, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(ranks.own.start, ranks.own.stop, device=like.device)


def _accuracy(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == own).float().mean()


__all__ = ["byol_loss", "moco_v3_loss", "simclr_loss", "simsiam_loss"]
