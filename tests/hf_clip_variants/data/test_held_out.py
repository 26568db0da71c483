"""`hold_out`: the share of each class that is kept for testing."""

import numpy as np
import pytest

from hf_clip_variants.data.held_out import hold_out


def test_a_share_of_each_class_and_at_least_one():
    labels = np.array([0] * 20 + [1] * 3 + [2] * 2 + [3])
    learn, test = hold_out(labels, [str(i) for i in range(len(labels))])
    assert np.bincount(labels[test], minlength=4).tolist() == [4, 1, 1, 0]
    assert sorted([*learn, *test]) == list(range(len(labels)))


def test_the_order_of_the_rows_and_the_other_classes_do_not_matter():
    labels, ids = np.arange(40) % 4, [f"images/{i}.png" for i in range(40)]
    held_out = {ids[row] for row in hold_out(labels, ids)[1]}
    order = np.random.default_rng(1).permutation(40)
    assert {ids[order[row]] for row in hold_out(labels[order], [ids[row] for row in order])[1]} == held_out
    some = [row for row in range(40) if labels[row] != 2]
    kept = {ids[some[row]] for row in hold_out(labels[some], [ids[row] for row in some])[1]}
    assert kept == {name for name in held_out if labels[ids.index(name)] != 2}


def test_another_seed_holds_out_other_images():
    labels, ids = np.zeros(50), [str(i) for i in range(50)]
    assert set(hold_out(labels, ids, seed=0)[1]) != set(hold_out(labels, ids, seed=1)[1])


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_that_is_none_is_an_error(share):
    with pytest.raises(ValueError, match="share: got"):
        hold_out([0, 0], ["a", "b"], share)


def test_a_name_missing_is_an_error():
    with pytest.raises(ValueError, match="ids: got 1 for 2 labels"):
        hold_out([0, 0], ["a"])
