"""AudioCLIP's feature extractor: forms of input, errors, scales, channels, lengths, files."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from hf_clip_variants import AudioCLIPConfig, AudioCLIPFeatureExtractor
from hf_clip_variants.modeling.decoding.audio_decoding import decode_audio, resample


RATE = 44_100
LENGTH = 2_000


@pytest.fixture
def extract():
    return AudioCLIPFeatureExtractor(max_length=LENGTH)


@pytest.fixture
def tone():
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(LENGTH) / RATE)).astype(np.float32)


def features(extract, waveforms, **options) -> torch.Tensor:
    return extract(waveforms, **{"sampling_rate": RATE, "return_tensors": "pt"} | options).input_features


def file_of(samples: np.ndarray, rate: int = RATE, kind: str = "WAV") -> bytes:
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=kind)
    return buffer.getvalue()


def test_all_input_forms_give_the_same_features(extract, tone, tmp_path):
    int16 = np.round(tone * 32768).astype(np.int16)
    on_grid = int16 / np.float32(32768)
    expected = features(extract, on_grid)
    assert expected.shape == (1, 1, LENGTH) and expected.dtype == torch.float32
    assert torch.equal(expected[0, 0], torch.from_numpy(int16).float())
    path = tmp_path / "tone.wav"
    path.write_bytes(file_of(on_grid[None]))
    arrays = {
        "int16": int16,
        "float64": on_grid.astype(np.float64),
        "a channel": on_grid[None],
        "a list": [on_grid],
        "a batch": on_grid[None, None],
        "numbers": on_grid.tolist(),
        "a tensor": torch.from_numpy(on_grid),
        "an int16 tensor": torch.from_numpy(int16),
    }
    for name, audio in arrays.items():
        torch.testing.assert_close(features(extract, audio), expected, msg=name)
    with_rate = {
        "datasets": {"array": on_grid, "sampling_rate": RATE},
        "bytes": path.read_bytes(),
        "path": path,
        "string": str(path),
        "undecoded": {"bytes": path.read_bytes(), "path": None},
        "by path": {"bytes": None, "path": str(path)},
    }
    for name, audio in with_rate.items():
        torch.testing.assert_close(features(extract, audio, sampling_rate=None), expected, msg=name)
    mixed = features(extract, [*with_rate.values()], sampling_rate=None)
    assert mixed.shape == (len(with_rate), 1, LENGTH) and torch.equal(mixed, expected.expand_as(mixed))


@pytest.mark.parametrize(
    ("audio", "options", "said"),
    [
        (np.zeros(9), {"sampling_rate": None}, r"audio\[0\]: no sampling_rate"),
        (np.zeros(9), {"sampling_rate": 16_000}, r"audio\[0\]: sampling_rate 16000, expected 44100, .* resample=True"),
        (
            {"array": np.zeros(9), "sampling_rate": 48_000},
            {},
            "sampling_rate=44100 was passed, but the dictionary .* 48000",
        ),
        ({"array": np.zeros(9), "sampling_rate": 48_000}, {"sampling_rate": None}, "48000, expected 44100"),
        ([np.zeros(9), np.zeros(0)], {}, r"audio\[1\]: empty"),
        (np.zeros((2, 0)), {}, r"audio\[0\]: empty"),
        ([], {}, "audio: got an empty list, expected at least one"),
        (np.array([0.1, np.nan]), {}, r"audio\[0\]: NaN or infinite"),
        (np.array([0.1, np.inf]), {}, "NaN or infinite"),
        (np.zeros((900, 2)), {}, r"shape \(900, 2\), expected .* at most 32 channels; a batch is a list"),
        (np.zeros((1, 1, 1, 9)), {}, r"shape \(1, 1, 1, 9\)"),
        (np.float32(1.0), {}, r"shape \(\)"),
        (np.zeros(9, np.uint8), {}, "uint8, expected floats between -1 and 1 or int16"),
        (np.zeros(9, np.int64), {}, "int64, expected floats"),
        (["gone.wav"], {}, r"audio\[0\]: gone.wav: no such file"),
        (np.full(9, 20_000.0), {}, "floats up to 20000, .* pass do_rescale_int16=False"),
        (np.zeros((3, 9)), {"num_channels": 2}, r"3 channels, expected 1 or 2 \(num_channels\)"),
        ({"sampling_rate": RATE}, {}, "got a dictionary without array, bytes or path"),
        (b"RIFF and nothing else", {}, r"audio\[0\]: 21 bytes: cannot be decoded as audio"),
        (
            [np.zeros(9), np.zeros(8)],
            {"padding": False},
            r"different shapes \[\(1, 8\), \(1, 9\)\] do not fit into one tensor",
        ),
        (np.zeros(9), {"padding": "repeat"}, "padding: 'repeat', expected"),
        (np.zeros(9), {"max_length": 0}, "max_length: 0"),
    ],
)
def test_invalid_audio_is_refused(extract, audio, options, said):
    pytest.importorskip("soundfile")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        features(extract, audio, **options)


@pytest.mark.parametrize(
    "values", [{"feature_size": -1}, {"sampling_rate": 0}, {"max_length": 0}, {"max_length": "5 s"}]
)
def test_invalid_settings_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}: .*expected a whole number"):
        AudioCLIPFeatureExtractor(**values)


def test_scales(extract, tone):
    plain = features(extract, tone)
    assert plain.abs().max().item() == pytest.approx(16384, rel=1e-3)
    demonstration = features(extract, tone, do_rescale_int16=False)
    torch.testing.assert_close(demonstration * 32768, plain)
    already = features(extract, plain[0].numpy(), do_rescale_int16=False)
    assert torch.equal(already, plain)
    stretched = features(extract, 0.01 * tone + 0.3, do_peak_scale=True)
    assert (stretched.min().item(), stretched.max().item()) == pytest.approx((-32768, 32767), abs=0.01)
    assert not features(extract, np.zeros(50), do_peak_scale=True).any(), "silence stays silence"
    assert not features(extract, np.zeros(50)).any()


def test_channels(extract, tone):
    stereo = np.stack([tone, np.zeros_like(tone)])
    mono, two = features(extract, stereo), features(extract, stereo, num_channels=2)
    assert mono.shape == (1, 1, LENGTH) and two.shape == (1, 2, LENGTH)
    torch.testing.assert_close(mono[:, 0], two.mean(1))
    doubled = features(extract, tone, num_channels=2)
    assert torch.equal(doubled[:, 0], doubled[:, 1]) and torch.equal(doubled[:, :1], features(extract, tone))
    assert features(extract, stereo, num_channels=0).shape == (1, 2, LENGTH)
    both = AudioCLIPFeatureExtractor(feature_size=2, max_length=LENGTH)
    assert features(both, [tone, stereo]).shape == (2, 2, LENGTH)


def test_lengths(extract, tone):
    short, long = tone[:501], np.concatenate([tone, tone, tone])
    padded = features(extract, short)[0, 0]
    left = round((LENGTH - 501) / 2)
    assert torch.equal(padded[left : left + 501], torch.from_numpy(short * 32768))
    assert (padded[:left] == padded[left]).all() and (padded[left + 501 :] == padded[left + 500]).all()
    assert features(extract, long).shape[-1] == LENGTH
    assert features(extract, [short, tone[:700]], padding="longest").shape == (2, 1, 700)
    assert features(extract, [short, long], padding=True).shape == (2, 1, LENGTH), "cut before it is padded"
    assert features(extract, long, truncation=False).shape == (1, 1, 3 * LENGTH)
    assert features(extract, [long, short], padding=True, truncation=False).shape == (2, 1, 3 * LENGTH)
    rows = extract([short, long], sampling_rate=RATE, padding=False, truncation=False).input_features
    assert [row.shape for row in rows] == [(1, 501), (1, 3 * LENGTH)]
    assert features(extract, tone[:1], max_length=5).shape == (1, 1, 5)
    alone = torch.cat([features(extract, each) for each in (short, long, tone)])
    assert torch.equal(features(extract, [short, long, tone]), alone)


def test_resample_converts_other_sampling_rates(extract):
    pytest.importorskip("soxr")
    slow = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32)
    resampled = features(extract, slow, sampling_rate=16_000, resample=True, padding=False, truncation=False)[0, 0]
    assert len(resampled) == RATE
    wanted = torch.from_numpy(16384 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).float()
    torch.testing.assert_close(resampled[500:-500], wanted[500:-500], rtol=0, atol=20)
    int16 = np.round(slow * 32768).astype(np.int16)
    again = features(extract, int16, sampling_rate=16_000, resample=True, padding=False, truncation=False)[0, 0]
    torch.testing.assert_close(again, resampled, rtol=0, atol=2)
    with pytest.raises(ValueError, match="1 samples at 48000000 become 0 samples at 44100"):
        features(extract, np.zeros(1), sampling_rate=48_000_000, resample=True)
    same = np.zeros((1, 9), np.float32)
    assert resample(same, RATE, RATE) is same


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_files_are_decoded_without_ffmpeg(kind):
    pytest.importorskip("soundfile")
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    samples, rate = decode_audio(file_of(np.stack([tone, -tone]), kind=kind))
    assert rate == RATE and samples.dtype == np.float32 and len(samples) == 2 and samples.shape[1] >= RATE
    power = np.abs(np.fft.rfft(samples[0, :RATE]))
    assert power.argmax() == 440 and np.abs(samples).max() == pytest.approx(0.4, abs=0.05)


def test_invalid_files_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("soundfile")
    with pytest.raises(FileNotFoundError, match="missing.wav: no such file"):
        decode_audio(tmp_path / "missing.wav")
    (tmp_path / "page.wav").write_text("<html>")
    with pytest.raises(ValueError, match="page.wav: cannot be decoded as audio"):
        decode_audio(str(tmp_path / "page.wav"))
    monkeypatch.setattr("hf_clip_variants.modeling.decoding.audio_decoding.MAX_SAMPLES", 100)
    with pytest.raises(ValueError, match="101 samples of 1 channels, expected 100 at most"):
        decode_audio(file_of(np.zeros((1, 101))))


@pytest.mark.parametrize(("module", "audio"), [("soundfile", b"RIFF"), ("soxr", np.zeros(9))])
def test_missing_extra_is_named(extract, monkeypatch, module, audio):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "hf-clip-variants\[audio\]"'):
        features(extract, audio, sampling_rate=16_000, resample=True)


def test_save_load_and_pickle(extract, tone, tmp_path):
    extract.save_pretrained(tmp_path)
    AudioCLIPConfig().save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is AudioCLIPFeatureExtractor and loaded.to_dict() == extract.to_dict()
    for one in (loaded, pickle.loads(pickle.dumps(extract))):
        assert torch.equal(features(one, tone), features(extract, tone))
