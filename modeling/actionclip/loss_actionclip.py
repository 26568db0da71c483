"""ActionCLIP's loss: pairs of which several have the same label, over any number of ranks."""

from typing import Literal

import torch
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm
from ..losses.gathered_rows import GatheredRows
from ..losses.rank_exchange import Ranks, sync_batch_sizes


# B pairs on all ranks, R of them on this one, D width


def label_contrastive_loss(
    video_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    labels: torch.Tensor | None = None,
    *,
    sharpness: float = 10.0,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    """() mean over both directions of the Kullback-Leibler divergence of softmax(S) from softmax(sharpness * G).

    S = exp(logit_scale) * cosines (B, B); G is 1 where two pairs have the same label: a video's own text, and those of
    all videos of its class. Where labels are all different and `sharpness` is large it is `contrastive_loss`, which
    keeps less in memory; with repeated labels that one would push texts of the same class away.

    Args:
        video_embeds, text_embeds: (R, D), this rank's pairs, row by row; normalised here.
        logit_scale: the logarithm of the scale.
        labels: (R,) whole numbers, the classes of this rank's pairs; None: each pair is a class of its own.
        sharpness: 10 in the paper's code. Other pairs keep a share of e^-sharpness of the target.
        gather: "exact": the loss of the pairs of all ranks, on each of them; its gradient, averaged over ranks as
            DistributedDataParallel does, is that of one process with all pairs. "none": this rank's pairs alone.
        group: as in `contrastive_loss`.

    Raises (on all ranks, if on one):
        ValueError: shapes that do not fit, an empty batch, labels that are no whole numbers.

    Example:
        >>> import math, torch
        >>> video, text = torch.eye(3), torch.eye(3)
        >>> round(abs(label_contrastive_loss(video, text, math.log(10.0), torch.tensor([0, 1, 2])).item()), 6)
        0.0
        >>> round(label_contrastive_loss(video, text, math.log(10.0), torch.tensor([0, 1, 1])).item(), 4)
        2.8712

    Paper: "ActionCLIP: A New Paradigm for Video Action Recognition", https://arxiv.org/abs/2109.08472.
    """
    dtype = torch.promote_types(torch.promote_types(video_embeds.dtype, text_embeds.dtype), torch.float32)
    with torch.autocast(video_embeds.device.type, enabled=False):
        video, text = video_embeds.to(dtype), text_embeds.to(dtype)

        def check() -> None:
            _check(video, text, labels)

        if gather == "none":
            check()
            ranks = Ranks((len(video),))
        elif gather == "exact":
            ranks = sync_batch_sizes(video, check, "label_contrastive_loss", group)
        else:
            raise ValueError(f"gather: expected 'exact' or 'none', got {gather!r}")
        if ranks.total == 0:
            raise ValueError("video_embeds, text_embeds: the batch is empty")
        # Both at once: what ranks exchange in the backward pass is then one thing.
        own = torch.cat([unit_norm(video), unit_norm(text)], 1)
        videos, texts = GatheredRows.apply(own, ranks).chunk(2, 1)
        if labels is None:
            classes = torch.arange(ranks.total, device=video.device)
        else:
            classes = ranks.gather(labels.to(video.device).long()[:, None])[:, 0]
        scale = torch.as_tensor(logit_scale, dtype=dtype, device=video.device).exp()
        logits = scale * videos @ texts.T
        target = (sharpness * (classes[:, None] == classes).to(dtype)).softmax(1)
        return (_divergence(logits, target) + _divergence(logits.T, target)) / 2


def _divergence(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.kl_div(logits.log_softmax(1), target, reduction="batchmean")


def _check(video: torch.Tensor, text: torch.Tensor, labels: torch.Tensor | None) -> None:
    if video.ndim != 2 or video.shape != text.shape:
        raise ValueError(
            f"video_embeds, text_embeds: expected the same shape (pairs, width), got {tuple(video.shape)} and "
            f"{tuple(text.shape)}"
        )
    if labels is None:
        return
    is_tensor = isinstance(labels, torch.Tensor)
    whole = is_tensor and not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if not whole or labels.shape != video.shape[:1]:
        got = f"{labels.dtype} of shape {list(labels.shape)}" if is_tensor else type(labels).__name__
        raise ValueError(f"labels: expected a whole number of each pair, [{len(video)}], got {got}")


__all__ = ["label_contrastive_loss"]
