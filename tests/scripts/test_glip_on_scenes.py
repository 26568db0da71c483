"""The script of GLIP's table: every variant is measured, and a stopped command goes on."""

import json
import sys

import pytest
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import glip_on_scenes

    yield glip_on_scenes
    sys.modules.pop("glip_on_scenes", None)


def test_a_stopped_run_goes_on_and_the_table_is_of_its_lines(script, tmp_path):
    options = ["--small", "--out", str(tmp_path), "--variants"]
    script.main([*options, "mixed"])
    first = (tmp_path / "runs.jsonl").read_text().splitlines()
    script.main([*options, "detection,mixed,longer,student,adapted"])
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert lines[: len(first)] == first  # what is done is not done again
    runs = {run["variant"]: run for run in map(json.loads, lines)}
    assert set(runs) == set(script.VARIANTS) and len(lines) == 5
    assert all(0 <= run[name] <= 1 for run in runs.values() for name in ("AP", "detection/AP50", "R@1"))
    table = (tmp_path / "table.md").read_text()
    for variant, run in runs.items():
        row = next(row for row in table.splitlines() if row.startswith(f"| {script.VARIANTS[variant]} |"))
        assert f"| {100 * run['detection/AP50']:.1f} | {100 * run['sentence/AP50']:.1f} |" in row
    assert (tmp_path / "curves.png").stat().st_size and (tmp_path / "boxes.png").stat().st_size


def test_kinds_of_classes_divide_them_and_seeds_have_others(script, tmp_path):
    options = script.parse(["--small", "--out", str(tmp_path)])
    names = []
    for seed in (0, 1):
        run = script.Run(options, seed)
        labels = [label for kind in script.KINDS for label in run.kinds[kind]]
        assert sorted(labels) == list(range(options.classes)) and all(run.kinds.values())
        for variant, texts in (("detection", False), ("mixed", True)):
            data = run.training_set(variant)
            assert data.class_names == run.names_of("detection") and (data.captions is not None) is texts
        spoken = " ".join(one for one in data.captions if one is not None).lower()
        assert not any(f" {name}" in f" {spoken}" for name in run.names_of("pairs"))
        names += run.names
    assert len(set(names)) == len(names)


def test_a_plural_is_its_singular_and_an_ending(script):
    words = script.vocabulary(["cat", "hot dog"], ["Two cats on a hot dog."])
    assert "##s" in words and "cats" not in words and {"two", "cat", "hot", "dog", "on"} <= set(words)
