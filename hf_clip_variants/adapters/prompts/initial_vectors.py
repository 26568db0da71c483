"""Code that all prompt learners share: initial vectors, the length of prompts, checks of settings and of files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from hf_clip_variants.modeling.dual_encoders.offloading import device_of, weight_of

from ..official_tensors import finite
from ..tuner import Base, TunerConfig


INIT_STD = 0.02  # standard deviation of vectors that do not start from words (Zhou et al. 2022)


def initial_vectors(
    shape: tuple[int, ...], token_embedding: nn.Module, token_ids: list[int] | None = None
) -> torch.Tensor:
    """float32 vectors of `shape` (..., M, d): the embeddings of M tokens, or N(0, 0.02²) without `token_ids`."""
    vectors = torch.empty(shape, dtype=torch.float32, device=device_of(token_embedding))
    if token_ids is None:
        return nn.init.normal_(vectors, std=INIT_STD)
    weight = weight_of(token_embedding, "weight")
    ids = torch.tensor(token_ids, device=weight.device)
    return vectors.copy_(F.embedding(ids, weight.detach()).expand(shape))


def embed_start(prompts, token_embedding: nn.Module) -> torch.Tensor:
    """(S0, d) embeddings of the start tokens, which all classes of `prompts` (ClassPrompts) have in common.

    As (rows, tokens, d) inside, because hooks on the token embedding, such as NEFTune's noise, expect rows.
    """
    ids = prompts.start_ids[:1]
    return (
        token_embedding(ids)[0]
        if ids.numel()
        else token_embedding.weight.new_empty(0, token_embedding.weight.shape[1])
    )


def check_prompt_length(num_tokens: int, tail_length: int, max_length: int, num_start_tokens: int = 1) -> None:
    """Raises ValueError if a prompt is longer than the text encoder's `max_length`.

    Args:
        num_tokens: tokens between the start and the class name.
        tail_length: tokens of the longest class name, with "." and EOS.
        max_length: positions of the text encoder.
        num_start_tokens: 1 for SOS, or 0.
    """
    length = num_start_tokens + num_tokens + tail_length
    if length > max_length:
        raise ValueError(
            f"num_context_tokens: {num_tokens} context tokens and the longest class name make a prompt of {length} "
            f"tokens, the text encoder takes {max_length}"
        )


def words_to_ids(config: TunerConfig, base: Base, words: str) -> list[int]:
    """Token ids of `words`, without start and end of text. Underscores are read as spaces.

    The tokenizer is the classifier's, or the one in the folder of a plain dual encoder's checkpoint.

    Raises:
        ValueError: there is no tokenizer.
    """
    words = words.replace("_", " ").strip()
    if base.is_classifier:
        return base.model.tokenizer(words, add_special_tokens=False).input_ids
    source = getattr(base.model.config, "_name_or_path", None)
    try:
        if not source:
            raise OSError("the model was not loaded from a checkpoint")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(source)(words, add_special_tokens=False).input_ids
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"context_init: {words!r} needs a tokenizer, which a {type(base.model).__name__} does not have ({error}); "
            "pass context_init_ids=tokenizer(words, add_special_tokens=False).input_ids"
        ) from error


def check_token_ids(argument: str, ids: list[int] | None, base: Base) -> None:
    """Raises ValueError for an id outside the base's vocabulary, and for more of them than a prompt may have."""
    longest = base.family.context_length(base.clip.config)
    if len(ids or []) > longest:
        raise ValueError(f"{argument}: {len(ids)} tokens, the text encoder takes {longest}")
    vocabulary = base.family.token_embedding_of(base.clip).num_embeddings
    for token in ids or []:
        if not 0 <= token < vocabulary:
            raise ValueError(f"{argument}: {token} is outside the vocabulary of {vocabulary} tokens")


def check_count(argument: str, value: int, least: int = 1) -> None:
    """Raises ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{argument}: {value!r}, expected a whole number of at least {least}")


def check_depth(argument: str, value: int | str, least: int = 1) -> None:
    """Raises ValueError unless `value` is a number of layers or "all"."""
    if value != "all":
        if isinstance(value, str):
            raise ValueError(f"{argument}: {value!r}, expected a number of layers or 'all'")
        check_count(argument, value, least)


def stack_layers(first: torch.Tensor, deep: Mapping[int, torch.Tensor], what: str) -> torch.Tensor:
    """Stacks the prompts of a checkpoint's layers, (n, d) each -> (J, n, d) float32.

    Args:
        first: prompts of layer 0.
        deep: prompts of layers 1 to J - 1.
        what: their name in the checkpoint, for errors.

    Raises:
        ValueError: a layer is missing, shapes differ, or a number is not finite.
    """
    if sorted(deep) != list(range(1, len(deep) + 1)):
        raise ValueError(f"state_dict: {what} of layers {sorted(deep)}, expected 1 to {len(deep)}")
    prompts = [first, *(deep[layer] for layer in sorted(deep))]
    shapes = sorted({tuple(p.shape) for p in prompts})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"state_dict: prompts of shapes {shapes}, expected one shape (n, d)")
    return finite(torch.stack([p.detach().float() for p in prompts]), what)


__all__ = [
    "INIT_STD",
    "check_count",
    "check_depth",
    "check_prompt_length",
    "check_token_ids",
    "initial_vectors",
    "stack_layers",
    "words_to_ids",
]
