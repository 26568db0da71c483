"""CLIP-ViL on questions: with CLIP's grid it knows what words alone cannot, on drawn scenes and on easy-vqa."""

import sys

import pytest
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import clip_vil_answers

    yield clip_vil_answers
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("clip_vil_answers", None)


@pytest.mark.slow
def test_the_grid_answers_what_words_alone_cannot(script, tmp_path):
    sizes = ["--scenes", "150", "--test-scenes", "40", "--shapes", "150", "--test-shapes", "60", "--steps", "150"]
    options = ["--out", str(tmp_path), "--development", "--seeds", "0", "--towers", "clip,none", *sizes]
    script.main([*options, "--tasks", "easy-vqa,questions"])
    found = {(line["task"], line["tower"]): line["found"] for line in script.lines_of(tmp_path)}
    assert len(found) == 4
    scenes, words = found["questions", "clip"], found["questions", "none"]
    assert scenes["all"] > words["all"] + 0.1, found
    assert scenes["how many"] > 0.6 > words["how many"] and words["colour"] < 0.45, found
    assert found["easy-vqa", "clip"]["all"] > found["easy-vqa", "none"]["all"], found
    assert found["easy-vqa", "clip"]["all"] > 0.373, "always yes"
    script.main([*options, "--tasks", "easy-vqa,questions"])
    assert len(script.lines_of(tmp_path)) == 4  # nothing is run twice
    assert "| clip |" in (tmp_path / "table.md").read_text() and (tmp_path / "scenes.png").is_file()


def test_claims_and_captions_say_what_is_in_a_scene(script):
    import numpy as np

    (scene, *others) = script.drawn(20, "fluentflat", 3)
    assert scene.image.size == (64, 64) and 1 <= len(scene.things) <= 3
    right = 0
    for one in others:
        for kind, text, answer in one.claims(np.random.default_rng(right)):
            words = {"thing": list(one.things.values()), "colour": [one.colour]}.get(kind)
            if words is not None:
                assert any(word in text for word in words) == (answer == "true"), text
                right += 1
        assert one.caption().endswith(f"on {one.colour}") and all(
            thing in one.caption() for thing in one.things.values()
        )
    assert right == 38


def test_wrong_options_are_said(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--out", "x", "--towers", "some"])
    assert "--towers: 'some'; want some of clip, random, none" in capsys.readouterr().err
