"""`summary`: means over seeds, spreads and gains with intervals from the predictions in a run folder."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_clip_variants.few_shot.summary import finished_runs, summary
from hf_clip_variants.metrics.intervals import paired_bootstrap


LABELS = {"a": np.arange(40) % 4, "b": np.arange(24) % 4}
RIGHT = {"zero_shot": (20, 12), ("clap", 1): (30, 12), ("clap", 2): (34, 6), ("coop", 1): (10, 18)}


def predicted(labels, right):
    return np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 4)


@pytest.fixture
def folder(tmp_path):
    """A run folder of two methods, one of them with two seeds and one failed run; with its results."""
    (tmp_path / "predictions").mkdir()
    runs = []
    for key, counts in RIGHT.items():
        pairs = list(zip(LABELS.items(), counts, strict=True))
        tensors = {f"{name}.predicted": predicted(labels, right) for (name, labels), right in pairs}
        accuracy = {name: right / len(labels) for (name, labels), right in pairs}
        if key == "zero_shot":
            baseline = accuracy
            save_file(
                tensors | {f"{name}.labels": labels for name, labels in LABELS.items()},
                tmp_path / "predictions" / "zero_shot.safetensors",
            )
            continue
        method, seed = key
        file = f"predictions/{method}-{seed}.safetensors"
        save_file(tensors, tmp_path / file)
        runs.append(
            {
                "method": method,
                "title": method.upper(),
                "shots": 4,
                "seed": seed,
                "accuracy": accuracy,
                "predictions": file,
                "trained_parameters": 7,
                "adapter_bytes": 99,
                "seconds": {"features": 1.0, "train": 2.0 * seed, "search": 0.5, "test": 100.0},
                "validation": {"kind": "cross-validation"},
                "error": None,
            }
        )
    runs.append({"method": "clap", "shots": 4, "seed": 3, "error": "RuntimeError: out of memory"})
    return tmp_path, {"zero_shot": {"accuracy": baseline}, "runs": runs}


def test_zero_shot_clip_comes_first_and_methods_in_the_order_of_their_runs(folder):
    rows = summary(*folder)
    assert [(row["method"], row["shots"], row["seeds"]) for row in rows] == [
        ("zero_shot", 0, 1),
        ("clap", 4, 2),
        ("coop", 4, 1),
    ]
    assert rows[0]["tests"] == {"a": {"accuracy": 0.5, "spread": None}, "b": {"accuracy": 0.5, "spread": None}}
    assert rows[0]["title"] == "zero-shot CLIP" and rows[0]["seconds"] == 0 and rows[0]["trained_parameters"] == 0


def test_means_spreads_and_gains_are_over_seeds(folder):
    _, clap, coop = summary(*folder)
    found = clap["tests"]["a"]
    assert found["accuracy"] == pytest.approx(0.8) and found["spread"] == pytest.approx(0.05)
    assert found["gain"] == pytest.approx(0.3)
    assert clap["tests"]["b"]["gain"] == pytest.approx(-0.125)
    assert coop["tests"]["a"]["spread"] is None and coop["tests"]["b"]["gain"] == pytest.approx(0.25)
    assert clap["seconds"] == pytest.approx(4.5), "without testing"
    assert (clap["title"], clap["trained_parameters"], clap["adapter_bytes"]) == ("CLAP", 7, 99)
    assert clap["validation"] == "cross-validation"


def test_intervals_are_of_the_same_images_and_around_the_gain(folder):
    _, clap, coop = summary(*folder)
    before = np.arange(40) < 20
    after = np.stack([np.arange(40) < 30, np.arange(40) < 34])
    assert clap["tests"]["a"]["interval"] == list(paired_bootstrap(before, after))
    for row in (clap, coop):
        for test in row["tests"].values():
            low, high = test["interval"]
            assert low < test["gain"] < high
    assert coop["tests"]["a"]["interval"][1] < 0 < clap["tests"]["a"]["interval"][0]


def test_failed_runs_are_left_out(folder):
    _, results = folder
    assert [(run["method"], run["seed"]) for run in finished_runs(results)] == [("clap", 1), ("clap", 2), ("coop", 1)]
    only = results | {"runs": results["runs"][-1:]}
    assert [row["method"] for row in summary(folder[0], only)] == ["zero_shot"]
