"""What converters of adapters do with the tensors of an official checkpoint."""

from collections.abc import Mapping

import torch


def without_prefixes(
    state_dict: Mapping[str, torch.Tensor], prefixes: tuple[str, ...] = ("module.", "prompt_learner.")
) -> dict[str, torch.Tensor]:
    """An official state dict without the prefixes that wrapper modules add to its names."""
    tensors = {}
    for name, tensor in state_dict.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        tensors[name] = tensor
    return tensors


def check_keys(tensors: Mapping[str, torch.Tensor], expected: set[str]) -> None:
    """Raises ValueError unless an official state dict has exactly the expected keys."""
    missing, unknown = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    faults = [f"{len(n)} {kind} keys: {n[:5]}" for kind, n in (("missing", missing), ("unknown", unknown)) if n]
    if faults:
        raise ValueError(f"state_dict: {'; '.join(faults)}")


def finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor in float32, detached. Raises ValueError if it holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: not finite")
    return tensor.detach().float().contiguous()


__all__ = ["check_keys", "finite", "without_prefixes"]
