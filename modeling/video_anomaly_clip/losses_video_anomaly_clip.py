"""Which segments of a training video count, and the seven terms of VideoAnomalyClip's loss.

The paper's training objective; where it is silent, the official code decides, and the comments say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..losses.rank_exchange import Ranks, sync_batch_sizes, world_size


# V videos, S segments, L frames of a segment, C anomalies, k chosen segments

_HIDDEN = 1e6  # what a segment that is left out has in the place of its sum of logits


@dataclass(frozen=True)
class Batch:
    """
    Frames of V training videos, sorted by nothing.

    Attributes:
        logits: (V, S, L, C), of the anomalies.
        score_logits: (V, S, L); their sigmoid is the score.
        labels: (V,), classes with the normal one among them.
        topk_mask, bottomk_mask: (V, S), true for segments that may be chosen.
    """

    logits: torch.Tensor
    score_logits: torch.Tensor
    labels: torch.Tensor
    topk_mask: torch.Tensor
    bottomk_mask: torch.Tensor


@dataclass(frozen=True)
class Selection:
    """
    The chosen segments, (videos, k) int64 each.

    Attributes:
        topk_abnormal, bottomk_abnormal: of abnormal videos, by the logit of their own class.
        topk_normal: of normal videos, by the sum of all logits.
    """

    topk_abnormal: torch.Tensor
    bottomk_abnormal: torch.Tensor
    topk_normal: torch.Tensor


def draw_masks(videos: int, segments: int, top: float, bottom: float, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Two (V, S) masks, true with probability 1 - `top` and 1 - `bottom`; one and the same if both are equal, as
    official."""
    kept = torch.rand(videos, segments, device=device) >= top
    return kept, kept if top == bottom else torch.rand(videos, segments, device=device) >= bottom


def anomaly_columns(labels: torch.Tensor, normal_id: int) -> torch.Tensor:
    """Classes -> columns of `logits`, in which the normal class is missing."""
    return labels - (labels > normal_id).long()


def select_segments(batch: Batch, normal_id: int, top: int, bottom: int) -> Selection:
    """Of abnormal videos the `top` and `bottom` segments, of normal ones the `top`, in falling or rising order of the
    sum of logits. A segment that is left out is only chosen where too few others are there."""
    is_normal = batch.labels == normal_id
    sums = batch.logits.detach().sum(2)  # (V, S, C): over the frames of a segment, as official
    own = sums[~is_normal].gather(
        2, anomaly_columns(batch.labels[~is_normal], normal_id)[:, None, None].expand(-1, sums.shape[1], 1)
    )[..., 0]
    for_top = own.masked_fill(~batch.topk_mask[~is_normal], -_HIDDEN)
    for_bottom = own.masked_fill(~batch.bottomk_mask[~is_normal], _HIDDEN)
    normal = sums[is_normal].sum(-1).masked_fill(~batch.topk_mask[is_normal], -_HIDDEN)
    return Selection(
        for_top.topk(top, dim=1).indices,
        for_bottom.topk(bottom, dim=1, largest=False).indices,
        normal.topk(top, dim=1).indices,
    )


def log_probabilities(logits: torch.Tensor, score_logits: torch.Tensor, normal_id: int) -> torch.Tensor:
    """(..., C) and (...) -> (..., C + 1) float32: log of the anomalies' shares of the score, and of 1 - score at
    `normal_id`. Computed from logits: a score of exactly 0 or 1 gives no infinity, unlike the
    official code's log of a probability."""
    anomalies = logits.float().log_softmax(-1) + F.logsigmoid(score_logits.float())[..., None]
    normal = F.logsigmoid(-score_logits.float())[..., None]
    return torch.cat([anomalies[..., :normal_id], normal, anomalies[..., normal_id:]], -1)


def anomaly_losses(batch: Batch, selection: Selection, normal_id: int) -> dict[str, torch.Tensor]:
    """The seven terms, float32, not weighted; 0 where a batch has no video of the kind.

    - dir_abnormal, dir_normal: chosen frames of abnormal videos lie in the direction of their class, frames of normal
      ones in no direction.
    - topk_abnormal, bottomk_abnormal, topk_normal: cross-entropy of the chosen frames with their video's class, and
      with normal.
    - smooth: the sum of squared differences of consecutive scores. As official, over abnormal videos that follow each
      other as if they were one, and a sum: it grows with the batch.
    - sparse: the mean score of abnormal videos.
    """
    is_normal = batch.labels == normal_id
    logits, labels = batch.logits.float(), batch.labels[~is_normal]
    log_p = log_probabilities(logits, batch.score_logits, normal_id)
    abnormal, normal = log_p[~is_normal], log_p[is_normal]
    top, bottom = _chosen(abnormal, selection.topk_abnormal), _chosen(abnormal, selection.bottomk_abnormal)
    own = _chosen(logits[~is_normal], selection.topk_abnormal)
    columns = anomaly_columns(labels, normal_id)
    scores = batch.score_logits[~is_normal].float().sigmoid()
    return {
        "dir_abnormal": -_mean(_of_class(own, columns)),
        "dir_normal": _mean(logits[is_normal].amax(-1)),
        "topk_abnormal": -_mean(_of_class(top, labels)),
        "bottomk_abnormal": -_mean(bottom[..., normal_id]),
        "topk_normal": -_mean(_chosen(normal, selection.topk_normal)[..., normal_id]),
        "smooth": scores.flatten().diff().square().sum(),
        "sparse": _mean(scores),
    }


def _chosen(frames: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """(V, S, L, X), (V, k) -> (V, k, L, X)."""
    return frames[torch.arange(len(frames), device=frames.device)[:, None], segments]


def _of_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(V, k, L, X), (V,) -> (V, k, L)."""
    return values.gather(3, classes[:, None, None, None].expand(*values.shape[:3], 1))[..., 0]


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean() if values.numel() else values.sum()


# ---- several processes


class _GatheredRows(torch.autograd.Function):
    """This rank's rows -> all ranks' rows. Every rank then computes the same loss, so the gradient of a row is what
    its own rank found, times W: of the ranks' gradients, DDP takes the mean."""

    @staticmethod
    def forward(ctx, rows, ranks: Ranks):
        ctx.ranks = ranks
        return ranks.gather(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient[ctx.ranks.own] * ctx.ranks.world_size, None


def batch_of_all_ranks(batch: Batch) -> Batch:
    """The videos of all processes, in the order of their ranks, so that the loss is that of one process with all.

    Raises:
        RuntimeError: on the other ranks, if one of them does not come.
    """
    if world_size() == 1:
        return batch
    # One exchange for all that is differentiated, one for what is not.
    shape = batch.logits.shape
    numbers = torch.cat([batch.logits.float().flatten(1), batch.score_logits.float().flatten(1)], 1)
    ranks = sync_batch_sizes(numbers, lambda: None, "VideoAnomalyClip")
    numbers = _GatheredRows.apply(numbers, ranks)
    facts = ranks.gather(torch.cat([batch.labels[:, None], batch.topk_mask.long(), batch.bottomk_mask.long()], 1))
    logits, score_logits = numbers.split([shape[1:].numel(), shape[1:3].numel()], 1)
    labels, top, bottom = facts.split([1, shape[1], shape[1]], 1)
    return Batch(
        logits.unflatten(1, shape[1:]),
        score_logits.unflatten(1, shape[1:3]),
        labels[:, 0],
        top.bool(),
        bottom.bool(),
    )


def checked_labels(labels: object, videos: int, num_labels: int) -> torch.Tensor:
    """(V,) int64; ValueError that names the first label that is none."""
    if isinstance(labels, Sequence) and not isinstance(labels, str | bytes):
        try:
            labels = torch.tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"labels: got {labels!r:.100}, expected one class a video, [{videos}]") from error
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or len(labels) != videos:
        got = list(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"labels: got {got}, expected one class a video, [{videos}]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels: expected whole numbers, got {labels.dtype}")
    wrong = ((labels < 0) | (labels >= num_labels)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(f"labels: labels[{place}] is {int(labels[place])}, expected 0..{num_labels - 1}")
    return labels.long()


__all__ = [
    "Batch",
    "Selection",
    "anomaly_columns",
    "anomaly_losses",
    "batch_of_all_ranks",
    "checked_labels",
    "draw_masks",
    "log_probabilities",
    "select_segments",
]
