"""GroupViT's multi-label contrastive loss: an image against several prompts made of its caption's nouns, exact over
any number of ranks.

The convention over ranks is that of `losses/contrastive_loss.py`: every rank returns the loss of the whole batch; of
the embeddings' gradients, their average over ranks is that of one process; the scale's gradient is the same on all
ranks. `multi_label_loss_reference` is the loss in plain words, for one process.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm
from ..losses.gathered_rows import GatheredRows
from ..losses.rank_exchange import Ranks, sync_batch_sizes


# B images of this rank with K features each (mostly 1), M prompts of each, W ranks, D width
LARGEST_SCALE = 100.0  # of logits; the scale above has no gradient, as in the official code


def clamped_scale(logit_scale: torch.Tensor) -> torch.Tensor:
    """min(exp(logit_scale), 100) with its gradient, in float32 at least."""
    wide = torch.promote_types(logit_scale.dtype, torch.float32)
    return logit_scale.to(wide).exp().clamp(max=LARGEST_SCALE)


def multi_label_loss(
    image_embeds: torch.Tensor,
    prompt_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    form: Literal["mean_of_logs", "log_of_sum"] = "mean_of_logs",
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    r"""With s = min(exp(logit_scale), 100), half the sum of

    - images against prompts: for each of the B K image features, over all W B M prompts, the cross-entropy with target
      1 / M on the image's own prompts, and
    - prompts against images: for each of the B M prompts, over all W B K image features, the cross-entropy with target
      1 / K on its own image's features,

    each the mean over its rows, of cosine similarities times s. Duplicates among the prompts are not masked. Computed
    in float32 at least. For image-caption pairs use `contrastive_loss`, whose memory is linear in the batch; here the
    logits of this rank's rows, B x W B M, are held.

    Args:
        image_embeds: (B, D) or (B, K, D), of any length.
        prompt_embeds: (B, M, D).
        logit_scale: (), a logarithm.
        form: with several positives, the mean of their log-probabilities (the official code), or the logarithm of the
            sum of their probabilities (equation 8 of the paper).
        gather: "exact" over all ranks, which is a collective operation; "none": this process's images alone. Every
            rank has the same K and M; B may differ.
        group: the ranks; None is the default group.

    Raises:
        ValueError: shapes or options that do not fit, an empty batch (on all ranks, if on one).

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.groupvit.multi_label_loss import multi_label_loss

    >>> images = torch.eye(3)
    >>> prompts = torch.eye(3)[:, None].repeat(1, 2, 1)  # two prompts each, both like their image
    >>> [round(multi_label_loss(images, prompts, torch.tensor(scale)).item(), 3) for scale in (0.0, 3.0)]
    [0.898, 0.347]
    ```

    Paper: "GroupViT: Semantic Segmentation Emerges from Text Supervision", https://arxiv.org/abs/2202.11094, equations
    7 to 9.
    """
    if form not in ("mean_of_logs", "log_of_sum"):
        raise ValueError(f"form: {form!r}, expected 'mean_of_logs' or 'log_of_sum'")
    if gather not in ("exact", "none"):
        raise ValueError(f"gather: {gather!r}, expected 'exact' or 'none'")
    images = image_embeds[:, None] if image_embeds.dim() == 2 else image_embeds

    def check():
        if images.dim() != 3 or prompt_embeds.dim() != 3 or len(images) != len(prompt_embeds):
            raise ValueError(
                "image_embeds, prompt_embeds: expected (images, width) or (images, features, width) and (images, "
                f"prompts, width), got {tuple(image_embeds.shape)} and {tuple(prompt_embeds.shape)}"
            )
        if images.shape[-1] != prompt_embeds.shape[-1] or not images.shape[1] or not prompt_embeds.shape[1]:
            raise ValueError(
                "image_embeds, prompt_embeds: expected the same width and at least one feature and one prompt of each "
                f"image, got {tuple(image_embeds.shape)} and {tuple(prompt_embeds.shape)}"
            )

    with torch.autocast(images.device.type, enabled=False):
        if gather == "none":
            check()
            ranks = Ranks((len(images),))
        else:
            # What every rank must have equal is the width of what is compared here.
            ranks = sync_batch_sizes(_row_of_each(images, prompt_embeds), check, "multi_label_loss", group)
        if not ranks.total:
            raise ValueError("image_embeds, prompt_embeds: the batch is empty")
        wide = torch.promote_types(torch.promote_types(images.dtype, prompt_embeds.dtype), torch.float32)
        features, prompts = unit_norm(images.to(wide)), unit_norm(prompt_embeds.to(wide))
        scale = _MeanGradient.apply(clamped_scale(logit_scale).to(wide), ranks)
        own = _rows_loss(features, prompts, scale, form, ranks) + _rows_loss(prompts, features, scale, form, ranks)
        # `own`: this rank's part of the sum of both means. Its value becomes that of the whole batch; its gradient is
        # W times this rank's part, of which DDP takes the mean.
        whole = ranks.sum(own.detach().clone())
        scaled = own * ranks.world_size
        return (scaled + (whole - scaled.detach())) / 2


def _row_of_each(images: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """(B, K + M): its shape tells the other ranks B, K + M."""
    return images.new_empty(len(images), images.shape[1] + prompts.shape[1])


def _rows_loss(rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, form: str, ranks: Ranks):
    """Sum over this rank's rows (B, K, D) of the cross-entropy over all ranks' columns (W B, M, D), by the number of
    all ranks' rows.
    """
    positives, width = columns.shape[1:]
    logits = scale * rows.flatten(0, 1) @ GatheredRows.apply(columns.flatten(1), ranks).view(-1, width).T
    log_probabilities = logits.log_softmax(-1).unflatten(1, (-1, positives)).unflatten(0, rows.shape[:2])
    image = torch.arange(len(rows), device=rows.device)
    own = log_probabilities[image, :, image + ranks.first]  # (B, K, M)
    own = own.mean(-1) if form == "mean_of_logs" else own.logsumexp(-1)
    return -own.sum() / (ranks.total * rows.shape[1])


class _MeanGradient(torch.autograd.Function):
    """A number that is the same on all ranks. Each has the gradient of its own rows times W; it becomes their mean."""

    @staticmethod
    def forward(ctx, x, ranks):
        ctx.ranks = ranks
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.ranks.sum(gradient.clone()) / ctx.ranks.world_size, None


def multi_label_loss_reference(
    image_embeds: torch.Tensor, prompt_embeds: torch.Tensor, logit_scale: torch.Tensor, form: str = "mean_of_logs"
) -> torch.Tensor:
    """`multi_label_loss` for one process, (B, D) and (B, M, D) -> (), written as the paper's equations."""
    images = F.normalize(image_embeds, dim=-1)
    count, prompts_each = prompt_embeds.shape[:2]
    prompts = F.normalize(prompt_embeds, dim=-1).flatten(0, 1)
    logits = logit_scale.exp().clamp(max=LARGEST_SCALE) * images @ prompts.T
    owner = torch.arange(count).repeat_interleave(prompts_each)
    to_prompts = []
    for image, row in enumerate(logits.softmax(1)):
        positives = row[owner == image]
        to_prompts.append(-positives.log().mean() if form == "mean_of_logs" else -positives.sum().log())
    return (torch.stack(to_prompts).mean() + nn.functional.cross_entropy(logits.T, owner)) / 2


__all__ = ["LARGEST_SCALE", "clamped_scale", "multi_label_loss", "multi_label_loss_reference"]
