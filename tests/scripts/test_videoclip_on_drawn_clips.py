"""VideoCLIP on drawn videos: it finds captions' videos in a style that it was not trained on."""

import sys

import pytest
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import videoclip_on_drawn_clips

    yield videoclip_on_drawn_clips
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("videoclip_on_drawn_clips", None)


@pytest.mark.slow
def test_videos_and_steps_are_found_in_another_style(script, tmp_path):
    sizes = ["--videos", "24", "--test-videos", "6", "--steps", "100", "--rounds", "2"]
    options = ["--out", str(tmp_path), "--development", "--seeds", "0", "--samplings", "overlapped", *sizes]
    script.main(options)
    (found,) = script.lines_of(tmp_path)
    assert found["retrieval_recall_at_1"] > 2 / 16  # chance: 1 / 16
    assert found["retrieval_recall_at_5"] > 0.45  # chance: 5 / 16
    assert found["segmentation_no_background"] > found["segmentation_chance"]
    script.main(options)
    assert len(script.lines_of(tmp_path)) == 1  # nothing is run twice
    assert "| overlapped |" in (tmp_path / "table.md").read_text()


def test_wrong_options_are_said(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--out", "x", "--samplings", "some"])
    assert "--samplings: 'some'; want some of overlapped, exact" in capsys.readouterr().err
