"""GradCache: the gradient of a contrastive loss over a batch that does not fit on the device, by encoding it twice in
chunks.

First pass: embeddings of all chunks, without a graph. Then the loss and its gradient to the embeddings. Second pass:
each chunk again, with a graph, and that gradient backwards through it. Exact, at 4/3 of the floating-point operations;
activations are those of one chunk. "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
https://arxiv.org/abs/2101.06983.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .contrastive_loss import contrastive_loss
from .rank_exchange import sync_batch_sizes


def backward_in_chunks(
    model: nn.Module,
    inputs: Mapping[str, Any],
    micro_batch_size: int,
    *,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    **loss_options,
) -> torch.Tensor:
    """Adds the gradient of `contrastive_loss` over the whole batch to the parameters' `.grad`; returns the loss,
    detached.

    The same as `contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale).backward()` on one
    batch, dropout included (each chunk's random numbers come again in the second pass). `Trainer`'s gradient
    accumulation is not this: its negatives are those of one micro-batch. DDP and FSDP2 reduce gradients once, with the
    last chunk. Ranks may bring different numbers of pairs; all take as many chunks as the one with the most.

    Args:
        model: a dual encoder whose outputs have unit-length `image_embeds` and `text_embeds`, such as `CLIPModel`;
            bare, in DDP or after `fully_shard`.
        inputs: its keyword arguments. Tensors are cut along dimension 0, everything else goes to each chunk;
            `return_loss` is left out.
        micro_batch_size: pairs encoded at once, at most.
        backward: for mixed precision, `accelerator.backward` or `lambda loss: scaler.scale(loss).backward()`.
        **loss_options: of `contrastive_loss`; `form="sigmoid"` takes the model's `logit_bias`.

    Raises (on all ranks, if on one):
        ValueError: no pairs or tensors of different length; a rank with fewer pairs than there are chunks; batch
        normalisation in training mode, which would see chunks, and each of them twice. And what `contrastive_loss`
        raises.

    Example:

    ```python
    >>> import torch
    >>> from transformers import CLIPConfig, CLIPModel
    >>> from hf_clip_variants.modeling.losses.gradient_cache import backward_in_chunks

    >>> layers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> parts = {"text_config": {**layers, "vocab_size": 10}, "vision_config": {**layers, "image_size": 32}}
    >>> model = CLIPModel(CLIPConfig(**parts))
    >>> batch = {"input_ids": torch.arange(6)[:, None], "pixel_values": torch.randn(6, 3, 32, 32)}
    >>> loss = backward_in_chunks(model, batch, micro_batch_size=2)
    >>> model.logit_scale.grad is not None
    True
    ```
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    chunks = _cut(
        bare, {k: v for k, v in inputs.items() if k != "return_loss"}, micro_batch_size, loss_options.get("group")
    )

    device = bare.logit_scale.device
    states, embeds = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(device))  # so that the second pass draws the same dropout
            embeds.append(_embeds(bare, chunk))  # DDP's own forward would synchronise buffers
    image, text = (torch.cat(side).requires_grad_() for side in zip(*embeds, strict=True))
    learnt = {"logit_scale": bare.logit_scale}
    if loss_options.get("form") == "sigmoid":
        learnt["logit_bias"] = bare.logit_bias
    loss = contrastive_loss(image, text, **learnt, normalize=False, **loss_options)
    numbers = [number for number in learnt.values() if number.requires_grad]
    image_grad, text_grad, *number_grads = torch.autograd.grad(loss, [image, text, *numbers])

    after = _random_state(device)
    image_grads, text_grads = image_grad.tensor_split(len(chunks)), text_grad.tensor_split(len(chunks))
    for i, chunk in enumerate(chunks):
        _set_random_state(states[i], device)
        is_last = i == len(chunks) - 1
        with _reduction(model, is_last):
            # sum(embed * grad): its gradient with respect to the parameters is the loss's. DDP expects each parameter
            # in exactly one synchronised backward pass, so the scale's gradient comes with the last chunk.
            pairs = zip(_embeds(model, chunk), (image_grads[i], text_grads[i]), strict=True)
            surrogate = sum((embed * grad).sum() for embed, grad in pairs)
            if is_last:
                surrogate = surrogate + sum((n * grad).sum() for n, grad in zip(numbers, number_grads, strict=True))
            backward(surrogate)
    _set_random_state(after, device)
    return loss.detach()


def _cut(model, inputs: Mapping[str, Any], micro_batch_size: int, group) -> list[dict[str, Any]]:
    """The chunks of this rank's pairs; every rank gets the same number of chunks."""
    tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
    lengths = {name: len(value) for name, value in tensors.items()}

    def check():
        if micro_batch_size < 1:
            raise ValueError(f"micro_batch_size: expected a number of pairs >= 1, got {micro_batch_size}")
        if len(set(lengths.values())) != 1:
            raise ValueError(f"inputs: expected tensors of one length, got {lengths}")
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                raise ValueError(
                    f"model: {name} normalises over the batch, which chunks change; call .eval() on such modules or "
                    "train without chunks"
                )

    length = max(lengths.values(), default=0)
    rows = torch.empty(length, 0, device=model.logit_scale.device)
    counts = sync_batch_sizes(rows, check, "backward_in_chunks", group).counts
    chunks = math.ceil(max(counts) / micro_batch_size)
    # FSDP2's forward and backward passes are collective: a rank without a pair for one of them would stop the others.
    if min(counts) < max(chunks, 1):
        raise ValueError(
            f"inputs: every rank needs a pair for each of {max(chunks, 1)} chunks, the ranks have {list(counts)}"
        )
    pieces = {name: tensor.tensor_split(chunks) for name, tensor in tensors.items()}
    return [
        {name: pieces[name][i] if name in pieces else value for name, value in inputs.items()} for i in range(chunks)
    ]


def _embeds(model, chunk):
    outputs = model(**chunk)
    return outputs.image_embeds, outputs.text_embeds


@contextlib.contextmanager
def _reduction(model, is_last):
    """Gradients are averaged over ranks with the last chunk only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield


def _random_state(device):
    on_device = torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None
    return torch.get_rng_state(), on_device


def _set_random_state(state, device):
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.get_device_module(device).set_rng_state(on_device, device)


__all__ = ["backward_in_chunks"]
