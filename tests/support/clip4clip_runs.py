"""A tiny CLIP4Clip and batches for it."""

import torch
from tiny import copy_of, tiny_clip_config, tiny_pixels

from hf_clip_variants import CLIP4ClipConfig, CLIP4ClipModel


# Arguments of a configuration that are wrong, and what the error says.
CLIP4CLIP_BAD_VALUES = (
    ({"similarity_head": "mean"}, "similarity_head: 'mean', expected one of meanP"),
    ({"patch_embedding": "4d"}, "patch_embedding: '4d', expected one of 2d, 3d"),
    ({"num_frames": 0}, "num_frames: 0"),
    ({"num_frames": 99}, "head_config.max_position_embeddings: 32, expected at least 99"),
    ({"head_dropout": 1.0}, "head_dropout: 1.0, expected a number in 0..1"),
    ({"frozen_layers": -2}, "frozen_layers: -2, expected a number of layers, or -1"),
    ({"pairs_per_tile": 0}, "pairs_per_tile: 0"),
    ({"num_class_features": -1}, "num_class_features: -1"),
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"head_config": {"hidden_size": 27}}, "head_config.hidden_size: 27, expected 24, the joint width"),
    ({"head_config": {"num_hidden_layers": -1}}, "num_hidden_layers: -1"),
    (
        {"head_config": {"model_type": "bert"}},
        "head_config.model_type: 'bert', expected 'clipv-clip4clip_head'",
    ),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
)


FRAMES = 4


def clip4clip_config(**options) -> CLIP4ClipConfig:
    """A configuration in which no size is the default; everything trains."""
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config", "projection_dim")}
    head = {"num_hidden_layers": 2, "num_attention_heads": 3}
    sizes = {"head_config": head, "num_frames": 5, "frozen_layers": -1, "logit_scale_init_value": 2.0}
    return CLIP4ClipConfig(**{**encoders, **sizes, **options})


def clip4clip_model(seed: int = 0, **options) -> CLIP4ClipModel:
    def build():
        torch.manual_seed(seed)
        return CLIP4ClipModel(clip4clip_config(**options)).eval()

    return copy_of(f"clip4clip {seed} {options}", build)


def clip4clip_batch(batch: int = 4, frames: int = FRAMES, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 4000, (batch, 7), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, 6] = 4036, 4037
    ids[1::2, 5] = 4037
    mask = torch.ones(batch, frames, dtype=torch.long)
    mask[1::3, frames - 1] = 0
    mask[2::3, frames // 2 :] = 0
    return {
        "input_ids": ids,
        "pixel_values_videos": tiny_pixels(batch * frames, seed).unflatten(0, (batch, frames)),
        "video_mask": mask,
    }


def _classifier_config(**options) -> CLIP4ClipConfig:
    names = {label: f"class {label}" for label in range(3)}
    return clip4clip_config(**{"num_class_features": 3, "id2label": names} | options)


def _classifier_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    videos = clip4clip_batch(batch)
    del videos["input_ids"]
    return videos | {"labels": torch.arange(batch) % 3}


CLIP4CLIP_CLASSIFIER = {
    "name": "clip4clip",
    "part": "AutoModelForVideoClassification",
    "auto_class": "AutoModelForVideoClassification",
    "config": _classifier_config,
    "inputs": _classifier_batch,
    "prepare": lambda model: torch.nn.init.normal_(model.class_features),
    "untrained": ("clip.text_model.", "clip.text_projection."),
}
