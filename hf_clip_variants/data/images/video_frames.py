"""Videos among labelled images: some frames of each, which models of images see one by one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..videos import is_video_name


if TYPE_CHECKING:
    import torch
    from PIL import Image

NUM_FRAMES = 8  # as ActionCLIP looks at: the middle of so many equal parts
LARGEST = 512  # short side of a frame that is kept: no CLIP looks at more pixels


def read_video_frames(path: str | os.PathLike, num_frames: int = NUM_FRAMES) -> Image.Image:
    """Frames of a video, the middle of each of `num_frames` equal parts, as one picture: beside each other, and apart
    in its attribute `frames`. Of fewer frames, some are there twice.

    Raises:
        OSError: the file is no video, or none of its frames can be read. ImportError: PyAV is not installed.
    """
    from ...modeling.video.frame_sampling import FrameSampling
    from ...modeling.video.video_decoding import read_video

    try:
        frames, _ = read_video(path, FrameSampling("segments", num_frames), transform=_small)
    except ValueError as error:
        raise OSError(str(error)) from error
    return picture_of(frames)


def still_video(image: Image.Image, num_frames: int = NUM_FRAMES) -> Image.Image:
    """An image among videos: a video that stands still."""
    return picture_of([image] * num_frames)


def picture_of(frames: list[Image.Image]) -> Image.Image:
    """Frames of one size beside each other, with the attribute `frames`."""
    from PIL import Image

    width, height = frames[0].size
    picture = Image.new("RGB", (width * len(frames), height), (255, 255, 255))
    for place, frame in enumerate(frames):
        see_through = frame if frame.mode == "RGBA" else None
        picture.paste(frame, (place * width, 0), see_through)
    picture.frames = frames
    return picture


def frames_of(image: Image.Image) -> list[Image.Image]:
    """The frames of a picture of a video; of any other image, itself."""
    return getattr(image, "frames", None) or [image]


def stacked(frames: torch.Tensor) -> torch.Tensor:
    """Pixels of T frames (T, 3, H, W) -> (3, T * H, W): one image for everything that carries images; see
    `evaluation.video_features.with_mean_of_frames`, which takes it apart again. One frame stays as it is."""
    return frames.transpose(0, 1).flatten(1, 2)


def _small(frame: Image.Image) -> Image.Image:
    from PIL import Image

    shrunk = LARGEST / min(frame.size)
    if shrunk >= 1:
        return frame
    return frame.resize([max(1, round(side * shrunk)) for side in frame.size], Image.Resampling.BICUBIC)


__all__ = [
    "LARGEST",
    "NUM_FRAMES",
    "frames_of",
    "is_video_name",
    "picture_of",
    "read_video_frames",
    "stacked",
    "still_video",
]
