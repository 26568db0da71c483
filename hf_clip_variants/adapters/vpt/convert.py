"""Official VPT files -> an adapter: whole models on CLIP; prompts, whole models and ViTs of the original."""

from collections.abc import Mapping

import torch
from transformers import ViTConfig, ViTForImageClassification

from ..checkpoint_format import LEARNED_CONTEXT, AdapterFormat, Signature
from ..official_tensors import check_keys, finite, without_prefixes
from ..prompts.official_layouts import is_vision_prompt, vision_prompts
from .config import VPTConfig


def convert_vpt(
    state_dict: Mapping[str, torch.Tensor], *, plain_clip: bool = False
) -> tuple[VPTConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32, from VPT on CLIP.

    That is the `VPT` trainer of muzairkhattak/multimodal-prompt-learning.

    Args:
        state_dict: from `checkpoint_reader.read_state_dict("…/model.pth.tar-5")`: the whole model, of which
            `image_encoder.VPT` (n, d) and `image_encoder.transformer.resblocks.{i}.VPT_shallow` (n, d) are the
            adapter. The rest is CLIP and is not read.
        plain_clip: for a plain `CLIPModel` instead of a `CLIPClassifier`.

    Raises:
        ValueError: no prompts, prompts of different shapes, a layer left out, or text prompts (an IVLP file).
    """
    if text := [name for name in state_dict if "VPT" in name and not is_vision_prompt(name)]:
        raise ValueError(f"state_dict: {text[0]} is a text prompt; use convert_ivlp")
    prompts = vision_prompts(state_dict)
    config = VPTConfig(num_prompt_tokens=prompts.shape[1], prompt_depth=len(prompts))
    home = ("" if plain_clip else "clip.") + "vision_model.embeddings"
    return config, {f"{home}.clipv_vpt_prompts": prompts}


# ---- the original on ViT (KMnP/vpt)

_ENCODER = "enc.transformer."
_VIT_LAYER = {
    "attention_norm": "layernorm_before",
    "ffn_norm": "layernorm_after",
    "attn.query": "attention.q_proj",
    "attn.key": "attention.k_proj",
    "attn.value": "attention.v_proj",
    "attn.out": "attention.o_proj",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
}


def convert_vpt_vit(state_dict: Mapping[str, torch.Tensor]) -> tuple[VPTConfig, dict[str, torch.Tensor]]:
    """The original's prompts and head -> configuration and tensors for `put_adapter` on a `ViTForImageClassification`.

    Args:
        state_dict: a run's whole model (`enc.transformer.prompt_embeddings` (1, n, q), `…deep_prompt_embeddings`
            (J - 1, n, q), `…prompt_proj`, `head.last_layer`), or its `prompt_ep{N}.pth` as tensors (`shallow_prompt`,
            `deep_prompt`), which has neither projection nor head.
    """
    names = {
        "prompts": (f"{_ENCODER}prompt_embeddings", "shallow_prompt"),
        "deep": (f"{_ENCODER}deep_prompt_embeddings", "deep_prompt"),
    }
    found = {
        part: next((state_dict[name] for name in options if name in state_dict), None)
        for part, options in names.items()
    }
    if found["prompts"] is None:
        raise ValueError(
            f"state_dict: expected {' or '.join(names['prompts'])}, got {sorted(state_dict)[:5]} ({len(state_dict)} "
            "keys)"
        )
    parts = [tensor.detach().float() for tensor in found.values() if tensor is not None]
    if any(part.dim() != 3 or part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise ValueError(f"state_dict: prompts of shape {[list(p.shape) for p in parts]}, expected (layers, n, q)")
    prompts = torch.cat(parts)
    projection = {part: state_dict.get(f"{_ENCODER}prompt_proj.{part}") for part in ("weight", "bias")}
    head = {part: state_dict.get(f"head.last_layer.{part}") for part in ("weight", "bias")}
    for name, linear in (("prompt_proj", projection), ("head.last_layer", head)):
        shapes = {part: list(tensor.shape) for part, tensor in linear.items() if tensor is not None}
        if shapes and (len(shapes) != 2 or len(shapes["weight"]) != 2 or shapes["bias"] != shapes["weight"][:1]):
            raise ValueError(f"{name}: shapes {shapes}, expected weight (m, n) and bias (m,)")
    config = VPTConfig.original(
        num_prompt_tokens=prompts.shape[1],
        prompt_depth=len(prompts),
        projection_dim=None if projection["weight"] is None else projection["weight"].shape[1],
        modules_to_save=None if head["weight"] is None else ["classifier"],
    )
    tensors = {"vit.embeddings.clipv_vpt_prompts": finite(prompts, "prompt_embeddings")}
    for name, part in (("vit.embeddings.clipv_vpt_projection", projection), ("classifier", head)):
        tensors |= {f"{name}.{k}": finite(v, f"{name}.{k}") for k, v in part.items() if v is not None}
    return config, tensors


def vit_from_official(
    state_dict: Mapping[str, torch.Tensor], *, num_attention_heads: int
) -> ViTForImageClassification:
    """The frozen ViT of an original VPT model, with its head, as transformers' class; strict.

    Args:
        state_dict: `enc.transformer.*` and `head.last_layer.*`; prompts in it are left out.
        num_attention_heads: the weights do not show it.
    """
    weights = {
        name.removeprefix(_ENCODER): tensor
        for name, tensor in without_prefixes(state_dict).items()
        if not name.startswith(tuple(f"{_ENCODER}{p}" for p in ("prompt_", "deep_prompt_")))
    }
    depth = len({name.split(".")[2] for name in weights if name.startswith("encoder.layer.")})
    table = {
        "embeddings.cls_token": "vit.embeddings.cls_token",
        "embeddings.position_embeddings": "vit.embeddings.position_embeddings",
        **{
            f"embeddings.patch_embeddings.{p}": f"vit.embeddings.patch_embeddings.projection.{p}"
            for p in ("weight", "bias")
        },
        **{f"encoder.encoder_norm.{p}": f"vit.layernorm.{p}" for p in ("weight", "bias")},
        **{f"head.last_layer.{p}": f"classifier.{p}" for p in ("weight", "bias")},
        **{
            f"encoder.layer.{i}.{theirs}.{p}": f"vit.layers.{i}.{ours}.{p}"
            for i in range(depth)
            for theirs, ours in _VIT_LAYER.items()
            for p in ("weight", "bias")
        },
    }
    check_keys(weights, set(table))
    patches = weights["embeddings.patch_embeddings.weight"]
    grid = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = ViTConfig(
        hidden_size=patches.shape[0],
        num_hidden_layers=depth,
        num_attention_heads=num_attention_heads,
        patch_size=patches.shape[-1],
        image_size=grid * patches.shape[-1],
        intermediate_size=weights["encoder.layer.0.ffn.fc1.weight"].shape[0],
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=len(weights["head.last_layer.weight"]),
    )
    model = ViTForImageClassification(config)
    model.load_state_dict({ours: weights[theirs].float() for theirs, ours in table.items()})
    return model.eval()


CHECKPOINTS = AdapterFormat(
    signature=Signature(every=(r"(image_encoder|visual|clip\.visual)\.VPT$",), none=(LEARNED_CONTEXT,)),
    tensors=(r"VPT(_shallow)?",),
    convert=lambda official: convert_vpt(official.weights),
    holds_clip=True,
    elsewhere={
        r"enc\.transformer\.|shallow_prompt$": "This is VPT on a ViT (KMnP/vpt): convert_vpt_vit in "
        "hf_clip_variants.adapters.vpt.convert takes it."
    },
)


__all__ = ["CHECKPOINTS", "convert_vpt", "convert_vpt_vit", "vit_from_official"]
