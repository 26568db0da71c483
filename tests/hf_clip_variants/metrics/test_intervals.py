"""`paired_bootstrap`: the interval of a difference of accuracies on the same images."""

import numpy as np
import pytest

from hf_clip_variants.metrics.intervals import paired_bootstrap


def naive(before, after, confidence=0.95, samples=4000, seed=5):
    """Images drawn one by one with replacement, and the quantiles of the differences."""
    random, differences = np.random.default_rng(seed), []
    for _ in range(samples):
        rows = random.integers(0, len(before), len(before))
        differences.append(after[..., rows].mean() - before[rows].mean())
    return np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])


@pytest.mark.parametrize("seeds", [None, 3])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_is_that_of_drawing_images(seeds, confidence):
    random = np.random.default_rng(0)
    before = random.random(150) < 0.6
    after = random.random((seeds, 150) if seeds else 150) < 0.75
    found = paired_bootstrap(before, after, confidence)
    assert found == pytest.approx(naive(before, after, confidence), abs=0.012)
    assert found[0] < after.mean() - before.mean() < found[1]


def test_images_are_drawn_in_pairs():
    """Two models that are wrong about the same images differ for certain; independent draws would say otherwise."""
    before = np.arange(100) < 60
    assert paired_bootstrap(before, before) == (0.0, 0.0)
    low, high = paired_bootstrap(before, np.arange(100) < 65)
    assert low > 0 and high < 0.12


def test_more_images_give_a_narrower_interval():
    few, many = np.arange(20) < 10, np.arange(2000) < 1000
    widths = [np.diff(paired_bootstrap(right, np.roll(right, len(right) // 4)))[0] for right in (few, many)]
    assert widths[1] < widths[0] / 5


def test_the_same_seed_gives_the_same_interval():
    before, after = np.arange(50) % 3 == 0, np.arange(50) % 2 == 0
    assert paired_bootstrap(before, after) == paired_bootstrap(before.tolist(), after.tolist())
    assert paired_bootstrap(before, after, samples=200, seed=1) != paired_bootstrap(before, after, samples=200, seed=2)


@pytest.mark.parametrize(("before", "after"), [([], []), ([True], [True, False]), ([True, False], [[True], [False]])])
def test_other_images_are_an_error(before, after):
    with pytest.raises(ValueError, match="after: got shape .* want the same images, at least one"):
        paired_bootstrap(before, after)
