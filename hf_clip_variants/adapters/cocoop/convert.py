"""Official CoCoOp prompt learners (`prompt_learner/model.pth.tar-10` of KaiyangZhou/CoOp) -> an adapter."""

from collections.abc import Mapping

import torch

from ..checkpoint_format import LEARNED_CONTEXT, META_NET, AdapterFormat, Signature
from ..official_tensors import check_keys, finite, without_prefixes
from .config import CoCoOpConfig


# token embeddings of the training classes, which follow from the class names
_DROPPED = ("token_prefix", "token_suffix")
_NAMES = {"ctx": "context"} | {
    f"meta_net.{layer}.{part}": f"{layer}.{part}" for layer in ("linear1", "linear2") for part in ("weight", "bias")
}


def convert_cocoop(state_dict: Mapping[str, torch.Tensor]) -> tuple[CoCoOpConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter` on a `CLIPClassifier`, float32.

    Args:
        state_dict: from `checkpoint_reader.read_state_dict(path)`: `ctx` (M, d), `meta_net.linear1` (h, D),
            `meta_net.linear2` (d, h), and two buffers that are dropped.

    Raises:
        ValueError: missing or unknown keys, shapes that do not fit each other, tensors that are not finite.
    """
    tensors = {name: tensor for name, tensor in without_prefixes(state_dict).items() if name not in _DROPPED}
    check_keys(tensors, set(_NAMES))
    context, first, second = (tensors[n] for n in ("ctx", "meta_net.linear1.weight", "meta_net.linear2.weight"))
    biases = [tuple(tensors[f"meta_net.{layer}.bias"].shape) for layer in ("linear1", "linear2")]
    if (
        context.dim() != 2
        or first.dim() != 2
        or tuple(second.shape) != (context.shape[1], len(first))
        or biases != [(len(first),), (context.shape[1],)]
    ):
        raise ValueError(
            f"state_dict: ctx {list(context.shape)}, linear1 {list(first.shape)} and linear2 {list(second.shape)} do "
            "not go together; expected (M, d), (h, D) and (d, h)"
        )
    hidden, joint = first.shape
    config = CoCoOpConfig(num_context_tokens=len(context), context_init=None, meta_reduction=joint // hidden)
    if config.hidden_width(joint) != hidden:
        raise ValueError(
            f"meta_net.linear1.weight: {hidden} hidden units for {joint} inputs, expected {joint} // a whole number"
        )
    return config, {
        f"prompt_embedder.clipv_cocoop_{ours}": finite(tensors[theirs], theirs) for theirs, ours in _NAMES.items()
    }


CHECKPOINTS = AdapterFormat(
    signature=Signature(every=(LEARNED_CONTEXT, META_NET)),
    tensors=("ctx", r"meta_net\..+"),
    convert=lambda official: convert_cocoop(official.weights),
)


__all__ = ["CHECKPOINTS", "convert_cocoop"]
