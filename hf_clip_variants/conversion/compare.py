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


def random_images(size: int) -> torch.Tensor:
    """Two images of noise, always the same: (2, 3, size, size)."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def example_inputs(format: ModelFormat, model, processor, tokenizer) -> dict[str, torch.Tensor]:
    """The same noise image or video each time, the format's prompts (random tokens without a tokenizer) and its own
    inputs."""
    if _reads_posts(model):
        return format.example_inputs() | _example_posts(model)
    if format.make_processor is None:
        return {"pixel_values": random_images(2 * model.config.factor).clamp(-1, 1)}
    size, text = model.config.vision_config.image_size, model.config.text_config
    generator, of_videos = torch.Generator().manual_seed(0), _reads_videos(model)
    if tokenizer is not None:
        frames = (3,) if of_videos else ()
        noise = torch.randint(256, (*frames, size, 2 * size, 3), dtype=torch.uint8, generator=generator)
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        media = {"videos" if of_videos else "images": noise.numpy()}
        media = {} if _width_of_features(model) else media
        if _reads_pairs(model):
            media = {"images": [noise.numpy()] * len(format.prompts)}
        inputs = processor(text=list(format.prompts), **media, **options)
        inputs = {name: inputs[name] for name in _INPUTS if name in inputs} | _example_features(model)
    else:
        ids = torch.randint(1, text.vocab_size - 2, (3, min(8, text.max_position_embeddings)), generator=generator)
        ids[:, -1] = text.vocab_size - 1  # CLIP pools at the end token
        images = random_images(size)
        pixels = {"pixel_values_videos": images[None]} if of_videos else {"pixel_values": images}
        pixels = _example_features(model) or pixels
        inputs = pixels | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return format.example_inputs() | inputs


def _reads_posts(model) -> bool:
    """Two texts, one of them for a dual encoder inside of it, and an image each."""
    return hasattr(model, "dual_encoder") and hasattr(model, "fusion")


def _example_posts(model) -> dict[str, torch.Tensor]:
    """Two posts of random tokens and noise."""
    generator, dual = torch.Generator().manual_seed(0), model.config.dual_encoder_config
    end = model.family.padding_id(dual)
    ids = torch.randint(1, model.config.text_config.vocab_size, (2, 3), generator=generator)
    clip_ids = torch.randint(1, min(end, dual.text_config.vocab_size) or 2, (2, 5), generator=generator)
    clip_ids[:, -1] = end
    images = random_images(model.family.image_size(dual))
    return {"input_ids": ids, "clip_input_ids": clip_ids, "pixel_values": images}


def _reads_videos(model) -> bool:
    return model.main_input_name == "pixel_values_videos" or hasattr(model, "video_text_logits")


def _reads_pairs(model) -> bool:
    """Whether it reads an image with each text."""
    return hasattr(model, "get_grid_features")


def _width_of_features(model) -> int | None:
    """Of a model that reads features of each second of video."""
    return getattr(model.config, "feature_size", None)


def _example_features(model) -> dict[str, torch.Tensor]:
    """Two videos of three seconds, of noise; nothing for models that do not read features."""
    width = _width_of_features(model)
    generator = torch.Generator().manual_seed(0)
    return {} if width is None else {"video_features": torch.randn(2, 3, width, generator=generator)}


@torch.inference_mode()
def compute_outputs(model, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that the inputs suffice for, un-normalised features among it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {name: tensor.to(base.dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    pixels, audio = inputs.get("pixel_values"), inputs.get("input_features")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    found = {}
    if _reads_posts(base):
        output = model(**inputs)
        names = ("logits", "similarity", "modality_weights", "layer_attention")
        return {name: output[name].float() for name in names}
    if hasattr(base, "decode_codes"):
        output = model(pixel_values=pixels)
        return {name: output[name].float() for name in ("latents", "reconstruction")}
    if _reads_videos(base):
        return {name: tensor.float() for name, tensor in _video_outputs(base, inputs, text).items()}
    if _reads_pairs(base):
        if not text or pixels is None:
            return found
        count = len(text["input_ids"]) if len(pixels) == 1 else min(len(pixels), len(text["input_ids"]))
        given = {name: tensor[:count] for name, tensor in text.items()}
        output = base(pixel_values=pixels.expand(count, -1, -1, -1) if len(pixels) == 1 else pixels[:count], **given)
        return {name: tensor.float() for name, tensor in output.items() if isinstance(tensor, torch.Tensor)}
    if hasattr(base, "point_text_logits"):
        return {name: tensor.float() for name, tensor in _point_outputs(model, base, inputs, text).items()}
    if audio is not None and hasattr(base, "get_audio_features"):
        found["audio_features"] = base.get_audio_features(input_features=audio).pooler_output
        if "input_ids" in text:
            found["logits_per_audio"] = base(input_features=audio, **text).logits_per_audio
    if hasattr(base, "get_class_embeddings"):  # scores of each pixel or region
        if not getattr(base, "has_text_encoder", True):
            if pixels is not None:
                found["logits"] = model(pixel_values=pixels).logits
        elif "input_ids" in text:
            found["text_features"] = base.get_class_embeddings(**text)
            if pixels is not None:
                found["logits"] = model(pixel_values=pixels, **text).logits
        return {name: tensor.float() for name, tensor in found.items()}
    if hasattr(base, "encode_prompts"):  # scores of regions and words: one prompt for all images
        text = {name: tensor[:1] for name, tensor in text.items()}
        if "input_ids" in text:
            found["text_features"] = base.encode_prompts(**text)
            if pixels is not None:
                output = model(pixel_values=pixels, **text)
                found |= {name: output[name] for name in ("logits", "pred_boxes", "centerness")}
        return {name: tensor.float() for name, tensor in found.items()}
    if pixels is not None:
        found["image_features"] = base.get_image_features(pixel_values=pixels).pooler_output
    if hasattr(base, "get_class_features"):
        if base.config.templates and pixels is not None:
            output = model(pixel_values=pixels)
            found |= {"logits": output.logits, "text_features": output.text_embeds}
            if not base.prompt_embedder.depends_on_images:
                found["text_features"] = base.get_class_features()
    elif "input_ids" in text:
        found["text_features"] = base.get_text_features(**text).pooler_output
        if pixels is not None:
            output = model(pixel_values=pixels, **text, return_loss=False)
            found |= {"logits_per_image": output.logits_per_image, "logits_per_text": output.logits_per_text}
    return {name: tensor.float() for name, tensor in found.items()}


def _video_outputs(model, inputs: Mapping[str, torch.Tensor], text: dict) -> dict[str, torch.Tensor]:
    names = ("pixel_values_videos", "video_features", "video_mask")
    videos, found = {name: inputs[name] for name in names if name in inputs}, {}
    if not hasattr(model, "video_text_logits"):  # its texts are inside of it
        output = model(**videos)
        return {name: output[name] for name in ("text_features", "logits", "scores", "class_probs")}
    if "input_ids" in text:
        found["text_features"] = model.get_text_features(**text).pooler_output
    if videos.keys() <= {"video_mask"}:
        return found
    if "input_ids" in text:
        output = model(**videos, **text)
        names = ("frame_features", "logits_per_video", "logits_per_text")
        found |= {name: output[name] for name in names if output.get(name) is not None}  # frames may have no features
    elif hasattr(model, "get_frame_features"):
        found["frame_features"] = model.get_frame_features(**videos)
    if not hasattr(model, "get_frame_features"):
        found["video_embeds"] = model.get_video_features(**videos).pooler_output
    return found


def _point_outputs(model, base, inputs: Mapping[str, torch.Tensor], text: dict) -> dict[str, torch.Tensor]:
    given = {name: inputs[name] for name in ("points", "points_mask") if name in inputs}
    found = {}
    if "input_ids" in text:
        found["text_features"] = base.get_text_features(**text).pooler_output
    if "points" in given:
        found["view_features"] = base.get_point_features(**given).pooler_output
        if "input_ids" in text:
            output = model(**given, **text)
            found |= {"logits": output.logits, "point_embeds": output.point_embeds}
    return found


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
    "random_images",
    "read_expected",
]
