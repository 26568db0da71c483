"""Class names as token ids: for the classes that a `CLIPClassifier` keeps, and for those of one call.

`set_classes` changes the model, for all threads that use it: another thread that reads `class_names` beside its logits
may see the new ones. `forward(class_names=...)` changes nothing: names, ids and features belong to the call. Both give
the same logits.
"""

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from ..dual_encoders.prompts import check_names_differ, format_prompts, prompt_counts, tokenize_texts
from .adapter_places import ClassPrompts


# Tokenizers keep the settings of a call in themselves: two calls at once raise or disturb each other.
_TOKENIZING = threading.Lock()


@dataclass(frozen=True)
class NamedClasses:
    """C classes, T templates, L tokens, S tail tokens. Not changed once made."""

    names: tuple[str, ...]
    template_ids: torch.Tensor  # (C, T, L)
    tail_ids: torch.Tensor  # (C, S)
    tail_name_lengths: torch.Tensor  # (C,)
    counts: tuple[int, ...]  # (C,) prompts of each class

    def prompts(self, device: torch.device, padding_id: int, num_start_tokens: int, max_length: int) -> ClassPrompts:
        """What a prompt embedder takes."""
        ids = (t.to(device, torch.int32) for t in (self.template_ids, self.tail_ids, self.tail_name_lengths))
        own_counts = self.counts if len(set(self.counts)) > 1 else None
        return ClassPrompts(*ids, padding_id, num_start_tokens, max_length, own_counts)


def tokenize_classes(
    names: Sequence[str],
    templates: Sequence[str] | Mapping[str, Sequence[str]],
    tokenizer,
    *,
    max_length: int,
    num_start_tokens: int,
    padding_id: int,
    full_stop: str,
) -> NamedClasses:
    """Checked names in checked templates, as a model's family wants them.

    Raises ValueError for names whose prompts are the same token ids, and warns of what is too long.
    """
    spoken = [name.replace("_", " ") for name in names]

    def tokenize(texts, what):
        return tokenize_texts(tokenizer, texts, max_length=max_length, what=what)

    with _TOKENIZING:
        prompts = tokenize(format_prompts(names, templates), "class prompts")
        counts, rows = prompt_counts(names, templates), iter(map(tuple, prompts))
        check_names_differ(names, [tuple(next(rows) for _ in range(count)) for count in counts])
        with warnings.catch_warnings():  # a name that is too long has been reported once, as a prompt
            warnings.simplefilter("ignore", UserWarning)
            tails = tokenize([name + full_stop for name in spoken], "class_names")
            alone = tokenize(spoken, "class_names")
    by_class = _pad_rows(prompts, padding_id).split(counts)
    prompt_ids = pad_sequence(by_class, batch_first=True, padding_value=padding_id)
    tail_ids = _pad_rows([row[num_start_tokens:] for row in tails], padding_id)
    special = num_start_tokens + 1
    name_lengths = torch.tensor([min(len(a), len(t)) - special for a, t in zip(alone, tails, strict=True)])
    return NamedClasses(tuple(names), prompt_ids, tail_ids, name_lengths, tuple(counts))


def _pad_rows(rows: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([list(row) + [padding] * (length - len(row)) for row in rows], dtype=torch.int32)


__all__ = ["NamedClasses", "tokenize_classes"]
