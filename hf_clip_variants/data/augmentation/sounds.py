"""Augmented sounds that come out the same in every run, worker, batch and order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...modeling.audioclip.feature_extraction_audioclip import pad_with_edges
from .views import view_generator


@dataclass(frozen=True)
class SoundAugmentation:
    """AudioCLIP's: playing backwards, another speed, a random place in silence or a random cut, noise, in this order.

    Attributes:
        length (`int`): samples that come out; 220500 for ESC-50, 176400 for UrbanSound8K.
        reverse (`float`): probability of playing backwards.
        max_stretch (`float`): the length is multiplied by `max_stretch ** u`, u uniform in -1..1; 1 leaves it.
        noise (`float`): probability of Gaussian noise.
        snr (`tuple[float, float]`): its signal-to-noise ratio in decibels is drawn uniformly between these.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants.data import SoundAugmentation

    >>> augmentation = SoundAugmentation(length=44100)
    >>> tone = np.sin(np.arange(30000) / 20)[None]
    >>> first, again = (augmentation.view(tone, seed=0, view=3, sound_id="tone.wav") for _ in range(2))
    >>> first.shape, bool((first == again).all())
    ((1, 44100), True)
    ```
    """

    length: int
    reverse: float = 0.5
    max_stretch: float = 1.5
    noise: float = 0.25
    snr: tuple[float, float] = (10.0, 120.0)

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length: got {self.length}; want at least 1 sample")
        if not (math.isfinite(self.max_stretch) and self.max_stretch >= 1):
            raise ValueError(f"max_stretch: got {self.max_stretch}; want a number >= 1")
        for name in ("reverse", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; want a probability")
        if not self.snr[0] <= self.snr[1]:
            raise ValueError(f"snr: got {self.snr}; want low <= high")

    def view(self, sound: np.ndarray, seed: int, view: int, sound_id: str) -> np.ndarray:
        """View `view` (an epoch, say) of the sound called `sound_id`: the same wherever and whenever it is asked for."""
        return self(sound, view_generator(seed, view, sound_id))

    def __call__(self, sound: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """(samples,) or (channels, N), any scale -> (channels, length), float32; `generator` decides the draws.

        Raises:
            ValueError: no samples, or another shape.
        """
        sound = np.atleast_2d(np.asarray(sound, dtype=np.float32))
        if sound.ndim != 2 or sound.size == 0:
            raise ValueError(f"sound: shape {sound.shape}; want (samples,) or (channels, samples)")

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator).item()

        if uniform(0, 1) < self.reverse:
            sound = sound[:, ::-1]
        sound = stretch(sound, self.max_stretch ** uniform(-1, 1))
        missing = self.length - sound.shape[1]
        place = int(torch.randint(abs(missing) + 1, (), generator=generator))
        if missing >= 0:
            sound = pad_with_edges(sound, place, missing - place)
        else:
            sound = sound[:, place : place + self.length]
        if uniform(0, 1) < self.noise:
            power = 10 ** (-uniform(*self.snr) / 10) * np.square(sound).mean()
            sound = sound + math.sqrt(power) * torch.randn(sound.shape, generator=generator).numpy()
        return np.ascontiguousarray(sound, dtype=np.float32)


def stretch(sound: np.ndarray, factor: float) -> np.ndarray:
    """(C, N) -> (C, N * factor rounded down, at least 1), linearly interpolated: slower and lower for factors above 1."""
    samples = sound.shape[1]
    place = np.arange(max(1, int(samples * factor)), dtype=np.float32) / np.float32(factor)
    before = place.astype(np.int64).clip(max=samples - 1)
    share = (place - before).astype(np.float32)
    return sound[:, before] * (1 - share) + sound[:, np.minimum(before + 1, samples - 1)] * share


__all__ = ["SoundAugmentation", "stretch"]
