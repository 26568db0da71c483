"""Thresholds of each label from a few label maps."""

import itertools

import pytest
import torch

from hf_clip_variants.modeling.groupvit.background_calibration import (
    GroupObservations,
    calibrate_thresholds,
    observe_groups,
    sum_of_ious,
)


def random_groups(seed: int, count: int = 12, labels: int = 3) -> GroupObservations:
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(count, generator=generator) * 10).round().double() / 10  # with equal scores
    counts = torch.randint(0, 30, (count, labels + 1), generator=generator)
    return GroupObservations(scores, torch.randint(0, labels, (count,), generator=generator), counts)


def best_by_trying(observed: GroupObservations) -> float:
    """The highest sum of IoU over all thresholds of two labels."""
    tried = [-1.0, *(observed.scores.unique() + 0.01).tolist()]
    return max(sum_of_ious(observed, torch.tensor(pair)) for pair in itertools.product(tried, repeat=2))


def test_running_sums_find_the_best_threshold_of_one_label():
    for seed in range(40):
        observed = random_groups(seed, labels=1)
        found = calibrate_thresholds(observed, 0.95, shrinkage=0)
        tried = [-1.0, *(observed.scores.unique() + 0.01).tolist()]
        best = max(sum_of_ious(observed, torch.tensor([t])) for t in tried)
        assert sum_of_ious(observed, found) == pytest.approx(best, abs=1e-9), seed


def test_ascent_never_loses_and_mostly_finds_the_best_of_two_labels():
    gaps = []
    for seed in range(40):
        observed = random_groups(seed, labels=2)
        found = calibrate_thresholds(observed, 0.5, shrinkage=0)
        reached = sum_of_ious(observed, found)
        assert reached >= sum_of_ious(observed, torch.full((2,), 0.5)) - 1e-9
        gaps.append(best_by_trying(observed) - reached)
    assert sum(gap < 1e-9 for gap in gaps) >= 30


def test_thresholds_are_drawn_towards_the_given_one():
    observed = random_groups(1)
    free, drawn = (calibrate_thresholds(observed, 0.9, shrinkage=s) for s in (0, 10))
    won = torch.bincount(observed.labels, minlength=3)
    assert torch.allclose(drawn, (won * free + 10 * 0.9) / (won + 10))
    assert (calibrate_thresholds(observed, 0.9, shrinkage=1e9) - 0.9).abs().max() < 1e-6


def test_labels_without_a_group_keep_the_threshold():
    observed = random_groups(2, labels=1)
    wider = GroupObservations(
        observed.scores, observed.labels, torch.cat([observed.counts, torch.ones(12, 1).long()], 1)
    )
    assert calibrate_thresholds(wider, 0.9, shrinkage=0)[1].item() == pytest.approx(0.9)


def test_a_threshold_that_is_already_best_stays():
    counts = torch.tensor([[0, 8], [9, 0]])
    observed = GroupObservations(torch.tensor([0.8, 0.3]).double(), torch.tensor([0, 0]), counts)
    assert calibrate_thresholds(observed, 0.4).item() == pytest.approx(0.4)


def test_groups_are_observed_with_their_pixels():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4]])
    observed = observe_groups(scores, torch.tensor([[0, 0, 1], [0, 1, 2]]), torch.tensor([[0, 1, 2], [1, 255, 255]]))
    assert observed.labels.tolist() == [0, 1] and observed.counts.tolist() == [[1, 2, 0], [0, 0, 1]]
    assert torch.allclose(observed.scores, torch.tensor([0.9, 0.3]).double())
    joined = GroupObservations.joined([observed, observed])
    assert joined.counts.shape == (4, 3)
    with pytest.raises(ValueError, match="at least one image"):
        GroupObservations.joined([])
