"""What heads of ActionCLIP learn of four directions with frozen encoders: a transformer all, the mean none."""

import sys

import pytest
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import actionclip_on_clips

    yield actionclip_on_clips
    sys.path.remove(str(SCRIPTS))
    for name in ("actionclip_on_clips", "clip4clip_on_clips", "clip4clip_on_drawn_clips"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_transformer_learns_directions_and_the_mean_does_not(script, tmp_path):
    sizes = ["--drawn-clips", "48", "--steps", "100", "--tasks", "directions"]
    options = ["--out", str(tmp_path), "--development", "--seeds", "0", "--heads", "meanP,Transf", *sizes]
    script.main(options)
    mean, transformer = script.lines_of(tmp_path)
    # Each clip is there in both directions: of two opposite ones, the mean gets at most one.
    assert mean["train_right"] <= 0.5 and mean["test_right"] <= 0.5
    assert transformer["train_right"] > 0.9 and transformer["test_right"] > 0.6  # chance 0.25
    script.main(options)
    assert len(script.lines_of(tmp_path)) == 2  # nothing is run twice
    assert "| meanP |" in (tmp_path / "table.md").read_text()


def test_questions_show_each_clip_with_both_answers(script):
    import torch

    clips = [torch.arange(24.0)[:, None].expand(24, 2)]
    for task, second in (("reversed", [23.0, 18.0, 14.0, 9.0, 5.0, 0.0]), ("shuffled", None), ("speed", None)):
        asked = script.question(task, clips, 6, seed=1)
        assert asked.labels.tolist() == [0, 1] and asked.features.shape == (2, 6, 2)
        first, other = asked.features[..., 0]
        assert second is None or other.tolist() == second
        if task == "speed":
            assert first.diff().unique().tolist() == [1.0] and other.diff().unique().tolist() == [2.0]
        else:
            assert sorted(other.tolist()) == first.tolist()


def test_wrong_options_are_said(script, capsys):
    for options, message in (
        (["--heads", "mean"], "--heads: 'mean'; want some of meanP"),
        (["--tasks", "reversed"], "--clips: missing"),
    ):
        with pytest.raises(SystemExit):
            script.parse(["--out", "x", *options])
        assert message in capsys.readouterr().err
