"""Tiny models that paint, and latents for them."""

import torch
from tiny import tiny_clip, tiny_clip_config, tiny_pixels

from hf_clip_variants import VQGANCLIPConfig, VQGANCLIPForImageSynthesis, VQGANConfig, VQGANModel


TINY_VQGAN = {
    "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "latent_channels": 12, "embed_dim": 5,
    "num_embeddings": 32, "norm_groups": 16,
}  # fmt: skip
VQGAN_BAD_VALUES = (
    ({"base_channels": 33}, "channel_multiplier: 1 x base_channels \\(33\\) is not a multiple of 32"),
    ({"base_channels": 10**9}, "base_channels: 1000000000"),
    ({"channel_multiplier": []}, "channel_multiplier: \\[\\], expected 1..7"),
    ({"channel_multiplier": [1] * 50}, "channel_multiplier"),
    ({"channel_multiplier": [0]}, "channel_multiplier: \\[0\\], expected 1..7 whole numbers"),
    ({"channel_multiplier": [10**6]}, "channel_multiplier: 1000000 x base_channels"),
    ({"num_res_blocks": 0}, "num_res_blocks: 0"),
    ({"num_res_blocks": 100}, "num_res_blocks: 100"),
    ({"num_embeddings": 1}, "num_embeddings: 1"),
    ({"num_embeddings": 10**9}, "num_embeddings: 1000000000"),
    ({"num_embeddings": 10**6, "embed_dim": 8192}, "num_embeddings: 1000000 codes of 8192 numbers"),
    ({"embed_dim": 0}, "embed_dim: 0"),
    ({"latent_channels": -1}, "latent_channels: -1"),
    ({"quantizer": "lattice"}, "quantizer: 'lattice', expected one of vector, gumbel"),
    ({"commitment_weight": float("nan")}, "commitment_weight: nan"),
    ({"gumbel_temperature": 0.0}, "gumbel_temperature: 0.0"),
    ({"kl_weight": -1.0}, "kl_weight: -1.0"),
    ({"dropout": 1.0}, "dropout: 1.0"),
    ({"norm_groups": 5}, "norm_groups: 5, expected a divisor of 32"),
    ({"norm_groups": 0}, "norm_groups: 0, expected a divisor of 32"),
)
PAINT_BAD_VALUES = (
    ({"num_steps": -1}, "num_steps: -1"),
    ({"num_steps": 10**12}, "num_steps: 1000000000000"),
    ({"canvas_size": 10**6}, "canvas_size: 1000000"),
    ({"canvas_size": 0}, "canvas_size: 0"),
    ({"learning_rate": float("nan")}, "learning_rate: nan"),
    ({"learning_rate": "fast"}, "learning_rate"),
    ({"optimizer": "LBFGS"}, "optimizer: 'LBFGS', expected one of Adam, AdamW"),
    ({"cut_method": "new"}, "cut_method: 'new', expected one of original, updated"),
    ({"num_cuts": 0}, "num_cuts: 0"),
    ({"num_cuts": 10**9}, "num_cuts: 1000000000"),
    ({"cut_power": -1.0}, "cut_power: -1.0"),
    ({"noise_factor": -0.1}, "noise_factor: -0.1"),
    ({"augmentations": ["blur"]}, "augmentations: 'blur', expected some of flip"),
    ({"init_weight": -1.0}, "init_weight: -1.0"),
    ({"init_target": "end"}, "init_target: 'end', expected one of zero, start"),
    ({"tv_weight": -1.0}, "tv_weight: -1.0"),
    ({"views_at_once": 0}, "views_at_once: 0"),
    ({"image_std": [0.0, 0.0, 0.0]}, "image_std: \\[0.0, 0.0, 0.0\\], expected three numbers > 0"),
    ({"projection_dim": 0}, "projection_dim: 0"),
    ({"vqgan_config": {"embed_dim": 0}}, "embed_dim: 0"),
    ({"vqgan_config": {"model_type": "bert"}}, "vqgan_config.model_type: 'bert'"),
    ({"vision_config": {"hidden_size": 10**9}}, "hidden_size: 1000000000"),
    ({"text_config": {"model_type": "bert"}}, "text_config.model_type: 'bert'"),
)


def vqgan_config(**options) -> VQGANConfig:
    return VQGANConfig(**TINY_VQGAN | options)


def paint_config(**options) -> VQGANCLIPConfig:
    clip = tiny_clip_config().to_dict()
    encoders = {name: clip[name] for name in ("text_config", "vision_config")}
    own = {"projection_dim": 24, "logit_scale_init_value": 2.0, "vqgan_config": TINY_VQGAN}
    own |= {"num_cuts": 3, "num_steps": 6}
    return VQGANCLIPConfig(**encoders | own | options)


def with_corners(model) -> None:
    """Codes are the corners of a cube, so that rounding moves no latents to another code."""
    vqgan = getattr(model, "vqgan", model)
    with torch.no_grad():
        vqgan.codebook.copy_(corners(torch.arange(32)))


def corners(codes: torch.Tensor) -> torch.Tensor:
    """(...,) -> (..., 5) of -1 and 1."""
    return (codes[..., None] // 2 ** torch.arange(5) % 2) * 2.0 - 1


def tiny_vqgan(seed: int = 0, **options) -> VQGANModel:
    torch.manual_seed(seed)
    model = VQGANModel(vqgan_config(**options)).eval()
    with_corners(model)
    return model


def paint_model(**options) -> VQGANCLIPForImageSynthesis:
    return VQGANCLIPForImageSynthesis.from_parts(tiny_clip(), tiny_vqgan(), **{"num_cuts": 3, **options})


def paint_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 4036, (batch, 7), generator=g)
    ids[:, 0], ids[:, 6] = 4036, 4037
    latents = corners(torch.randint(0, 32, (batch, 12, 12), generator=g)).movedim(-1, 1)
    noise = 0.2 * torch.rand(latents.shape, generator=g)
    return {"latents": (latents + noise).contiguous(), "input_ids": ids}


VQGAN_CLIP = {
    "name": "vqgan_clip",
    "config": paint_config,
    "inputs": paint_batch,
    "output": "logits_per_image",
    "by_row": ("images", "image_embeds", "text_embeds"),
    "loss_options": {"return_loss": True},
    "bad_values": PAINT_BAD_VALUES,
    "prepare": with_corners,
    "untrained": ("clip.logit_scale", "vqgan.encoder.", "vqgan.quant_conv.", "vqgan.quantize."),
    "rounding": 1e-5,
}


def reconstruction_batch(batch: int = 4) -> dict[str, torch.Tensor]:
    return {"pixel_values": tiny_pixels(batch).clamp(-1, 1)}
