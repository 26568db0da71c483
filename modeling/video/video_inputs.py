"""What comes into models that read videos: looked at before anything is computed."""

import torch

from ..dual_encoders.forward_checks import check_pixels


def check_videos(pixel_values_videos: torch.Tensor) -> None:
    """ValueError unless (V, T, 3, H, W) normalised frames."""
    is_tensor = isinstance(pixel_values_videos, torch.Tensor)
    if not is_tensor or pixel_values_videos.dim() != 5:
        got = list(pixel_values_videos.shape) if is_tensor else type(pixel_values_videos).__name__
        raise ValueError(f"pixel_values_videos: expected [videos, frames, 3, H, W], got {got}")
    if not torch.compiler.is_compiling() and not pixel_values_videos.numel():
        raise ValueError(
            f"pixel_values_videos: expected at least one video with frames, got {list(pixel_values_videos.shape)}"
        )
    check_pixels(pixel_values_videos.flatten(0, 1), 3, "pixel_values_videos")


def checked_mask(video_mask: torch.Tensor | None, videos: torch.Tensor, what: str = "frame") -> torch.Tensor:
    """(V, T) whole numbers, 1 for frames that are there; ValueError where a video has none, they are not first,
    or numbers are complex.

    Args:
        video_mask: (V, T); None: all are there.
        videos: (V, T, ...), pixels or features.
        what: one entry of T is called, in errors.
    """
    shape = videos.shape[:2]
    if video_mask is None:
        return torch.ones(shape, dtype=torch.long, device=videos.device)
    is_tensor = isinstance(video_mask, torch.Tensor)
    if is_tensor and video_mask.is_complex():
        raise ValueError(f"video_mask: got {video_mask.dtype}, expected 1 and 0")
    if not is_tensor or video_mask.shape != shape:
        got = f"shape {list(video_mask.shape)}" if is_tensor else type(video_mask).__name__
        raise ValueError(f"video_mask: got {got}, expected a tensor of shape {list(shape)} (videos, {what}s)")
    mask = video_mask.to(videos.device).bool().long()
    if not torch.compiler.is_compiling():
        empty = (mask.sum(1) == 0).nonzero()
        if len(empty):
            raise ValueError(f"video_mask: video {int(empty[0])} has no {what}s")
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError(f"video_mask: a {what} that is not there comes before one that is; want them at the end")
    return mask


__all__ = ["check_videos", "checked_mask"]
