"""What open_clip's configuration says and its weights do not: activation, heads, preprocessing;
and what no class here can compute.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


FILE_NAME = "open_clip_config.json"
_HEAD_WIDTH = 64
_RESAMPLING = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers

# Fields that change the numbers and leave no trace in the weights' names, with the value that CLIP's classes have.
_PLAIN = {
    "vision_cfg": {
        "pool_type": "tok",
        "global_average_pool": False,
        "attentional_pool": False,
        "final_ln_after_pool": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "timm_model_name": None,
        "act_kwargs": None,
        "norm_kwargs": None,
    },
    "text_cfg": {
        "pool_type": "argmax",
        "no_causal_mask": False,
        "embed_cls": False,
        "final_ln_after_pool": False,
        "proj_type": "linear",
        "hf_model_name": None,
        "act_kwargs": None,
        "norm_kwargs": None,
    },
}


# The same without a configuration, for the command's output.
ASSUMED_POOLING = (
    "assumed: image features come from the class token (a ResNet's from its attention pooling), text features from "
    "the end of the text under a causal mask, as in OpenAI's CLIP. A few models of open_clip take the average or the "
    "last token instead, and the weights do not show it"
)


def refuse_fixed_positions(weights: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError for image positions that are sines and cosines: the one trace that open_clip's models with
    average pooling (CLIPA) leave in their weights.

    Only the class token's position is all zeros there, and the first patch's are zeros and ones.
    """
    positions = weights.get("visual.positional_embedding")
    if positions is None or positions.is_meta or positions.dim() != 2 or len(positions) < 2:
        return
    class_token, first = positions[0], positions[1]
    if not class_token.any() and first.any() and ((first == 0) | (first == 1)).all():
        raise ValueError(
            "visual.positional_embedding: fixed sines and cosines, as in open_clip's models that pool by average "
            "(CLIPA): CLIP's classes compute only learned positions and the class token"
        )


@dataclass(frozen=True)
class OpenCLIPSettings:
    """Activation, attention heads (None: as the shapes say) and changes to the image processor's settings."""

    hidden_act: str
    vision_heads: int | None = None
    text_heads: int | None = None
    image_processor: dict[str, Any] = field(default_factory=dict)


def find_open_clip_config(checkpoint: Path) -> Path | None:
    """The configuration beside a checkpoint as the Hub has it,
    `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`.
    """
    path = checkpoint.with_name(FILE_NAME)
    return path if checkpoint.name.startswith("open_clip") and path.is_file() else None


def open_clip_files(checkpoint: Path, options: Mapping[str, Any]) -> list[Path]:
    """The configuration that the option `open_clip_config` names, or that lies beside the checkpoint, if any."""
    if "open_clip_config" in options:
        return [Path(options["open_clip_config"])]
    found = find_open_clip_config(checkpoint)
    return [] if found is None else [found]


def read_open_clip_config(path: str | Path, image_size: int) -> OpenCLIPSettings:
    """Settings from an `open_clip_config.json` of the Hub, or one of open_clip's own `model_configs/*.json`.

    Raises:
        OSError: no such file, or not JSON.
        ValueError: a field asks for what `CLIPModel` and `CLIPResNetModel` do not compute; the text names it.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        model = values.get("model_cfg", values)
        vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
        preprocess = dict(values.get("preprocess_cfg") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{path}: not an open_clip configuration ({type(error).__name__}: {error})") from error
    for part, given in (("vision_cfg", vision), ("text_cfg", text)):
        for name, plain in _PLAIN[part].items():
            if given.get(name) not in (plain, None):
                raise ValueError(f"{path}: {part}.{name} is {given[name]!r}, CLIP's classes compute only {plain!r}")
    head_width = vision.get("head_width") or _HEAD_WIDTH
    resnet = isinstance(vision.get("layers"), list)
    vision_width = _whole(vision.get("width", 768), f"{path}: vision_cfg.width") * (32 if resnet else 1)
    return OpenCLIPSettings(
        hidden_act="quick_gelu" if model.get("quick_gelu") else "gelu",
        vision_heads=vision_width // _whole(head_width, f"{path}: vision_cfg.head_width"),
        text_heads=_whole(text.get("heads", 8), f"{path}: text_cfg.heads"),
        image_processor=_image_processor(preprocess, image_size, path),
    )


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{what} is {value!r}, expected a whole number of at least 1")
    return value


def _image_processor(preprocess: Mapping[str, Any], image_size: int, path: str | Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for ours, theirs in (("image_mean", "mean"), ("image_std", "std")):
        if preprocess.get(theirs) is not None:
            settings[ours] = [float(value) for value in preprocess[theirs]]
    interpolation = preprocess.get("interpolation", "bicubic")
    if interpolation not in _RESAMPLING:
        raise ValueError(
            f"{path}: preprocess_cfg.interpolation is {interpolation!r}, expected {' or '.join(_RESAMPLING)}"
        )
    settings["resample"] = _RESAMPLING[interpolation]
    mode = preprocess.get("resize_mode", "shortest")
    if mode == "squash":
        settings |= {"size": {"height": image_size, "width": image_size}, "do_center_crop": False}
    elif mode != "shortest":
        raise ValueError(f"{path}: preprocess_cfg.resize_mode is {mode!r}, expected shortest or squash")
    return settings


__all__ = [
    "ASSUMED_POOLING",
    "FILE_NAME",
    "OpenCLIPSettings",
    "find_open_clip_config",
    "open_clip_files",
    "read_open_clip_config",
    "refuse_fixed_positions",
]
