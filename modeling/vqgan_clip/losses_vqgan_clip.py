"""What VQGAN-CLIP adds to the loss of prompts: a clamp that lets gradients back in, terms on latents and pictures."""

import torch
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm


class _ClampWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.low, ctx.high = low, high
        ctx.save_for_backward(values)
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (values,) = ctx.saved_tensors
        # A step against the gradient must not lead further out.
        inwards = grad * (values - values.clamp(ctx.low, ctx.high)) >= 0
        return grad * inwards, None, None


def clamp_with_grad(values: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """`clamp`, whose gradient outside of the range is there where a step against it leads back in. (The authors' own
    repository imports `torch.clamp` under this name; the popular code and the paper have this.)"""
    return _ClampWithGrad.apply(values, low, high)


def start_loss(latents: torch.Tensor, weight: float, step: int, start: torch.Tensor | None = None) -> torch.Tensor:
    """() mean squared distance of latents from `start`, times weight / (2 (2 step + 1)). `start` None: from zero, as
    the code computes it."""
    apart = latents if start is None else latents - start
    return apart.square().mean() * (weight / (2 * (2 * step + 1)))


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B,), the mean length of the gradient, over channels in the root."""
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    right = padded[..., :-1, 1:] - padded[..., :-1, :-1]
    down = padded[..., 1:, :-1] - padded[..., :-1, :-1]
    return (right.square() + down.square() + 1e-8).mean(1).sqrt().mean((1, 2))


def one_sided_contrastive_loss(embeds: torch.Tensor, targets: torch.Tensor, scale: float = 100.0) -> torch.Tensor:
    """() cross-entropy of (n, D) embeddings among (n, D) targets, the i-th of which is the i-th one's."""
    logits = scale * unit_norm(embeds) @ unit_norm(targets).T
    return F.cross_entropy(logits, torch.arange(len(embeds), device=embeds.device))


__all__ = ["clamp_with_grad", "one_sided_contrastive_loss", "start_loss", "total_variation"]
