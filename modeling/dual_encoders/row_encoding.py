"""Encode whole prompts, from the first token to the last, one row per prompt. Works for any text encoder.

For bidirectional encoders (SigLIP, Chinese-CLIP, AltCLIP), where later tokens change earlier ones, and for causal ones
whose layers were replaced. `prompt_encoding.py` does the same for CLIP's own layers with far less work.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpoint_activations

from .offloading import device_of
from .tracing import is_traced


def encode_rows(
    run: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor],
    input_ids: torch.Tensor,
    inputs_embeds: torch.Tensor | None = None,
    *,
    layers: nn.ModuleList,
    token_embedding: nn.Module,
    prefix_embeds: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    deep_prompts: Mapping[int, torch.Tensor] | None = None,
    deep_start: int = 1,
    max_tokens_per_chunk: int = 16384,
    checkpoint: bool = False,
) -> torch.Tensor:
    """`prompt_encoding.encode_prompts` for any text encoder: whole rows, some at a time, through
    `run(input_ids, inputs_embeds, position_ids)` -> (rows, width).

    Arguments as there. `layers` are the encoder's, for `deep_prompts`; `token_embedding` is its table, for
    `prefix_embeds`. With deep prompts, `layers` have hooks during the call: make one call at a time.
    """
    check_prefix(prefix_embeds, inputs_embeds, input_ids)
    deep_prompts = checked_deep_prompts(deep_prompts, len(layers))
    in_variants = has_variants(inputs_embeds, prefix_embeds)
    device, dtype = device_of(token_embedding), next(token_embedding.parameters()).dtype
    ids = input_ids.to(device)
    positions = None if position_ids is None else position_ids.to(device)
    variants = 1
    if prefix_embeds is not None:
        prefix_embeds = prefix_embeds.to(device, dtype).reshape(-1, *prefix_embeds.shape[-2:])
        variants = prefix_embeds.shape[0]
        inputs_embeds = token_embedding(ids) if inputs_embeds is None else inputs_embeds
    elif inputs_embeds is not None and inputs_embeds.ndim == 4:
        variants = inputs_embeds.shape[0]

    def run_rows(rows: torch.Tensor) -> torch.Tensor:
        # Rows of all variants are numbered one after the other: row = variant * N + prompt.
        which, prompt = rows // ids.shape[0], rows % ids.shape[0]
        embeds = None
        if inputs_embeds is not None and inputs_embeds.ndim == 4:
            embeds = inputs_embeds[which, prompt].to(dtype)
        elif inputs_embeds is not None:
            embeds = inputs_embeds[prompt].to(dtype)
        if prefix_embeds is not None:
            embeds = torch.cat([prefix_embeds[which], embeds[:, prefix_embeds.shape[1] :]], dim=1)
        with _deep_prompts_in_place(layers, deep_prompts, deep_start):
            return run(ids[prompt], embeds, positions)

    count = variants * ids.shape[0]
    if is_traced():  # as many rows as a later batch needs
        pooled = run_rows(torch.arange(count, device=device))
        return pooled.reshape(variants, ids.shape[0], pooled.shape[-1]) if in_variants else pooled
    pooled = []
    for chunk in chunks(count, max_tokens_per_chunk // ids.shape[1]):
        rows = torch.arange(chunk.start, min(chunk.stop, count), device=device)
        if checkpoint and torch.is_grad_enabled():
            pooled.append(checkpoint_activations(run_rows, rows, use_reentrant=False))
        else:
            pooled.append(run_rows(rows))
    pooled = torch.cat(pooled)
    return pooled.unflatten(0, (variants, -1)) if in_variants else pooled


@contextmanager
def _deep_prompts_in_place(layers: nn.ModuleList, deep_prompts: dict[int, torch.Tensor], start: int) -> Iterator[None]:
    """Within the context, `deep_prompts[i]` replaces the tokens from `start` on in the input of `layers[i]`."""

    def hook(prompt):
        def overwrite(module, arguments):
            hidden, *others = arguments
            states = prompt.to(hidden).expand(hidden.shape[0], -1, -1)
            return torch.cat([hidden[:, :start], states, hidden[:, start + len(prompt) :]], dim=1), *others

        return overwrite

    handles = [layers[number].register_forward_pre_hook(hook(prompt)) for number, prompt in deep_prompts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def has_variants(inputs_embeds: torch.Tensor | None, prefix_embeds: torch.Tensor | None) -> bool:
    return (inputs_embeds is not None and inputs_embeds.ndim == 4) or (
        prefix_embeds is not None and prefix_embeds.ndim == 3
    )


def check_prefix(prefix_embeds, inputs_embeds, input_ids: torch.Tensor):
    if prefix_embeds is None:
        return
    if inputs_embeds is not None and inputs_embeds.ndim == 4:
        raise ValueError(
            "prefix_embeds, inputs_embeds: variants are given twice; give inputs_embeds as (prompts, tokens, width)"
        )
    if prefix_embeds.ndim not in (2, 3) or prefix_embeds.shape[-2] > input_ids.shape[1]:
        raise ValueError(
            f"prefix_embeds: expected shape ([variants,] at most {input_ids.shape[1]} tokens, width), "
            f"got {tuple(prefix_embeds.shape)}"
        )


def checked_deep_prompts(deep_prompts: Mapping[int, torch.Tensor] | None, num_layers: int) -> dict[int, torch.Tensor]:
    deep_prompts = dict(deep_prompts or {})
    for layer, prompt in deep_prompts.items():
        if not 0 <= layer < num_layers or prompt.ndim != 2:
            raise ValueError(
                f"deep_prompts[{layer}]: expected (tokens, width) for one of {num_layers} layers, "
                f"got shape {tuple(prompt.shape)}"
            )
    return deep_prompts


def chunks(count: int, size: int) -> Iterator[slice]:
    size = max(size, 1)
    return (slice(start, start + size) for start in range(0, count, size))


__all__ = ["check_prefix", "checked_deep_prompts", "chunks", "encode_rows", "has_variants"]
