"""Official IVLP files (`IVLP` trainer of muzairkhattak/multimodal-prompt-learning) -> an adapter."""

import re
from collections.abc import Mapping, Sequence

import torch

from ..checkpoint_format import COUPLING, META_NET, AdapterFormat, Signature
from ..official_tensors import finite
from ..prompts.initial_vectors import stack_layers
from ..prompts.official_layouts import vision_prompts
from .config import IVLPConfig


_TEXT_LAYER = re.compile(r"^(?:text_encoder\.|clip\.)?transformer\.resblocks\.(\d+)\.VPT_shallow$")


def convert_ivlp(
    state_dict: Mapping[str, torch.Tensor], *, context_init_ids: Sequence[int] | None = None, plain_clip: bool = False
) -> tuple[IVLPConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32.

    Args:
        state_dict: from `checkpoint_reader.read_state_dict("VLPromptLearner/model.pth.tar-5")`: the whole model.
            `prompt_learner.ctx` (n, d), `text_encoder.transformer.resblocks.{i}.VPT_shallow` and, where images have
            prompts, `image_encoder.VPT` and `image_encoder.transformer.resblocks.{i}.VPT_shallow` are the adapter;
            CLIP and the classes' token embeddings are not read.
        context_init_ids: token ids of the words that the training started from ("a photo of a"), which the file does
            not hold; words after the learned vectors stay in the prompts. None: it started from random vectors.
        plain_clip: for a plain `CLIPModel` instead of a `CLIPClassifier`.

    Raises:
        ValueError: no context, layers left out, prompts of different shapes or not finite.
    """
    context = state_dict.get("prompt_learner.ctx")
    if context is None or context.dim() != 2:
        got = "none" if context is None else f"shape {list(context.shape)}"
        raise ValueError(
            f"state_dict: expected prompt_learner.ctx of shape (n, d), got {got} ({len(state_dict)} keys)"
        )
    deep = {int(match[1]): tensor for name, tensor in state_dict.items() if (match := _TEXT_LAYER.match(name))}
    text = stack_layers(context, deep, "VPT_shallow")
    has_vision = any(name.endswith(("image_encoder.VPT", "visual.VPT")) for name in state_dict)
    vision = vision_prompts(state_dict) if has_vision else None
    config = IVLPConfig(
        num_text_tokens=text.shape[1],
        text_depth=len(text),
        num_vision_tokens=vision.shape[1] if has_vision else 2,
        vision_depth=len(vision) if has_vision else 0,
        context_init=None,
        context_init_ids=list(context_init_ids) if context_init_ids is not None else None,
    )
    prefix, home = ("", "text_model.embeddings.token_embedding") if plain_clip else ("clip.", "prompt_embedder")
    tensors = {f"{home}.clipv_ivlp_context": finite(text[0], "ctx")}
    if len(text) > 1:
        tensors[f"{home}.clipv_ivlp_text_prompts"] = text[1:].contiguous()
    if has_vision:
        tensors[f"{prefix}vision_model.embeddings.clipv_ivlp_vision_prompts"] = vision
    return config, tensors


CHECKPOINTS = AdapterFormat(
    # A whole model with a context and no other prompts can be an IVLP with text_depth 1 or a CoOp: the user must say.
    signature=Signature(every=(r"prompt_learner\.ctx$", r"(image|text)_encoder\."), none=(META_NET, COUPLING)),
    tensors=("ctx", r"VPT(_shallow)?"),
    convert=lambda official: convert_ivlp(official.weights, context_init_ids=official.context_ids or None),
    holds_clip=True,
    keeps_initial_words=True,
)


__all__ = ["CHECKPOINTS", "convert_ivlp"]
