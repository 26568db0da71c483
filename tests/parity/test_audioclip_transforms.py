"""The official preprocessing of audio: framing, length in evaluation, time scaling, scales."""

import re

import pytest
import torch
from parity_fixtures import assert_close, load_fixture

from hf_clip_variants import AudioCLIPFeatureExtractor
from hf_clip_variants.data.augmentation.audio import stretch
from hf_clip_variants.modeling.audioclip.feature_extraction_audioclip import fit_length
from hf_clip_variants.modeling.audioclip.spectrogram_audioclip import frame_signal


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("audioclip_transforms")


@pytest.fixture(scope="module")
def results(fixture):
    length, found = fixture.meta["out_len"], {}
    for name, audio in fixture.inputs.items():
        if audio.ndim == 2:
            found[f"eval.{name}"] = torch.from_numpy(fit_length(audio.numpy(), length))
        else:
            number = name.removeprefix("scale_")
            scaled = stretch(fixture.inputs["short_mono"].numpy(), audio.item())
            found[f"random_scale_{number}"] = torch.from_numpy(scaled)
    # "frame_signal(short_stereo[...], 60, 17, torch.hann_window(60)): _exact uses the first 128 samples, _too_short
    # the first 41"
    *framing, exact, too_short = map(
        int,
        re.search(
            r", (\d+), (\d+), .* first (\d+) samples.* first (\d+)", fixture.meta["tensors"]["frames_*"]
        ).groups(),
    )
    for name in fixture.outputs:
        if name.startswith("frames_"):
            samples = {"frames_exact": exact, "frames_too_short": too_short}.get(name)
            signal = fixture.inputs["short_stereo"][:, :samples]
            found[name] = frame_signal(signal, torch.hann_window(framing[0]), framing[1])
    audio = fixture.inputs["short_stereo"]
    found["scale_int16"] = (audio + 32768) / 65535 * 2 - 1
    extract = AudioCLIPFeatureExtractor(feature_size=2, do_peak_scale=True)
    features = extract(audio, sampling_rate=44100, padding=False, return_tensors="pt")
    found["us8k_peak_scaled"] = features.input_features[0]
    return found


def test_equals_official(fixture, results):
    for name, expected in fixture.outputs.items():
        assert_close(results[name], expected, name, tolerance=1e-6)


def test_every_output_is_compared(fixture, results):
    assert set(fixture.outputs) <= set(results)


def test_feature_extractor_equals_its_steps(fixture):
    """Audio that is already on the int16 scale, in one batch."""
    length = fixture.meta["out_len"]
    mono = {name: audio for name, audio in fixture.inputs.items() if audio.ndim == 2 and len(audio) == 1}
    extract = AudioCLIPFeatureExtractor(max_length=length, do_rescale_int16=False)
    features = extract(list(mono.values()), sampling_rate=44100, return_tensors="pt").input_features
    for name, row in zip(mono, features, strict=True):
        assert_close(row, fixture.outputs[f"eval.{name}"], name, tolerance=1e-6)
