"""An opened video: what every reader of videos has, whatever decodes its frames."""

import abc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.video_utils import VideoMetadata

from ..decoding.image_decoding import DecodingRules
from .frame_sampling import ROUNDING, FrameSampling


class Video(abc.ABC):
    """
    An opened video. `open_video` makes one.

    Args:
        duration: seconds. fps: mean frames a second. total: number of frames, counted or from duration and rate.
        width, height: of upright frames. backend: what decodes it.
    """

    duration: float
    fps: float | None
    total: int
    width: int
    height: int
    backend: str

    def read(
        self, sampling: FrameSampling, transform: Callable[[PIL.Image.Image], Any] | None = None
    ) -> tuple[list, VideoMetadata]:
        """The chosen frames, RGB, and what is known of the video; `frames_indices` are the frames' numbers, counted at
        the mean rate.

        Args:
            transform: called with each frame as soon as it is decoded; its results are returned instead.

        Raises:
            ValueError: no frame can be decoded, or the chosen part is behind the end.
        """
        times = sampling.times(self.duration, self.fps, self.total)
        frames = transformed((frame for frame in self.frames(times) if frame is not None), transform)
        if not frames:
            raise ValueError("video has no frames that can be decoded")
        if len(frames) < len(times):
            warnings.warn(
                f"the video says that it lasts {self.duration:.2f} s, but it cannot be decoded to its end: "
                f"{len(frames)} of {len(times)} frames are used",
                stacklevel=2,
            )
        numbers = np.floor((times[: len(frames)] + ROUNDING) * self.fps).astype(int)
        return frames, self.metadata(np.minimum(numbers, self.total - 1).tolist())

    def metadata(self, frames_indices: list[int]) -> VideoMetadata:
        return VideoMetadata(
            total_num_frames=self.total,
            fps=self.fps,
            width=self.width,
            height=self.height,
            duration=self.duration,
            video_backend=self.backend,
            frames_indices=frames_indices,
        )

    @abc.abstractmethod
    def frames(self, times: Sequence[float]) -> Iterator[PIL.Image.Image | None]:
        """The frame that is shown at each of the rising `times` (seconds); None behind what can be decoded."""

    def all_frames(self) -> Iterator[tuple[float, PIL.Image.Image]]:
        """(seconds, frame) of each frame; of a damaged file of those that can be decoded, with a warning."""
        begins = np.arange(self.total) / (self.fps or 1.0)
        yield from zip(begins.tolist(), self.frames(begins), strict=True)


def transformed(frames: Iterable, transform: Callable | None) -> list:
    """The frames, or what `transform` makes of each; of the same one in a row only once."""
    if transform is None:
        return list(frames)
    results, last = [], None
    for frame in frames:
        results.append(results[-1] if frame is last else transform(frame))
        last = frame
    return results


def as_pil(image: PIL.Image.Image | torch.Tensor) -> PIL.Image.Image | torch.Tensor:
    """uint8 tensors as PIL images; tensors of floats stay."""
    if isinstance(image, PIL.Image.Image) or image.dtype != torch.uint8:
        return image
    return PIL.Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))


def check_pixels(width: int, height: int, rules: DecodingRules, name: str) -> None:
    if width * height > rules.max_pixels:
        raise ValueError(
            f"video has frames of {width} x {height} = {width * height} pixels{name}, more than "
            f"max_pixels={rules.max_pixels}"
        )
    if not width * height:
        raise ValueError(f"video has frames of {width} x {height} pixels{name}")


__all__ = ["Video", "as_pil", "check_pixels", "transformed"]
