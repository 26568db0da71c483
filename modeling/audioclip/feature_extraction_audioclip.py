"""Feature extractor of AudioCLIP: audio in any form to waveforms at 44.1 kHz, on the int16 scale and of one length."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType

from ..decoding.audio_decoding import decode_audio, pad_with_edges, resample


_INT16 = 32768
_LARGEST_FLOAT = 16  # recordings may exceed full scale a little; larger values are on another scale
_MAX_CHANNELS = 32  # more channels mean that the array is (samples, channels), or a batch


def fit_length(waveform: np.ndarray, length: int) -> np.ndarray:
    """(C, N) -> (C, length): padded or cut as in the official code's evaluation.

    A shorter waveform is put in the middle and padded with its edge values (`pad_with_edges`). A longer one is cut:
    the official rule takes the middle, unless it is quiet, which means that its standard deviation is below half of
    that of the whole waveform. Then it takes the head; if the head is louder than the middle, but quiet as well, the
    tail.
    """
    missing = length - waveform.shape[1]
    if missing >= 0:
        left = round(missing / 2)
        return pad_with_edges(waveform, left, missing - left)
    start = round(-missing / 2)
    middle, head, tail = waveform[:, start : start + length], waveform[:, :length], waveform[:, -length:]
    enough = 0.5 * _standard_deviation(waveform)
    if _standard_deviation(middle) >= enough:
        return middle
    return tail if _standard_deviation(middle) < _standard_deviation(head) < enough else head


def stretch_to_int16(waveform: np.ndarray) -> np.ndarray:
    """(C, N) -> (C, N), scaled so that the lowest value is -32768 and the highest 32767; a constant becomes 0."""
    low, high = waveform.min(), waveform.max()
    return np.zeros_like(waveform) if low == high else (waveform - low) / (high - low) * 65535 - 32768


def _standard_deviation(waveform: np.ndarray) -> float:
    """Over all channels, unbiased as torch's, which the official code uses."""
    return float(waveform.std(ddof=1, dtype=np.float64)) if waveform.size > 1 else 0.0


class AudioCLIPFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Checks audio and prepares waveforms for AudioCLIP: on the int16 scale and of one length. It computes no
    spectrogram: the model does, because its filters are learned.

    One item is a float or int16 array or tensor, (samples,) or (channels, samples), a list of floats, `{"array": ...,
    "sampling_rate": ...}` as in `datasets`, or a file: its path or bytes (needs the extra `audio`). A list of these,
    or an array (batch, channels, samples), is a batch. An array without sampling rate is an error, and so is a
    sampling rate other than the model's.

    Args:
        feature_size (`int`, defaults to 1):
            Number of output channels. 1: the mean over channels; 2: mono is doubled, stereo stays; 0: as many as the
            input has. The model sums over channels, so that stereo audio with two equal channels differs from mono.
        sampling_rate (`int`, defaults to 44100):
            Samples per second.
        padding_value (`float`, defaults to 0.0):
            Not used: the padding continues the edge values.
        max_length (`int`, defaults to 220500):
            Length in samples, 5 seconds. Shorter waveforms are padded on both sides; longer ones are cut to the
            middle, the head or the tail (`fit_length`).
        do_rescale_int16 (`bool`, defaults to `True`):
            Multiply floats by 32768, the scale of the training data; int16 values have this scale. False passes values
            on unchanged: floats between -1 and 1 are then 90 dB too quiet, as in the authors' demonstration.
        do_peak_scale (`bool`, defaults to `False`):
            Scale each waveform to the full range -32768..32767, as the authors do for UrbanSound8K.
        resample (`bool`, defaults to `False`):
            Resample audio with another sampling rate instead of refusing it; needs the extra `audio`.

    `feature_extractor(audio, sampling_rate=None, ...)` returns `input_features` (B, channels, samples), float32. The
    call takes all of these arguments but `padding_value` (`feature_size` is called `num_channels`), and:

        padding: `"max_length"` (default) pads to `max_length`, `True` or `"longest"` to the longest waveform of the
            batch, `False` not at all.
        truncation: `True` (default) cuts to `max_length`.
        return_tensors: `"pt"` or `"np"`.

    Raises:
        ValueError: no sampling rate, or another one; empty audio, NaN or infinity, a wrong shape or type; floats that
            are on the int16 scale already. The message names the item, such as `audio[7]`.
        FileNotFoundError: no such file.
        ImportError: a file, or resampling, without the extra `audio`.

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
        for index, item in enumerate(_list_items(audio)):
            where = f"audio[{index}]"
            samples, rate = _read(item, sampling_rate, where)
            samples = _to_rate(_check(samples, where), rate, self.sampling_rate, may_resample, where)
            samples = _scale(samples, rescale, peak, where)
            waveforms.append(_to_channels(samples, channels, where))
        # First cut, then pad: the longest waveform of a batch is at most `max_length` long.
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
                f"audio: waveforms of different shapes {sorted(shapes)} do not fit into one tensor; pass "
                "padding='longest' or truncation=True, or num_channels=1"
            )
        return BatchFeature({"input_features": waveforms}, tensor_type=return_tensors)


# ---- from any input to (channels, samples) in float32: list, read, check, resample, scale, choose channels


def _list_items(audio) -> list:
    """The items of a batch; a single item, such as a list of numbers, is a batch of one."""
    if isinstance(audio, np.ndarray | torch.Tensor):
        items = list(audio) if audio.ndim == 3 else [audio]
    elif isinstance(audio, Sequence) and not isinstance(audio, str | bytes | bytearray | memoryview):
        is_numbers = len(audio) > 0 and all(isinstance(value, int | float) for value in audio)
        items = [audio] if is_numbers else list(audio)
    else:
        items = [audio]
    if not items:
        raise ValueError("audio: got an empty list, expected at least one waveform or file")
    return items


def _read(item, stated: int | None, where: str) -> tuple[np.ndarray, int]:
    """The samples of `item`, unchanged, and its sampling rate; `stated` is the rate that the caller gave."""
    rate = stated
    if isinstance(item, Mapping):
        own = item.get("sampling_rate")
        array = item.get("array")
        item = array if array is not None else item.get("bytes") or item.get("path")
        if item is None:
            raise ValueError(f"{where}: got a dictionary without array, bytes or path, expected one of them")
        rate = own if own is not None else stated
        if stated is not None and rate != stated:
            raise ValueError(f"{where}: sampling_rate={stated} was passed, but the dictionary says {rate}")
    if isinstance(item, str | os.PathLike | bytes | bytearray | memoryview):
        try:
            item, own = decode_audio(item)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{where}: {error}") from error
        if rate is not None and rate != own:
            raise ValueError(f"{where}: sampling_rate={rate} was passed, but the file has {own}")
        rate = own
    if rate is None:
        raise ValueError(f"{where}: no sampling_rate; an array does not contain it, pass sampling_rate=")
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()  # NumPy has no bfloat16
    try:
        return np.asarray(item), rate
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {type(item).__name__} is not an array of samples ({error})") from error


def _check(samples: np.ndarray, where: str) -> np.ndarray:
    """(samples,) or (channels, samples) -> (channels, samples); ValueError for everything else."""
    if samples.size == 0:
        raise ValueError(f"{where}: empty, shape {samples.shape}")
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or len(samples) > _MAX_CHANNELS:
        raise ValueError(
            f"{where}: shape {samples.shape}, expected (samples,) or (channels, samples) with at most {_MAX_CHANNELS} "
            "channels; a batch is a list"
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
            f"{where}: sampling_rate {rate}, expected {wanted}, which the model was trained on; pass resample=True to "
            "resample"
        )
    if rate < 1:
        raise ValueError(f"{where}: sampling_rate {rate}, expected a positive number")
    if samples.dtype == np.int16:
        samples = samples / np.float32(_INT16)
    resampled = resample(samples, rate, wanted)
    if resampled.shape[1] == 0:
        raise ValueError(f"{where}: {samples.shape[1]} samples at {rate} become 0 samples at {wanted}, expected more")
    return resampled


def _scale(samples: np.ndarray, rescale: bool, peak: bool, where: str) -> np.ndarray:
    """To the int16 scale, in float32."""
    is_float = samples.dtype.kind == "f"
    samples = samples.astype(np.float32)
    if peak:
        return stretch_to_int16(samples)
    if not (rescale and is_float):
        return samples
    largest = np.abs(samples).max()
    if largest > _LARGEST_FLOAT:
        raise ValueError(
            f"{where}: floats up to {largest:.6g}, expected -1 to 1; if they are on the int16 scale already, pass "
            "do_rescale_int16=False"
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
