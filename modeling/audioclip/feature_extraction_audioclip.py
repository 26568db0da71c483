"""Feature extractor of AudioCLIP: any sound to waveforms on the int16 scale, 44.1 kHz and of one length."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType

from ..decoding.audio_decoding import decode_audio, pad_with_edges, resample


_INT16 = 32768
_LARGEST_FLOAT = 16  # recordings exceed full scale a little; more is another scale
_MAX_CHANNELS = 32  # more is (samples, channels), or a batch


def fit_length(sound: np.ndarray, length: int) -> np.ndarray:
    """(C, N) -> (C, length), as the official code does in evaluation.

    Shorter ones are put in the middle, between the mean over channels of the first and of the last sample. Of longer ones the
    middle is taken; where it is less than half as loud (by standard deviation) as the whole, the head; and where the head
    is louder than the middle, but not that loud either, the tail.
    """
    missing = length - sound.shape[1]
    if missing >= 0:
        left = round(missing / 2)
        return pad_with_edges(sound, left, missing - left)
    start = round(-missing / 2)
    centre, head, tail = sound[:, start : start + length], sound[:, :length], sound[:, -length:]
    enough = 0.5 * _spread(sound)
    if _spread(centre) >= enough:
        return centre
    return tail if _spread(centre) < _spread(head) < enough else head


def stretch_to_int16(sound: np.ndarray) -> np.ndarray:
    """(C, N) -> the same with its lowest value at -32768 and its highest at 32767; a constant becomes 0."""
    low, high = sound.min(), sound.max()
    return np.zeros_like(sound) if low == high else (sound - low) / (high - low) * 65535 - 32768


def _spread(sound: np.ndarray) -> float:
    return float(sound.std(ddof=1, dtype=np.float64)) if sound.size > 1 else 0.0


class AudioCLIPFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Sounds for AudioCLIP: checked, on the int16 scale, of one length. The spectrogram is made in the model, where it is learnt.

    A sound is a float or int16 array or tensor, (samples,) or (channels, samples), a list of floats, `{"array": ...,
    "sampling_rate": ...}` as in `datasets`, or a file: its path or bytes (needs the extra `audio`). A list of them, or an array
    (batch, channels, samples), is a batch. Arrays without sampling rate are an error, and so is another one than the model's.

    Args:
        feature_size (`int`, defaults to 1):
            Channels that come out. 1: the mean of all; 2: mono twice, stereo as it is; 0: as they are. A stereo sound of two
            equal channels is not the mono sound for the model, which sums over channels.
        sampling_rate (`int`, defaults to 44100):
            Samples a second.
        padding_value (`float`, defaults to 0.0):
            Not used: padding continues the edges.
        max_length (`int`, defaults to 220500):
            Samples, 5 seconds. What is shorter is put in the middle; of longer sounds the middle, the head or the tail is taken
            (`fit_length`).
        do_rescale_int16 (`bool`, defaults to `True`):
            Multiply floats by 32768, the scale of the training; int16 is on it. False passes values as they are: floats between -1
            and 1 are then what the authors' demonstration feeds, 90 dB too quiet.
        do_peak_scale (`bool`, defaults to `False`):
            Stretch each sound to -32768..32767, as the authors do for UrbanSound8K.
        resample (`bool`, defaults to `False`):
            Resample other sampling rates instead of refusing them; needs the extra `audio`.

    `feature_extractor(audio, sampling_rate=None, ...)` returns `input_features` (B, channels, samples), float32. Every argument but
    `padding_value` can be given to the call as well (`num_channels` for `feature_size`); further ones:

        padding: `"max_length"` (default) to `max_length`, `True` or `"longest"` to the longest of the batch, `False` none.
        truncation: `True` (default) cuts to `max_length`.
        return_tensors: `"pt"` or `"np"`.

    Raises:
        ValueError: no sampling rate, or another one; an empty sound, NaN or infinity, a wrong shape or type; floats that are
        on the int16 scale already. The text names `audio[7]`.
        FileNotFoundError: no such file. ImportError: a file, or resampling, without the extra `audio`.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clip_variants import AudioCLIPFeatureExtractor

    >>> feature_extractor = AudioCLIPFeatureExtractor()
    >>> tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    >>> features = feature_extractor([tone, tone[:300]], sampling_rate=44100, return_tensors="pt").input_features
    >>> features.shape, round(features.max().item())
    (torch.Size([2, 1, 220500]), 16384)
    ```
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 44_100,
        padding_value: float = 0.0,
        max_length: int = 220_500,
        do_rescale_int16: bool = True,
        do_peak_scale: bool = False,
        resample: bool = False,
        return_attention_mask: bool = False,
        **kwargs,
    ):
        super().__init__(
            feature_size, sampling_rate, padding_value, return_attention_mask=return_attention_mask, **kwargs
        )
        for name, value, least in (
            ("feature_size", feature_size, 0),
            ("sampling_rate", sampling_rate, 1),
            ("max_length", max_length, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: {value!r}, expected a whole number >= {least}")
        self.max_length = max_length
        self.do_rescale_int16 = do_rescale_int16
        self.do_peak_scale = do_peak_scale
        self.resample = resample

    def __call__(
        self,
        audio,
        sampling_rate: int | None = None,
        *,
        padding: bool | Literal["max_length", "longest", "do_not_pad"] | None = None,
        max_length: int | None = None,
        truncation: bool | None = None,
        num_channels: int | None = None,
        do_rescale_int16: bool | None = None,
        do_peak_scale: bool | None = None,
        resample: bool | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        padding = "max_length" if padding is None else {True: "longest", False: "do_not_pad"}.get(padding, padding)
        if padding not in ("max_length", "longest", "do_not_pad"):
            raise ValueError(f"padding: {padding!r}, expected 'max_length', 'longest', True or False")
        length = self.max_length if max_length is None else max_length
        if length < 1:
            raise ValueError(f"max_length: {length}, expected at least 1 sample")
        channels = self.feature_size if num_channels is None else num_channels
        rescale = self.do_rescale_int16 if do_rescale_int16 is None else do_rescale_int16
        peak = self.do_peak_scale if do_peak_scale is None else do_peak_scale
        may_resample = self.resample if resample is None else resample
        waveforms = []
        for index, sound in enumerate(_list_sounds(audio)):
            where = f"audio[{index}]"
            samples, rate = _read(sound, sampling_rate, where)
            samples = _to_rate(_check(samples, where), rate, self.sampling_rate, may_resample, where)
            samples = _scale(samples, rescale, peak, where)
            waveforms.append(_to_channels(samples, channels, where))
        if truncation is not False:
            waveforms = [
                fit_length(waveform, length) if waveform.shape[1] > length else waveform for waveform in waveforms
            ]
        if padding != "do_not_pad":
            wanted = length if padding == "max_length" else max(waveform.shape[1] for waveform in waveforms)
            waveforms = [fit_length(w, wanted) if w.shape[1] < wanted else w for w in waveforms]
        shapes = {waveform.shape for waveform in waveforms}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"audio: sounds of different shapes {sorted(shapes)} are no tensor; pass padding='longest' or truncation=True, "
                "or num_channels=1"
            )
        return BatchFeature({"input_features": waveforms}, tensor_type=return_tensors)


# ---- from what was given to (channels, samples) in float32


def _list_sounds(audio) -> list:
    if isinstance(audio, np.ndarray | torch.Tensor):
        sounds = list(audio) if audio.ndim == 3 else [audio]
    elif isinstance(audio, Sequence) and not isinstance(audio, str | bytes | bytearray | memoryview):
        is_numbers = len(audio) > 0 and all(isinstance(value, int | float) for value in audio)
        sounds = [audio] if is_numbers else list(audio)
    else:
        sounds = [audio]
    if not sounds:
        raise ValueError("audio: no sounds")
    return sounds


def _read(sound, stated: int | None, where: str) -> tuple[np.ndarray, int]:
    """The samples as they are and their rate."""
    rate = stated
    if isinstance(sound, Mapping):
        own = sound.get("sampling_rate")
        array = sound.get("array")
        sound = array if array is not None else sound.get("bytes") or sound.get("path")
        if sound is None:
            raise ValueError(f"{where}: a dictionary without array, bytes or path")
        rate = own if own is not None else stated
        if stated is not None and rate != stated:
            raise ValueError(f"{where}: sampling_rate {stated} was stated, but it brings {rate}")
    if isinstance(sound, str | os.PathLike | bytes | bytearray | memoryview):
        try:
            sound, own = decode_audio(sound)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{where}: {error}") from error
        if rate is not None and rate != own:
            raise ValueError(f"{where}: sampling_rate {rate} was stated, but the file has {own}")
        rate = own
    if rate is None:
        raise ValueError(f"{where}: no sampling_rate; say how many samples a second it has, arrays do not tell")
    if isinstance(sound, torch.Tensor):
        sound = sound.detach().cpu()
        sound = (sound.float() if sound.dtype == torch.bfloat16 else sound).numpy()
    try:
        return np.asarray(sound), rate
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {type(sound).__name__} is no array of samples ({error})") from error


def _check(samples: np.ndarray, where: str) -> np.ndarray:
    if samples.size == 0:
        raise ValueError(f"{where}: empty, shape {samples.shape}")
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or len(samples) > _MAX_CHANNELS:
        raise ValueError(
            f"{where}: shape {samples.shape}, expected (samples,) or (channels, samples) with at most {_MAX_CHANNELS} channels; a "
            "batch is a list"
        )
    if samples.dtype != np.int16 and samples.dtype.kind != "f":
        raise ValueError(f"{where}: {samples.dtype}, expected floats between -1 and 1 or int16")
    if not np.isfinite(samples).all():
        raise ValueError(f"{where}: NaN or infinite samples")
    return samples


def _to_rate(samples: np.ndarray, rate: int, wanted: int, may_resample: bool, where: str) -> np.ndarray:
    if rate == wanted:
        return samples
    if not may_resample:
        raise ValueError(
            f"{where}: sampling_rate {rate}, expected {wanted}, which the model was trained on; pass resample=True to resample"
        )
    if rate < 1:
        raise ValueError(f"{where}: sampling_rate {rate}, expected a positive number")
    if samples.dtype == np.int16:
        samples = samples / np.float32(_INT16)
    resampled = resample(samples, rate, wanted)
    if resampled.shape[1] == 0:
        raise ValueError(f"{where}: {samples.shape[1]} samples at {rate} are none at {wanted}")
    return resampled


def _scale(samples: np.ndarray, rescale: bool, peak: bool, where: str) -> np.ndarray:
    is_float = samples.dtype.kind == "f"
    samples = samples.astype(np.float32)
    if peak:
        return stretch_to_int16(samples)
    if not (rescale and is_float):
        return samples
    largest = np.abs(samples).max()
    if largest > _LARGEST_FLOAT:
        raise ValueError(
            f"{where}: floats up to {largest:.6g}, expected -1 to 1; for what is on the int16 scale pass do_rescale_int16=False"
        )
    return samples * _INT16


def _to_channels(samples: np.ndarray, wanted: int, where: str) -> np.ndarray:
    if wanted in (0, len(samples)):
        return samples
    if wanted == 1:
        return samples.mean(axis=0, keepdims=True)
    if len(samples) == 1:
        return np.repeat(samples, wanted, axis=0)
    raise ValueError(f"{where}: {len(samples)} channels, expected 1 or {wanted} (num_channels)")


__all__ = ["AudioCLIPFeatureExtractor", "fit_length", "stretch_to_int16"]
