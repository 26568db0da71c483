"""What comes into VideoAnomalyClip, checked: videos as pixels or as features of somebody's own extractor."""

import torch

from ..dual_encoders.forward_checks import check_pixels
from ..dual_encoders.tracing import can_be_read


# V videos, T frames, D joint width

_TIMES = 4.0  # features this many times shorter or longer than those of normal frames are of another scale


def check_pixels_of_videos(pixel_values_videos: object) -> None:
    """ValueError unless (V, T, 3, H, W) normalised frames."""
    is_tensor = isinstance(pixel_values_videos, torch.Tensor)
    if not is_tensor or pixel_values_videos.dim() != 5 or not pixel_values_videos.numel():
        got = list(pixel_values_videos.shape) if is_tensor else type(pixel_values_videos).__name__
        raise ValueError(f"pixel_values_videos: got {got}, expected [videos, frames, 3, H, W] with at least one frame")
    check_pixels(pixel_values_videos.flatten(0, 1), 3, "pixel_values_videos")


def checked_mask(video_mask: torch.Tensor | None, videos: object, name: str) -> torch.Tensor:
    """(V, T) whole numbers, 1 for frames that are there; ValueError where a video has none, or they are not first."""
    if not isinstance(videos, torch.Tensor) or videos.dim() < 3:
        got = list(videos.shape) if isinstance(videos, torch.Tensor) else type(videos).__name__
        raise ValueError(f"{name}: got {got}, expected a tensor [videos, frames, ...]")
    shape = videos.shape[:2]
    if not torch.compiler.is_compiling() and 0 in shape:
        raise ValueError(f"{name}: got {list(videos.shape)}: no videos, or videos without frames")
    if video_mask is None:
        return torch.ones(shape, dtype=torch.long, device=videos.device)
    is_tensor = isinstance(video_mask, torch.Tensor)
    if not is_tensor or video_mask.shape != shape:
        got = f"shape {list(video_mask.shape)}" if is_tensor else type(video_mask).__name__
        raise ValueError(f"video_mask: got {got}, expected a tensor of shape {list(shape)} (videos, frames)")
    mask = video_mask.to(videos.device).bool().long()
    if not torch.compiler.is_compiling():
        empty = (mask.sum(1) == 0).nonzero()
        if len(empty):
            raise ValueError(f"video_mask: video {int(empty[0])} has no frames")
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError("video_mask: a frame that is not there comes before one that is; want them at the end")
    return mask


def checked_features(video_features: torch.Tensor, width: int, mask: torch.Tensor) -> torch.Tensor:
    """(V, T, D) floats; ValueError for another width or type, and for NaN and frames of zeros where frames are."""
    if video_features.dim() != 3 or video_features.shape[-1] != width:
        crops = "; of several crops give one" if video_features.dim() == 4 else ""
        raise ValueError(
            f"video_features: got {list(video_features.shape)}, expected [videos, frames, {width}]: features of this "
            f"model's image encoder{crops}"
        )
    if not video_features.is_floating_point():
        raise ValueError(f"video_features: expected floats, got {video_features.dtype}")
    if torch.compiler.is_compiling() or not can_be_read(video_features):
        return video_features
    there = mask.bool().to(video_features.device)
    for what, wrong in (
        ("NaN or infinite numbers", ~video_features.isfinite().all(-1)),
        ("only zeros", ~video_features.any(-1)),
    ):
        found = (wrong & there).nonzero()
        if len(found):
            raise ValueError(f"video_features: video {int(found[0, 0])} has {what} in frame {int(found[0, 1])}")
    return video_features


def frame_lengths(frames: torch.Tensor) -> torch.Tensor:
    """(..., D) -> (...) lengths, in float32 at least."""
    return torch.linalg.vector_norm(frames.to(torch.promote_types(frames.dtype, torch.float32)), dim=-1)


def check_scale(features: torch.Tensor, mask: torch.Tensor, norm: torch.Tensor, centroid: torch.Tensor) -> None:
    """ValueError for features of another scale than those of the centroid: normalised ones beside those that are not,
    or of another encoder.

    `norm` is the mean length of the centroid's frames; where it is not known (0), it is at least the centroid's.
    """
    if torch.compiler.is_compiling() or not can_be_read(features) or norm.is_meta:
        return
    lengths = frame_lengths(features.detach())[mask.bool().to(features.device)]
    length, known = float(lengths.mean()), float(norm)
    least = known or float(frame_lengths(centroid))
    if length * _TIMES < least or (known and length > known * _TIMES):
        raise ValueError(
            f"video_features: frames of mean length {length:.3g}, those of normal_centroid "
            f"{'have ' if known else 'have at least '}{least:.3g}; want features of the same encoder, both as they "
            "are (not normalised) or both normalised"
        )


__all__ = ["check_pixels_of_videos", "check_scale", "checked_features", "checked_mask", "frame_lengths"]
