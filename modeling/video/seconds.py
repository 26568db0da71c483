"""A video second by second, in the memory of a few seconds, however long it is."""

import warnings
from collections.abc import Iterator

import torch

from .frame_sampling import FrameSampling
from .video_decoding import Video, open_video
from .video_processing import CLIPVideoProcessor


def seconds_of(
    source,
    processor: CLIPVideoProcessor,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Iterator[torch.Tensor]:
    """(S, 3, H, W) of each second that has begun, as `processor` with the rule `"whole_seconds"` makes them: S is its
    `fps`, and the last second is filled up with zeros. Nothing is kept.

    Args:
        source: what `open_video` takes.
        processor: its `num_frames` does not count here.
        fps: frames a second of a folder, list or array of frames.
        start, end: seconds; the part that is looked at.

    Raises:
        ValueError: a video that cannot be read, frames without a rate, a processor with another rule.
    """
    if processor.sampling_rule != "whole_seconds":
        raise ValueError(f"processor: its sampling_rule is {processor.sampling_rule!r}, expected 'whole_seconds'")
    sampling = FrameSampling("whole_seconds", num_frames=None, rate=processor.fps, start=start, end=end)
    images = processor.frame_processor()
    with open_video(source, fps) as video:
        second: list[torch.Tensor] = []
        last, pixels = None, None
        for frame in _frames(video, sampling):
            if frame is not last:
                pixels, last = images.preprocess([frame], return_tensors="pt")["pixel_values"][0], frame
            second.append(pixels)
            if len(second) == processor.fps:
                yield torch.stack(second)
                second = []
        if second:
            yield torch.stack(second + [torch.zeros_like(pixels)] * sampling.missing_frames(second))


def _frames(video: Video, sampling: FrameSampling) -> Iterator:
    if video.fps is None:
        sampling.frames(video.total, None)  # says what is missing
    times = sampling.times(video.duration, video.fps, video.total)
    count = 0
    for frame in video.frames(times):
        if frame is None:
            break
        count += 1
        yield frame
    if not count:
        raise ValueError("video has no frames that can be decoded")
    if count < len(times):
        warnings.warn(
            f"the video says that it lasts {video.duration:.2f} s, but it cannot be decoded to its end: {count} of "
            f"{len(times)} frames are used",
            stacklevel=3,
        )


@torch.no_grad()
def features_of_seconds(
    model, source, processor: CLIPVideoProcessor, fps: float | None = None, at_once: int = 4, **part
) -> torch.Tensor:
    """(T, F) on the CPU: features of each second of a video of any length.

    Args:
        model: with `get_second_features`.
        source, processor, fps: as in `seconds_of`; `part` is `start` and `end`.
        at_once: seconds that are decoded before the model sees them.
    """
    found, waiting = [], []

    def look() -> None:
        if waiting:
            pixels = torch.cat(waiting)[None].to(model.device)
            found.append(model.get_second_features(pixels)[0].float().cpu())
            waiting.clear()

    for second in seconds_of(source, processor, fps, **part):
        waiting.append(second)
        if len(waiting) == at_once:
            look()
    look()
    return torch.cat(found)


__all__ = ["features_of_seconds", "seconds_of"]
