"""`evaluate --task segmentation`: mean IoU, the oracle's table, calibration of the background."""

import json

import pytest
from segmenters import save_segmenter

from hf_clip_variants.data import make_scenes


NAMES = ["cat", "taco", "whale"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with the splits train and test."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, seed in (("train", 1), ("test", 2)):
        made = make_scenes(4, seed=seed, styles="notov1", class_names=NAMES, size=32)
        made.to_parquet(folder / f"{split}-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("model"), "groups")


def test_mean_iou_and_the_oracle_are_printed(run, scenes, model):
    arguments = ["evaluate", "--task", "segmentation", "--data", scenes, "--model", model, "--background", "0.1"]
    code, out, err = run(*arguments, "--oracle", "--json")
    result = json.loads(out)
    assert code == 0 and result["split"] == "test" and result["images"] == 4, err
    assert list(result["per_class_iou"]) == ["background", *NAMES] and 0 < result["mean_iou"] < 1
    code, out, err = run(*arguments, "--oracle")
    assert code == 0 and f"{100 * result['mean_iou']:.1f} % mean IoU of 4 classes" in out, err
    figures = result["oracle"]
    for text in ("lost by the groups", "without boundaries", f"{100 * figures['miou']['oracle']:.1f}"):
        assert text in out, text
    code, out, err = run(*arguments)
    assert code == 0 and "lost by the groups" not in out, err


def test_calibrated_thresholds_are_saved(run, scenes, model, tmp_path):
    arguments = ["evaluate", "--task", "segmentation", "--data", scenes, "--model"]
    options = ["--background", "0.3", "--calibrate", "train", "--save", tmp_path / "saved", "--json"]
    code, out, err = run(*arguments, model, *options)
    result = json.loads(out)
    assert code == 0 and result["calibrated_on"]["images"] == 4, err
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["background"] == result["calibrated_on"]["thresholds"] and list(saved["background"]) == NAMES
    code, out, err = run(*arguments, tmp_path / "saved", "--json")
    assert code == 0 and json.loads(out)["mean_iou"] == result["mean_iou"], err


def test_scales_and_windows_are_options(run, scenes, model):
    arguments = ["evaluate", "--task", "segmentation", "--data", scenes, "--model", model, "--background", "0.1"]
    found = []
    for options in ([], ["--window", "16", "--stride", "8"], ["--scales", "0.5,1,1.5", "--flip"]):
        code, out, err = run(*arguments, *options, "--json")
        assert code == 0, err
        found.append(json.loads(out)["mean_iou"])
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (["--task", "segmentation", "--adapter", "x"], "--adapter"),
        (["--task", "segmentation", "--multi-label"], "--multi-label: is not for"),
        (["--oracle"], "--oracle: is for --task segmentation"),
        (["--scales", "0.5"], "--scales: got 0.5; it is for"),
        (["--task", "segmentation", "--scales", "0"], "--scales: got '0'"),
        (["--task", "segmentation", "--save", "y"], "--save: got y without --calibrate"),
        (["--task", "segmentation", "--background", "0.1", "--calibrate", "test"], "is the split that is measured"),
    ],
)
def test_wrong_options_are_named(run, scenes, model, options, message):
    code, _, err = run("evaluate", "--data", scenes, "--model", model, *options)
    assert code != 0 and message in " ".join(err.split()), err
