"""Official CoOp prompt learners (`prompt_learner/model.pth.tar-N` of KaiyangZhou/CoOp) -> an adapter."""

from collections.abc import Mapping, Sequence

import torch

from ..checkpoint_format import (
    COUPLING,
    LAYER_PROMPTS,
    LEARNED_CONTEXT,
    META_NET,
    AdapterFormat,
    OfficialAdapterFile,
    Signature,
)
from .config import ClassTokenPosition, CoOpConfig


# Embeddings of the training classes' prompts. They follow from the class names and are dropped, so that other classes
# can be set.
_DROPPED = ("token_prefix", "token_suffix")


def convert_coop(
    state_dict: Mapping[str, torch.Tensor],
    *,
    class_token_position: ClassTokenPosition = "end",
    class_names: Sequence[str] | None = None,
    plain_clip: bool = False,
) -> tuple[CoOpConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32.

    Args:
        state_dict: from `checkpoint_reader.read_state_dict(path)`: `ctx` (M, d) or (C, M, d), and two buffers that are
            dropped.
        class_token_position: of the training run. The folder's name has it (`ctpend`), the file does not.
        class_names: the training classes in label order, needed for a class-specific context (C, M, d).
        plain_clip: for a plain `CLIPModel` instead of a `CLIPClassifier`.

    Raises:
        ValueError: missing or unknown keys, a context of another shape, or one that is not finite.

    Example:

    ```python
    state_dict = checkpoint_reader.read_state_dict("prompt_learner/model.pth.tar-50")
    model = put_adapter(classifier, *convert_coop(state_dict))
    ```
    """
    tensors = {name.removeprefix("prompt_learner."): tensor for name, tensor in state_dict.items()}
    unknown = sorted(tensors.keys() - {"ctx", *_DROPPED})
    if unknown or "ctx" not in tensors:
        raise ValueError(
            f"state_dict: expected ctx and {', '.join(_DROPPED)}, got {sorted(tensors)[:5]} ({len(tensors)} keys)"
        )
    context = tensors["ctx"].detach().float()
    if context.dim() not in (2, 3):
        raise ValueError(f"ctx: shape {list(context.shape)}, expected (M, d) or (C, M, d)")
    if not torch.isfinite(context).all():
        raise ValueError("ctx: not finite")
    class_specific = context.dim() == 3
    if class_specific and (class_names is None or len(class_names) != len(context)):
        got = "none" if class_names is None else len(class_names)
        raise ValueError(
            f"class_names: the context is of {len(context)} classes, expected their names in label order, got {got}"
        )
    config = CoOpConfig(
        num_context_tokens=context.shape[-2],
        class_token_position=class_token_position,
        class_specific=class_specific,
        class_names=list(class_names) if class_names is not None else None,
    )
    target = "text_model.embeddings" if plain_clip else "prompt_embedder"
    return config, {f"{target}.clipv_coop_context": context.contiguous()}


def _convert(official: OfficialAdapterFile) -> tuple[CoOpConfig, dict[str, torch.Tensor]]:
    position = official.options.get("class_token_position", "end")
    return convert_coop(official.weights, class_token_position=position, class_names=official.class_names)


CHECKPOINTS = AdapterFormat(
    signature=Signature(every=(LEARNED_CONTEXT,), none=(META_NET, COUPLING, LAYER_PROMPTS)),
    tensors=("ctx",),
    convert=_convert,
)


__all__ = ["CHECKPOINTS", "convert_coop"]
