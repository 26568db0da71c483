"""Seeded clips of emoji in motion, with captions that name the thing and what it does. For video models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..optional_dependencies import require
from .scenes.captions import is_plural
from .scenes.scenes import SceneMaker


if TYPE_CHECKING:
    import datasets

# Motion -> what a caption says. Each pair is the other one played backwards, so that no single frame tells them apart.
MOTIONS = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "growing": "grows",
    "shrinking": "shrinks",
    "clockwise": "turns clockwise",
    "anticlockwise": "turns anticlockwise",
    "appearing": "appears",
    "vanishing": "vanishes",
}
OPPOSITES = {"left": "right", "up": "down", "growing": "shrinking", "clockwise": "anticlockwise"}
OPPOSITES |= {"appearing": "vanishing"}
_SMALLEST = 0.3  # size at the small end of growing and shrinking


@dataclass(frozen=True, eq=False)
class Clip:
    """
    Attributes:
        frames (`tuple[PIL.Image.Image]`): RGB.
        category (`int`), motion (`str`): which class it shows, and what that does.
        caption (`str`): a sentence that says both.
    """

    frames: tuple[Image.Image, ...]
    category: int
    motion: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class ClipMaker:
    """Draws clips: `maker.clip(index)` is the same for the same settings, seed and index, whatever was drawn before.

    Args:
        motions: out of `MOTIONS`, drawn with equal chance.
        num_frames, fps: of each clip.
        reach: how far a thing moves, as a share of the way that is free, in 0..1.
        seed: any integer from 0.
        scene: settings of [`SceneMaker`]: styles, class_names, shown, size, object_size, ... Give training and
            test clips different styles or, with `base_and_novel`, different classes.

    Raises:
        ValueError: an unknown motion, or a number out of range.

    Example:

    ```python
    >>> maker = ClipMaker(scene={"styles": "fluentflat", "class_names": ["cat", "taco"], "size": 64}, seed=3)
    >>> clip = maker.clip(0)
    >>> len(clip.frames), clip.frames[0].size, clip.motion in MOTIONS
    (8, (64, 64), True)
    ```
    """

    motions: Sequence[str] = tuple(MOTIONS)
    num_frames: int = 8
    fps: float = 4.0
    reach: float = 1.0
    seed: int = 0
    scene: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        unknown = [motion for motion in self.motions if motion not in MOTIONS]
        if unknown or not self.motions:
            raise ValueError(f"motions: got {unknown or 'none'}; want some of {', '.join(MOTIONS)}")
        for name, smallest in (("num_frames", 2), ("seed", 0)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}: got {getattr(self, name)}; want {smallest} or more")
        if not 0 < self.reach <= 1 or self.fps <= 0:
            raise ValueError(f"reach, fps: got {self.reach}, {self.fps}; want 0..1 without 0, and more than 0")
        settings = {"object_size": (0.35, 0.5), "rotation": 0.0, "flip": False} | self.scene
        object.__setattr__(self, "_maker", SceneMaker(**settings))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._maker.class_names)

    def clip(self, index: int) -> Clip:
        """Clip number `index` (from 0)."""
        generator = np.random.default_rng([self.seed, index, 1])
        known = [self.class_names.index(name) for name in self._maker.shown]
        category = known[int(generator.integers(len(known)))]
        motion = self.motions[int(generator.integers(len(self.motions)))]
        sizes = self._maker.size
        size = sizes[int(generator.integers(len(sizes)))]
        _, background = self._maker.draw_background(size, generator)
        thing = self._maker.draw_object(category, min(size), generator)
        free = [max(0, whole - extent) for whole, extent in zip(size, thing.size, strict=True)]
        place = [float(generator.uniform(0, room)) for room in free]
        start = float(generator.uniform(0, 1 - self.reach))
        frames = []
        for number in range(self.num_frames):
            share = start + self.reach * number / (self.num_frames - 1)
            frames.append(_drawn(background, thing, place, free, motion, share))
        return Clip(tuple(frames), category, motion, self.caption(category, motion))

    def caption(self, category: int, motion: str) -> str:
        """ "A cat moves to the left.\""""
        name = self.class_names[category]
        verb = MOTIONS[motion]
        if is_plural(name):
            head, _, tail = verb.partition(" ")
            verb = f"{head.removesuffix('es') if head.endswith('shes') else head.removesuffix('s')} {tail}".strip()
            return f"{name.capitalize()} {verb}."
        return f"{'An' if name[:1].lower() in 'aeiou' else 'A'} {name} {verb}."

    def dataset(self, count: int, folder: str | os.PathLike | None = None) -> datasets.Dataset:
        """The clips 0..count-1; see `make_clips`."""
        from datasets import ClassLabel, Dataset, Features, List, Value, Video
        from datasets import Image as ImageFeature

        features = {"category": ClassLabel(names=list(self.class_names)), "motion": ClassLabel(names=[*self.motions])}
        features |= {"caption": Value("string"), "fps": Value("float32")}
        features |= {"video": Video(decode=False)} if folder is not None else {"frames": List(ImageFeature())}
        columns: dict[str, list] = {name: [] for name in features}
        for index in range(count):
            clip = self.clip(index)
            row = {"category": clip.category, "motion": clip.motion, "caption": clip.caption, "fps": self.fps}
            if folder is None:
                row["frames"] = list(clip.frames)
            else:
                row["video"] = str(write_mp4(Path(folder) / f"{index:06d}.mp4", clip.frames, self.fps))
            for name, value in row.items():
                columns[name].append(value)
        return Dataset.from_dict(columns, features=Features(features))


def make_clips(
    count: int, seed: int = 0, folder: str | os.PathLike | None = None, **settings: Any
) -> datasets.Dataset:
    """`count` clips as a data set with the columns category, motion (class labels), caption, fps and frames (images);
    with `folder`, mp4 files are written there (needs PyAV), and the column video is in the place of frames.

    The same settings and seed give the same clips. `settings` are those of [`ClipMaker`].

    Example:

    ```python
    >>> clips = make_clips(2, motions=["left"], scene={"class_names": ["cat"], "size": 32})
    >>> clips[1]["caption"], len(clips[0]["frames"])
    ('A cat moves to the left.', 8)
    ```
    """
    if count < 0:
        raise ValueError(f"count: got {count}; want 0 or more")
    return ClipMaker(seed=seed, **settings).dataset(count, folder)


def write_mp4(path: str | os.PathLike, frames: Sequence[Image.Image], fps: float) -> Path:
    """Writes RGB images of one size, whose sides are even, as H.264."""
    av = require("av", "Writing videos")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "12", "preset": "veryfast"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return path


def _drawn(background, thing, place, free, motion: str, share: float) -> Image.Image:
    """The frame at `share` (0..1) of a motion."""
    canvas, (left, top) = background.copy(), place
    if motion in OPPOSITES.values():
        motion, share = next(one for one, other in OPPOSITES.items() if other == motion), 1 - share
    if motion == "left":
        left = free[0] * (1 - share)
    elif motion == "up":
        top = free[1] * (1 - share)
    elif motion == "growing":
        factor = _SMALLEST + (1 - _SMALLEST) * share
        smaller = thing.resize([max(1, round(extent * factor)) for extent in thing.size], Image.Resampling.LANCZOS)
        left, top = (p + (a - b) / 2 for p, a, b in zip(place, thing.size, smaller.size, strict=True))
        thing = smaller
    elif motion == "clockwise":
        turned = thing.convert("RGBa").rotate(-180 * share, Image.Resampling.BICUBIC, expand=True).convert("RGBA")
        left, top = (p + (a - b) / 2 for p, a, b in zip(place, thing.size, turned.size, strict=True))
        thing = turned
    elif motion == "appearing":
        thing = thing.copy()
        thing.putalpha(thing.getchannel("A").point(lambda value: round(value * share)))
    canvas.paste(thing, (round(left), round(top)), thing)
    return canvas


__all__ = ["MOTIONS", "OPPOSITES", "Clip", "ClipMaker", "make_clips", "write_mp4"]
