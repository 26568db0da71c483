"""The test set is fixed before anything is drawn, and shots that do not fit are cut."""

import os

import numpy as np
import pytest
from few_shot_runs import results_of
from PIL import Image

from hf_clip_variants.data.held_out import hold_out
from hf_clip_variants.few_shot.adapt import adapt
from hf_clip_variants.few_shot.splits import (
    HELD_OUT,
    draw_shots,
    fitting_shots,
    load_test_sets,
    load_training,
    reload_test_set,
)


FAST = {"profile": "tiny", "progress": False, "report": False}


def save_noise(folder, counts, split="") -> str:
    """folder/<split>/<class>/<number>.png of noise around a colour of the class."""
    random = np.random.default_rng(len(counts))
    for label, (name, count) in enumerate(counts.items()):
        place = folder / split / name
        place.mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 120, (12, 12, 3)) + 120 * np.eye(3, dtype=int)[label % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")
    return str(folder)


def test_sets(data, test_data=None):
    train, _ = load_training(data)
    return train, *load_test_sets(train, data, test_data or {})


def test_twenty_images_a_class_are_enough_for_sixteen_shots_and_every_run_has_the_same_test_set(clip, tmp_path):
    data = save_noise(tmp_path / "data", {"cat": 20, "dog": 20, "owl": 20})
    one = adapt(clip, data, tmp_path / "one", methods=["tip_adapter"], shots=[1, 4, 16], seeds=[1, 2, 3], **FAST)
    assert [(r["shots"], r["seed"], r["error"]) for r in one["runs"]] == [
        (k, seed, None) for k in (1, 4, 16) for seed in (1, 2, 3)
    ]
    two = adapt(clip, data, tmp_path / "two", methods=["gda"], shots=[2], seeds=[7], **FAST)
    sets = [reload_test_set(results_of(tmp_path / name), HELD_OUT, tmp_path / name) for name in ("one", "two")]
    assert sets[0].ids == sets[1].ids and np.bincount(sets[0].labels).tolist() == [4, 4, 4]
    assert one["zero_shot"]["accuracy"] == two["zero_shot"]["accuracy"]
    train, _ = load_training(data)
    for record in [*one["runs"], *two["runs"]]:
        assert len(record["train_indices"]) == 3 * record["shots"]
        assert not {train.ids[row] for row in record["train_indices"]} & set(sets[0].ids)
    again = adapt(clip, data, tmp_path / "one", methods=["tip_adapter"], shots=[1, 4, 16], seeds=[1, 2, 3], **FAST)
    assert again["runs"] == one["runs"]


def test_shots_that_do_not_fit_are_cut_with_a_warning_and_the_run_can_be_repeated(clip, tmp_path, caplog):
    data = save_noise(tmp_path / "data", {"cat": 10, "dog": 10})
    arguments = {"methods": ["tip_adapter"], "shots": [1, 4, 16, 32], "seeds": [1]} | FAST
    results = adapt(clip, data, tmp_path / "run", **arguments)
    assert [record["shots"] for record in results["runs"]] == [1, 4, 8]
    assert (
        "16, 32 shots need 40 images of each class with the test set; most classes leave 8 to learn from, so the runs "
        "have 1, 4, 8" in caplog.text
    )
    assert adapt(clip, data, tmp_path / "run", **arguments)["runs"] == results["runs"]


@pytest.mark.parametrize(
    ("counts", "asked", "expected", "words"),
    [
        ([16, 16, 16], [1, 4, 16], [1, 4, 16], None),
        ([8, 8], [1, 16], [1, 8], "16 shots need 16 images of each class; most classes leave 8 to learn from"),
        ([8, 8], [8, 16], [8], "16 shots need 16"),
        ([8, 8], [2, 16, 4], [2, 4, 8], "so the runs have 2, 4, 8"),
        ([1, 9, 9, 9], [4], [4], None),  # a small class gives what it has
        ([1, 1, 9], [4, 2], [1], "4, 2 shots need 4"),
        ([1, 1], [1], [1], None),
    ],
)
def test_shots_fit_if_most_classes_have_as_many(counts, asked, expected, words):
    labels = np.repeat(np.arange(len(counts)), counts)
    found, remarks = fitting_shots(labels, range(len(labels)), asked)
    assert found == expected and len(remarks) == (words is not None)
    assert words is None or words in remarks[0]


def test_the_warning_names_as_many_images_as_are_needed():
    for shots in range(1, 65):
        few = np.zeros(1, dtype=int)
        (remark,) = fitting_shots(few, [0], [shots + 1], held_out=True)[1]
        needed = int(remark.split(" need ")[1].split()[0])
        names = [str(i) for i in range(needed)]
        assert len(hold_out(np.zeros(needed, dtype=int), names)[0]) in (shots + 1, shots + 2)


def test_a_class_of_one_image_is_learnt_from_and_not_tested(clip, tmp_path):
    data = save_noise(tmp_path / "data", {"cat": 5, "dog": 1, "owl": 6})
    train, learn, (held_out,) = test_sets(data)
    assert np.bincount(train.labels[learn]).tolist() == [4, 1, 5]
    assert np.bincount(held_out.images.labels, minlength=3).tolist() == [1, 0, 1]
    assert sorted([*learn, *held_out.rows]) == list(range(12))
    methods = ["tip_adapter", "tip_adapter_f", "gda", "clap", "clip_adapter"]
    results = adapt(clip, data, tmp_path / "run", methods=methods, shots=[4], seeds=[1], **FAST)
    for record in results["runs"]:
        assert record["error"] is None and record["per_class"][HELD_OUT][1] is None
        assert len(record["train_indices"]) == 9 and record["validation"]["images"] in (8, 4)


def test_an_image_held_out_that_cannot_be_read_is_named_and_the_others_stay(tmp_path, caplog):
    data = save_noise(tmp_path / "data", {"cat": 10, "dog": 10})
    train, learn, (before,) = test_sets(data)
    bad = before.images.ids[0]
    (tmp_path / "data" / bad).write_bytes(b"")
    _, learn_again, (after,) = test_sets(data)
    assert learn_again == learn and after.images.ids == before.images.ids[1:] and after.rows == before.rows[1:]
    assert [name for name, _ in after.images.skipped] == [bad] and bad in caplog.text
    assert [train.ids[row] for row in after.rows] == list(after.images.ids)


@pytest.mark.parametrize("names", [("00.png", "b.png"), ("00.png", "c.png"), ("00.png", "b.png", "g.png", "h.png")])
def test_the_only_image_of_a_class_that_can_be_read_is_learnt_from(tmp_path, caplog, names):
    data = save_noise(tmp_path / "data", {"cat": 1, "dog": 5})
    good, *bad = names
    for number, name in enumerate(bad):
        place = tmp_path / "data" / "cat" / name
        os.mkfifo(place) if number == 0 else place.write_bytes(b"no image")
    train, learn, (test,) = test_sets(data)
    draws = draw_shots(train, None, [1], [1, 2, 3], learn)
    assert all(f"cat/{good}" in {train.ids[row] for row in split.train} for split in draws.splits.values())
    assert set(test.images.labels) == {1} and len(test.images) == 1
    said = f"{caplog.text}{draws.skipped}"
    assert len(names) > 2 or (f"cat/{bad[0]}" in said and "FIFO" in said)


def test_a_test_split_and_given_test_data_leave_all_images_to_learn_from(tmp_path):
    data = save_noise(tmp_path / "data", {"cat": 4, "dog": 4}, "train")
    save_noise(tmp_path / "data", {"cat": 2, "dog": 2}, "test")
    _, learn, (found,) = test_sets(data)
    assert learn == list(range(8)) and (found.name, found.split, found.rows) == ("test", "test", None)
    other = save_noise(tmp_path / "other", {"dog": 3, "cat": 1})
    train, learn, (found,) = test_sets(data, {"mine": other})
    assert learn == list(range(8)) and (found.name, found.rows, len(found.images)) == ("mine", None, 4)
    assert np.bincount(found.images.labels).tolist() == [1, 3] and train.class_names[0] == "cat"


def test_one_image_of_each_class_leaves_nothing_to_test_on(tmp_path):
    data = save_noise(tmp_path / "data", {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="one readable image of each class and nothing is left to test on; want test"):
        test_sets(data)


test_sets.__test__ = False  # pytest: not a test
