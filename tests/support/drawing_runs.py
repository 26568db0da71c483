"""Tiny models that draw, and batches of strokes for them."""

import torch
from tiny import tiny_clip, tiny_clip_config, tiny_pixels

from hf_clip_variants import CLIPassoConfig, CLIPassoForImageSynthesis, CLIPDrawConfig, CLIPDrawForImageSynthesis


# Arguments of a configuration that are wrong for both, and what the error says.
_BAD_VALUES = (
    ({"num_strokes": 0}, "num_strokes: 0"),
    ({"num_strokes": 10**9}, "num_strokes: 1000000000"),
    ({"num_steps": -1}, "num_steps: -1"),
    ({"num_steps": 10**12}, "num_steps: 1000000000000"),
    ({"canvas_size": 10**6}, "canvas_size: 1000000"),
    ({"canvas_size": 0}, "canvas_size: 0"),
    ({"points_lr": float("nan")}, "points_lr: nan"),
    ({"points_lr": -1.0}, "points_lr: -1.0"),
    ({"colors_lr": "fast"}, "colors_lr"),
    ({"views_at_once": 0}, "views_at_once: 0"),
    ({"image_std": [0.0, 0.0, 0.0]}, "image_std: \\[0.0, 0.0, 0.0\\], expected three numbers > 0"),
    ({"image_mean": [0.5]}, "image_mean: \\[0.5\\], expected three numbers"),
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
    ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert'"),
)
DRAW_BAD_VALUES = (
    *_BAD_VALUES,
    ({"max_segments": 0}, "max_segments: 0"),
    ({"num_augmentations": 0}, "num_augmentations: 0"),
    ({"min_radius": 9.0, "max_radius": 2.0}, "min_radius: 9.0, expected at most max_radius"),
    ({"max_radius": 10**9}, "max_radius: 1000000000"),
    ({"negative_weight": -1.0}, "negative_weight: -1.0"),
)
SKETCH_BAD_VALUES = (
    *_BAD_VALUES,
    ({"num_segments": 0}, "num_segments: 0"),
    ({"stroke_radius": 0.0}, "stroke_radius: 0.0"),
    ({"num_stages": 0}, "num_stages: 0"),
    ({"num_stages": 2.5}, "num_stages"),
    ({"perceptual_weight": -1.0}, "perceptual_weight: -1.0"),
    ({"text_weight": "much"}, "text_weight"),
    ({"loss_type": "L3"}, "loss_type: 'L3', expected one of L2, L1, Cos"),
    ({"start": "corners"}, "start: 'corners', expected one of salient, edges"),
    ({"layer_weights": [1.0]}, "layer_weights: \\[1.0\\], expected 3 numbers"),
    ({"layer_weights": [1.0, 0.0, -1.0]}, "layer_weights"),
    ({"feature_weight": -0.1}, "feature_weight: -0.1"),
    ({"softmax_temperature": 0.0}, "softmax_temperature: 0.0"),
    ({"evaluate_every": 0}, "evaluate_every: 0"),
    ({"min_delta": -1.0}, "min_delta: -1.0"),
)


def _encoders(**options) -> dict:
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config")}
    return {**encoders, "projection_dim": 24, "logit_scale_init_value": 2.0, **options}


def draw_config(**options) -> CLIPDrawConfig:
    return CLIPDrawConfig(**_encoders(**{"num_strokes": 5, "num_steps": 6, "num_augmentations": 2, **options}))


def sketch_config(**options) -> CLIPassoConfig:
    return CLIPassoConfig(**_encoders(**{"num_strokes": 4, "num_steps": 6, "num_augmentations": 2, **options}))


def draw_model(**options) -> CLIPDrawForImageSynthesis:
    return CLIPDrawForImageSynthesis.from_clip(tiny_clip(), **{"num_strokes": 5, "num_augmentations": 2, **options})


def sketch_model(**options) -> CLIPassoForImageSynthesis:
    return CLIPassoForImageSynthesis.from_clip(tiny_clip(), **{"num_strokes": 4, "num_augmentations": 2, **options})


def stroke_batch(batch: int = 4, size: int = 24) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "points": size * torch.rand(batch, 5, 7, 2, generator=g),
        "radii": 0.5 + torch.rand(batch, 5, generator=g),
        "colors": torch.rand(batch, 5, 4, generator=g),
        "num_segments": torch.randint(1, 3, (batch, 5), generator=g),
    }


def draw_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 4036, (batch, 7), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, 6] = 4036, 4037
    return stroke_batch(batch) | {"input_ids": ids}


def sketch_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    return stroke_batch(batch) | {"pixel_values": tiny_pixels(batch)}


CLIPDRAW = {
    "name": "clipdraw",
    "config": draw_config,
    "inputs": draw_batch,
    "backbone": tiny_clip,
    "output": "logits_per_image",
    "by_row": ("images", "image_embeds", "text_embeds"),
    "loss_options": {"return_loss": True},
    "bad_values": DRAW_BAD_VALUES,
    "untrained": ("clip.logit_scale",),
}
CLIPASSO = {
    "name": "clipasso",
    "config": sketch_config,
    "inputs": sketch_batch,
    "backbone": tiny_clip,
    "output": "terms",
    "by_row": ("images", "terms"),
    "bad_values": SKETCH_BAD_VALUES,
    "untrained": ("clip.logit_scale", "clip.text_model.", "clip.text_projection."),
}
