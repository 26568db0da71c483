"""A tiny GLIP and its inputs: images of 64 pixels, prompts of five names."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import copy_of, tiny_pixels

from hf_clip_variants import GLIPConfig, GLIPForZeroShotObjectDetection, GLIPImageProcessor, GLIPProcessor


# Arguments of a configuration that are wrong, and what the error says.
GLIP_BAD_VALUES = (
    ({"hidden_size": 0}, "hidden_size: 0"),
    ({"head_num_layers": 0}, "head_num_layers: 0, expected a whole number in 1.."),
    ({"fusion_num_heads": 5}, "fusion_num_heads: 5 does not divide fusion_hidden_size"),
    ({"num_groups": 5}, "num_groups: 5 does not divide hidden_size"),
    ({"fusion_dropout": 1.0}, "fusion_dropout: 1.0"),
    ({"prior_prob": 0.0}, "prior_prob: 0.0"),
    ({"focal_gamma": -1.0}, "focal_gamma: -1.0, expected a number >= 0"),
    ({"anchor_sizes": [8, 16]}, "anchor_sizes: \\[8, 16\\], expected 5"),
    ({"max_text_length": 300}, "max_text_length: 300 is above text_config.max_position_embeddings"),
    ({"use_fusion": "yes"}, "use_fusion"),
    ({"backbone_config": {"depths": [1, 1, 1]}}, "backbone_config.depths: \\[1, 1, 1\\], expected a number for each"),
    ({"backbone_config": {"num_heads": [3, 2, 2, 4]}}, "num_heads: 3 does not divide 8"),
    (
        {"backbone_config": {"model_type": "resnet"}},
        "backbone_config.model_type: 'resnet', expected 'swin'",
    ),
    ({"text_config": {"model_type": "clip_text_model"}}, "text_config.model_type: 'clip_text_model'"),
    ({"text_config": {"hidden_size": 10**9}}, "text_config.hidden_size: 1000000000"),
)


# What the linear probe trains. Officially: bbox_pred, centerness, dot_product_projection_text, log_scale, bias_lang,
# bias0
PROBE = {f"predictions.{name}" for name in ("log_scale", "text_bias", "bias")}
for _layer in ("box", "centerness", "text_projection"):
    PROBE |= {f"predictions.{_layer}.weight", f"predictions.{_layer}.bias"}

NAMES = ["cat", "dog", "bird", "traffic light", "red car"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "(", ")", "a", "the", "on", "and", "of", "holding"]
WORDS += ["cat", "dog", "bird", "traffic", "light", "red", "car", "small", "pizza", "man", "##s", "c", "##h", "##air"]
SIZES = {
    "backbone_config": {
        "embed_dim": 8,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 3,
        "drop_path_rate": 0.0,
    },
    "text_config": {
        "vocab_size": len(WORDS),
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 28,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "hidden_size": 12,
    "head_num_layers": 2,
    "fusion_hidden_size": 24,
    "fusion_num_heads": 3,
    "fusion_dropout": 0.0,
    "num_groups": 3,
    "dynamic_relu_reduction": 2,
    "anchor_sizes": [16, 32, 64, 128, 256],
    "drop_block_prob": 0.0,
    "max_text_length": 24,
}


def glip_config(**fields) -> GLIPConfig:
    return GLIPConfig(**SIZES | fields)


def glip_tokenizer():
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)


def glip_processor(**options) -> GLIPProcessor:
    images = GLIPImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return GLIPProcessor(images, glip_tokenizer(), **{"max_text_length": 24} | options)


def with_open_weights(model) -> None:
    """New convolutions, biases and scales are trivial: errors would not be seen."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if not name.startswith(("backbone.", "text_encoder.")):
            spread = 0.2 * torch.randn(tensor.shape, generator=generator)
            if tensor.dim() == 1:
                tensor.add_(spread)
            else:
                tensor.copy_(spread * (6 / tensor[0].numel() ** 0.5))
    model.predictions.bias.detach().fill_(-1.0)


def glip_model(seed: int = 0, **fields) -> GLIPForZeroShotObjectDetection:
    def build():
        torch.manual_seed(seed)
        model = GLIPForZeroShotObjectDetection(glip_config(**fields)).eval()
        with_open_weights(model)
        return model

    return copy_of(f"glip {seed} {sorted(fields.items())}", build)


def glip_labels(batch: int) -> list[dict]:
    boxes = torch.tensor([[0.3, 0.3, 0.3, 0.25], [0.7, 0.6, 0.4, 0.5]])
    return [{"class_labels": torch.tensor([i % 4, 3]), "boxes": boxes + 0.02 * (i % 4)} for i in range(batch)]


def glip_inputs(batch: int) -> dict:
    prompt = glip_processor()(text=[NAMES[: 4 + i % 2] for i in range(batch)], padding="max_length", max_length=16)
    return {"pixel_values": tiny_pixels(batch, size=64), "labels": glip_labels(batch), **prompt}


def glip_collate(rows: list[dict]) -> dict:
    """`labels` stay a list."""
    return {n: [r[n] for r in rows] if n == "labels" else torch.stack([r[n] for r in rows]) for n in rows[0]}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng([seed, width, height])
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save_glip_data(folder: Path) -> None:
    """Four images in `folder`/images, train.json with objects in two of them, all.json with two objects in each."""
    (folder / "images").mkdir()
    images, marks = [], []
    for i in range(4):
        image = noise(64, 48, i)
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
        for box in ([6, 8, 24, 20], [34, 10, 20, 26])[: i % 3]:  # images without objects, too
            image.paste((250, 90 * len(marks) % 256, 0), (box[0], box[1], box[0] + box[2], box[1] + box[3]))
            marks.append({"id": len(marks), "image_id": i, "category_id": len(marks) % 3, "bbox": box, "iscrowd": 0})
        image.save(folder / "images" / f"{i}.png")
    categories = [{"id": i, "name": name} for i, name in enumerate(["cat", "traffic light", "pizza"])]
    document = {"images": images, "annotations": marks, "categories": categories}
    (folder / "train.json").write_text(json.dumps(document))
    marks = [
        {"id": 2 * i + k, "image_id": i, "category_id": (i + k) % 3, "bbox": box, "iscrowd": 0}
        for i in range(4)
        for k, box in enumerate(([6, 8, 24, 20], [30, 10, 28, 26]))
    ]
    (folder / "all.json").write_text(json.dumps(document | {"annotations": marks}))
