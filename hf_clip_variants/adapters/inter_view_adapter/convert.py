"""The official inter-view adapter (`adapter/model-best.pth.tar` of ZrrSkywalker/PointCLIP) -> an adapter."""

from collections.abc import Mapping

import torch

from .config import InterViewAdapterConfig


_NAMES = {
    "fusion_ratio": "fusion_ratio",
    "global_f.0.bn": "view_norm",
    "global_f.3": "global_linear",
    "global_f.4": "global_norm",
    "view_f.0": "view_down",
    "view_f.2": "view_up",
}
PLACE = "view_fusion"


def convert_inter_view_adapter(
    state_dict: Mapping[str, torch.Tensor], *, ratio: float = 0.6
) -> tuple[InterViewAdapterConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors for `put_adapter`, float32 but for the counters of batches.

    Args:
        state_dict: `fusion_ratio` (V,), `global_f.0.bn.*`, `global_f.3.*`, `global_f.4.*`, `view_f.0.*`, `view_f.2.*`;
            an `adapter.` prefix is removed.
        ratio: constant 0.6 in the official code, not in the file.

    Raises:
        ValueError: missing or unexpected names, shapes that do not fit each other, values that are not finite.
    """
    given = {name.removeprefix("adapter."): tensor for name, tensor in state_dict.items()}
    ratios, width = given.get("fusion_ratio"), given.get("view_f.0.bias")
    if ratios is None or width is None or ratios.dim() != 1 or width.dim() != 1:
        raise ValueError("inter-view adapter: expected fusion_ratio (views,) and view_f.0.bias (width,)")
    config = InterViewAdapterConfig(ratio=ratio)
    config.target_modules = [PLACE]
    config.backbone_widths = {"joint width": len(width), "views": len(ratios)}
    wanted, tensors, prefix = config.adapter_tensors(), {}, f"{PLACE}.{config.peft_type_name.lower()}_"
    for name, tensor in given.items():
        module, _, part = name.rpartition(".")
        ours = f"{_NAMES[module]}.{part}" if module in _NAMES else _NAMES.get(name, name)
        tensors[prefix + ours] = tensor if tensor.dtype == torch.int64 else tensor.detach().float().contiguous()
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise ValueError(f"inter-view adapter: missing {missing[:5]}, unexpected {unexpected[:5]}")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"inter-view adapter: {name} has shape {list(tensors[name].shape)}, not {list(shape)}")
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"inter-view adapter: {name} is not finite")
    config.target_modules = config.backbone_widths = None  # filled by the base
    return config, tensors


__all__ = ["convert_inter_view_adapter"]
