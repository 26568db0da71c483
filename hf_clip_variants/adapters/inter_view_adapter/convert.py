"""The official inter-view adapter (`adapter/model-best.pth.tar` of ZrrSkywalker/PointCLIP) -> an adapter."""

import re
from collections.abc import Mapping

import torch
from transformers import AutoModel, PreTrainedModel

from ...modeling.loading_and_saving.example_outputs import Tensors, random_texts, texts_of
from ..checkpoint_format import AdapterFormat, OfficialAdapterFile, Signature
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
        is_counter = name.endswith("num_batches_tracked")
        tensors[prefix + ours] = tensor.long() if is_counter else tensor.detach().float().contiguous()
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


def _load_base(source: str) -> PreTrainedModel:
    """A model of many views; ValueError for another one, or for other views than the official ten."""
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    if not hasattr(model, "fused_views"):
        raise ValueError(
            f"base: {source} is a {type(model).__name__}, and does not say the views; want a model of many views that "
            "was saved with projection='sparse', views='sparse_10' and the CLIP that the adapter was trained on"
        )
    if model.config.projection != "sparse":
        raise ValueError(f"base: {source} draws {model.config.pictures}; the official adapter knows sparse pictures")
    return model


def _example_inputs(model: PreTrainedModel) -> Tensors:
    """Two clouds of noise, and random tokens."""
    points = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    texts = {"input_ids": random_texts(model.config.text_config)["input_ids"]}
    return {"points": points / points.norm(dim=-1).amax(1)[:, None, None], **texts}


def _outputs_of(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Features of texts and views, and scores."""
    base, text, found = model.get_base_model(), texts_of(inputs), {}
    clouds = {name: inputs[name] for name in ("points", "points_mask") if name in inputs}
    if "input_ids" in text:
        found["text_features"] = base.get_text_features(**text).pooler_output
    if "points" in clouds:
        found["view_features"] = base.get_point_features(**clouds).pooler_output
        if "input_ids" in text:
            output = model(**clouds, **text)
            found |= {"logits": output.logits, "point_embeds": output.point_embeds}
    return found


def _convert(official: OfficialAdapterFile) -> tuple[InterViewAdapterConfig, dict[str, torch.Tensor]]:
    kept = re.compile(r"(.*\.)?(" + "|".join(_TENSORS) + ")")
    weights = {name: tensor for name, tensor in official.weights.items() if kept.fullmatch(name)}
    return convert_inter_view_adapter(weights)


_TENSORS = (r"fusion_ratio", r"global_f\.\d+\..*", r"view_f\.\d+\..*")
CHECKPOINTS = AdapterFormat(
    signature=Signature(every=(r"(.*\.)?fusion_ratio$", r"(.*\.)?global_f\.", r"(.*\.)?view_f\.")),
    tensors=_TENSORS,
    convert=_convert,
    outputs=("view_features", "point_embeds", "text_features", "logits"),
    load_base=_load_base,
    base_inputs=_example_inputs,
    outputs_of=_outputs_of,
)


__all__ = ["CHECKPOINTS", "convert_inter_view_adapter"]
