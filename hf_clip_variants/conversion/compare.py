"""Outputs of a converted model: before and after saving, and beside the official code's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..modeling.loading_and_saving.checkpoint_format import CheckpointFormat, ModelFormat
from .checkpoint_reader import read_contents


# Of the largest value of an output: what a comparison with expected outputs lets pass.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Name in a file of expected outputs -> the model's argument.
_INPUTS = {
    "pixel_values": "pixel_values",
    "image": "pixel_values",
    "input_ids": "input_ids",
    "text": "input_ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "clip_input_ids": "clip_input_ids",
    "clip_attention_mask": "clip_attention_mask",
    "image_mask": "image_mask",
    "input_features": "input_features",
    "audio": "input_features",
    "pixel_values_videos": "pixel_values_videos",
    "video_features": "video_features",
    "video_mask": "video_mask",
    "points": "points",
    "points_mask": "points_mask",
}


def example_inputs(format: ModelFormat, model, processor, tokenizer) -> dict[str, torch.Tensor]:
    """The same each time: what the format compares its models on."""
    inputs = format.example_inputs(model, format.prompts, processor, tokenizer)
    return {name: tensor for name, tensor in inputs.items() if name in _INPUTS}


@torch.inference_mode()
def compute_outputs(format: CheckpointFormat, model, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that the inputs suffice for, in float32."""
    cast = {name: tensor.to(model.dtype) for name, tensor in inputs.items() if tensor.is_floating_point()}
    return {name: tensor.float() for name, tensor in format.outputs_of(model, {**inputs, **cast}).items()}


# The same weights on the same machine: what differs in these two is a bug, not something that the user can mend.


def check_weights(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> None:
    wrong = [name for name, tensor in before.items() if name not in after or not torch.equal(tensor, after[name])]
    if wrong:
        raise RuntimeError(f"compare: {len(wrong)} weights are not as they were written: {wrong[:5]}")


def check_reloaded(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], dtype) -> float:
    """The largest difference. Not always zero: sums depend on where a matrix lies in memory."""
    differences = _differences(after, before)
    worst = max(differences, key=differences.get)
    if not differences[worst] <= _TOLERANCES[dtype] * _scale(before[worst]):
        raise RuntimeError(f"compare: {worst} differs by {differences[worst]:.3g} between memory and what was written")
    return differences[worst]


def check_expected(
    actual: Mapping[str, torch.Tensor], official: Mapping[str, torch.Tensor], dtype
) -> dict[str, float]:
    """The largest difference of each expected output; ValueError where it is too large or the output is missing."""
    if absent := sorted(official.keys() - actual.keys()):
        raise ValueError(f"expected: the inputs in the file do not give {', '.join(absent)}, but {', '.join(actual)}")
    differences = _differences(actual, official)
    for name, difference in differences.items():
        scale = _scale(official[name])
        if not difference <= _TOLERANCES[dtype] * scale:  # also for NaN
            raise ValueError(
                f"expected: {name} differs by {difference:.3g}, values are up to {scale:.3g}; wrong options "
                "(activation, heads, base)?"
            )
    return differences


def read_expected(path: Path, format: CheckpointFormat) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and official outputs in a safetensors file, under their own names."""
    tensors = read_contents(path).weights
    inputs = {_INPUTS[name]: tensor for name, tensor in tensors.items() if name in _INPUTS}
    outputs = {name: tensor for name, tensor in tensors.items() if name not in _INPUTS}
    if unknown := sorted(outputs.keys() - set(format.outputs)):
        raise ValueError(
            f"expected: {path} has {', '.join(unknown[:5])} ({len(unknown)}), expected {', '.join(format.outputs)}"
        )
    if not inputs or not outputs:
        raise ValueError(
            f"expected: {path} holds {'no outputs' if inputs else 'no inputs'}, want both ({', '.join(_INPUTS)})"
        )
    return inputs, outputs


def _differences(actual: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, float]:
    for name, tensor in wanted.items():
        if actual[name].shape != tensor.shape:
            raise ValueError(
                f"expected: {name} has shape {list(tensor.shape)}, the model gives {list(actual[name].shape)}"
            )
    return {name: float((actual[name] - tensor.float()).abs().max()) for name, tensor in wanted.items()}


def _scale(tensor: torch.Tensor) -> float:
    return max(float(tensor.abs().max()), 1e-12)


__all__ = [
    "check_expected",
    "check_reloaded",
    "check_weights",
    "compute_outputs",
    "example_inputs",
    "read_expected",
]
