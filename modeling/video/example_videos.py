"""Videos and texts that a converted model is compared on, and the outputs that they suffice for; see
`loading_and_saving/example_outputs.py`."""

from collections.abc import Mapping

import torch

from ..loading_and_saving.example_outputs import (
    Tensors,
    noise_pictures,
    processed_texts,
    random_images,
    random_texts,
    texts_of,
)


_VIDEO_INPUTS = ("pixel_values_videos", "video_features", "video_mask")
_FRAMES = 3


def videos_and_texts(model, prompts: tuple[str, ...], processor, tokenizer) -> Tensors:
    """A video of noise and the prompts; without a tokenizer another one, of two frames, and random tokens."""
    size = model.config.vision_config.image_size
    if tokenizer is None:
        return {"pixel_values_videos": random_images(size)[None]} | random_texts(model.config.text_config)
    return processed_texts(prompts, processor, videos=noise_pictures(size, _FRAMES).numpy())


def videos_of(inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """The inputs that are a video's."""
    return {name: inputs[name] for name in _VIDEO_INPUTS if name in inputs}


def video_text_outputs(model, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    """Features of frames or videos and of texts, and their similarities."""
    videos, text, found = videos_of(inputs), texts_of(inputs), {}
    if "input_ids" in text:
        found["text_features"] = model.get_text_features(**text).pooler_output
    if videos.keys() <= {"video_mask"}:
        return found
    of_frames = hasattr(model, "get_frame_features")
    if "input_ids" in text:
        output = model(**videos, **text)
        names = ("frame_features", "logits_per_video", "logits_per_text")
        found |= {name: output[name] for name in names if output.get(name) is not None}  # frames may have no features
    elif of_frames:
        found["frame_features"] = model.get_frame_features(**videos)
    if not of_frames:
        found["video_embeds"] = model.get_video_features(**videos).pooler_output
    return found


__all__ = ["video_text_outputs", "videos_and_texts", "videos_of"]
