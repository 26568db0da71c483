"""Seeded clips of emoji in motion, with captions that name the thing and what it does. For video models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .scenes.captions import is_plural
from .scenes.scenes import SceneMaker
from .videos import VideoWriter


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
NORMAL = "normal"  # the label of frames and clips without an anomaly
_SMALLEST = 0.3  # size at the small end of growing and shrinking


@dataclass(frozen=True)
class Step:
    """
    What happens in a part of a clip.

    Attributes:
        start, end (`int`): its frames are start..end - 1.
        things (`tuple[tuple[int, str]]`): class and motion of each thing; all move at once.
        caption (`str`): a sentence.
        anomaly (`str`): what in it does not belong in the clip, a motion or a thing, or "normal".
    """

    start: int
    end: int
    things: tuple[tuple[int, str], ...]
    caption: str
    anomaly: str = NORMAL

    @property
    def is_anomaly(self) -> bool:
        return self.anomaly != NORMAL


@dataclass(frozen=True, eq=False)
class Clip:
    """
    Attributes:
        frames (`tuple[PIL.Image.Image]`): RGB.
        steps (`tuple[Step]`): what happens, one after the other.
        caption (`str`): a sentence of all of it.
    """

    frames: tuple[Image.Image, ...]
    steps: tuple[Step, ...]
    caption: str

    @property
    def category(self) -> int:
        """The class of the first thing."""
        return self.steps[0].things[0][0]

    @property
    def motion(self) -> str:
        """What the first thing does."""
        return self.steps[0].things[0][1]

    @property
    def anomaly(self) -> str:
        """The motion or thing that does not belong in the clip, or "normal"."""
        return next((step.anomaly for step in self.steps if step.is_anomaly), NORMAL)

    @property
    def frame_labels(self) -> list[str]:
        """Of each frame: the anomaly if it shows one, or "normal"."""
        return [step.anomaly for step in self.steps for _ in range(step.start, step.end)]


@dataclass(frozen=True, kw_only=True)
class ClipMaker:
    """Draws clips: `maker.clip(index)` is the same for the same settings, seed and index, whatever was drawn before.

    Args:
        motions: out of `MOTIONS`, drawn with equal chance.
        num_frames, fps: of each step.
        things: fewest and most things that move at once, of different classes; several share the image.
        steps: fewest and most steps of a clip, one after the other before the same background.
        anomalies: motions that are not among `motions`, or names of `shown` classes, which then are among the things
            of no other step. A clip has one anomaly, in one of its steps, with the chance `anomaly_rate`.
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
    things: tuple[int, int] = (1, 1)
    steps: tuple[int, int] = (1, 1)
    anomalies: Sequence[str] = ()
    anomaly_rate: float = 0.5
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
        if not 0 <= self.anomaly_rate <= 1:
            raise ValueError(f"anomaly_rate: got {self.anomaly_rate}; want 0..1")
        settings = {"object_size": (0.35, 0.5), "rotation": 0.0, "flip": False} | self.scene
        object.__setattr__(self, "_maker", SceneMaker(**settings))
        allowed = [motion for motion in MOTIONS if motion not in self.motions]
        if unknown := [name for name in self.anomalies if name not in (*allowed, *self._maker.shown)]:
            raise ValueError(
                f"anomalies: got {unknown}; want some of {', '.join(allowed) or 'none'}, not in motions, or classes "
                "that are shown"
            )
        usual = [name for name in self._maker.shown if name not in self.anomalies]
        object.__setattr__(self, "_usual", tuple(self.class_names.index(name) for name in usual))
        for name, largest in (("things", min(4, len(self._usual))), ("steps", 1000)):
            fewest, most = getattr(self, name)
            if not 1 <= fewest <= most <= largest:
                raise ValueError(f"{name}: got {fewest}, {most}; want fewest and most, in 1..{largest}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._maker.class_names)

    def clip(self, index: int) -> Clip:
        """Clip number `index` (from 0)."""
        generator = np.random.default_rng([self.seed, index, 1])
        count = _drawn_number(self.steps, generator)
        strange = -1
        if self.anomalies and generator.random() < self.anomaly_rate:
            strange = int(generator.integers(count))
        drawn = [self._draw_step(k == strange, generator) for k in range(count)]
        sizes = self._maker.size
        size = sizes[int(generator.integers(len(sizes)))]
        _, background = self._maker.draw_background(size, generator)
        frames: list[Image.Image] = []
        steps: list[Step] = []
        for things, anomaly in drawn:
            moving = [
                self._draw_moving(category, motion, region, generator)
                for (category, motion), region in zip(things, _regions(size, len(things), generator), strict=True)
            ]
            for share in np.linspace(0, 1, self.num_frames):
                canvas = background.copy()
                for one in moving:
                    one.draw(canvas, float(share))
                frames.append(canvas)
            sentence = _sentence([" and ".join(self._clause(*one) for one in things)])
            steps.append(Step(len(frames) - self.num_frames, len(frames), things, sentence, anomaly))
        caption = _sentence([" and ".join(self._clause(*one) for one in step.things) for step in steps])
        return Clip(tuple(frames), tuple(steps), caption)

    def _draw_step(self, is_strange: bool, generator) -> tuple[tuple[tuple[int, str], ...], str]:
        """Things with their motions, and the anomaly."""
        if not is_strange:
            return self._draw_things(self.motions, generator), NORMAL
        if len(self._usual) == len(self._maker.shown):  # all anomalies are motions
            things = self._draw_things(self.anomalies, generator)
            return things, things[0][1]
        anomaly = self.anomalies[int(generator.integers(len(self.anomalies)))]
        if anomaly in MOTIONS:
            return self._draw_things([anomaly], generator), anomaly
        (_, motion), *others = self._draw_things(self.motions, generator)
        return ((self.class_names.index(anomaly), motion), *others), anomaly

    def _draw_things(self, motions: Sequence[str], generator) -> tuple[tuple[int, str], ...]:
        known = list(self._usual)
        things = []
        for _ in range(_drawn_number(self.things, generator)):
            category = known.pop(int(generator.integers(len(known))))
            things.append((category, motions[int(generator.integers(len(motions)))]))
        return tuple(things)

    def _draw_moving(self, category: int, motion: str, region, generator) -> _Moving:
        left, top, *size = region
        thing = self._maker.draw_object(category, min(size), generator)
        free = [max(0, whole - extent) for whole, extent in zip(size, thing.size, strict=True)]
        place = [float(generator.uniform(0, room)) for room in free]
        return _Moving(
            thing, (left, top), place, free, motion, float(generator.uniform(0, 1 - self.reach)), self.reach
        )

    def caption(self, category: int, motion: str) -> str:
        """ "A cat moves to the left.\""""
        return _sentence([self._clause(category, motion)])

    def _clause(self, category: int, motion: str) -> str:
        name = self.class_names[category]
        verb = MOTIONS[motion]
        if is_plural(name):
            head, _, tail = verb.partition(" ")
            verb = f"{head.removesuffix('es') if head.endswith('shes') else head.removesuffix('s')} {tail}".strip()
            return f"{name} {verb}"
        return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name} {verb}"

    def dataset(self, count: int, folder: str | os.PathLike | None = None) -> datasets.Dataset:
        """The clips 0..count-1; see `make_clips`."""
        from datasets import ClassLabel, Dataset, Features, List, Value, Video
        from datasets import Image as ImageFeature

        category, motion = ClassLabel(names=list(self.class_names)), ClassLabel(names=[*MOTIONS])
        step = {"start": Value("float32"), "end": Value("float32"), "caption": Value("string")}
        step |= {"category": List(category), "motion": List(motion)}
        features = {"category": category, "motion": motion, "caption": Value("string"), "fps": Value("float32")}
        features["steps"] = List(step)
        if self.anomalies:
            label = ClassLabel(names=[NORMAL, *self.anomalies])
            features |= {"anomaly": label, "frame_labels": List(label)}
        features |= {"video": Video(decode=False)} if folder is not None else {"frames": List(ImageFeature())}
        columns: dict[str, list] = {name: [] for name in features}
        for index in range(count):
            clip = self.clip(index)
            row = {"category": clip.category, "motion": clip.motion, "caption": clip.caption, "fps": self.fps}
            row["steps"] = [
                {"start": step.start / self.fps, "end": step.end / self.fps, "caption": step.caption}
                | dict(zip(("category", "motion"), map(list, zip(*step.things, strict=True)), strict=True))
                for step in clip.steps
            ]
            row |= {"anomaly": clip.anomaly, "frame_labels": clip.frame_labels} if self.anomalies else {}
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
    """`count` clips as a data set with the columns category, motion (class labels, of the first thing), caption, fps,
    steps (lists of start and end in seconds, caption, category and motion of each thing) and frames (images); with
    `anomalies`, also anomaly and frame_labels (class labels, of the clip and of each frame). With `folder`, mp4 files
    are written there (needs PyAV), and the column video is in the place of frames.

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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, rate=fps, options={"crf": "12", "preset": "veryfast"}) as writer:
        for number, frame in enumerate(frames):
            writer.add(number / fps, frame)
    return path


@dataclass(frozen=True)
class _Moving:
    """A thing (RGBA) in its region of the image, and what it does."""

    thing: Image.Image
    corner: tuple[int, int]
    place: list[float]  # left and top of the thing in the region, where the motion does not say it
    free: list[int]  # width and height of the region that the thing leaves free
    motion: str
    start: float
    reach: float

    def draw(self, canvas: Image.Image, share: float) -> None:
        """Pastes it as it is at `share` (0..1) of the step."""
        thing, motion, (left, top), share = self.thing, self.motion, self.place, self.start + self.reach * share
        if motion in OPPOSITES.values():
            motion, share = next(one for one, other in OPPOSITES.items() if other == motion), 1 - share
        if motion == "left":
            left = self.free[0] * (1 - share)
        elif motion == "up":
            top = self.free[1] * (1 - share)
        elif motion == "growing":
            factor = _SMALLEST + (1 - _SMALLEST) * share
            sides = [max(1, round(extent * factor)) for extent in thing.size]
            thing = thing.resize(sides, Image.Resampling.LANCZOS)
        elif motion == "clockwise":
            turned = thing.convert("RGBa").rotate(-180 * share, Image.Resampling.BICUBIC, expand=True)
            thing = turned.convert("RGBA")
        elif motion == "appearing":
            thing = thing.copy()
            thing.putalpha(thing.getchannel("A").point(lambda value: round(value * share)))
        left, top = (  # what grows or turns keeps its centre
            corner + at + (before - after) / 2
            for corner, at, before, after in zip(self.corner, (left, top), self.thing.size, thing.size, strict=True)
        )
        canvas.paste(thing, (round(left), round(top)), thing)


def _drawn_number(limits: tuple[int, int], generator: np.random.Generator) -> int:
    fewest, most = limits
    return fewest if fewest == most else int(generator.integers(fewest, most + 1))


def _regions(size: tuple[int, int], count: int, generator: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of as many parts of the image, in any order: whole, halves or quarters."""
    width, height = size
    if count == 1:
        return [(0, 0, width, height)]
    if count == 2 and generator.random() < 0.5:
        parts = [(0, 0, width, height // 2), (0, height // 2, width, height // 2)]
    elif count == 2:
        parts = [(0, 0, width // 2, height), (width // 2, 0, width // 2, height)]
    else:
        half = (width // 2, height // 2)
        parts = [(left, top, *half) for top in (0, half[1]) for left in (0, half[0])]
    return [parts[place] for place in generator.permutation(len(parts))[:count]]


def _sentence(clauses: Sequence[str]) -> str:
    text = ", then ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}."


__all__ = ["MOTIONS", "NORMAL", "OPPOSITES", "Clip", "ClipMaker", "Step", "make_clips", "write_mp4"]
