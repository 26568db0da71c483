"""Small models for tests: random weights, the embedded tokenizer, no network."""

import copy
from functools import cache
from pathlib import Path

import torch

import hf_clip_variants


ASSETS = Path(hf_clip_variants.__file__).parent / "assets"
EMOJI_CLIP = ASSETS / "emoji-clip-tiny"
CLASS_NAMES = ["cat", "golden retriever", "sports car", "forest", "red apple"]


_BUILT: dict[str, tuple] = {}


def copy_of(key: str, build):
    """A copy of the model that `build` makes, which is built once: copying takes a tenth of the time.

    `build` seeds the global generator; each call leaves it as `build` does.
    """
    if key not in _BUILT:
        _BUILT[key] = build(), torch.get_rng_state()
    model, random_state = _BUILT[key]
    torch.set_rng_state(random_state)
    return copy.deepcopy(model)


@cache
def tiny_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMOJI_CLIP)


def tiny_clip_config(**overrides):
    from transformers import CLIPConfig

    text = {
        "vocab_size": 4038,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": 4036,
        "eos_token_id": 4037,
        "pad_token_id": 4037,
        "projection_dim": 24,
    }
    vision = {
        "hidden_size": 40,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
        "projection_dim": 24,
    }
    text |= overrides.pop("text_config", {})
    vision |= overrides.pop("vision_config", {})
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, **overrides)


def tiny_clip(seed: int = 0, **overrides):
    """A random float32 CLIPModel in eval mode: text 2 x 32, vision 3 x 40, 24 px, joint width 24."""
    from transformers import CLIPModel

    def build():
        torch.manual_seed(seed)
        return CLIPModel(tiny_clip_config(**copy.deepcopy(overrides))).eval()

    return copy_of(f"clip {seed} {overrides}", build)


def tiny_pixels(batch: int = 4, seed: int = 0, size: int = 24):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
