"""Names of the image encoder's prompts in checkpoints of muzairkhattak/multimodal-prompt-learning."""

import re
from collections.abc import Mapping

import torch

from .initial_vectors import stack_layers


_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.VPT_shallow")


def is_vision_prompt(name: str) -> bool:
    """Whether a tensor with this name belongs to the image encoder."""
    return name.startswith(("image_encoder.", "visual.", "clip.visual."))


def vision_prompts(state_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The image encoder's prompts in an official checkpoint -> (J, n, d) float32.

    `VPT` are the prompts of layer 0. Layer i >= 1 has its own in `VPT_shallow`, whatever that name suggests.
    """
    tensors = {name: tensor for name, tensor in state_dict.items() if "VPT" in name and is_vision_prompt(name)}
    first = [tensor for name, tensor in tensors.items() if name.endswith((".VPT", "visual.VPT"))]
    deep = {int(match[1]): tensor for name, tensor in tensors.items() if (match := _LAYER.search(name))}
    if len(first) != 1:
        raise ValueError(f"state_dict: expected one image_encoder.VPT, got {len(first)} among {len(state_dict)} keys")
    return stack_layers(first[0], deep, "VPT_shallow")


__all__ = ["is_vision_prompt", "vision_prompts"]
