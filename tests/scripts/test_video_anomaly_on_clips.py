"""Abnormal frames of drawn videos: VideoAnomalyClip beside CLIP's similarity, nothing is run twice, options."""

import sys

import pytest
import torch
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import video_anomaly_on_clips

    yield video_anomaly_on_clips
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("video_anomaly_on_clips", None)


@pytest.mark.slow
def test_all_methods_are_measured_on_the_same_frames_and_nothing_is_run_twice(script, tmp_path):
    """Far too small to learn much: that it learns is shown by test_learning_video_anomaly_clip.py and by the table."""
    sizes = ["--videos", "8", "--test-videos", "6", "--steps", "3,4", "--training-steps", "4", "--batch-size", "4"]
    options = ["--out", str(tmp_path), "--seeds", "1", *sizes]
    script.main(options)
    lines = script.lines_of(tmp_path)
    assert [line["method"] for line in lines] == [*script.BASELINES, script.DIRECTIONS, script.OURS] * 2
    lines, new = lines[:6], lines[6:]
    assert {line["test"] for line in lines} == {script.TESTS[0]} and {line["test"] for line in new} == {
        script.TESTS[1]
    }
    assert lines[0]["auc"] != new[0]["auc"]
    assert len({line["frames"] for line in lines}) == 1 and all(0 < line["abnormal_share"] < 0.3 for line in lines)
    assert all(0 <= line["auc"] <= 1 and 0 <= line["ap"] <= 1 for line in lines)
    # Who knows the videos' labels ranks all frames of normal ones right, and those of one abnormal video alike.
    assert lines[3]["auc"] > 0.6 and "mauc" not in lines[3]
    script.main(options)
    assert len(script.lines_of(tmp_path)) == 12
    assert f"| {script.OURS} |" in (tmp_path / "table.md").read_text()
    pictures = [path for path in tmp_path.glob("*.png") if path.read_bytes()[1:4] == b"PNG"]
    assert pictures and {path.stem for path in pictures} <= {"found", "missed"}
    assert 0 <= lines[-1]["peak"] <= 1 and lines[3]["peak"] == 0


def test_the_table_has_means_and_spreads(script):
    about = {"method": script.OURS, "test": "new style", "ap": 0.5}
    lines = [about | {"seed": seed, "auc": auc} for seed, auc in ((1, 0.9), (2, 0.8))]
    assert "| VideoAnomalyClip | 85.0 ± 7.1 | 50.0 ± 0.0 |  |  |  | 2 |" in script.table(lines)


def test_a_video_is_found_where_all_of_its_highest_scores_are_abnormal(script):
    labels = torch.tensor([0, 2, 2, 0])
    assert script.is_found(torch.tensor([0.1, 0.5, 0.2, 0.4]), labels)
    assert not script.is_found(torch.tensor([0.6, 0.5, 0.2, 0.4]), labels)
    assert not script.is_found(torch.tensor([0.5, 0.5, 0.2, 0.4]), labels)


def test_wrong_options_are_said(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--out", "x", "--steps", "3"])
    assert "--steps: '3'; want two numbers" in capsys.readouterr().err
    assert torch.tensor(script.parse(["--out", "x"]).steps).tolist() == [4, 6]
