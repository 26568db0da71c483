"""Several views of a video: clips whose frames lie between each other's, and crops along the longer side."""

import dataclasses
from collections.abc import Mapping

import torch

from .frame_sampling import FrameSampling


MOST_VIEWS = 100  # officially 10 clips and 3 crops; more is a mistake, noticed before memory is asked for


def clips_of(sampling: FrameSampling, count: int) -> list[FrameSampling]:
    """`count` samplings, of which clip c of C takes the frame at (c + 1/2) / C of each part.

    Raises:
        ValueError: no number > 0; more than one with a rule that is not "segments", or with drawn frames.
    """
    if type(count) is not int or count < 1:
        raise ValueError(f"num_clips: {count!r}, expected a whole number > 0")
    if count > MOST_VIEWS:
        raise ValueError(f"num_clips: {count} is more than {MOST_VIEWS}")
    if count > 1 and (sampling.rule != "segments" or sampling.seed is not None):
        raise ValueError(
            f"num_clips: {count} with sampling_rule {sampling.rule!r}, expected 1, or the rule 'segments' without a "
            "seed"
        )
    return [dataclasses.replace(sampling, position=(clip + 0.5) / count) for clip in range(count)]


def checked_crops(settings: Mapping) -> int:
    """`num_crops` of a video processor's settings; ValueError if it is no number > 0, or crops have no size."""
    count = settings["num_crops"]
    if type(count) is not int or count < 1:
        raise ValueError(f"num_crops: {count!r}, expected a whole number > 0")
    if count > MOST_VIEWS:
        raise ValueError(f"num_crops: {count} is more than {MOST_VIEWS}")
    if count > 1 and (not settings["do_center_crop"] or settings["crop_size"] is None):
        raise ValueError(f"num_crops: {count} without do_center_crop and crop_size, expected both, or 1 crop")
    return count


def crops_along(pixels: torch.Tensor, size, count: int) -> torch.Tensor:
    """(3, H, W) -> (count, 3, h, w): crops of `size` (`height`, `width`) from one end of the longer side to the other,
    in the middle of the shorter one; along the width if the sides are equal. ValueError for an image that is smaller.
    """
    height, width = size["height"], size["width"]
    spare = pixels.shape[-2] - height, pixels.shape[-1] - width
    if min(spare) < 0:
        frames = f"{pixels.shape[-1]} x {pixels.shape[-2]}"
        raise ValueError(f"num_crops: frames of {frames} are smaller than crop_size {width} x {height}")
    along = 0 if pixels.shape[-2] > pixels.shape[-1] else 1
    found = []
    for crop in range(count):
        place = [one // 2 for one in spare]
        if count > 1:
            place[along] = round(crop * spare[along] / (count - 1))
        found.append(pixels[:, place[0] : place[0] + height, place[1] : place[1] + width])
    return torch.stack(found)


def views_together(values: list[torch.Tensor] | torch.Tensor, count: int) -> list[torch.Tensor] | torch.Tensor:
    """Views of all videos, one video after the other -> of each video (count, ...)."""
    if isinstance(values, torch.Tensor):
        return values.unflatten(0, (-1, count))
    return [torch.stack(values[first : first + count]) for first in range(0, len(values), count)]


__all__ = ["checked_crops", "clips_of", "crops_along", "views_together"]
