"""Words that a model is to predict, as labels of tokens."""

from collections.abc import Sequence

import torch


NO_WORD = -100  # the label of a token that is not to be predicted


def check_word_labels(name: str, value: object, shape: Sequence[int], vocab_size: int) -> None:
    """ValueError unless whole numbers of a shape (batch, tokens): tokens, or `NO_WORD` where none is asked for."""
    is_tensor = isinstance(value, torch.Tensor)
    if not is_tensor or value.dtype != torch.int64 or list(value.shape) != list(shape):
        got = f"{value.dtype} {list(value.shape)}" if is_tensor else type(value).__name__
        raise ValueError(f"{name}: got {got}, expected whole numbers {list(shape)} [batch, tokens] as input_ids")
    known = value[value != NO_WORD]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < vocab_size:
        raise ValueError(
            f"{name}: {int(known.min())}..{int(known.max())}, expected {NO_WORD} or tokens, 0..{vocab_size - 1}"
        )


__all__ = ["NO_WORD", "check_word_labels"]
