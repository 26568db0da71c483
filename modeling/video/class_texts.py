"""Features of classes' texts, for models that compare videos, or other inputs without a classifier, with texts."""

from collections.abc import Mapping, Sequence

import torch

from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.prompts import encode_texts, format_prompts, prompt_counts


def class_features(
    model,
    tokenizer,
    names: Sequence[str],
    templates: Sequence[str] | Mapping[str, Sequence[str]],
    what: str,
) -> torch.Tensor:
    """(C, D) text features of C classes in one batch; of several templates the mean of unit vectors.

    Args:
        model: with `get_text_features`.
        tokenizer: the model's.
        names, templates: as `resolve_class_names` and `resolve_templates` give them; a mapping has each class's own
            prompts.
        what: the argument that errors name.
    """
    tokens = encode_texts(
        tokenizer, format_prompts(names, templates), what=what, padding=True, truncation=True, return_tensors="pt"
    )
    features = model.get_text_features(**tokens.to(model.device)).pooler_output
    counts = prompt_counts(names, templates)
    if max(counts) == 1:
        return features
    return torch.stack([prompts.mean(0) for prompts in unit_norm(features).split(counts)])


__all__ = ["class_features"]
