"""Audio files as arrays, and rows of them to batches."""

import io
import sys

import numpy as np
import pytest
import torch
from model_contract import CASES
from PIL import Image

from hf_clip_variants.data import AudioCollator, load_audio


RATE = 8000


@pytest.fixture
def stereo():
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1300) / RATE)
    return np.stack([tone, np.zeros_like(tone)]).astype(np.float32)


@pytest.fixture
def wav(stereo) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("soundfile").write(buffer, stereo.T, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_audio_is_read_from_a_path_bytes_or_a_column(wav, stereo, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav)
    for source in (
        tmp_path / "a.wav",
        wav,
        {"bytes": wav, "path": "gone.wav"},
        {"bytes": None, "path": str(tmp_path / "a.wav")},
    ):
        audio = load_audio(source)
        assert audio["sampling_rate"] == RATE and np.array_equal(audio["array"], stereo)
    mono = load_audio(wav, mono=True, sampling_rate=16_000)
    assert mono["sampling_rate"] == 16_000 and mono["array"].shape == (2600,)


def test_bad_audio_files_are_named(wav, tmp_path, monkeypatch):
    for source, said in (({}, "without bytes and path"), (b"nothing", "7 bytes: cannot be decoded")):
        with pytest.raises(ValueError, match=said):
            load_audio(source)
    with pytest.raises(FileNotFoundError, match="a.ogg: no such file"):
        load_audio(tmp_path / "a.ogg")
    with pytest.raises(ValueError, match="sampling_rate: 0, expected a positive number"):
        load_audio(wav, sampling_rate=0)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"hf-clip-variants\[audio\]"):
        load_audio(wav)


def test_the_collator_makes_training_batches(wav, stereo):
    processor, model = CASES["audioclip"].processor(), CASES["audioclip"].make()
    audios = [{"bytes": wav, "path": None}, {"array": stereo, "sampling_rate": RATE}, stereo[0]]
    rows = [
        {"audio": audio, "image": Image.new("RGB", (70, 64), colour), "text": ["dog_bark", colour]}
        for audio, colour in zip(audios, ("red", "blue", "lime"), strict=True)
    ]
    batch = AudioCollator(processor, sampling_rate=RATE, num_channels=2)(rows)
    assert batch["return_loss"] is True and batch["input_features"].shape == (3, 2, 1300)
    assert torch.isfinite(model(**batch).loss)
    batch = AudioCollator(processor, sampling_rate=RATE)(
        [{"audio": row["audio"], "text": row["text"]} for row in rows]
    )
    assert set(batch) == {"input_features", "input_ids", "attention_mask", "return_loss"}
    with pytest.raises(ValueError, match=r"rows have \['audio'\]; want at least two of audio, image, text"):
        AudioCollator(processor)([{"audio": stereo}])
    with pytest.raises(ValueError, match="got an empty batch"):
        AudioCollator(processor)([])
