"""Official MaPLe files (muzairkhattak/multimodal-prompt-learning) -> an adapter."""

import re
from collections.abc import Mapping, Sequence

import torch

from ..checkpoint_format import COUPLING, LEARNED_CONTEXT, AdapterFormat, Signature
from ..official_tensors import check_keys, finite
from ..prompts.initial_vectors import stack_layers
from .config import MaPLeConfig


_LEARNER = "prompt_learner."
# token embeddings of the training classes, which follow from the class names
_DROPPED = ("token_prefix", "token_suffix")
_CLIP = ("image_encoder.", "text_encoder.", "logit_scale", "clip.")
_TEXT = re.compile(r"compound_prompts_text\.(\d+)$")
_PROJECTION = re.compile(r"compound_prompt_projections\.(\d+)\.(weight|bias)$")


def convert_maple(
    state_dict: Mapping[str, torch.Tensor], *, context_init_ids: Sequence[int] | None = None, plain_clip: bool = False
) -> tuple[MaPLeConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32.

    Args:
        state_dict: from `checkpoint_reader.read_state_dict("MultiModalPromptLearner/model.pth.tar-5")`: the whole
            model, or its `prompt_learner` alone. `ctx` (n, dt), `proj`, `compound_prompts_text.{i}` and
            `compound_prompt_projections.{i}` are the adapter; CLIP and the classes' token embeddings are not read.
        context_init_ids: token ids of the words that the training started from ("a photo of a"), which the file does
            not hold; words after the learned vectors stay in the prompts. None: it started from random vectors.
        plain_clip: for a plain `CLIPModel` instead of a `CLIPClassifier`.

    Raises:
        ValueError: missing or unknown keys, shapes that do not fit each other, tensors that are not finite.
    """
    names = [name for name in state_dict if name.startswith(_LEARNER) or not name.startswith(_CLIP)]
    tensors = {name.removeprefix(_LEARNER): state_dict[name] for name in names}
    deep = {int(match[1]) + 1: tensor for name, tensor in tensors.items() if (match := _TEXT.match(name))}
    kept = {"ctx", "proj.weight", "proj.bias"} | {f"compound_prompts_text.{layer - 1}" for layer in deep}
    kept |= {f"compound_prompt_projections.{layer - 1}.{part}" for layer in deep for part in ("weight", "bias")}
    check_keys({name: tensor for name, tensor in tensors.items() if name not in _DROPPED}, kept)
    text = stack_layers(tensors["ctx"], deep, "compound_prompts_text")
    projection = {}
    for part in ("weight", "bias"):
        parts = [tensors[f"proj.{part}"]]
        parts += [tensors[f"compound_prompt_projections.{layer - 1}.{part}"] for layer in sorted(deep)]
        shapes = sorted({tuple(p.shape) for p in parts})
        if len(shapes) != 1:
            raise ValueError(f"state_dict: projections' {part} of shapes {shapes}, expected one shape")
        projection[part] = finite(torch.stack([p.detach().float() for p in parts]), f"projections' {part}")
    if projection["weight"].shape[-1] != text.shape[-1]:
        raise ValueError(f"proj.weight: shape {list(projection['weight'].shape[1:])}, expected (d, {text.shape[-1]})")
    config = MaPLeConfig(
        num_prompt_tokens=text.shape[1],
        prompt_depth=len(text),
        context_init=None,
        context_init_ids=list(context_init_ids) if context_init_ids is not None else None,
    )
    prefix, home = ("", "text_model.embeddings.token_embedding") if plain_clip else ("clip.", "prompt_embedder")
    converted = {f"{home}.clipv_maple_context": text[0].contiguous()}
    if len(text) > 1:
        converted[f"{home}.clipv_maple_text_prompts"] = text[1:].contiguous()
    vision = f"{prefix}vision_model.embeddings.clipv_maple_projection"
    return config, converted | {f"{vision}_{part}": tensor for part, tensor in projection.items()}


CHECKPOINTS = AdapterFormat(
    signature=Signature(every=(LEARNED_CONTEXT, COUPLING)),
    tensors=("ctx", r"proj\.(weight|bias)", r"compound_prompt\w*\..+"),
    convert=lambda official: convert_maple(official.weights, context_init_ids=official.context_ids or None),
    holds_clip=True,
    keeps_initial_words=True,
)


__all__ = ["CHECKPOINTS", "convert_maple"]
