"""Features of classes' texts, for models that compare videos, or other inputs without a classifier, with texts."""

from collections.abc import Mapping, Sequence

import torch

from ..dual_encoders.backbones import unit_norm
from ..dual_encoders.prompts import (
    encode_texts,
    format_prompts,
    prompt_counts,
    resolve_class_names,
    resolve_templates,
)


def class_features(
    model,
    tokenizer,
    names: Sequence[str],
    templates: Sequence[str] | Mapping[str, Sequence[str]],
    what: str,
) -> torch.Tensor:
    """Text features of C classes in one batch: (C, D), of several templates the mean of unit vectors. Of a model that
    `scores_each_template` (P, C, D), those of each of P templates.

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
    if getattr(model, "scores_each_template", False):
        if len(set(counts)) > 1:
            raise ValueError("templates: got other numbers of prompts for some classes, expected as many for each")
        return features.view(len(names), counts[0], -1).transpose(0, 1).contiguous()
    if max(counts) == 1:
        return features
    if not getattr(model, "has_unit_embeddings", True):
        return torch.stack([prompts.mean(0) for prompts in features.split(counts)])
    return torch.stack([prompts.mean(0) for prompts in unit_norm(features).split(counts)])


@torch.no_grad()
def encode_classes(
    model, class_names: str | Sequence[str], processor, templates: str | Sequence[str]
) -> tuple[list[str], list[str], torch.Tensor]:
    """Names and templates as lists, and `class_features` in the model's dtype, computed in eval mode.

    Raises ValueError for no, blank or repeated names, or a template without {}.
    """
    names, templates = resolve_class_names(class_names), resolve_templates(templates)
    tokenizer, training = getattr(processor, "tokenizer", processor), model.training
    model.eval()
    try:
        features = class_features(model, tokenizer, names, templates, "class_names")
    finally:
        model.train(training)
    return names, templates, features.to(model.dtype)


def set_labels(config, names: Sequence[str]) -> None:
    """Makes these a configuration's labels, in order."""
    config.num_class_features = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: label for label, name in enumerate(names)}


__all__ = ["class_features", "encode_classes", "set_labels"]
