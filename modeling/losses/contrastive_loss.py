"""The symmetric contrastive loss of CLIP and the pairwise one of SigLIP, exact over any number of ranks.

Memory is linear in the batch: the B x B logits are computed in row chunks and thrown away. Softmax: the forward pass
keeps one log-normaliser per row and one per column (as a running maximum and sum), the backward pass computes each
chunk again: four products of B x B x D. Sigmoid: each logit counts by itself, so loss and gradients come from one
pass: three products. The largest tensor is chunk_size x B.

The loss in plain words: `contrastive_loss_reference.py`, which the tests compare with.

Shapes: R rows (images of this rank), C columns (texts of all ranks), D width, B pairs on W ranks. On one process
R = C = B.

Ranks. A rank owns the R x C block of its images: the texts are gathered, row normalisers are local, column normalisers
are combined from C numbers of each rank, and each rank gets its own texts' gradient summed over the blocks. That is
half of what gathering both sides moves. The convention, for every caller: **each rank returns the loss of the whole
batch; gradients of the embeddings are W times the whole batch's, those of `logit_scale` and `logit_bias` are the whole
batch's.** DDP and FSDP2 average gradients over ranks, and an encoder's gradient on one rank is only its own rows'
share, so after the average every parameter has exactly the gradient of one process with all pairs. The scale's
gradient is already the same on all ranks: it may be averaged (DDP) or not (FSDP2, which cannot shard a parameter
without dimensions: `fully_shard(model, ignored_params={model.logit_scale})`), and needs no reduction by hand.
"""

import math
import warnings
from typing import Literal

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm
from .rank_exchange import Ranks, sync_batch_sizes


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    logit_bias: torch.Tensor | float | None = None,
    form: Literal["softmax", "sigmoid"] = "softmax",
    normalize: bool = True,
    chunk_size: int = 512,
    gather: Literal["exact", "none", "slip", "open_clip"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    """With logits S = exp(logit_scale) * image_embeds @ text_embeds^T (+ logit_bias), pair i at (i, i):

    softmax, CLIP: (CE(S) + CE(S^T)) / 2.
    sigmoid, SigLIP: (sum of softplus(-S_ii) + sum of softplus(S_ij), i != j) / B.

    Computed in float32 (float64 for float64 inputs) whatever the inputs' dtype and autocast. Gradients of both
    embeddings, `logit_scale` and `logit_bias` are exact; a zero row is finite and has gradient zero.

    Where torch.distributed runs, all ranks' pairs are one batch, in the order of the ranks, and DDP's or FSDP2's step
    is that of one process (the convention: top of this file). Then this is a collective operation, forward and
    backward: every rank calls it, equally often. Ranks may bring different numbers of pairs, also none. Models call it
    with `gather="exact" if self.training else "none"`, so that one rank can evaluate alone.

    Args:
        image_embeds, text_embeds: (R, D), this rank's pairs.
        logit_scale: the model's own parameter, the *logarithm* of the scale; a tensor of one element or a number.
        logit_bias: SigLIP's parameter; for the sigmoid form, and needed there.
        normalize: bring the embeddings to unit length first. Pass False if they are.
        chunk_size: rows of logits held at once; memory is about 2 * chunk_size * B numbers.
        gather: "exact"; "none" takes this process's pairs alone. Two more reproduce other code's gradients, softmax
            only: "slip" (SLIP; open_clip's `local_loss` without `gather_with_grad`) treats the other side as constant
            and returns the own rows' loss; "open_clip" (its default flags) gives the embeddings 1/W of the exact
            gradient.
        group: the ranks that share the batch, as those over which gradients are averaged; None is the default group.

    Raises (on all ranks, if on one):
        ValueError: shapes or options that do not fit, or an empty batch. FloatingPointError: exp(logit_scale) or
        logit_bias is not finite.
        RuntimeError: another rank raised, or did not come within the group's time-out.

    Example:
        >>> import math, torch
        >>> image, text = torch.eye(4), torch.eye(4)
        >>> round(contrastive_loss(image, text, math.log(10.0)).item(), 6)
        0.000136
        >>> round(contrastive_loss(image, text, math.log(10.0), logit_bias=-10.0, form="sigmoid").item(), 6)
        0.693283

    Papers: "Learning Transferable Visual Models From Natural Language Supervision", https://arxiv.org/abs/2103.00020,
    figure 3; "Sigmoid Loss for Language Image Pre-Training", https://arxiv.org/abs/2303.15343, algorithm 1.
    """
    if form not in ("softmax", "sigmoid"):
        raise ValueError(f"form: expected 'softmax' or 'sigmoid', got {form!r}")
    if gather not in ("exact", "none", "slip", "open_clip"):
        raise ValueError(f"gather: expected 'exact', 'none', 'slip' or 'open_clip', got {gather!r}")
    if form == "sigmoid" and gather in ("slip", "open_clip"):
        raise ValueError(f"gather: {gather!r} is for the softmax form, the sigmoid form has 'exact' and 'none'")
    if (form == "sigmoid") != (logit_bias is not None):
        raise ValueError(
            f"logit_bias: the sigmoid form needs one, the softmax form has none; got {logit_bias} for {form}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected a number of rows >= 1, got {chunk_size}")

    device = image_embeds.device
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    with torch.autocast(device.type, enabled=False):
        scale = _number(logit_scale, "logit_scale", device, dtype).exp()
        bias = None if logit_bias is None else _number(logit_bias, "logit_bias", device, dtype)
        image, text = image_embeds.to(dtype), text_embeds.to(dtype)

        def check():
            _check_pairs(image, text)
            _check_finite(scale, "logit_scale: exp(logit_scale)")
            if bias is not None:
                _check_finite(bias, "logit_bias: it")

        ranks = _ranks(image, check, gather, group)
        if ranks.total == 1 and form == "softmax":
            warnings.warn(
                "contrastive_loss of one pair is always 0: there is nothing to contrast it with", stacklevel=2
            )
        if normalize:
            image, text = unit_norm(image), unit_norm(text)

        if form == "sigmoid":
            return _SigmoidLoss.apply(image, text, scale, bias, chunk_size, ranks, torch.is_grad_enabled())
        if gather == "slip" and ranks.world_size > 1:
            if len(set(ranks.counts)) > 1:
                raise ValueError(f"gather: 'slip' needs as many pairs on every rank, got {list(ranks.counts)}")
            images, texts = ranks.gather(image.detach()), ranks.gather(text.detach())
            image_loss = _RowLoss.apply(image, texts, scale, chunk_size, ranks.first)
            return (image_loss + _RowLoss.apply(text, images, scale, chunk_size, ranks.first)) / 2
        return _SoftmaxLoss.apply(
            image, text, scale, chunk_size, ranks, 1 if gather == "open_clip" else ranks.world_size
        )


@torch.no_grad()
def contrastive_accuracy(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    *,
    chunk_size: int = 512,
    gather: Literal["exact", "none"] = "exact",
    group: "torch.distributed.ProcessGroup | None" = None,
) -> torch.Tensor:
    """Share of this rank's images (R, D) whose own text is the nearest by cosine among the texts of all ranks; NaN
    without images.

    Arguments, errors and who has to call it: as `contrastive_loss`.
    """
    if gather not in ("exact", "none"):
        raise ValueError(f"gather: expected 'exact' or 'none', got {gather!r}")
    image, text = image_embeds.float(), text_embeds.float()
    with torch.autocast(image.device.type, enabled=False):
        ranks = _ranks(image, lambda: _check_pairs(image, text), gather, group)
        texts = ranks.gather(unit_norm(text))
        nearest = [(chunk @ texts.T).argmax(1) for chunk in image.split(chunk_size)]
    partners = torch.arange(ranks.own.start, ranks.own.stop, device=image.device)
    return (torch.cat(nearest) == partners).float().mean()


def _ranks(image, check, gather, group) -> Ranks:
    if gather == "none":
        check()
        ranks = Ranks((len(image),))
    else:
        ranks = sync_batch_sizes(image, check, "contrastive_loss", group)
    if ranks.total == 0:
        raise ValueError("image_embeds, text_embeds: the batch is empty")
    return ranks


def _check_pairs(image, text):
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image_embeds, text_embeds: expected the same shape (pairs, width), got {tuple(image.shape)} and "
            f"{tuple(text.shape)}"
        )


def _check_finite(number, what):
    # Reading the value waits for the device, but a NaN here is a NaN in every weight one step later.
    if not torch.compiler.is_compiling() and not math.isfinite(number.item()):
        raise FloatingPointError(f"{what} is {number.item()}; it must be finite")


def _number(value, name, device, dtype) -> torch.Tensor:
    value = torch.as_tensor(value, device=device, dtype=None if torch.is_tensor(value) else dtype)
    if value.numel() != 1:
        raise ValueError(f"{name}: expected one number, got shape {tuple(value.shape)}")
    return value.to(dtype).reshape(())


# ---- Softmax


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, scale, chunk_size, ranks, factor):
        texts = ranks.gather(text)
        row_lse, col_lse, diagonal = log_normalizers(image, texts, scale, chunk_size, ranks.first)
        col_lse = ranks.logsumexp(col_lse)
        ctx.save_for_backward(image, texts, scale, row_lse, col_lse)
        ctx.chunk_size, ctx.ranks, ctx.factor = chunk_size, ranks, factor
        # differences first: a small loss keeps its digits
        return ranks.sum(((row_lse - diagonal) + (col_lse[ranks.own] - diagonal)).sum()) / (2 * ranks.total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        image, texts, scale, row_lse, col_lse = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        with torch.autocast(image.device.type, enabled=False):
            image_grad, text_grad, scale_grad = block_gradients(
                image, texts, scale, row_lse, col_lse, ctx.chunk_size, needed, ctx.ranks.first
            )
            if needed[0]:
                image_grad *= grad_loss * ctx.factor
            if needed[1]:
                text_grad = ctx.ranks.reduce_scatter(text_grad).mul_(grad_loss * ctx.factor)
            if needed[2]:
                scale_grad = ctx.ranks.sum(scale_grad) * grad_loss
        return image_grad, text_grad, scale_grad, None, None, None


def log_normalizers(image, text, scale, chunk_size, first_pair: int = 0):
    """Of S = scale * image @ text^T (R, C): log-sum-exp of rows (R,) and columns (C,), and the logits of the pairs
    (R,).

    Row r's partner is column `first_pair` + r.
    """
    rows, columns = len(image), len(text)
    row_lse, diagonal = image.new_empty(rows), image.new_empty(rows)
    col_max = image.new_full((columns,), -math.inf)
    col_sum = image.new_zeros(columns)
    # Allocated once: twice the memory stays in the process when each chunk allocates its own.
    logits_buffer = image.new_empty(min(chunk_size, rows), columns)
    buffer = torch.empty_like(logits_buffer)
    # Rows are whole within a chunk: their log-sum-exp is one step. Columns run through all chunks: `col_sum` is the
    # sum of exp(S - col_max) so far; where a chunk has a larger maximum, the old sum is scaled down to it first.
    for start in range(0, rows, chunk_size):
        chunk = slice(start, min(start + chunk_size, rows))
        logits, exp = logits_buffer[: chunk.stop - start], buffer[: chunk.stop - start]
        torch.mm(image[chunk] * scale, text.T, out=logits)
        diagonal[chunk] = logits.diagonal(first_pair + start)[: len(logits)]
        row_max = logits.amax(1)
        torch.sub(logits, row_max[:, None], out=exp)
        row_lse[chunk] = exp.exp_().sum(1).log_() + row_max
        new_max = torch.maximum(col_max, logits.amax(0))
        col_sum = col_sum * (col_max - new_max).exp() + logits.sub_(new_max).exp_().sum(0)
        col_max = new_max
    return row_lse, col_max + col_sum.log(), diagonal


def block_gradients(image, text, scale, row_lse, col_lse, chunk_size, needed, first_pair: int = 0):
    """Gradients of the mean loss over all C pairs, from the R x C block: of image (R, D), text (C, D) and scale, None
    where not `needed`.

    With P = softmax over rows and Q = softmax over columns, dLoss/dS = (P + Q) / 2C - [pair] / C.
    """
    rows, columns = len(image), len(text)
    image_grad = torch.empty_like(image) if needed[0] or needed[2] else None
    text_grad = torch.zeros_like(text) if needed[1] else None
    scale_grad = image.new_zeros(()) if needed[2] else None
    logits_buffer = image.new_empty(min(chunk_size, rows), columns)
    buffer = torch.empty_like(logits_buffer)
    for start in range(0, rows, chunk_size):
        chunk = slice(start, min(start + chunk_size, rows))
        logits, grad = logits_buffer[: chunk.stop - start], buffer[: chunk.stop - start]
        scaled = image[chunk] * scale
        torch.mm(scaled, text.T, out=logits)
        # P + Q - 2 [pair], in place: `grad` takes P, and `logits` becomes Q where it is added.
        torch.sub(logits, row_lse[chunk, None], out=grad)
        grad.exp_().add_(logits.sub_(col_lse).exp_())
        grad.diagonal(first_pair + start)[: len(grad)].sub_(2)
        if image_grad is not None:
            torch.mm(grad, text, out=image_grad[chunk])
        if needed[2]:
            scale_grad += (image_grad[chunk] * image[chunk]).sum()
        if needed[1]:
            text_grad.addmm_(grad.T, scaled)
    mean = 1 / (2 * columns)
    return (
        image_grad.mul_(scale * mean) if needed[0] else None,
        text_grad.mul_(mean) if needed[1] else None,
        scale_grad * mean if needed[2] else None,
    )


class _RowLoss(torch.autograd.Function):
    """Mean cross-entropy of the rows of scale * rows @ columns^T (R, C), `columns` constant, and its gradient in one
    pass.
    """

    @staticmethod
    def forward(ctx, rows, columns, scale, chunk_size, first_pair):
        losses, rows_grad = rows.new_empty(len(rows)), torch.empty_like(rows)
        for start in range(0, len(rows), chunk_size):
            chunk = slice(start, min(start + chunk_size, len(rows)))
            logits = (rows[chunk] * scale) @ columns.T
            pairs = logits.diagonal(first_pair + start)[: len(logits)]
            lse = logits.logsumexp(1)
            losses[chunk] = lse - pairs
            logits.sub_(lse[:, None]).exp_()
            pairs.sub_(1)
            torch.mm(logits, columns, out=rows_grad[chunk])
        rows_grad /= len(rows)
        ctx.save_for_backward(rows_grad * scale, (rows_grad * rows).sum())
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        rows_grad, scale_grad = ctx.saved_tensors
        return rows_grad * grad_loss, None, scale_grad * grad_loss, None, None


# ---- Sigmoid


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, scale, bias, chunk_size, ranks, with_gradients):
        texts = ranks.gather(text)
        needed = [with_gradients and need for need in ctx.needs_input_grad[:4]]
        sums, image_grad, text_grad = sigmoid_sums(image, texts, scale, bias, chunk_size, needed, ranks.first)
        loss, scale_grad, bias_grad = (ranks.sum(sums) / ranks.total).unbind()
        if needed[1]:
            text_grad = ranks.reduce_scatter(text_grad)
        factor = ranks.world_size / ranks.total
        ctx.save_for_backward(
            image_grad.mul_(scale * factor) if needed[0] else None,
            text_grad.mul_(factor) if needed[1] else None,
            scale_grad,
            bias_grad,
        )
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        grads = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        return *(grad * grad_loss if need else None for grad, need in grads), None, None, None


def sigmoid_sums(image, text, scale, bias, chunk_size, needed, first_pair: int = 0):
    """From the R x C block: [sum of losses, its gradient to scale, to bias] (3,), and its gradients to image / scale
    (R, D) and text (C, D).

    Gradients not `needed` (image, text, scale, bias) are zero or None. With S = scale * image @ text^T + bias the
    gradient to S is sigmoid(S) - [pair].
    """
    image_grad = torch.empty_like(image) if needed[0] or needed[2] else None
    text_grad = torch.zeros_like(text) if needed[1] else None
    sums = image.new_zeros(3)
    buffer = image.new_empty(min(chunk_size, len(image)), len(text))
    for start in range(0, len(image), chunk_size):
        chunk = slice(start, min(start + chunk_size, len(image)))
        logits = buffer[: chunk.stop - start]
        scaled = image[chunk] * scale
        torch.mm(scaled, text.T, out=logits)
        logits += bias
        # The loss of a pair is softplus(-S): with the sign turned it is an element like any other, and 1 - sigmoid
        # keeps its digits.
        pairs = logits.diagonal(first_pair + start)[: len(logits)]
        pairs.neg_()
        sums[0] += F.softplus(logits, threshold=40).sum()
        if not any(needed):
            continue
        logits.sigmoid_()
        pairs.neg_()
        sums[2] += logits.sum()
        if image_grad is not None:
            torch.mm(logits, text, out=image_grad[chunk])
        if needed[2]:
            sums[1] += (image_grad[chunk] * image[chunk]).sum()
        if needed[1]:
            text_grad.addmm_(logits.T, scaled)
    return sums, image_grad, text_grad


__all__ = [
    "block_gradients",
    "contrastive_accuracy",
    "contrastive_loss",
    "log_normalizers",
    "sigmoid_sums",
]
