"""Encode images with CLIP's vision transformer on a CPU, exactly and without unnecessary work.

Only the class token of the last layer is pooled, and it depends on the other tokens through their keys and values
alone. So the last layer's queries, output projection and MLP are computed for the class token only: 11 of 12 of that
layer's work is dropped. The rest is memory: QuickGELU is SiLU between two scaled matrix products, without a temporary,
and as many images at a time as stay in the processor's cache. Without gradient; nothing is recorded.

The reference is the model's own forward (`CLIPFamily.image_features`). Every layer that was replaced or intercepted is
called as it is, so adapters inside the encoder work; LoRA and quantised weights replace modules that are called here.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation

from .prompt_encoding import is_intercepted, split_heads


# Images at a time: 8 of ViT-B, whose widest states stay in the cache of one core; more of a small encoder, until those
# states take as many bytes, since a matrix product needs some rows to be fast. Many cores share more.
IMAGES_OF_FOUR_THREADS = 8, 32  # at least, at most
BYTES_OF_FOUR_THREADS = 5 * 2**20  # 8 images x 50 tokens x 3072 x 4 bytes in ViT-B/32
_SLOPE = 1.702  # QuickGELU's


def why_own_forward(family, model: nn.Module, pixel_values: torch.Tensor) -> str | None:
    """Why the model's own forward must run for these images (None: it need not)."""
    if not family.vision_classes:
        return "the family's image encoder is another one"
    if torch.is_grad_enabled():
        return "gradients may be wanted"
    if type(pixel_values) is not torch.Tensor or pixel_values.device.type != "cpu" or pixel_values.dim() != 4:
        return "the pixels are no plain tensor on a CPU"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "the model is being compiled or exported"
    if type(model) is not family.model_class() or "get_image_features" in vars(model):
        return "the dual encoder was replaced or patched"
    vision = model.vision_model
    for config in (model.config, vision.config):
        if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return "the configuration asks to record hidden states or attentions"
    if vision.training:
        return "the image encoder is in training mode"
    # Exactly the modules whose own `forward` is not called here whatever happens.
    for module, name in ((vision, family.vision_classes[0]), (vision.encoder, family.vision_classes[1])):
        if type(module) is not family.part_class(name) or is_intercepted(module):
            return f"a {name} was replaced, has a hook or a patched forward"
    return None


def encode_images(
    family, model: nn.Module, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, project: bool = True
) -> torch.Tensor:
    """(B, 3, H, W) -> (B, D) features, not normalised, where `why_own_forward` gives None.

    `project=False`: before the projection.
    """
    vision = model.vision_model
    at_once = _images_at_once(vision.config, pixel_values) * max(1, torch.get_num_threads() // 4)
    parts = [_encode(family, vision, part, interpolate_pos_encoding) for part in pixel_values.split(at_once)]
    pooled = parts[0] if len(parts) == 1 else torch.cat(parts)
    return model.visual_projection(pooled) if project else pooled


def _images_at_once(config, pixel_values: torch.Tensor) -> int:
    """How many images one core encodes at a time."""
    height, width = (side // config.patch_size for side in pixel_values.shape[-2:])
    widest_state = (height * width + 1) * config.intermediate_size * pixel_values.element_size()
    least, most = IMAGES_OF_FOUR_THREADS
    return min(max(BYTES_OF_FOUR_THREADS // widest_state, least), most)


def _encode(family, vision: nn.Module, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> torch.Tensor:
    hidden = vision.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    hidden = vision.pre_layrnorm(hidden)
    layers = vision.encoder.layers
    for number, layer in enumerate(layers):
        hidden = _run_layer(family, layer, hidden, is_last=number == len(layers) - 1)
    return vision.post_layernorm(hidden[:, 0])


def _run_layer(family, layer: nn.Module, hidden: torch.Tensor, is_last: bool) -> torch.Tensor:
    """(B, L, W) -> (B, L, W), or (B, 1, W) of the class token after the last layer."""
    _, _, of_layer, of_attention, of_mlp = map(family.part_class, family.vision_classes)
    if type(layer) is not of_layer or is_intercepted(layer):
        return layer(hidden, None)
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    attends_plainly = attention.config._attn_implementation in ("sdpa", "eager")
    if is_last and attends_plainly and type(attention) is of_attention and not is_intercepted(attention):
        hidden = hidden[:, :1] + _attend_from_class_token(attention, normed)
    else:
        hidden = hidden + attention(normed, attention_mask=None)[0]
    normed, mlp = layer.layer_norm2(hidden), layer.mlp
    if type(mlp) is not of_mlp or is_intercepted(mlp) or type(mlp.activation_fn) is not QuickGELUActivation:
        return hidden + mlp(normed)
    if is_intercepted(mlp.activation_fn):
        return hidden + mlp(normed)
    if all(map(_is_plain, (mlp.fc1, mlp.fc2))) and not torch.is_autocast_enabled("cpu"):
        # x sigmoid(a x) = silu(a x) / a: matrix products scale by a and 1 / a as they go, and silu needs no temporary.
        inner = torch.addmm(mlp.fc1.bias, normed.flatten(0, 1), mlp.fc1.weight.t(), beta=_SLOPE, alpha=_SLOPE)
        inner = F.silu(inner, inplace=True)
        return hidden + torch.addmm(mlp.fc2.bias, inner, mlp.fc2.weight.t(), alpha=1 / _SLOPE).view_as(hidden)
    inner = mlp.fc1(normed)
    # x * sigmoid(1.702 x), in the temporary: a hook may have kept the output of fc1.
    return hidden + mlp.fc2((_SLOPE * inner).sigmoid_().mul_(inner))


def _is_plain(linear: nn.Module) -> bool:
    """Whether nothing sees what goes in and out; rounding of 16 bits is left as it is."""
    weight = linear.weight if type(linear) is nn.Linear and linear.bias is not None else None
    is_float = type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype == torch.float32
    return is_float and not is_intercepted(linear)


def _attend_from_class_token(attention: nn.Module, normed: torch.Tensor) -> torch.Tensor:
    """(B, L, W) -> (B, 1, W)"""
    key, value = (split_heads(project(normed), attention) for project in (attention.k_proj, attention.v_proj))
    query = split_heads(attention.q_proj(normed[:, :1]), attention)
    context = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return attention.out_proj(context.transpose(1, 2).flatten(2))


__all__ = ["encode_images", "why_own_forward"]
