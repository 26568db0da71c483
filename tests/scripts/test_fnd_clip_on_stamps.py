"""FND-CLIP on stamps: forged posts are what they are said to be, and figures are computed as told."""

import random
import sys

import numpy as np
import pytest
import torch
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import fnd_clip_on_stamps

    yield fnd_clip_on_stamps
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("fnd_clip_on_stamps", None)


@pytest.fixture
def stamps(script):
    captions = ["A red lemon.", "A fast horse.", "An old lion.", "A blue hat."]
    kinds = ["food", "animals", "animals", "clothes"]
    images = {"clip_image_features": torch.eye(4), "image_logits": torch.zeros(4, 2)}
    return script.Stamps(captions, kinds, images, None, None, {}, [])


def test_forgeries_change_what_they_say(script, stamps):
    draw, rows = random.Random(0), [0, 1, 2, 3]
    swapped, altered, same = script.FORGERIES
    for _ in range(20):
        text, image = script.forge(stamps, 1, swapped, rows, draw)
        assert image == 1 and text in stamps.captions and text != stamps.captions[1]
        text, image = script.forge(stamps, 1, altered, rows, draw)
        pairs = zip(text.split(), stamps.captions[1].split(), strict=True)
        assert image == 1 and sum(new != old for new, old in pairs) == 1
        assert script.forge(stamps, 1, same, rows, draw) == ("A fast horse.", 2)
    assert script.forge(stamps, 0, same, rows, draw) is None  # it is alone among food


def test_figures_of_known_scores(script):
    kinds = ["true", "true", *script.FORGERIES]
    posts = [("", 0, int(kind == "true"), kind) for kind in kinds]
    found = script.measure(np.array([3.0, 1.0, 0.0, 2.0, 4.0]), posts, 0.5)
    assert [found[f"AUC, {kind}"] for kind in script.FORGERIES] == [100, 50, 0]
    assert found["AUC"] == 50 and found["accuracy"] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert 1.0 <= script.best_threshold(np.array([3.0, 2.0, 1.0, 1.0, 1.0]), posts) < 2.0
    table = script.summary([found | {"method": "a"}, found | {"method": "a"}])
    assert "| a | 66.7 ± 0.0 | 50.0 ± 0.0 |" in table
    figures = {("a", 1): 50.0, ("b", 1): 49.0, ("a", 2): 50.0, ("b", 2): 53.0}
    rows = [{"method": name, "seed": seed, "AUC": auc} for (name, seed), auc in figures.items()]
    assert "| b | +1.0 | -3.0 | -1.0 | 1 of 2 |" in script.differences(rows, "a")
