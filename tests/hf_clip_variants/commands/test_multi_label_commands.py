"""`evaluate` and `predict` where images have several labels."""

import csv
import io
import json

import pytest
from scenes import SCENE_CLASSES, save_scenes

from hf_clip_variants import embedded_model


MODEL = ["--model", embedded_model(), "--templates", "icons"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """See `save_scenes`."""
    return save_scenes(tmp_path_factory.mktemp("scenes"))


def test_evaluate_recognises_lists_of_labels_and_prints_map_and_f1(run, scenes):
    code, out, err = run("evaluate", *MODEL, "--data", scenes / "data" / "test.parquet", "--json")
    result = json.loads(out)
    assert code == 0, err
    assert (
        result["images"] == 40 and result["classes"] == len(SCENE_CLASSES) and 1.4 < result["labels_per_image"] < 2.6
    )
    assert 0.5 < result["mAP"] <= 1 and 0.4 < result["f1_micro"] <= 1 and 0 < result["f1_macro"] <= 1
    assert list(result["per_class"]) == sorted(SCENE_CLASSES)
    assert {c["threshold"] for c in result["per_class"].values()} == {0.5} and "calibrated_on" not in result
    code, out, _ = run("evaluate", *MODEL, "--data", scenes / "data" / "test.parquet")
    assert code == 0 and f"mAP {100 * result['mAP']:.1f}, micro F1 {100 * result['f1_micro']:.1f}" in out
    assert "hardest classes" in out and "--calibrate SPLIT" in out


def test_evaluate_calibrates_on_another_split_and_predict_names_all_classes_present(run, scenes, tmp_path):
    saved = tmp_path / "tagger"
    arguments = ["evaluate", *MODEL, "--data", scenes / "data", "--calibrate", "train", "--save", saved]
    code, out, err = run(*arguments, "--json")
    result = json.loads(out)
    assert code == 0 and result["split"] == "test" and result["calibrated_on"] == {"data": "train", "images": 80}, err
    assert result["f1_micro"] > result["before_calibration"]["f1_micro"]
    thresholds = {name: c["threshold"] for name, c in result["per_class"].items()}
    assert len(set(thresholds.values())) > 1

    code, out, _ = run("evaluate", "--model", saved, "--data", scenes / "data" / "test.parquet", "--json")
    again = json.loads(out)
    assert code == 0 and again["f1_micro"] == pytest.approx(result["f1_micro"]), "saved and loaded"

    code, out, err = run("predict", "--model", saved, scenes / "files", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 5, err
    counts = {len(row["labels"]) for row in rows}
    assert max(counts) >= 2, "not the best class only"
    for row in rows:
        assert all(found["score"] >= thresholds[found["label"]] - 1e-4 for found in row["labels"])
        assert [found["score"] for found in row["labels"]] == sorted((f["score"] for f in row["labels"]), reverse=True)
    code, out, _ = run("predict", "--model", saved, scenes / "files")
    table = list(csv.DictReader(io.StringIO(out)))
    assert [row["label"] for row in table] == ["|".join(f["label"] for f in row["labels"]) for row in rows]
    code, out, _ = run("predict", "--model", saved, scenes / "files", "--top", 1, "--json")
    assert all(len(json.loads(line)["labels"]) <= 1 for line in out.splitlines())


def test_cells_with_a_separator_want_the_option(run, scenes):
    code, out, err = run("evaluate", *MODEL, "--data", scenes / "cells.csv", "--multi-label", "--json")
    of_cells = json.loads(out)
    assert code == 0, err
    _, out, _ = run("evaluate", *MODEL, "--data", scenes / "data" / "test.parquet", "--json")
    of_lists = json.loads(out)
    assert of_cells["images"] == 5 and of_cells["classes"] <= of_lists["classes"]


def test_wrong_arguments_are_named(run, scenes, tmp_path):
    code, _, err = run("evaluate", *MODEL, "--data", scenes / "data" / "test.parquet", "--save", tmp_path / "x")
    assert code == 1 and "--save: got" in err and "without --calibrate" in err
    code, _, err = run("evaluate", *MODEL, "--data", scenes / "data", "--calibrate", "test")
    assert code == 1 and "--calibrate: test is the split that is measured" in err
    code, _, err = run("evaluate", *MODEL, "--data", scenes / "data" / "test.parquet", "--classes", "cat,octopus")
    assert code == 1 and "are not among the 2 of the model" in err
    code, out, err = run(
        "evaluate",
        *MODEL,
        "--data",
        scenes / "data" / "test.parquet",
        "--classes",
        "cat,octopus",
        "--common-classes",
        "--json",
    )
    assert code == 0 and json.loads(out)["classes"] == 2, err


def test_adapt_refuses_several_labels_and_says_what_works(run, scenes, tmp_path):
    code, _, err = run("adapt", "--data", scenes / "data" / "test.parquet", "--out", tmp_path / "run", "--shots", 1)
    assert code == 1 and "several labels an image" in err and "`evaluate`" in err and "README" in err
    assert not (tmp_path / "run").exists()
