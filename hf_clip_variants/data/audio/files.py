"""Audio: files and bytes as arrays, and rows of them to batches for `Trainer`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...modeling.decoding.audio_decoding import decode_audio, resample


def load_audio(
    source: str | os.PathLike | bytes | Mapping[str, Any], *, sampling_rate: int | None = None, mono: bool = False
) -> dict[str, Any]:
    """An audio file as `datasets` would give it: `{"array", "sampling_rate"}`. Needs the extra `audio`, but no FFmpeg.

    Args:
        source: the path of a WAV, FLAC, Ogg, MP3 or AIFF file, its bytes, or a row of an undecoded audio column,
            `{"bytes", "path"}`.
        sampling_rate: resample to it. Default: as in the file.
        mono: the mean over channels, shape (samples,), which is what the pipeline `zero-shot-audio-classification`
            takes.

    Returns a dictionary of `array` (channels, samples), float32, full scale -1 to 1, and `sampling_rate`. Feature
    extractors of this package take it as it is.

    Raises:
        FileNotFoundError: no such file. ImportError: soundfile or soxr is not installed.
        ValueError: it cannot be decoded.

    Example:

    ```python
    classify = pipeline("zero-shot-audio-classification", model="audioclip")
    classify(load_audio("dog.ogg", sampling_rate=44_100, mono=True)["array"], candidate_labels=["dog", "rain"])
    ```
    """
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
        if source is None:
            raise ValueError("source: a dictionary without bytes and path")
    if sampling_rate is not None and sampling_rate < 1:
        raise ValueError(f"sampling_rate: {sampling_rate}, expected a positive number")
    array, rate = decode_audio(source)
    if sampling_rate is not None:
        array, rate = resample(array, rate, sampling_rate), sampling_rate
    return {"array": array.mean(axis=0) if mono else array, "sampling_rate": rate}


class AudioCollator:
    """Rows of audio and an image, a text or both -> what contrastive training takes, with `return_loss=True`.

    `Trainer` needs `remove_unused_columns=False`: it would drop the columns.

    Args:
        processor: of AudioCLIP.
        audio_column, image_column, text_column (`str`): columns that rows have; those that they lack are left out. A
            text may be a list of labels.
        sampling_rate (`int`, *optional*): of audio that comes as bare arrays.
        audio_kwargs: further arguments of the feature extractor, such as `max_length`.
    """

    def __init__(
        self,
        processor: Any,
        audio_column: str = "audio",
        image_column: str = "image",
        text_column: str = "text",
        sampling_rate: int | None = None,
        **audio_kwargs: Any,
    ):
        self.processor = processor
        self.columns = {"audio": audio_column, "images": image_column, "text": text_column}
        self.audio_kwargs = {"sampling_rate": sampling_rate} | audio_kwargs

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Any]:
        if not rows:
            raise ValueError("AudioCollator: got an empty batch")
        given = {name: [row[column] for row in rows] for name, column in self.columns.items() if column in rows[0]}
        if len(given) < 2:
            raise ValueError(
                f"AudioCollator: rows have {sorted(rows[0])}; want at least two of "
                f"{', '.join(self.columns.values())}. With Trainer, pass remove_unused_columns=False."
            )
        batch = self.processor(**given, audio_kwargs=self.audio_kwargs, truncation=True, return_tensors="pt")
        return {**batch, "return_loss": True}


__all__ = ["AudioCollator", "load_audio"]
