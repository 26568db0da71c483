"""scripts/depthclip_on_scenes.py at small sizes: calibration sees depth, its baselines do not; the table."""

import json
import sys

import numpy as np
import pytest
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import depthclip_on_scenes

    yield depthclip_on_scenes
    sys.modules.pop("depthclip_on_scenes", None)


@pytest.mark.slow
def test_a_calibrated_clip_sees_depth_that_constants_and_untrained_weights_do_not(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "TEST_SCENES", 6)
    monkeypatch.setattr(script, "SHOTS", (4,))
    script.main([str(tmp_path), "--seeds", "5", "--parts", "scenes"])
    (found,) = json.loads((tmp_path / "results.json").read_text())["runs"].values()
    (rows,) = found
    ours = rows["bins, words, temperature, 4"]
    for baseline in ("constant, 4", "constant, the middle of the bins", "untrained, 4", "zero-shot", "bins, 4"):
        assert ours["abs_rel"] < 0.8 * rows[baseline]["abs_rel"], (baseline, rows)
    assert ours["order"] > 0.8 > rows["untrained, 4"]["order"] and rows["constant, 4"]["order"] == 0.5
    assert "| bins, words, temperature, 4 |" in (tmp_path / "table.md").read_text()


def test_rendered_clouds_have_the_depth_of_the_nearest_point(script):
    points = np.array([[0, 0, 0.5], [0, 0, -0.5], [0.9, 0, 0]])
    image, depth = script.render(points, np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8), 0.0)
    assert depth[32, 32] == pytest.approx(1.7) and image.getpixel((32, 32)) == (255, 0, 0)
    assert (depth > 0).sum() == 18 and depth.max() == pytest.approx(2.2)
    assert image.getpixel((0, 0)) == (255, 255, 255)
