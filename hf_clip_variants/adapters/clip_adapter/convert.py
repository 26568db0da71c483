"""Official CLIP-Adapter weights (`clip_adapter/model.pth.tar-N` of gaopengcuhk/CLIP-Adapter) -> an adapter."""

from collections.abc import Mapping

import torch

from ..checkpoint_format import AdapterFormat, OfficialAdapterFile, Signature
from .config import TARGETS, CLIPAdapterConfig


_NAMES = {"fc.0.weight": "down.weight", "fc.2.weight": "up.weight"}


def convert_clip_adapter(
    image: Mapping[str, torch.Tensor] | None = None,
    text: Mapping[str, torch.Tensor] | None = None,
    *,
    ratio: float = 0.2,
    text_ratio: float | None = None,
    output_relu: bool = True,
    plain_clip: bool = False,
) -> tuple[CLIPAdapterConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32.

    Args:
        image: state dict of the image adapter, `fc.0.weight` (D // r, D) and `fc.2.weight` (D, D // r); an `adapter.`
            prefix is removed.
        text: the same of a text adapter. The official code has none; give at least one of the two.
        ratio: constant 0.2 in the official code, not in the file.
        text_ratio: default `ratio`.
        output_relu: True as in the official code, False as in the paper's formula.
        plain_clip: for a plain `CLIPModel` instead of a `CLIPClassifier`.

    Raises:
        ValueError: missing or unknown keys, shapes that do not fit each other, values that are not finite.
    """
    given = {modality: state for modality, state in (("image", image), ("text", text)) if state is not None}
    if not given:
        raise ValueError("image, text: give at least one state dict")
    tensors, shapes = {}, set()
    for modality, state in given.items():
        state = {name[name.rfind("fc.") :] if "fc." in name else name: tensor for name, tensor in state.items()}
        if state.keys() != _NAMES.keys():
            raise ValueError(
                f"{modality}: expected {' and '.join(_NAMES)}, got {sorted(state)[:5]} ({len(state)} keys)"
            )
        down, up = state["fc.0.weight"], state["fc.2.weight"]
        if down.dim() != 2 or tuple(up.shape) != tuple(down.shape[::-1]):
            raise ValueError(
                f"{modality}: fc.0.weight {list(down.shape)} and fc.2.weight {list(up.shape)} are not (D // r, D) and "
                "(D, D // r)"
            )
        shapes.add(tuple(down.shape))
        target = TARGETS[modality][1 if plain_clip else 0]
        for official, ours in _NAMES.items():
            tensor = state[official].detach().float().contiguous()
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{modality}: {official} is not finite")
            tensors[f"{target}.clipv_clip_adapter_{ours}"] = tensor
    if len(shapes) > 1:
        raise ValueError(f"text: another bottleneck than image: {sorted(shapes)}")
    hidden, width = shapes.pop()
    reduction = width // hidden
    if max(width // reduction, 1) != hidden:
        raise ValueError(f"fc.0.weight: {hidden} units are no width // reduction of {width}")
    config = CLIPAdapterConfig(
        modality="both" if len(given) == 2 else next(iter(given)),
        reduction=reduction,
        ratio=ratio,
        text_ratio=text_ratio,
        output_relu=output_relu,
    )
    return config, tensors


def _convert(official: OfficialAdapterFile) -> tuple[CLIPAdapterConfig, dict[str, torch.Tensor]]:
    given = {name: official.options[name] for name in ("ratio",) if name in official.options}
    return convert_clip_adapter(official.weights, **given)


CHECKPOINTS = AdapterFormat(
    signature=Signature(
        every=(r"(.*\.)?(?<!relu\.)fc\.0\.weight$", r"(.*\.)?(?<!relu\.)fc\.2\.weight$"), none=(r"visual\.",)
    ),
    tensors=(r"fc\.[02]\.weight",),
    convert=_convert,
)


__all__ = ["CHECKPOINTS", "convert_clip_adapter"]
