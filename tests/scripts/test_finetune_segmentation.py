"""LSeg segments concepts that only its text encoder knows, and a decoder with a closed head does not."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import finetune_segmentation

    yield finetune_segmentation
    sys.modules.pop("finetune_segmentation", None)


@pytest.mark.slow  # two trainings
def test_novel_concepts_are_segmented_by_their_texts_alone(script, tmp_path, monkeypatch):
    """Of another style, too. The image encoder is new: no pixel of a novel concept was ever seen."""
    settings = replace(script.WORLDS["shapes"], size=32, decoder=32, scenes=320, held_out=40, epochs=3)
    monkeypatch.setitem(script.WORLDS, "shapes", settings)
    script.main(["--out", str(tmp_path), "--seeds", "5"])
    run = json.loads((tmp_path / "shapes-dev.json").read_text())["5"]
    found, base = run["figures"], set(run["base"])
    assert not base & {*run["novel"], *run["validation"]} and len(run["novel"]) == 9
    assert found["LSeg"]["novel"] > 2.5 * found["chance"]["novel"]
    assert found["LSeg"]["novel"] > 2.5 * found["closed head, guessed"]["novel"]
    assert found["LSeg"]["object_pixels"] > 2 * found["closed head, guessed"]["object_pixels"]
    assert found["LSeg"]["object_pixels"] > 0.4  # chance: 0.11
    assert len(run["training"]["LSeg"]["validation"]) <= settings.epochs
    text = (tmp_path / "shapes-dev.md").read_text()
    for row in script.ROWS:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        assert f"| {100 * found[row]['novel']:.1f} |" in line
    assert (tmp_path / "shapes-dev-5.png").stat().st_size > 1000


@pytest.mark.parametrize("world", ["shapes", "emoji"])
def test_classes_are_divided_without_overlap(script, world):
    settings, seen = script.WORLDS[world], []
    for seed in range(3):
        parts = script.divide(world, seed)
        names = [name for part in parts.values() for name in part]
        assert len(set(names)) == len(names)
        assert (len(parts["novel"]), len(parts["validation"])) == (settings.novel, settings.validation)
        seen.append(parts["novel"])
        if world == "shapes":
            for words in (script.COLOURS, script.SHAPES):  # each is known from another pair
                assert all(any(word in name.split() for name in parts["base"]) for word in words)
    assert len(set(seen)) == 3


def test_true_masks_with_guessed_classes_are_chance(script):
    rows = script.SceneRows.__new__(script.SceneRows)
    label_map = np.zeros((8, 8), np.uint8)
    label_map[:4] = 1
    rows.rows = [{"label_map": np.where(label_map, 1 + i % 4, 0)} for i in range(400)]
    found = script.by_chance(rows, 5, np.random.default_rng(0))
    assert found["object_pixels"] == pytest.approx(0.25, abs=0.02)
    assert found["novel"] == pytest.approx(1 / 7, abs=0.02)  # one in 2 K - 1 for K classes
