"""Audio files as arrays. libsndfile (WAV, FLAC, Ogg, MP3, AIFF, ...) decodes them, without FFmpeg; soxr resamples.

Both come with the extra `audio` and are imported when they are needed.
"""

import importlib
import io
import os

import numpy as np

from .opening import check_regular


MAX_SAMPLES = 2**29  # over all channels: 2 GiB in memory, three hours of mono at 44.1 kHz


def decode_audio(source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    """A file's path or its bytes -> samples (channels, N), float32, full scale -1 to 1, and samples a second.

    Raises:
        FileNotFoundError: no such file. ImportError: soundfile is not installed.
        ValueError: no audio in it, damaged, or more than `MAX_SAMPLES`.
    """
    soundfile = _optional("soundfile", "Reading audio files")
    is_bytes = isinstance(source, bytes | bytearray | memoryview)
    what = f"{len(source)} bytes" if is_bytes else os.fspath(source)
    if not is_bytes and not os.path.exists(source):
        raise FileNotFoundError(f"{what}: no such file")
    if not is_bytes:
        check_regular(source)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if is_bytes else source) as file:
            # Said by the header, before anything is decoded.
            if file.frames * file.channels > MAX_SAMPLES:
                raise ValueError(
                    f"{what}: {file.frames} samples of {file.channels} channels, expected {MAX_SAMPLES} at most"
                )
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.SoundFileError as error:
        raise ValueError(f"{what}: cannot be decoded as audio ({error})") from error
    return np.ascontiguousarray(samples.T), rate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(channels, N) at `rate` -> (channels, about N * wanted / rate), float32, band-limited."""
    if rate == wanted:
        return samples
    soxr = _optional("soxr", "Resampling")
    return np.ascontiguousarray(soxr.resample(np.asarray(samples, np.float32).T, rate, wanted).T)


def pad_with_edges(samples: np.ndarray, left: int, right: int) -> np.ndarray:
    """(C, N) -> (C, left + N + right), with the mean over channels of the first and of the last sample, not zeros."""
    before, after = (
        np.full((len(samples), count), edge.mean()) for count, edge in ((left, samples[:, 0]), (right, samples[:, -1]))
    )
    return np.concatenate([before, samples, after], axis=1, dtype=samples.dtype)


def _optional(module: str, purpose: str):
    # Not an import statement: transformers asks for every package that travelling code imports, when it loads it.
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(f'{purpose} needs {module}: pip install "hf-clip-variants[audio]"', name=module) from error


__all__ = ["MAX_SAMPLES", "decode_audio", "pad_with_edges", "resample"]
