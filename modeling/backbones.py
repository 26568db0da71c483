"""The contract that the classifier and the adapters have with a dual encoder, one small class a family, found by `model_type`.

Only CLIP today; a family is added by one class here and one line in `FAMILIES`.
"""

import base64
import hashlib
from types import MappingProxyType

import torch
from torch import nn


class CLIPFamily:
    """transformers' `CLIPModel`: causal text tower, EOS pooling, bias-free projections, `exp(logit_scale)`."""

    model_type = "clip"
    text_is_causal = True  # states up to EOS do not see what follows: prompts may be trimmed and share prefixes

    @staticmethod
    def text_tower(model: nn.Module) -> nn.Module:
        return model.text_model

    @staticmethod
    def project_text(model: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
        """(N, text width) -> (N, D), not normalised."""
        return model.text_projection(pooled)

    @staticmethod
    def logit_scale(model: nn.Module) -> torch.Tensor:
        return model.logit_scale.exp()

    @staticmethod
    def text_modules(model: nn.Module) -> tuple[nn.Module, ...]:
        """Everything that class embeddings depend on."""
        return model.text_model, model.text_projection

    @staticmethod
    def image_modules(model: nn.Module) -> tuple[nn.Module, ...]:
        """Everything that image features depend on."""
        return model.vision_model, model.visual_projection

    @staticmethod
    def widths(config) -> dict[str, int]:
        """The widths that an adapter must agree with."""
        return {
            "text width": config.text_config.hidden_size,
            "image width": config.vision_config.hidden_size,
            "joint width": config.projection_dim,
            "text layers": config.text_config.num_hidden_layers,
            "image layers": config.vision_config.num_hidden_layers,
        }


FAMILIES = MappingProxyType({CLIPFamily.model_type: CLIPFamily})


def family_of(model_type: str) -> type[CLIPFamily]:
    """The contract of a `model_type`; ValueError with the supported ones otherwise."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"backbone: model_type {model_type!r} is not supported, expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


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
    """What a saved adapter remembers of its backbone: SHA-256 over parameter names and shapes, and values sampled from 3 tensors.

    The values are compared with a tolerance (`same_backbone`), so that a base loaded in bfloat16 is still itself. Adapter layers that wrap
    the model are looked through: the fingerprint is that of the base weights.
    """
    state = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if "clipv_" not in name and "lora_" not in name
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
    if not values_a or not values_b:  # taken on the meta device: shapes are all there is
        return True
    a, b = (torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.float32) for v in (values_a, values_b))
    return bool(((a - b).abs() <= _RELATIVE_TOLERANCE * a.abs().clamp_min(1e-6)).all())


__all__ = ["FAMILIES", "CLIPFamily", "family_of", "fingerprint", "same_backbone"]
