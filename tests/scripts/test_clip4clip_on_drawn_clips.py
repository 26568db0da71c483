"""What the heads of CLIP4Clip learn on clips of things in motion: the mean finds the thing and is at chance on its
direction, a transformer over frames learns both."""

import sys

import pytest
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import clip4clip_on_drawn_clips

    yield clip4clip_on_drawn_clips
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("clip4clip_on_drawn_clips", None)


@pytest.mark.slow
def test_the_mean_finds_things_and_a_transformer_directions_too(script, tmp_path):
    sizes = ["--clips", "64", "--test-clips", "40", "--steps", "120"]
    options = ["--out", str(tmp_path), "--development", "--seeds", "0", "--heads", "meanP,seqTransf", *sizes]
    script.main(options)
    mean, transformer = script.lines_of(tmp_path)
    assert mean["thing_right"] > 0.5 and transformer["thing_right"] > 0.5  # chance 0.125
    assert mean["motion_right"] == 0.5  # each clip is there in both directions, and the mean cannot tell them apart
    assert transformer["motion_right"] > 0.6
    script.main(options)
    assert len(script.lines_of(tmp_path)) == 2  # nothing is run twice
    assert "| left, right | meanP |" in (tmp_path / "table.md").read_text()


def test_wrong_options_are_said(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--out", "x", "--heads", "meanQ"])
    assert "--heads: 'meanQ'; want some of meanP, seqLSTM, seqTransf, tightTransf" in capsys.readouterr().err
