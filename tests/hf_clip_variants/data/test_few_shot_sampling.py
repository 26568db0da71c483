"""Few-shot draws: equal to the official code's, seeded, and with a warning for small classes."""

import os
import random
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest

from hf_clip_variants.data import sample_few_shot, split_base_new


LABELS = [2, 0, 1, 0, 1, 2, 2, 0, 1, 0, 1, 2] * 2  # 8 a class; classes appear in the order 2, 0, 1


def official_draw(labels, shots, seed, repeat=False, validation_labels=None):
    """Dassl's `generate_fewshot_dataset`: the global generator, classes by first appearance."""
    random.seed(seed)

    def draw(labels, shots, repeat):
        tracker = {}
        for row, label in enumerate(labels):
            tracker.setdefault(label, []).append(row)
        chosen = []
        for items in tracker.values():
            if len(items) >= shots:
                chosen += random.sample(items, shots)
            else:
                chosen += random.choices(items, k=shots) if repeat else items
        return tuple(chosen)

    train = draw(labels, shots, repeat)
    return train, draw(validation_labels, min(shots, 4), False) if validation_labels else ()


@pytest.mark.parametrize("shots", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_coop_draw_equals_the_official_one(shots, seed):
    state = random.getstate()
    split = sample_few_shot(LABELS, shots, seed, validation_labels=LABELS[::-1])
    assert random.getstate() == state  # the global generator is left alone
    train, validation = official_draw(LABELS, shots, seed, validation_labels=LABELS[::-1])
    assert (split.train, split.validation) == (train, validation)
    assert split.validation_from == "validation" and split.val == split.validation
    assert Counter(LABELS[row] for row in split.train) == {0: shots, 1: shots, 2: shots}
    assert Counter(LABELS[::-1][row] for row in split.val) == dict.fromkeys(range(3), min(shots, 4))
    assert len(set(split.train)) == len(split.train)


def test_the_tip_draw_repeats_rows_and_uses_the_whole_validation_split():
    labels = [0] * 10 + [1] * 3
    with pytest.warns(UserWarning, match="fewer than 5 images in 1 classes: 'lynx'; images are repeated"):
        split = sample_few_shot(labels, 5, 1, protocol="tip", class_names=["cat", "lynx"], validation_labels=[1, 0, 1])
    assert split.train == official_draw(labels, 5, 1, repeat=True)[0]
    assert Counter(labels[row] for row in split.train) == {0: 5, 1: 5}
    assert split.validation == (0, 1, 2)


def test_a_class_smaller_than_k_gives_all_its_rows_and_is_named():
    labels = [0] * 6 + [1] * 2
    with pytest.warns(UserWarning, match="fewer than 4 images in 1 classes: 'class 1'; they give all they have"):
        split = sample_few_shot(labels, 4, 1, val=False)
    assert sorted(split.train[4:]) == [6, 7] and len(split.train) == 6
    assert split.validation == () and split.validation_from is None


def test_without_a_validation_split_other_training_images_are_used():
    split = sample_few_shot(LABELS, 3, 1)
    assert split.validation_from == "train" and not set(split.validation) & set(split.train)
    assert Counter(LABELS[row] for row in split.validation) == {0: 3, 1: 3, 2: 3}
    assert len(sample_few_shot(LABELS, 1, 1).validation) == 3
    with pytest.warns(UserWarning, match="no validation image is left in 1 of 2 classes: 'dog'"):
        split = sample_few_shot([0, 0, 0, 1, 1], 2, 1, class_names=["cat", "dog"])
    assert len(split.validation) == 1
    with pytest.warns(UserWarning, match="no image is left for validation in 2 of 2 classes"):
        split = sample_few_shot([0, 0, 1, 1], 2, 1)
    assert split.validation_from is None


def test_draws_depend_on_the_seed_only():
    draws = {seed: sample_few_shot(LABELS, 4, seed) for seed in range(5)}
    assert len({d.train for d in draws.values()}) == 5
    assert sample_few_shot(np.array(LABELS), np.int64(4), np.int64(3)) == draws[3]
    script = f"from hf_clip_variants.data import sample_few_shot as s; print(s({LABELS}, 4, 3).train)"
    environment = os.environ | {"PYTHONHASHSEED": "11"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(draws[3].train)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 0, 2, 2], {}, "no images for 1 of 3 classes: 'class 1'"),
        ([0, 1], {"class_names": ["a", "b", "c"]}, "no images for 1 of 3 classes: 'c'"),
        ([0, 3], {"num_classes": 3}, r"labels\[1\]: got 3, which is out of range; want 0..2"),
        ([0, -1], {}, r"labels\[1\]: got -1, which is out of range; want 0 or more"),
        ([0, 0], {}, "one class only .'class 0'."),
        ([], {}, "labels: got none"),
        ([[0], [1]], {}, r"labels: got int64 of shape \(2, 1\)"),
        ([0.0, 1.0], {}, "labels: got float64"),
        ([0, 1], {"shots": 0}, "shots: got 0"),
        ([0, 1], {"shots": 1.5}, "shots: got 1.5"),
        ([0, 1], {"protocol": "dassl"}, "protocol: got 'dassl'"),
        ([0, 1], {"num_classes": 3, "class_names": ["a", "b"]}, "num_classes: got 3, but there are 2 class names"),
        ([0, 1], {"validation_labels": [0, 2]}, r"validation_labels\[1\]: got 2, which is out of range; want 0..1"),
    ],
)
def test_bad_labels_are_named(labels, options, message):
    options = {"shots": 1} | options
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("error")
        sample_few_shot(labels, options.pop("shots"), 1, **options)


def test_base_classes_are_the_first_half_rounded_up():
    assert split_base_new(2) == ((0,), (1,))
    assert split_base_new(101)[0] == tuple(range(51)) and split_base_new(101)[1] == tuple(range(51, 101))
    with pytest.raises(ValueError, match="num_classes: got 1"):
        split_base_new(1)
