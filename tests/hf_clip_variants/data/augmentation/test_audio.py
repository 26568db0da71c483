"""Augmented audio: what each step does, and that it is the same everywhere."""

import pickle

import numpy as np
import pytest
import torch

from hf_clip_variants.data import AudioAugmentation
from hf_clip_variants.data.augmentation.audio import stretch


NONE = {"reverse": 0.0, "max_stretch": 1.0, "noise": 0.0}


@pytest.fixture
def audio():
    return np.random.default_rng(0).standard_normal((2, 600)).astype(np.float32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_view_is_the_same_whenever_it_is_asked_for(audio):
    augmentation = AudioAugmentation(500)
    again = pickle.loads(pickle.dumps(augmentation))
    views = [augmentation.view(audio, 0, view, "a.wav") for view in range(20)]
    for view in reversed(range(20)):
        assert np.array_equal(again.view(audio, 0, view, "a.wav"), views[view])
    assert len({view.tobytes() for view in views}) == 20
    assert not np.array_equal(augmentation.view(audio, 1, 0, "a.wav"), views[0])
    assert not np.array_equal(augmentation.view(audio, 0, 0, "b.wav"), views[0])
    assert all(view.shape == (2, 500) and view.dtype == np.float32 and np.isfinite(view).all() for view in views)


def test_without_any_step_audio_is_unchanged(audio):
    before = audio.copy()
    assert np.array_equal(AudioAugmentation(600, **NONE)(audio, seeded(0)), audio)
    backwards = AudioAugmentation(600, **NONE | {"reverse": 1.0})(audio, seeded(0))
    assert np.array_equal(backwards, audio[:, ::-1]) and np.array_equal(audio, before)


def test_short_ones_lie_somewhere_between_their_edges(audio):
    starts = set()
    for seed in range(30):
        padded = AudioAugmentation(700, **NONE)(audio, seeded(seed))
        (start,) = [i for i in range(101) if np.array_equal(padded[:, i : i + 600], audio)]
        starts.add(start)
        assert (padded[:, :start] == audio[:, 0].mean()).all() and (
            padded[:, start + 600 :] == audio[:, -1].mean()
        ).all()
    assert len(starts) > 15


def test_long_ones_are_cut_somewhere(audio):
    starts = set()
    for seed in range(30):
        cut = AudioAugmentation(500, **NONE)(audio, seeded(seed))
        starts |= {i for i in range(101) if np.array_equal(cut, audio[:, i : i + 500])}
    assert len(starts) > 15


def test_stretching_changes_the_pitch(audio):
    tone = np.sin(2 * np.pi * 50 * np.arange(1000) / 1000)[None].astype(np.float32)
    for factor in (2 / 3, 1.0, 1.5):
        stretched = stretch(tone, factor)
        assert stretched.shape == (1, int(1000 * factor))
        assert np.abs(np.fft.rfft(stretched[0])).argmax() == 50, "as many periods in all"
    assert np.array_equal(stretch(audio, 1.0), audio) and stretch(audio[:, :1], 0.5).shape == (2, 1)
    lengths = {
        np.unique(AudioAugmentation(2000, **NONE | {"max_stretch": 1.5}).view(audio, 0, v, "")).size for v in range(20)
    }
    assert min(lengths) < 1000 < max(lengths)


def test_noise_has_the_wanted_strength(audio):
    loud = np.tile(audio, 50)
    for snr in (10.0, 40.0):
        noisy = AudioAugmentation(30_000, **NONE | {"noise": 1.0, "snr": (snr, snr)})(1000 * loud, seeded(0))
        ratio = np.square(1000 * loud).mean() / np.square(noisy - 1000 * loud).mean()
        assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.2)
    assert not AudioAugmentation(100, **NONE | {"noise": 1.0})(np.zeros(100), seeded(0)).any(), "silence stays silent"


def test_probabilities_are_kept(audio):
    augmentation = AudioAugmentation(600, **NONE | {"noise": 0.25, "snr": (0, 0)})
    unlike = [not np.array_equal(augmentation.view(audio, 0, v, ""), audio) for v in range(400)]
    assert 0.15 < np.mean(unlike) < 0.35


@pytest.mark.parametrize(
    "values", [{"length": 0}, {"max_stretch": 0.5}, {"reverse": 2.0}, {"noise": -1.0}, {"snr": (20.0, 10.0)}]
)
def test_bad_settings_are_named(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}: got"):
        AudioAugmentation(**{"length": 9} | values)


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((2, 0)), np.zeros((1, 2, 3))])
def test_what_is_no_audio_is_named(wrong):
    with pytest.raises(ValueError, match="audio: shape"):
        AudioAugmentation(9)(wrong, seeded(0))
