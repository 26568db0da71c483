"""Small models that segment by texts, in memory and as saved folders."""

from pathlib import Path

import torch
from tiny import copy_of
from toy_segmentation import ToyForSemanticSegmentation, ToySegmentationConfig, toy_model, toy_processor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, AutoProcessor

import hf_clip_variants  # noqa: F401 (registers GroupViT)
from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor
from hf_clip_variants.modeling.dense.processing_dense import DenseProcessor


def register_toy() -> None:
    """Makes the toy known to the Auto classes of this process."""
    AutoConfig.register("toy-segmentation", ToySegmentationConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ToySegmentationConfig, ToyForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(ToySegmentationConfig, DenseImageProcessor, exist_ok=True)
    AutoProcessor.register(ToySegmentationConfig, DenseProcessor, exist_ok=True)


def tiny_groupvit(seed: int = 0, **options):
    """A random GroupViTForSemanticSegmentation in eval mode with the embedded tokenizer's vocabulary."""
    from hf_clip_variants import GroupViTConfig, GroupViTForSemanticSegmentation

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    text |= {"vocab_size": 4038, "max_position_embeddings": 32, "bos_token_id": 4036, "eos_token_id": 4037}
    vision = {"hidden_size": 32, "num_attention_heads": 1, "intermediate_size": 64, "image_size": 32, "patch_size": 4}
    vision |= {"depths": [1, 1], "num_group_tokens": [8, 0], "num_output_groups": [6]}

    def build():
        torch.manual_seed(seed)
        config = GroupViTConfig(text_config=text, vision_config=vision, projection_dim=16, **options)
        return GroupViTForSemanticSegmentation(config).eval()

    return copy_of(f"groupvit {seed} {options}", build)


def tiny_lseg(seed: int = 0, **options):
    """A random LSegForSemanticSegmentation in eval mode with the embedded tokenizer's vocabulary."""
    from hf_clip_variants import LSegConfig, LSegForSemanticSegmentation

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    vision = text | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 16}
    text |= {"vocab_size": 4038, "max_position_embeddings": 32, "bos_token_id": 4036, "eos_token_id": 4037}

    def build():
        torch.manual_seed(seed)
        sizes = {"fusion_hidden_size": 16, "projection_dim": 24} | options
        return LSegForSemanticSegmentation(LSegConfig(text_config=text, vision_config=vision, **sizes)).eval()

    return copy_of(f"lseg {seed} {options}", build)


# Not by the methods' names, which are in the ids of their own tests: these tests are of what segmenters share.
SEGMENTERS = {"toy": toy_model, "groups": tiny_groupvit, "decoder": tiny_lseg}


def segmenter(kind: str):
    """(model, processor): "toy", "groups" (GroupViT) or "decoder" (LSeg)."""
    return SEGMENTERS[kind](), toy_processor("a {}.")


def save_segmenter(folder: Path, kind: str = "toy", labels=None, background=None, drop_text: bool = False) -> Path:
    """A folder with model and processor; with `labels` they are folded in."""
    register_toy()
    model, processor = segmenter(kind)
    if labels is not None:
        model.set_labels(labels, processor, background=background)
    if drop_text:
        model.drop_text_encoder()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


__all__ = ["SEGMENTERS", "register_toy", "save_segmenter", "segmenter", "tiny_groupvit", "tiny_lseg"]
