"""
State dicts under the official names to `GLIPv2ForZeroShotObjectDetection`, and back.

No official GLIPv2 file exists; these are the names of its parts in the official repository, in whose configurations
they are off. A file of GLIP becomes a GLIPv2 by GLIP's converter and `GLIPv2ForZeroShotObjectDetection.from_glip`.
"""

from collections.abc import Mapping

import torch

from ..clip.convert_clip import fail_if_any
from ..glip.configuration_glip import GLIPConfig
from ..glip.convert_glip import convert_glip_state_dict
from ..glip.convert_glip import to_official as glip_to_official
from .configuration_glipv2 import GLIPv2Config


_LOSS, _WORDS, _MASKS = "rpn.loss_evaluator", "rpn.head.mlm_head", "roi_heads.mask"
_TIED = f"{_WORDS}.bias"  # officially the decoder's bias has two names
_BOTH = ("weight", "bias")


def addition_names(config: GLIPv2Config) -> dict[str, str]:
    """Official name -> ours, of the tensors that GLIP does not have."""
    layers, found = {}, {}
    if config.use_inter_image_loss:
        found[f"{_LOSS}.shallow_log_scale"] = "contrast.log_scale"
        for kind in ("image", "text"):
            layers[f"{_LOSS}.shallow_contrastive_projection_{kind}"] = f"contrast.{kind}_projection"
    if config.use_mlm:
        for part in ("transform.dense", "transform.LayerNorm", "decoder"):
            layers[f"{_WORDS}.{part}"] = f"word_predictions.{part}"
    if config.use_mask_head:
        predictor = f"{_MASKS}.predictor"
        found |= {f"{predictor}.log_scale": "mask_head.log_scale", f"{predictor}.bias_lang": "mask_head.text_bias"}
        layers[f"{predictor}.conv5_mask"] = "mask_head.upsampling"
        layers[f"{predictor}.dot_product_projection_text"] = "mask_head.text_projection"
        for i in range(config.mask_num_convs):
            layers[f"{_MASKS}.feature_extractor.mask_fcn{i + 1}"] = f"mask_head.convolutions.{i}"
    for official, ours in layers.items():
        found |= {f"{official}.{part}": f"{ours}.{part}" for part in _BOTH}
    return found


def _glip_config(config: GLIPv2Config) -> GLIPConfig:
    values = config.to_dict()
    return GLIPConfig.from_dict(
        {name: values[name] for name in GLIPConfig().to_dict() if name in values}
        | {"model_type": GLIPConfig.model_type}
    )


def convert_glipv2_state_dict(weights: Mapping[str, torch.Tensor], config: GLIPv2Config) -> dict[str, torch.Tensor]:
    """A state dict under official names under ours, in float32. Strict; ValueError as of GLIP's converter."""
    names = addition_names(config)
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    found = {ours: weights.pop(official).float() for official, ours in names.items() if official in weights}
    fail_if_any("missing", [official for official, ours in names.items() if ours not in found], "GLIPv2")
    tied = weights.pop(_TIED, None) if config.use_mlm else None
    if tied is not None and not torch.equal(tied.float(), found["word_predictions.decoder.bias"]):
        raise ValueError(
            f"GLIPv2 state dict: {_TIED} is not {_WORDS}.decoder.bias, expected one tensor under both names"
        )
    return convert_glip_state_dict(weights, _glip_config(config)) | found


def to_official(state_dict: Mapping[str, torch.Tensor], config: GLIPv2Config) -> dict[str, torch.Tensor]:
    """The inverse of `convert_glipv2_state_dict`. ValueError for missing or unexpected names."""
    names, rest = addition_names(config), dict(state_dict)
    fail_if_any("missing", [ours for ours in names.values() if ours not in rest], "GLIPv2")
    found = {official: rest.pop(ours).contiguous() for official, ours in names.items()}
    if config.use_mlm:
        found[_TIED] = found[f"{_WORDS}.decoder.bias"]
    return glip_to_official(rest, _glip_config(config)) | found


__all__ = ["addition_names", "convert_glipv2_state_dict", "to_official"]
