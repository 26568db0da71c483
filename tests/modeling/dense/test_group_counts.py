"""The group of each pixel, and pixels of each class in each group."""

import pytest
import torch

from hf_clip_variants.modeling.dense.group_counts import group_class_counts, group_ids


def test_counts_are_those_of_loops():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 5, (9, 7), generator=generator)
    labels = torch.randint(0, 4, (9, 7), generator=generator)
    labels[0] = 255
    counted = group_class_counts(groups, labels, 6, 4)
    for g in range(6):
        for c in range(4):
            assert counted[g, c] == ((groups == g) & (labels == c)).sum()


def test_maps_are_resized_before_they_are_compared():
    maps = torch.tensor([[[[1.0, 0.4]], [[0.0, 0.6]]]])
    assert group_ids(maps).tolist() == [[[0, 1]]]
    assert group_ids(maps, (1, 8)).tolist() == [[[0, 0, 0, 0, 0, 1, 1, 1]]]  # equal at 5/6 of the way


def test_wrong_maps_are_named():
    with pytest.raises(ValueError, match="want the same"):
        group_class_counts(torch.zeros(2, 2), torch.zeros(2, 3), 2, 2)
    with pytest.raises(ValueError, match="labels: got ids 0 to 7"):
        group_class_counts(torch.zeros(2).long(), torch.tensor([0, 7]), 2, 3)
    with pytest.raises(ValueError, match="B, G, h, w"):
        group_ids(torch.zeros(2, 2, 2))
