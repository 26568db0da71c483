"""CLIP's symmetric contrastive loss, exact and in memory linear in the batch.

The B x B logits are computed in row chunks and thrown away: the forward pass keeps one log-normaliser per row and one per column (as a
running maximum and sum), the backward pass computes each chunk again. Four B x B x D matrix products in all, the largest tensor is
chunk_size x B.

Shapes: R rows (images), C columns (texts), D width. On one process R = C = B. The functions on a block (`log_normalizers`,
`block_gradients`) take any R x C, which is what one rank of several will own.
"""

import math
import warnings

import torch
from torch.autograd.function import once_differentiable


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    normalize: bool = True,
    chunk_size: int = 512,
) -> torch.Tensor:
    """(CE(logits) + CE(logits^T)) / 2 with logits = exp(logit_scale) * image_embeds @ text_embeds^T and pair i at (i, i).

    Computed in float32 (float64 for float64 inputs) whatever the inputs' dtype and autocast. Gradients of both embeddings and of
    `logit_scale` are exact; a zero row is finite and has gradient zero. Pairs of this process only.

    Args:
        image_embeds, text_embeds: (B, D).
        logit_scale: CLIP's own parameter, the *logarithm* of the scale; a tensor of one element or a number.
        normalize: bring the embeddings to unit length first. Pass False if they are.
        chunk_size: rows of logits held at once; memory is about 4 * chunk_size * B numbers.

    Raises:
        ValueError: shapes that do not fit, or an empty batch. FloatingPointError: exp(logit_scale) is not finite.

    Example:
        >>> import math, torch
        >>> image, text = torch.eye(4), torch.eye(4)
        >>> round(contrastive_loss(image, text, math.log(10.0)).item(), 6)
        0.000136

    Paper: "Learning Transferable Visual Models From Natural Language Supervision", https://arxiv.org/abs/2103.00020, figure 3.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds, text_embeds: expected the same shape (pairs, width), got {tuple(image_embeds.shape)} and "
            f"{tuple(text_embeds.shape)}"
        )
    if len(image_embeds) == 0:
        raise ValueError("image_embeds, text_embeds: the batch is empty")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected a number of rows >= 1, got {chunk_size}")
    if len(image_embeds) == 1:
        warnings.warn("contrastive_loss of one pair is always 0: there is nothing to contrast it with", stacklevel=2)

    device = image_embeds.device
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    with torch.autocast(device.type, enabled=False):
        scale = torch.as_tensor(logit_scale, device=device).to(dtype).reshape(()).exp()
        # Reading the value waits for the device, but a NaN here is a NaN in every weight one step later.
        if not torch.compiler.is_compiling() and not math.isfinite(scale.item()):
            raise FloatingPointError(f"logit_scale: exp(logit_scale) is {scale.item()}; it must be finite")
        image_embeds, text_embeds = image_embeds.to(dtype), text_embeds.to(dtype)
        if normalize:
            image_embeds, text_embeds = unit_rows(image_embeds), unit_rows(text_embeds)
        return _ContrastiveLoss.apply(image_embeds, text_embeds, scale, chunk_size)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows of (N, D) at unit length; a zero row stays zero and gets gradient zero."""
    norm = x.norm(dim=-1, keepdim=True)
    is_zero = norm == 0
    # The inner `where` keeps 1 / 0 out of the gradient, the outer one makes it zero.
    return torch.where(is_zero, 0, x / torch.where(is_zero, 1, norm))


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, scale, chunk_size):
        row_lse, col_lse, diagonal = log_normalizers(image, text, scale, chunk_size)
        ctx.save_for_backward(image, text, scale, row_lse, col_lse)
        ctx.chunk_size = chunk_size
        return (
            (row_lse - diagonal) + (col_lse - diagonal)
        ).mean() / 2  # differences first: a small loss keeps its digits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        image, text, scale, row_lse, col_lse = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            grads = block_gradients(image, text, scale, row_lse, col_lse, ctx.chunk_size, ctx.needs_input_grad[:3])
        return *(g if g is None else g * grad_loss for g in grads), None


def log_normalizers(image, text, scale, chunk_size, first_pair: int = 0):
    """Of S = scale * image @ text^T (R, C): log-sum-exp of rows (R,) and columns (C,), and the logits of the pairs (R,).

    Row r's partner is column `first_pair` + r.
    """
    rows, columns = len(image), len(text)
    row_lse, diagonal = image.new_empty(rows), image.new_empty(rows)
    col_max = image.new_full((columns,), -math.inf)
    col_sum = image.new_zeros(columns)
    for start in range(0, rows, chunk_size):
        chunk = slice(start, min(start + chunk_size, rows))
        logits = (image[chunk] * scale) @ text.T
        row_lse[chunk] = logits.logsumexp(1)
        diagonal[chunk] = logits.diagonal(first_pair + start)[: len(logits)]
        new_max = torch.maximum(col_max, logits.amax(0))
        col_sum = col_sum * (col_max - new_max).exp() + logits.sub_(new_max).exp_().sum(0)
        col_max = new_max
    return row_lse, col_max + col_sum.log(), diagonal


def block_gradients(image, text, scale, row_lse, col_lse, chunk_size, needed, first_pair: int = 0):
    """Gradients of the mean loss over all C pairs, from the R x C block: of image (R, D), text (C, D) and scale, None where not `needed`.

    With P = softmax over rows and Q = softmax over columns, dLoss/dS = (P + Q) / 2C - [pair] / C.
    """
    rows, pairs = len(image), len(text)
    image_grad = torch.empty_like(image) if needed[0] or needed[2] else None
    text_grad = torch.zeros_like(text) if needed[1] else None
    for start in range(0, rows, chunk_size):
        chunk = slice(start, min(start + chunk_size, rows))
        scaled = image[chunk] * scale
        logits = scaled @ text.T
        grad = (logits - row_lse[chunk, None]).exp_()
        grad += logits.sub_(col_lse).exp_()
        grad.diagonal(first_pair + start)[: len(grad)].sub_(2)
        if image_grad is not None:
            torch.mm(grad, text, out=image_grad[chunk])
        if text_grad is not None:
            text_grad.addmm_(grad.T, scaled)
    if needed[1]:
        text_grad /= 2 * pairs
    scale_grad = None
    if image_grad is not None:
        image_grad /= 2 * pairs
        scale_grad = (image_grad * image).sum() if needed[2] else None
        image_grad = image_grad * scale if needed[0] else None
    return image_grad, text_grad, scale_grad


__all__ = ["block_gradients", "contrastive_loss", "log_normalizers", "unit_rows"]
