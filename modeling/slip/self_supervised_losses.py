"""Losses between two augmented views of the same images: SimCLR, MoCo v3, BYOL and SimSiam, exact over any number of
ranks.

Shapes: R rows (images of this rank), B images on W ranks, D width. Row r of both views is the same image. On one
process R = B.

Ranks: as in `contrastive_loss.py`. Each rank returns the loss of the whole batch. Gradients are W times those of the
whole batch, so that after DDP's average every parameter has the gradient of one process with all images. With
`gather="exact"` the losses are collective operations, forward and backward; `"none"` uses the rows of this process
only. They are computed in float32 (float64 for float64 inputs), whatever the inputs' dtype and autocast.

What makes them exact over ranks: `GatheredRows` (SimCLR) sends the gradient of a gathered row back to the rank that
owns it, and `_MeanOverRanks` (all four) averages the losses of all rows and multiplies the gradient by W.
"""

import math
from typing import Literal

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm
from ..losses.gathered_rows import GatheredRows
from ..losses.rank_exchange import Ranks, sync_batch_sizes


class _MeanOverRanks(torch.autograd.Function):
    """Values of this rank's rows (R,) -> their mean over the rows of all ranks (), the same number on each rank.

    The gradient of a value is W / B and not 1 / B: DDP divides the sum of the ranks' gradients by W afterwards.
    """

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
    """SimCLR's NT-Xent loss. Each of the 2B rows of both views must find its partner, the other view of the same
    image, among the 2B - 1 other rows: the mean of 2B cross-entropies over cosine similarities.

    Needs a large batch, whose other rows are the negatives. `byol_loss` and `simsiam_loss` have no negatives, but need
    a predictor; `simclr_loss_reference` is the same loss for one process in five lines.

    Args:
        view1, view2: (R, D), outputs of the projection head for this rank's images; they need not be normalised.
        temperature: t, the cosine similarities are divided by it.
        gather, group: see the top of this file, and `contrastive_loss`.

    Returns:
        The loss (), and the accuracy (): the share of this rank's rows of `view1` whose partner is the most similar
        row.

    Raises:
        ValueError: shapes or options that do not fit, or an empty batch. As in `contrastive_loss`, an error on one
            rank is raised on all of them.

    Example:

        >>> import torch
        >>> loss, accuracy = simclr_loss(torch.eye(4), torch.eye(4))
        >>> round(loss.item(), 6), accuracy.item()
        (0.000272, 1.0)

    Paper: "A Simple Framework for Contrastive Learning of Visual Representations", https://arxiv.org/abs/2002.05709,
    equation 1.
    """
    ranks, (view1, view2) = _check_and_sync("simclr_loss", gather, group, temperature, view1=view1, view2=view2)
    with torch.autocast(view1.device.type, enabled=False):
        view1, view2 = unit_norm(view1), unit_norm(view2)
        # Both views of a row travel side by side, (R, 2D) -> (B, 2D): one exchange instead of two.
        all1, all2 = GatheredRows.apply(torch.cat([view1, view2], dim=1), ranks).chunk(2, dim=1)
        own = _own_rows(ranks, view1)
        is_same_row = F.one_hot(own, ranks.total).bool()

        # Equation 1 for the rows of one view. Candidates (R, 2B): first the rows of the other view, in which column
        # `own` is the partner, then those of the same view, without the row itself (the equation's k != i).
        def logits(rows, other_view, same_view):
            # Minus infinity. The official code subtracts 1e9, which overflows in half precision.
            same = (rows @ same_view.T).masked_fill(is_same_row, -math.inf)
            return torch.cat([rows @ other_view.T, same], dim=1) / temperature

        logits1, logits2 = logits(view1, all2, all1), logits(view2, all1, all2)
        losses = [F.cross_entropy(each, own, reduction="none") for each in (logits1, logits2)]
        return _MeanOverRanks.apply(sum(losses) / 2, ranks), _accuracy(logits1, own)


def simclr_loss_reference(view1: torch.Tensor, view2: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """The loss of `simclr_loss` for (B, D) views on one process, as equation 1 of the paper writes it. For tests and
    for reading.

    Example:

        >>> import torch
        >>> round(simclr_loss_reference(torch.eye(4), torch.eye(4)).item(), 6)
        0.000272
    """
    rows = F.normalize(torch.cat([view1, view2]), dim=1)
    similarities = rows @ rows.T / temperature
    is_same_row = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    partners = torch.arange(len(rows), device=rows.device).roll(
        len(view1)
    )  # row i and row i + B are views of one image
    return F.cross_entropy(similarities.masked_fill(is_same_row, -math.inf), partners)


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
    """2t (CE(p1 z2^T / t) + CE(p2 z1^T / t)): the prediction of one view must find the momentum encoder's projection
    of the other view of the same image among the projections of all B images.

    Unlike `simclr_loss`, candidates are the other view's rows only, and come from the momentum encoder.

    Args:
        prediction1, prediction2: (R, D), outputs p1 and p2 of the predictor; they need not be normalised.
        target1, target2: (R, D), outputs z1 and z2 of the momentum encoder; no gradient reaches them.
        temperature: t.
        gather, group: as in `simclr_loss`.

    Returns:
        The loss (), and the accuracy (): the share of this rank's rows of `prediction1` whose target is the most
        similar.

    Raises:
        ValueError: as `simclr_loss`.

    Example:

        >>> import torch
        >>> loss, accuracy = moco_v3_loss(*4 * [torch.eye(4)])
        >>> round(loss.item(), 6), accuracy.item()
        (0.01601, 1.0)

    Paper: "An Empirical Study of Training Self-Supervised Vision Transformers", https://arxiv.org/abs/2104.02057,
    equation 1 and algorithm 1.
    """
    given = {"prediction1": prediction1, "prediction2": prediction2, "target1": target1, "target2": target2}
    ranks, views = _check_and_sync("moco_v3_loss", gather, group, temperature, **given)
    with torch.autocast(views[0].device.type, enabled=False):
        p1, p2, z1, z2 = map(unit_norm, views)
        # Targets take no gradient, so that a plain gather is enough.
        all1, all2 = ranks.gather(torch.cat([z1, z2], dim=1).detach()).chunk(2, dim=1)
        own = _own_rows(ranks, p1)
        logits1, logits2 = p1 @ all2.T / temperature, p2 @ all1.T / temperature
        losses = [F.cross_entropy(each, own, reduction="none") for each in (logits1, logits2)]
        # The factor 2t of algorithm 1 makes the size of the gradient depend less on t.
        return _MeanOverRanks.apply(2 * temperature * sum(losses), ranks), _accuracy(logits1, own)


def byol_loss(
    prediction1: torch.Tensor,
    prediction2: torch.Tensor,
    target1: torch.Tensor,
    target2: torch.Tensor,
    *,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    """Mean of 2 - 2 cos(p1, z2) and 2 - 2 cos(p2, z1), the squared distances of unit vectors, over all images.

    The paper adds both directions; this is their mean. It has no negatives. The targets come
    from a momentum encoder; `simsiam_loss` needs none.

    Arguments and errors: as `moco_v3_loss`, without a temperature. Returns the loss ().

    Example:

        >>> import torch
        >>> byol_loss(*2 * [torch.eye(4)], *2 * [-torch.eye(4)]).item()
        4.0

    Paper: "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", https://arxiv.org/abs/2006.07733,
    equation 2.
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
    """-(cos(p1, z2) + cos(p2, z1)) / 2, the mean over all images.

    `byol_loss` without momentum encoder: the targets are the projector's own outputs for the same views. This function
    cuts their gradient (the paper's stop-gradient), without which all features become equal.

    Arguments and errors: as `moco_v3_loss`, without a temperature. Returns the loss ().

    Example:

        >>> import torch
        >>> simsiam_loss(*4 * [torch.eye(4)]).item()
        -1.0

    Paper: "Exploring Simple Siamese Representation Learning", https://arxiv.org/abs/2011.10566, equation 4.
    """
    return -_mean_cosine("simsiam_loss", gather, group, prediction1, prediction2, target1, target2)


def _mean_cosine(what, gather, group, prediction1, prediction2, target1, target2) -> torch.Tensor:
    """(cos(p1, z2) + cos(p2, z1)) / 2, the mean over the rows of all ranks (); no gradient to the targets."""
    given = {"prediction1": prediction1, "prediction2": prediction2, "target1": target1, "target2": target2}
    ranks, views = _check_and_sync(what, gather, group, **given)
    with torch.autocast(views[0].device.type, enabled=False):
        p1, p2, z1, z2 = map(unit_norm, views)
        cosines = (p1 * z2.detach()).sum(1) + (p2 * z1.detach()).sum(1)
        return _MeanOverRanks.apply(cosines / 2, ranks)


def _check_and_sync(what, gather, group, temperature: float = 1.0, **views) -> tuple[Ranks, list[torch.Tensor]]:
    """Checks the arguments, and returns how many rows each rank holds and the views, (R, D) each, in the dtype of the
    computation. An error on one rank is raised on all of them.
    """
    if gather not in ("exact", "none"):
        raise ValueError(f"gather: expected 'exact' or 'none', got {gather!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number > 0, got {temperature}")
    shapes = [tuple(view.shape) for view in views.values()]

    def check():
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(
                f"{', '.join(views)}: expected the same shape (images, width), got {', '.join(map(str, shapes))}"
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
    """Places (R,) of this rank's rows among the B gathered rows: the labels of the cross-entropies."""
    return torch.arange(ranks.own.start, ranks.own.stop, device=like.device)


def _accuracy(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == own).float().mean()


__all__ = ["byol_loss", "moco_v3_loss", "simclr_loss", "simclr_loss_reference", "simsiam_loss"]
