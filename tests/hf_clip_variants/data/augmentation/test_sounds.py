"""Augmented sounds: what each step does, and that they are the same everywhere."""

import pickle

import numpy as np
import pytest
import torch

from hf_clip_variants.data import SoundAugmentation
from hf_clip_variants.data.augmentation.sounds import stretch


NONE = {"reverse": 0.0, "max_stretch": 1.0, "noise": 0.0}


@pytest.fixture
def sound():
    return np.random.default_rng(0).standard_normal((2, 600)).astype(np.float32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_view_is_the_same_whenever_it_is_asked_for(sound):
    augmentation = SoundAugmentation(500)
    again = pickle.loads(pickle.dumps(augmentation))
    views = [augmentation.view(sound, 0, view, "a.wav") for view in range(20)]
    for view in reversed(range(20)):
        assert np.array_equal(again.view(sound, 0, view, "a.wav"), views[view])
    assert len({view.tobytes() for view in views}) == 20
    assert not np.array_equal(augmentation.view(sound, 1, 0, "a.wav"), views[0])
    assert not np.array_equal(augmentation.view(sound, 0, 0, "b.wav"), views[0])
    assert all(view.shape == (2, 500) and view.dtype == np.float32 and np.isfinite(view).all() for view in views)


def test_nothing_of_it_leaves_the_sound(sound):
    before = sound.copy()
    assert np.array_equal(SoundAugmentation(600, **NONE)(sound, seeded(0)), sound)
    backwards = SoundAugmentation(600, **NONE | {"reverse": 1.0})(sound, seeded(0))
    assert np.array_equal(backwards, sound[:, ::-1]) and np.array_equal(sound, before)


def test_short_ones_lie_somewhere_between_their_edges(sound):
    starts = set()
    for seed in range(30):
        padded = SoundAugmentation(700, **NONE)(sound, seeded(seed))
        (start,) = [i for i in range(101) if np.array_equal(padded[:, i : i + 600], sound)]
        starts.add(start)
        assert (padded[:, :start] == sound[:, 0].mean()).all() and (
            padded[:, start + 600 :] == sound[:, -1].mean()
        ).all()
    assert len(starts) > 15


def test_long_ones_are_cut_somewhere(sound):
    starts = set()
    for seed in range(30):
        cut = SoundAugmentation(500, **NONE)(sound, seeded(seed))
        starts |= {i for i in range(101) if np.array_equal(cut, sound[:, i : i + 500])}
    assert len(starts) > 15


def test_stretching_changes_the_pitch(sound):
    tone = np.sin(2 * np.pi * 50 * np.arange(1000) / 1000)[None].astype(np.float32)
    for factor in (2 / 3, 1.0, 1.5):
        stretched = stretch(tone, factor)
        assert stretched.shape == (1, int(1000 * factor))
        assert np.abs(np.fft.rfft(stretched[0])).argmax() == 50, "as many periods in all"
    assert np.array_equal(stretch(sound, 1.0), sound) and stretch(sound[:, :1], 0.5).shape == (2, 1)
    lengths = {
        np.unique(SoundAugmentation(2000, **NONE | {"max_stretch": 1.5}).view(sound, 0, v, "")).size for v in range(20)
    }
    assert min(lengths) < 1000 < max(lengths)


def test_noise_has_the_wanted_strength(sound):
    loud = np.tile(sound, 50)
    for snr in (10.0, 40.0):
        noisy = SoundAugmentation(30_000, **NONE | {"noise": 1.0, "snr": (snr, snr)})(1000 * loud, seeded(0))
        ratio = np.square(1000 * loud).mean() / np.square(noisy - 1000 * loud).mean()
        assert 10 * np.log10(ratio) == pytest.approx(snr, abs=0.2)
    assert not SoundAugmentation(100, **NONE | {"noise": 1.0})(np.zeros(100), seeded(0)).any(), "silence stays silent"


def test_probabilities_are_kept(sound):
    unlike = [not np.array_equal(SoundAugmentation(600, **NONE | {"noise": 0.25, "snr": (0, 0)}).view(sound, 0, v, ""), sound) for v in range(400)]  # fmt: skip
    assert 0.15 < np.mean(unlike) < 0.35


@pytest.mark.parametrize(
    "values", [{"length": 0}, {"max_stretch": 0.5}, {"reverse": 2.0}, {"noise": -1.0}, {"snr": (20.0, 10.0)}]
)
def test_bad_settings_are_named(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}: got"):
        SoundAugmentation(**{"length": 9} | values)


@pytest.mark.parametrize("wrong", [np.zeros(0), np.zeros((2, 0)), np.zeros((1, 2, 3))])
def test_what_is_no_sound_is_named(wrong):
    with pytest.raises(ValueError, match="sound: shape"):
        SoundAugmentation(9)(wrong, seeded(0))
