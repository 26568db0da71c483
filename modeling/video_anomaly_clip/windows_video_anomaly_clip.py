"""Which frames of a video stand where in the grids of segments: all frames to predict, one grid to train."""

import torch


# T frames, S segments, L frames of a segment, W windows (grids)


def num_windows(num_frames: int, num_segments: int, segment_length: int) -> int:
    """Grids that hold all frames of a video."""
    return -(-num_frames // (num_segments * segment_length))


def window_frames(num_frames: int, num_segments: int, segment_length: int, first: int, last: int) -> torch.Tensor:
    """(last - first, S * L) int64: the places in time of the frames of windows `first`..`last - 1`.

    As in the official code, each grid spans the whole video: the video is S segments of W chunks of L frames, and
    window j holds chunk j of each segment. Places at `num_frames` and behind are filled with the video from its
    start: of place p, frame p % num_frames.

    >>> window_frames(9, num_segments=2, segment_length=3, first=0, last=2).tolist()
    [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    """
    windows = num_windows(num_frames, num_segments, segment_length)
    window = torch.arange(first, last)[:, None, None]
    segment, frame = torch.arange(num_segments)[:, None], torch.arange(segment_length)
    return ((segment * windows + window) * segment_length + frame).flatten(1)


def sample_training_frames(
    num_frames: int,
    num_segments: int = 32,
    segment_length: int = 16,
    stride: int = 1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """(S * L,) numbers of the frames of one training grid: S segments that start at random places of S equal parts of
    the video, L consecutive frames in each. A short video is gone through several times.

    Args:
        num_frames: T of the video.
        num_segments, segment_length: S, L, as in the model's configuration.
        stride: of `stride` consecutive frames one is taken.
        generator: for the random starts; None: torch's own.

    Raises:
        ValueError: a video without frames, numbers below 1.

    >>> sample_training_frames(12, num_segments=2, segment_length=3, generator=torch.Generator().manual_seed(0))
    tensor([ 0,  1,  2,  8,  9, 10])
    """
    for name, value in (("num_frames", num_frames), ("num_segments", num_segments), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}: {value}, expected at least 1")
    span = segment_length * stride
    room = max(num_frames, num_segments * span)
    # As official: of spacing d, segment k starts at k d plus a number in 0..d - L + 1.
    spacing = (room - span + 1) // num_segments
    choices = max(spacing - span + 2, 1)  # parts hardly longer than a segment leave no choice
    starts = torch.arange(num_segments) * spacing + torch.randint(choices, (num_segments,), generator=generator)
    return ((starts[:, None] + stride * torch.arange(segment_length)) % num_frames).flatten()


__all__ = ["num_windows", "sample_training_frames", "window_frames"]
