"""A tiny VideoAnomalyClip, batches for it, and the official fixtures as whole checkpoints."""

import torch
from tiny import copy_of, tiny_clip_config, tiny_pixels

from hf_clip_variants import VideoAnomalyClipConfig, VideoAnomalyClipModel
from hf_clip_variants.modeling.clip.convert_clip import vision_names


NORMAL = 1
FRAMES = 6  # of a training grid: three segments of two frames

# Arguments of a configuration that are wrong, and what the error says.
VIDEO_ANOMALY_BAD_VALUES = (
    ({"normal_id": 4}, "normal_id: 4, expected a class 0..3"),
    ({"num_segments": 0}, "num_segments: 0"),
    ({"num_topk": 4}, "num_topk: 4, expected at most num_segments"),
    ({"selection_dropout_topk": 1.0}, "selection_dropout_topk: 1.0, expected a number in 0..1"),
    ({"prompt_length": 3}, "prompt_length: 3, expected 0 \\(no classes\\) or at least 5"),
    ({"prompt_length": 99}, "prompt_length: 99, the text encoder takes 32 tokens"),
    ({"temporal_num_heads": 5}, "temporal_num_heads: 5 does not divide temporal_hidden_size"),
    ({"temporal_hidden_size": 10**9}, "temporal_hidden_size: 1000000000"),
    ({"decision_threshold": 1.5}, "decision_threshold: 1.5"),
    ({"weight_smooth": -1.0}, "weight_smooth: -1.0, expected a number >= 0"),
    ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert'"),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
)


def video_anomaly_config(**options) -> VideoAnomalyClipConfig:
    """A configuration in which no size is the default; everything trains that is used."""
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config", "projection_dim")}
    names = dict(enumerate(["abuse", "normal", "fire", "riot"]))
    sizes = {
        "id2label": names,
        "label2id": {name: label for label, name in names.items()},
        "normal_id": NORMAL,
        "prompt_length": 7,
        "num_context_tokens": 2,
        "num_segments": 3,
        "segment_length": 2,
        "num_topk": 2,
        "num_bottomk": 1,
        "selection_dropout_topk": 0.0,
        "selection_dropout_bottomk": 0.0,
        "temporal_hidden_size": 12,
        "temporal_num_layers": 2,
        "temporal_num_heads": 3,
        "temporal_mlp_ratio": 2,
        "concat_features": True,
        "freeze_clip": False,
        "windows_per_pass": 2,
        "logit_scale_init_value": 2.0,
    }
    return VideoAnomalyClipConfig(**{**encoders, **sizes, **options})


def ready(model: VideoAnomalyClipModel) -> None:
    """Different prompts, a centroid, statistics that are not trivial."""
    count = model.context.shape[1]
    with torch.no_grad():
        model.prompt_ids[:, 1 + count] = torch.arange(20, 20 + len(model.prompt_ids))
        model.context.mul_(20)
        model.set_normal_centroid(0.02 * torch.randn(model.config.projection_dim))
        model.selector_norm.running_mean.normal_(std=0.1)
        model.selector_norm.running_var.uniform_(0.5, 1.5)


def video_anomaly_model(seed: int = 0, **options) -> VideoAnomalyClipModel:
    def build():
        torch.manual_seed(seed)
        model = VideoAnomalyClipModel(video_anomaly_config(**options)).eval()
        ready(model)
        return model

    return copy_of(f"video_anomaly_clip {seed} {options}", build)


def video_anomaly_batch(videos: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Pixels of training grids, with labels."""
    pixels = tiny_pixels(videos * FRAMES, seed).unflatten(0, (videos, FRAMES))
    return {"pixel_values_videos": pixels, "labels": torch.tensor([0, NORMAL, 2, NORMAL, 3, NORMAL])[:videos]}


def feature_batch(videos: int = 6, seed: int = 0, width: int = 24) -> dict[str, torch.Tensor]:
    """Features of training grids, with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, NORMAL, 2, NORMAL, 3, NORMAL, 0, 0, NORMAL, 3])[:videos]
    return {"video_features": torch.randn(videos, FRAMES, width, generator=generator), "labels": labels}


# For the contract of models (`model_contract.py`).
VIDEO_ANOMALY_CASE = {
    "name": "video_anomaly_clip",
    "config": video_anomaly_config,
    "inputs": video_anomaly_batch,
    "output": "class_probs",
    "by_row": ("logits", "scores", "class_probs"),
    "loss_is_of_the_batch": True,  # batch normalisation
    "prepare": ready,
    "untrained": ("clip.logit_scale",),
    "float32_output": True,
    "bad_values": VIDEO_ANOMALY_BAD_VALUES,
}


# ---- official fixtures


def whole_checkpoint(fixture) -> dict[str, torch.Tensor]:
    """The fixture's weights with what its makers left out, since features went in: a table of token embeddings, which
    holds those of the prompts, and an image encoder of random weights."""
    weights, said = fixture.state_dict, fixture.meta["hyper"]
    words = torch.cat([weights["prompt_learner.token_prefix"], weights["prompt_learner.token_suffix"]], 1)
    context, ends = said["n_ctx"], fixture.inputs["tokenized_prompts_eot"]
    start, end = words[0, 0], words[0, ends[0] - context]
    others = words.flatten(0, 1).unique(dim=0)
    others = others[(others != start).any(1) & (others != end).any(1)]
    joint = said["embed_dim"]
    generator = torch.Generator().manual_seed(1)
    width, patch = 16, 4
    config = tiny_clip_config()
    shapes = {
        "visual.proj": (width, joint),
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (5, width),
    }
    layer = "visual.transformer.resblocks.0."
    shapes |= {f"{layer}attn.in_proj_weight": (3 * width, width), f"{layer}attn.in_proj_bias": (3 * width,)}
    shapes |= {f"{layer}attn.out_proj.weight": (width, width), f"{layer}mlp.c_fc.weight": (2 * width, width)}
    shapes |= {f"{layer}mlp.c_fc.bias": (2 * width,), f"{layer}mlp.c_proj.weight": (width, 2 * width)}
    names = vision_names(1)
    assert config is not None and shapes.keys() <= names.keys()
    vision = {
        name.replace("visual.", "image_encoder.", 1): torch.randn(shapes.get(name, (width,)), generator=generator) / 4
        for name in names
    }
    table = torch.cat([others, start[None], end[None]])
    return dict(weights) | vision | {"token_embedding.weight": table}
