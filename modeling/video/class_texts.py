"""Features of classes' texts, for models that compare videos with texts."""

from collections.abc import Sequence

import torch

from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.prompts import encode_texts, format_prompts


def class_features(model, tokenizer, names: Sequence[str], templates: Sequence[str], what: str) -> torch.Tensor:
    """(C, D) text features of C classes in one batch; of several templates the mean of unit vectors.

    Args:
        model: with `get_text_features`.
        tokenizer: the model's.
        names, templates: as `resolve_class_names` and `resolve_templates` give them.
        what: the argument that errors name.
    """
    tokens = encode_texts(
        tokenizer, format_prompts(names, templates), what=what, padding=True, truncation=True, return_tensors="pt"
    )
    features = model.get_text_features(**tokens.to(model.device)).pooler_output
    if len(templates) == 1:
        return features
    if not getattr(model, "has_unit_embeddings", True):
        return features.view(len(names), len(templates), -1).mean(1)
    return unit_norm(features).view(len(names), len(templates), -1).mean(1)


__all__ = ["class_features"]
