"""Data for a smoke test of methods with audio: embedded images, their names, and a tone of its own for each."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import datasets

TONES = "smoke:tones"  # the source's name in commands
_RATE = 44_100


def tone_pairs(count: int = 64) -> datasets.Dataset:
    """Rows of `image`, `name` and `audio`, half a second of a sine wave a semitone above that of the row before."""
    import datasets
    import numpy as np

    from ..data.images.emoji import load_emoji

    images = load_emoji("notov1").select(range(count))
    audio = []
    for number in range(count):
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, _RATE, 0, "NONE", "none"))
            tone = 12_000 * np.sin(2 * np.pi * 110 * 2 ** (number / 12) * np.arange(_RATE // 2) / _RATE)
            file.writeframes(tone.astype("<i2").tobytes())
        audio.append({"bytes": buffer.getvalue(), "path": f"{number}.wav"})
    # Audio stays bytes: a column of type Audio would be decoded with torchcodec and FFmpeg.
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "name": datasets.Value("string"),
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        }
    )
    encoded = [{"bytes": images.encoded_bytes(i), "path": None} for i in range(count)]
    names = [images.class_names[label] for label in images.labels]
    return datasets.Dataset.from_dict({"image": encoded, "name": names, "audio": audio}, features=features)


__all__ = ["TONES", "tone_pairs"]
