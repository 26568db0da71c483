"""A tiny DepthCLIP, its processor and batches for it."""

import torch
from lseg_runs import open_statistics
from tiny import copy_of, tiny_clip_config, tiny_tokenizer

from hf_clip_variants import (
    CLIPResNetConfig,
    CLIPResNetModel,
    DepthCLIPConfig,
    DepthCLIPForDepthEstimation,
    DepthCLIPImageProcessor,
)


WORDS, BINS = ["very near", "near", "far"], [0.5, 2.0, 6.0]
VISION = {"hidden_size": 256, "depths": [1, 2, 1, 1], "num_attention_heads": 8, "image_size": 64}
# Arguments of a configuration that are wrong, and what the error says.
DEPTHCLIP_BAD_VALUES = (
    ({"depth_words": []}, "depth_words: 0 of them"),
    ({"depth_words": ["near", "far"]}, "bin_centers: 3 depths for 2 depth_words"),
    ({"depth_words": ["near", "far", "near"]}, "depth_words: 'near' is given twice"),
    ({"depth_words": ["near", " ", "far"]}, "depth_words\\[1\\]: ' ', expected a text"),
    ({"depth_words": "near"}, "depth_words"),
    ({"bin_centers": [0.5, 2.0]}, "bin_centers: 2 depths for 3 depth_words"),
    ({"bin_centers": [0.5, 0.0, 6.0]}, "bin_centers\\[1\\]: 0.0, expected a depth"),
    ({"bin_centers": [0.5, float("nan"), 6.0]}, "bin_centers"),
    ({"bin_centers": [0.5, 1e30, 6.0]}, "bin_centers\\[1\\]: 1e\\+30"),
    ({"templates": ["This is {}"]}, "templates\\[0\\]: 'This is \\{\\}' has no \\{distance\\}"),
    ({"templates": []}, "templates: 0 of them"),
    ({"object_word": " "}, "object_word: ' ', expected a text"),
    ({"temperature": 0.0}, "temperature: 0.0"),
    ({"logit_scale": -1.0}, "logit_scale: -1.0"),
    ({"scale_invariance": 1.5}, "scale_invariance: 1.5"),
    ({"feature_projection": "pooled"}, "feature_projection: 'pooled', expected one of official, attnpool_value"),
    ({"feature_projection": "official"}, "feature_projection: 'official' keeps each second channel"),
    ({"learnable_parts": ["adapter"]}, "learnable_parts: 'adapter', expected some of bins, words, temperature"),
    ({"learnable_parts": ["bins", "bins"]}, "learnable_parts: .*expected each once"),
    ({"flip_average": "no"}, "flip_average"),
    ({"encoded_texts": [[]]}, "encoded_texts"),
    ({"backbone_model_type": "siglip"}, "backbone_model_type: 'siglip'|text_config.model_type"),
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
    ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert'"),
)


def depthclip_config(**options) -> DepthCLIPConfig:
    """A configuration in which no size is the default. By default with a ResNet, and the official projection."""
    width = options.pop("projection_dim", 128)
    text = tiny_clip_config(text_config={"projection_dim": width}).text_config.to_dict()
    given = {"text_config": text, "vision_config": VISION, "projection_dim": width}
    return DepthCLIPConfig(**{**given, "depth_words": WORDS, "bin_centers": BINS, "temperature": 5.0, **options})


def vit_config(**options) -> DepthCLIPConfig:
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config")}
    return depthclip_config(**{**encoders, "projection_dim": 24, "backbone_model_type": "clip", **options})


def with_words(model: DepthCLIPForDepthEstimation, seed: int = 3) -> DepthCLIPForDepthEstimation:
    """Random embeddings of the words: near each other, as those of a text encoder are not, but apart."""
    shape = len(model.config.depth_words), model.config.projection_dim
    return model.set_depth_embeddings(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def depthclip_model(seed: int = 0, backbone: str = "resnet", **options) -> DepthCLIPForDepthEstimation:
    """In eval mode, with words that are encoded."""

    def build():
        torch.manual_seed(seed)
        config = depthclip_config(**options) if backbone == "resnet" else vit_config(**options)
        model = DepthCLIPForDepthEstimation(config).eval()
        if backbone == "resnet":
            open_branches(model)
        return model.set_depth_words(tiny_tokenizer())

    return copy_of(f"depthclip {seed} {backbone} {options}", build)


def learning_config(**options) -> DepthCLIPConfig:
    """All parts learn, and the image encoder."""
    learnt = {"learnable_parts": ["bins", "words", "temperature"], "freeze_image_encoder": False}
    texts = depthclip_config().texts
    return depthclip_config(**{"projection_dim": 20, "encoded_texts": texts, **learnt, **options})


def open_branches(model: DepthCLIPForDepthEstimation) -> None:
    """A new ResNet's residual branches are zero, and its statistics trivial."""
    open_statistics(model)
    with torch.no_grad():
        for name, tensor in model.clip.vision_model.state_dict().items():
            if tensor.dim() == 1 and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)


def open_words(model: DepthCLIPForDepthEstimation) -> None:
    open_branches(model)
    with_words(model)


def depthclip_batch(batch: int = 4, size: tuple[int, int] = (40, 64), seed: int = 0) -> dict[str, torch.Tensor]:
    """Images whose height is no multiple of 32, and depth that is known everywhere."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, *size, generator=generator)
    return {"pixel_values": pixels, "labels": 0.5 + 5 * torch.rand(batch, *size, generator=generator)}


def depth_processor(**settings) -> DepthCLIPImageProcessor:
    return DepthCLIPImageProcessor(**{"size": {"shortest_edge": 32, "longest_edge": 64}, **settings})


def tiny_resnet(width: int = 20) -> CLIPResNetModel:
    config = learning_config(projection_dim=width)
    return CLIPResNetModel(
        CLIPResNetConfig(
            text_config=config.text_config, vision_config=VISION | {"projection_dim": width}, projection_dim=width
        )
    )


DEPTHCLIP = {
    "name": "depthclip",
    "config": learning_config,
    "inputs": depthclip_batch,
    "processor": depth_processor,
    "backbone": tiny_resnet,
    "output": "predicted_depth",
    "by_row": ("predicted_depth", "word_logits"),
    "auto_class": "AutoModelForDepthEstimation",
    "bad_values": DEPTHCLIP_BAD_VALUES,
    "prepare": open_words,
    "untrained": (
        *("clip.text_model.", "clip.text_projection.", "clip.logit_scale"),
        *(f"clip.vision_model.attnpool.{name}" for name in ("positional_embedding", "q_proj.", "k_proj.")),
    ),
    "loss_is_of_the_batch": True,  # batch normalisation
    "float32_output": True,
}
