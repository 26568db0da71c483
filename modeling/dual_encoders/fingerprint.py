"""Fingerprints of weights, by which a saved adapter recognises its backbone."""

import base64
import hashlib

import torch
from torch import nn


_SAMPLES = 8  # values read from each of three tensors
_RELATIVE_TOLERANCE = 0.02  # more than rounding to bfloat16, less than any other weights of the same shape


def _sampled_values(state: dict[str, torch.Tensor]) -> torch.Tensor:
    matrices = [name for name, tensor in state.items() if tensor.dim() >= 2]
    picked = [matrices[0], matrices[len(matrices) // 2], matrices[-1]]
    values = []
    for name in picked:
        flat = state[name].detach().reshape(-1)
        index = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long()
        values.append(flat[index.to(flat.device)].float().cpu())
    return torch.cat(values)


def fingerprint(model: nn.Module) -> str:
    """Identifies the weights of a backbone: SHA-256 over parameter names and shapes, and values sampled from 3
    tensors.

    The values are compared with a tolerance (`same_backbone`), so that the same weights in bfloat16 are recognised.
    Adapter layers around modules are left out, as are modules that are saved with an adapter: the fingerprint is that
    of the base weights.
    """
    state = {
        name.replace(".base_layer", "").replace(".original_module", ""): parameter
        for name, parameter in model.named_parameters()
        if not any(part in name for part in ("clipv_", "lora_", ".modules_to_save."))
    }
    state = dict(sorted(state.items()))
    digest = hashlib.sha256("\n".join(f"{n} {tuple(t.shape)}" for n, t in state.items()).encode()).hexdigest()[:16]
    if any(tensor.is_meta for tensor in state.values()):
        return f"v1:{digest}:"
    values = _sampled_values(state).numpy().astype("<f4").tobytes()
    return f"v1:{digest}:{base64.b64encode(values).decode()}"


def same_backbone(ours: str, theirs: str) -> bool:
    """Whether two fingerprints are of the same weights, whatever the dtype that they were loaded in."""
    (_, shapes_a, values_a), (_, shapes_b, values_b) = ours.split(":"), theirs.split(":")
    if shapes_a != shapes_b:
        return False
    if not values_a or not values_b:  # taken on the meta device, where there are shapes only
        return True
    a, b = (torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.float32) for v in (values_a, values_b))
    return bool(((a - b).abs() <= _RELATIVE_TOLERANCE * a.abs().clamp_min(1e-6)).all())


__all__ = ["fingerprint", "same_backbone"]
