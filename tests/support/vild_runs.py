"""A tiny ViLD and its inputs: images of 64 pixels, five labels of which the last two are novel."""

import torch
from tiny import copy_of, tiny_clip_config, tiny_pixels, tiny_tokenizer

from hf_clip_variants import ViLDConfig, ViLDForZeroShotObjectDetection, ViLDImageProcessor, ViLDProcessor


# Arguments of a configuration that are wrong, and what the error says.
VILD_BAD_VALUES = (
    ({"variant": "both"}, "variant"),
    ({"convention": "caffe"}, "convention"),
    ({"temperature": 0.0}, "temperature: 0.0"),
    ({"distill_weight": -1.0}, "distill_weight: -1.0, expected a number >= 0"),
    ({"roi_samples": 0}, "roi_samples: 0"),
    ({"nms_threshold": 1.5}, "nms_threshold: 1.5, expected a number in 0..1"),
    ({"rpn_negative_iou": 0.9}, "rpn_negative_iou: 0.9 is above"),
    ({"batch_norm_momentum": 2.0}, "batch_norm_momentum: 2.0"),
    ({"anchor_ratios": []}, "anchor_ratios"),
    ({"hidden_size": 0}, "hidden_size: 0"),
    ({"background": 0.5, "label_texts": None}, "background: 0.5, expected None"),
    ({"backbone_config": {"depths": [1, 1, 1]}}, "backbone_config.depths: \\[1, 1, 1\\], expected a number for each"),
    ({"backbone_config": {"hidden_sizes": [8]}}, "backbone_config.hidden_sizes"),
    ({"backbone_config": {"embedding_size": -1}}, "backbone_config.embedding_size: -1"),
    ({"backbone_config": {"model_type": "bert"}}, "backbone_config.model_type: 'bert', expected 'resnet'"),
    ({"dual_encoder_config": {"model_type": "bert"}}, "dual_encoder_config.model_type: 'bert'"),
)


NAMES = ["cat", "dog", "bird", "pizza", "car"]
BASE = NAMES[:3]
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
SIZES = {
    "temperature": 0.1,  # cosines are compared with an absolute tolerance
    "backbone_config": BACKBONE,
    "hidden_size": 12,
    "head_num_convs": 1,
    "head_num_layers": 2,
    "head_hidden_size": 20,
    "rpn_num_convs": 1,
    "mask_num_convs": 1,
    "rpn_post_nms": 12,
    "rpn_post_nms_in_training": 12,
    # more than there are: nothing is drawn by chance
    "rpn_samples": 20_000,
    "rpn_positive_share": 1.0,
    "roi_samples": 400,
    "roi_positive_share": 1.0,
    "max_detections": 10,
}


def vild_config(**fields) -> ViLDConfig:
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    values = SIZES | labels | {"label_texts": [[name] for name in NAMES], "base_labels": BASE}
    return ViLDConfig(dual_encoder_config=tiny_clip_config().to_dict(), **values | fields)


def with_open_weights(model) -> None:
    """New batch norms are trivial, new box codes and labels are zero: errors would not be seen."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if name.startswith("text_encoder."):
            continue
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean") or name == "class_embeddings" or name.startswith("region_head.box_codes"):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        elif name == "region_head.background":
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


def vild_model(seed: int = 0, **fields) -> ViLDForZeroShotObjectDetection:
    def build():
        torch.manual_seed(seed)
        model = ViLDForZeroShotObjectDetection(vild_config(**fields)).eval()
        with_open_weights(model)
        return model

    return copy_of(f"vild {seed} {sorted(fields.items())}", build)


def vild_boxes(batch: int, count: int, seed: int = 0, size: int = 64) -> torch.Tensor:
    """(batch, count, 4) in pixels; the last of each image is padding."""
    corners = torch.rand(batch, count, 4, generator=torch.Generator().manual_seed(seed)) * size / 2
    boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] + 6], dim=-1)
    boxes[:, -1] = -1
    return boxes


def vild_labels(batch: int, masks: bool = True, size: int = 64) -> list[dict]:
    labels = []
    for i in range(batch):
        boxes = torch.tensor([[0.3, 0.3, 0.3, 0.25], [0.7, 0.6, 0.4, 0.5]]) + 0.02 * (i % 4)
        one = {"class_labels": torch.tensor([i % 3, 2]), "boxes": boxes}
        if masks:
            one["masks"] = torch.zeros(2, size, size, dtype=torch.bool)
            one["masks"][0, 10:28, 12:30], one["masks"][1, 25:50, 32:58] = True, True
        labels.append(one)
    return labels


def vild_inputs(batch: int, distilled: bool = True) -> dict:
    inputs = {
        "pixel_values": tiny_pixels(batch, size=64),
        "labels": vild_labels(batch),
        "proposals": vild_boxes(batch, 8),
    }
    if distilled:
        teacher = torch.randn(batch, 5, 24, generator=torch.Generator().manual_seed(5))
        inputs |= {"distill_boxes": vild_boxes(batch, 5, seed=1), "distill_embeddings": teacher}
    return inputs


def vild_collate(rows: list[dict]) -> dict:
    """`labels` stay a list."""
    return {n: [r[n] for r in rows] if n == "labels" else torch.stack([r[n] for r in rows]) for n in rows[0]}


def vild_processor() -> ViLDProcessor:
    images = ViLDImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    return ViLDProcessor(images, tiny_tokenizer(), templates=["a photo of a {}."])
