"""Classifiers with one adapter of each kind, whose tensors are not at their initial values."""

import copy
import tempfile
from functools import cache

import torch
from adapter_models import tiny_classifier
from peft import LoraConfig, get_peft_model
from tiny_families import family_class_names, save_tiny_family, tiny_family_tokenizer

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import (
    CLIPAdapterConfig,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    LinearHeadConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
)


CONFIGS = {
    "coop": lambda: CoOpConfig(num_context_tokens=2, class_token_position="middle"),
    "cocoop": lambda: CoCoOpConfig(num_context_tokens=2, context_init=None, meta_reduction=4),
    "maple": lambda: MaPLeConfig(prompt_depth=2, context_init="a photo of"),
    "vpt": lambda: VPTConfig(num_prompt_tokens=3),
    "ivlp": lambda: IVLPConfig(context_init="a photo of"),
    "clip_adapter": lambda: CLIPAdapterConfig(modality="both", learnable_ratio=True),
    "tip_adapter": lambda: TipAdapterConfig(trainable_keys=True),
    "linear_head": lambda: LinearHeadConfig(trainable=True),
    "lora": lambda: LoraConfig(target_modules=["q_proj", "v_proj"]),
}
KINDS = [None, *CONFIGS]  # None: the classifier alone


@cache
def _family_classifier(model_type: str) -> CLIPClassifier:
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_family(model_type, folder)
        return CLIPClassifier.from_pretrained(
            folder, class_names=family_class_names(model_type), tokenizer=tiny_family_tokenizer(model_type)
        ).eval()


def base_classifier(model_type: str = "clip", **overrides) -> CLIPClassifier:
    """A tiny classifier of a family, with five classes, in eval mode."""
    return tiny_classifier(**overrides) if model_type == "clip" else copy.deepcopy(_family_classifier(model_type))


def adapted(kind: str | None, base: CLIPClassifier | None = None, **options) -> torch.nn.Module:
    """`base` (default: `base_classifier()`) with an adapter of this kind, in eval mode."""
    base = base_classifier() if base is None else base
    if kind is None:
        return base
    torch.manual_seed(3)
    model = get_peft_model(base, CONFIGS[kind](), **options)
    if kind == "tip_adapter":
        count, width = len(base.class_names), base.config.projection_dim
        model.build_cache(torch.randn(2 * count, width), torch.arange(2 * count) % count)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


__all__ = ["CONFIGS", "KINDS", "adapted", "base_classifier"]
