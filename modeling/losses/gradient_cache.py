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

    A model whose loss needs more than embeddings, or that normalises batches behind its encoders (GroupViT), says so:
    it has `loss_of_features(features) -> loss`, `forward(..., features_only=True)` gives those features, a
    `ModelOutput` of tensors with a row for each pair, and `feature_modules` names the modules that they need. The
    chunks are then encoded into features, and everything behind them sees the whole batch at once, as it must: batch
    normalisation, several losses. Not after `fully_shard`.

    Args:
        model: a dual encoder whose outputs have unit-length `image_embeds` and `text_embeds`, such as `CLIPModel`;
            bare, in DDP or after `fully_shard`. Or one with a loss of features, see above.
        inputs: its keyword arguments. Tensors are cut along dimension 0, everything else goes to each chunk;
            `return_loss` is left out.
        micro_batch_size: pairs encoded at once, at most.
        backward: for mixed precision, `accelerator.backward` or `lambda loss: scaler.scale(loss).backward()`.
        **loss_options: of `contrastive_loss`; `form="sigmoid"` takes the model's `logit_bias`. None for a model with a
            loss of features.

    Raises (on all ranks, if on one):
        ValueError: no pairs or tensors of different length; a rank with fewer pairs than there are chunks; batch
        normalisation of an encoder in training mode, which would see chunks, and each of them twice. And what the loss
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
    if _has_loss_of_features(bare) and loss_options:
        raise ValueError(f"{min(loss_options)}: given, but {type(bare).__name__} computes its own loss")
    chunks = _cut(
        bare, {k: v for k, v in inputs.items() if k != "return_loss"}, micro_batch_size, loss_options.get("group")
    )

    device = bare.logit_scale.device
    encode = _features if _has_loss_of_features(bare) else _embeds
    states, embeds = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(device))  # so that the second pass draws the same dropout
            embeds.append(encode(bare, chunk))  # DDP's own forward would synchronise buffers
    rows = {name: torch.cat([one[name] for one in embeds]).requires_grad_() for name in embeds[0]}
    if _has_loss_of_features(bare):
        loss = bare.loss_of_features(type(embeds[0])(**rows))
        learnt = list(bare.parameters())  # those behind the features have a gradient
    else:
        learnt = {"logit_scale": bare.logit_scale}
        if loss_options.get("form") == "sigmoid":
            learnt["logit_bias"] = bare.logit_bias
        loss = contrastive_loss(*rows.values(), **learnt, normalize=False, **loss_options)
        learnt = list(learnt.values())
    learnt = [parameter for parameter in learnt if parameter.requires_grad]
    found = torch.autograd.grad(loss, [*rows.values(), *learnt], allow_unused=True)
    row_grads = {name: grad.tensor_split(len(chunks)) for name, grad in zip(rows, found, strict=False)}
    learnt = [pair for pair in zip(learnt, found[len(rows) :], strict=True) if pair[1] is not None]

    after = _random_state(device)
    for i, chunk in enumerate(chunks):
        _set_random_state(states[i], device)
        is_last = i == len(chunks) - 1
        with _reduction(model, is_last):
            # sum(embed * grad): its gradient with respect to the parameters is the loss's. DDP expects each parameter
            # in exactly one synchronised backward pass, so the scale's gradient comes with the last chunk.
            encoded = encode(model, chunk)
            surrogate = sum((encoded[name] * grads[i]).sum() for name, grads in row_grads.items())
            if is_last:
                surrogate = surrogate + sum((parameter * grad).sum() for parameter, grad in learnt)
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
            behind = _has_loss_of_features(model) and not name.startswith(tuple(model.feature_modules))
            if isinstance(module, _BatchNorm) and module.training and not behind:
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


def _has_loss_of_features(model) -> bool:
    return hasattr(model, "loss_of_features")


def _embeds(model, chunk) -> dict[str, torch.Tensor]:
    outputs = model(**chunk)
    return {"image_embeds": outputs.image_embeds, "text_embeds": outputs.text_embeds}


def _features(model, chunk) -> Mapping[str, torch.Tensor]:
    return model(**chunk, features_only=True)


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
