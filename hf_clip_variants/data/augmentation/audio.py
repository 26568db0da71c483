"""Augmented audio that comes out the same in every run, worker, batch and order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...modeling.decoding.audio_decoding import pad_with_edges
from .views import view_generator


@dataclass(frozen=True)
class AudioAugmentation:
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
    >>> from hf_clip_variants.data import AudioAugmentation

    >>> augmentation = AudioAugmentation(length=44100)
    >>> tone = np.sin(np.arange(30000) / 20)[None]
    >>> first, again = (augmentation.view(tone, seed=0, view=3, audio_id="tone.wav") for _ in range(2))
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

    def view(self, audio: np.ndarray, seed: int, view: int, audio_id: str) -> np.ndarray:
        """View `view` (an epoch, say) of the audio called `audio_id`: the same at each call, in any process."""
        return self(audio, view_generator(seed, view, audio_id))

    def __call__(self, audio: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """(samples,) or (channels, N), any scale -> (channels, length), float32; `generator` decides the draws.

        Raises:
            ValueError: no samples, or another shape.
        """
        audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))
        if audio.ndim != 2 or audio.size == 0:
            raise ValueError(f"audio: shape {audio.shape}; want (samples,) or (channels, samples)")

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=generator).item()

        if uniform(0, 1) < self.reverse:
            audio = audio[:, ::-1]
        # The exponent is uniform in -1..1, so that r times longer and r times shorter are equally likely.
        audio = stretch(audio, self.max_stretch ** uniform(-1, 1))

        # To `length` samples: short audio at a random place between repetitions of its edges, long audio cut.
        missing = self.length - audio.shape[1]
        place = int(torch.randint(abs(missing) + 1, (), generator=generator))
        if missing >= 0:
            audio = pad_with_edges(audio, place, missing - place)
        else:
            audio = audio[:, place : place + self.length]

        # SNR in decibels is 10 log10(signal power / noise power).
        if uniform(0, 1) < self.noise:
            power = 10 ** (-uniform(*self.snr) / 10) * np.square(audio).mean()
            audio = audio + math.sqrt(power) * torch.randn(audio.shape, generator=generator).numpy()
        return np.ascontiguousarray(audio, dtype=np.float32)


def stretch(audio: np.ndarray, factor: float) -> np.ndarray:
    """(C, N) -> (C, N * factor rounded down, at least 1), interpolated linearly: slower and lower for factors > 1."""
    samples = audio.shape[1]
    # Sample i of the output lies at i / factor of the input, between two samples that share it by their distance.
    place = np.arange(max(1, int(samples * factor)), dtype=np.float32) / np.float32(factor)
    before = place.astype(np.int64).clip(max=samples - 1)
    share = (place - before).astype(np.float32)
    return audio[:, before] * (1 - share) + audio[:, np.minimum(before + 1, samples - 1)] * share


__all__ = ["AudioAugmentation", "stretch"]
