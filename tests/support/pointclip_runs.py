"""A tiny PointCLIP, its processor and batches for it."""

import numpy as np
import torch
from tiny import CLASS_NAMES, copy_of, tiny_clip_config, tiny_tokenizer

from hf_clip_variants import PointCLIPConfig, PointCLIPModel, PointCloudProcessor, PointTextProcessor


# Arguments of a configuration that are wrong, and what the error says.
POINTCLIP_BAD_VALUES = (
    ({"projection": "sphere"}, "projection: 'sphere', expected one of realistic, sparse"),
    ({"views": "all"}, "views: 'all', expected one of sparse_6"),
    ({"view_angles": [[0, 1]]}, "view_angles: \\[\\[0, 1\\]\\], expected three angles"),
    ({"view_angles": []}, "view_angles"),
    ({"view_weights": [1.0, 2.0]}, "view_weights: \\[1.0, 2.0\\], expected 10 numbers"),
    ({"view_weights": 10 * [0.0]}, "view_weights"),
    ({"resolution": 10**6}, "resolution: 1000000"),
    ({"camera_distance": -1.0}, "camera_distance: -1.0"),
    ({"grid_depth": 1}, "grid_depth: 1"),
    ({"object_ratio": 0.0}, "object_ratio: 0.0"),
    ({"depth_bias": -0.1}, "depth_bias: -0.1"),
    ({"pool_size": 0}, "pool_size: 0"),
    ({"pool_padding": 4}, "pool_padding: 4, expected less than half of pool_size"),
    ({"smoothing_size": 2}, "smoothing_size: 2, expected an odd number"),
    ({"smoothing_sigma": 0.0}, "smoothing_sigma: 0.0"),
    ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean, image_std: one of them is None"),
    ({"image_mean": [0.5] * 3, "image_std": [0.0] * 3}, "image_std: \\[0.0, 0.0, 0.0\\], expected three numbers > 0"),
    ({"label_smoothing": 1.0}, "label_smoothing: 1.0"),
    ({"views_at_once": 0}, "views_at_once: 0"),
    ({"num_class_features": -1}, "num_class_features: -1"),
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
    ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert'"),
)


def pointclip_config(**options) -> PointCLIPConfig:
    """A configuration in which no size is the default."""
    width = options.pop("projection_dim", 24)
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config")}
    sizes = {"resolution": 32, "grid_depth": 6, "pool_size": 5, "pool_padding": 1, "logit_scale_init_value": 2.0}
    return PointCLIPConfig(**{**encoders, "projection_dim": width, **sizes, **options})


def classes_config(**options) -> PointCLIPConfig:
    names = dict(enumerate(CLASS_NAMES))
    return pointclip_config(
        id2label=names,
        label2id={name: label for label, name in names.items()},
        num_class_features=len(names),
        **options,
    )


def with_classes(model: PointCLIPModel) -> None:
    """Features of classes that are not all zero."""
    with torch.no_grad():
        model.class_features.normal_()


def pointclip_model(seed: int = 0, **options) -> PointCLIPModel:
    def build():
        torch.manual_seed(seed)
        return PointCLIPModel(pointclip_config(**options)).eval()

    return copy_of(f"pointclip {seed} {options}", build)


def set_model(seed: int = 0, **options) -> PointCLIPModel:
    """With `CLASS_NAMES` as its classes."""
    return copy_of(
        f"pointclip set {seed} {options}",
        lambda: pointclip_model(seed, **options).set_classes(CLASS_NAMES, tiny_tokenizer()),
    )


def clouds(batch: int = 4, points: int = 60, seed: int = 0) -> torch.Tensor:
    found = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))
    return found / found.norm(dim=-1).amax(1)[:, None, None]


def pointclip_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, 60, dtype=torch.long)
    mask[1::2, 45:] = 0
    return {"points": clouds(batch), "points_mask": mask, "labels": torch.arange(batch) % len(CLASS_NAMES)}


def point_processor(**settings) -> PointTextProcessor:
    return PointTextProcessor(PointCloudProcessor(**{"num_points": 50, **settings}), tiny_tokenizer())


def cube() -> tuple[np.ndarray, np.ndarray]:
    """Eight corners and twelve triangles."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float32)
    faces = [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]]
    faces += [[2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    return corners, np.array(faces)


POINTCLIP = {
    "name": "pointclip",
    "config": classes_config,
    "inputs": pointclip_batch,
    "processor": point_processor,
    "by_row": ("logits", "view_features"),
    "bad_values": POINTCLIP_BAD_VALUES,
    "prepare": with_classes,
    "untrained": ("clip.text_model.", "clip.text_projection."),
}
