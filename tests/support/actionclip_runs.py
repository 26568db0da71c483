"""A tiny ActionCLIP and batches for it; its cases in the contract."""

import torch
from clip4clip_runs import clip4clip_batch
from tiny import copy_of, tiny_clip, tiny_clip_config

from hf_clip_variants import ActionCLIPConfig, ActionCLIPForVideoClassification, ActionCLIPModel


# Arguments of a configuration that are wrong, and what the error says.
ACTIONCLIP_BAD_VALUES = (
    ({"visual_prompt": "tsm"}, "visual_prompt: 'tsm', expected one of none, shift, joint"),
    ({"fusion_head": "mean"}, "fusion_head: 'mean', expected one of meanP"),
    ({"conv1d_layout": "view"}, "conv1d_layout: 'view', expected one of transposed, official"),
    ({"frozen_encoders": "image"}, "frozen_encoders: 'image', expected one of none, text, both"),
    ({"visual_prompt": "joint"}, "fusion_head: 'Transf' with visual_prompt 'joint'"),
    ({"num_frames": 0}, "num_frames: 0"),
    ({"num_frames": 99}, "fusion_positions: 32, expected at least 99 for num_frames=99"),
    ({"num_fusion_layers": 0}, "num_fusion_layers: 0"),
    ({"num_fusion_heads": 5}, "num_fusion_heads: 5 does not divide 24, the joint width"),
    ({"fusion_positions": 0}, "fusion_positions: 0"),
    ({"fusion_dropout": 1.0}, "fusion_dropout: 1.0, expected a number in 0..1"),
    ({"score_scale": -1.0}, "score_scale: -1.0, expected a number > 0 or None"),
    ({"visual_prompt": "shift", "shift_divisor": 41}, "shift_divisor: 41, expected at most 40"),
    ({"visual_prompt": "shift", "shift_divisor": 1}, "shift_divisor: 1, expected at least 2"),
    ({"num_class_features": -1}, "num_class_features: -1"),
    ({"num_class_features": 3}, "num_class_features, num_class_templates: 3, 0, expected both or neither"),
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
)


def actionclip_config(**options) -> ActionCLIPConfig:
    """A configuration in which no size is the default."""
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config", "projection_dim")}
    fusion = {"num_fusion_layers": 2, "num_fusion_heads": 3, "num_frames": 5, "logit_scale_init_value": 2.0}
    return ActionCLIPConfig(**{**encoders, **fusion, **options})


def actionclip_model(seed: int = 0, **options) -> ActionCLIPModel:
    def build():
        torch.manual_seed(seed)
        return ActionCLIPModel(actionclip_config(**options)).eval()

    return copy_of(f"actionclip {seed} {options}", build)


def actionclip_batch(batch: int = 4, **options) -> dict[str, torch.Tensor]:
    """Pairs, of which some have the same class."""
    return clip4clip_batch(batch, **options) | {"labels": torch.arange(batch) % 3}


def actionclip_classifier(seed: int = 0, classes: int = 3, **options) -> ActionCLIPForVideoClassification:
    """With two random prompts of each class."""

    def build():
        torch.manual_seed(seed)
        model = ActionCLIPForVideoClassification(classifier_config(classes, **options)).eval()
        with_classes(model)
        return model

    return copy_of(f"actionclip classifier {seed} {classes} {options}", build)


def classifier_config(classes: int = 3, **options) -> ActionCLIPConfig:
    names = {label: f"class {label}" for label in range(classes)}
    return actionclip_config(**{"num_class_features": classes, "num_class_templates": 2, "id2label": names} | options)


def classifier_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    whole = actionclip_batch(batch)
    return {name: whole[name] for name in ("pixel_values_videos", "video_mask", "labels")}


def with_classes(model) -> None:
    torch.nn.init.normal_(model.class_features)
    torch.nn.init.normal_(model.no_class_features)


ACTIONCLIP = {
    "name": "actionclip",
    "config": actionclip_config,
    "inputs": actionclip_batch,
    "backbone": tiny_clip,
    "output": "logits_per_video",
    "by_row": ("video_embeds", "text_embeds"),
    "loss_is_of_the_batch": True,
    "bad_values": ACTIONCLIP_BAD_VALUES,
}
ACTIONCLIP_CLASSIFIER = {
    "name": "actionclip",
    "part": "AutoModelForVideoClassification",
    "auto_class": "AutoModelForVideoClassification",
    "config": classifier_config,
    "inputs": classifier_batch,
    "prepare": with_classes,
    "untrained": ("clip.text_model.", "clip.text_projection.", "clip.logit_scale"),
}
