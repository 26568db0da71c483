"""Which groups are background: one threshold, and one of each label."""

import pytest
import torch

from hf_clip_variants.modeling.groupvit.background_rule import background_groups


def random_scores(seed: int) -> torch.Tensor:
    scores = torch.rand(3, 8, 5, generator=torch.Generator().manual_seed(seed)) ** 3
    return scores * (1e-7 if seed % 3 == 0 else 1)


def official(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """In loops: below the threshold, and below the best score of the image."""
    found = torch.zeros(scores.shape[:2], dtype=torch.bool)
    for b, groups in enumerate(scores):
        limit = min(torch.tensor(threshold), groups.max())
        for g, row in enumerate(groups):
            found[b, g] = bool(row.max() < limit)
    return found


@pytest.mark.parametrize("never_all", [True, False])
def test_equal_thresholds_are_one_threshold(never_all):
    for seed in range(200):
        scores = random_scores(seed)
        threshold = scores.flatten()[seed % 100].item() if seed % 2 else 0.95  # also exactly a score
        one = background_groups(scores, threshold, never_all)
        assert torch.equal(one, background_groups(scores, torch.full((5,), threshold), never_all)), seed
        if never_all:
            assert torch.equal(one, official(scores, threshold))


def test_each_label_has_its_own_threshold():
    scores = torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.7, 0.0]])
    assert background_groups(scores, torch.tensor([0.6, 0.4])).tolist() == [True, False, False]
    assert background_groups(scores, torch.tensor([0.4, 0.6])).tolist() == [False, True, False]


def test_the_group_nearest_to_its_threshold_stays_where_all_are_below():
    scores = torch.tensor([[0.50, 0.00], [0.00, 0.40]])
    thresholds = torch.tensor([0.95, 0.45])
    assert background_groups(scores, thresholds).tolist() == [True, False]
    assert background_groups(scores, thresholds, never_all=False).tolist() == [True, True]


def test_one_group_of_each_image_is_foreground():
    for seed in range(50):
        background = background_groups(
            random_scores(seed), torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 1
        )
        assert (~background).sum(1).tolist() == [1, 1, 1]


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="2 labels"):
        background_groups(torch.rand(4, 2), torch.rand(3))
    with pytest.raises(ValueError, match="at least one label"):
        background_groups(torch.rand(4, 0), 0.5)
