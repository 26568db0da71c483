"""The contrastive losses as the papers write them, on one process with all logits at once: what tests compare with."""

import torch
from torch.nn import functional as F


def contrastive_loss_reference(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    normalize: bool = True,
) -> torch.Tensor:
    """(B, D), (B, D), () -> (): CLIP's loss (figure 3 of https://arxiv.org/abs/2103.00020), or SigLIP's with a
    `logit_bias` (algorithm 1 of https://arxiv.org/abs/2303.15343).

    For use: `contrastive_loss`, whose memory is linear in B and which knows of ranks.
    """
    if normalize:
        image_embeds, text_embeds = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    logits = logit_scale.exp() * image_embeds @ text_embeds.T
    if logit_bias is None:
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1  # 1 for pairs, -1 for the others
    return -F.logsigmoid(sign * (logits + logit_bias)).sum() / len(logits)


__all__ = ["contrastive_loss_reference"]
