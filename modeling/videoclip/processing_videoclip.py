"""What VideoCLIP's processors are: shared classes with its settings."""

from ..video.processing_video import VideoTextProcessor
from ..video.video_processing import CLIPVideoProcessor


def videoclip_video_processor(image_size: int = 224, seconds: int | None = 32, **settings) -> CLIPVideoProcessor:
    """Whole seconds of 30 frames each, short side to `image_size`, centre crop, values 0..1; nothing is subtracted or
    divided. What is missing of the last second is filled up with black frames.

    Args:
        image_size: even.
        seconds: of each video, from its start; None: all.
        settings: other ones of [`CLIPVideoProcessor`]; `fps` is the number of frames of a second.
    """
    fps = settings.pop("fps", 30)
    sizes = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    frames = None if seconds is None else int(seconds * fps)
    chosen = {"sampling_rule": "whole_seconds", "fps": float(fps), "num_frames": frames}
    return CLIPVideoProcessor(**{**sizes, **chosen, "do_normalize": False, **settings})


def videoclip_processor(tokenizer=None, image_size: int = 224, seconds: int | None = 32, **settings):
    """With BERT's tokenizer a [`VideoTextProcessor`]; without one, `videoclip_video_processor` alone."""
    videos = videoclip_video_processor(image_size, seconds, **settings)
    if tokenizer is None:
        return videos
    names = ["input_ids", "attention_mask"]  # there is one segment
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return VideoTextProcessor(videos, tokenizer)


__all__ = ["videoclip_processor", "videoclip_video_processor"]
