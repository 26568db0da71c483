"""The script that measures the background of a small GroupViT: every row is there, and the table is of the results."""

import json
import statistics
import sys

import pytest
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import groupvit_background

    monkeypatch.setattr(groupvit_background, "SHOTS", (2, 4))
    monkeypatch.setattr(groupvit_background, "DRAWS", 1)
    monkeypatch.setattr(groupvit_background, "FIT_STEPS", 3)
    monkeypatch.setattr(groupvit_background, "SCALES", {"1, 1.5": ((1.0, 1.5), True)})
    yield groupvit_background
    sys.modules.pop("groupvit_background", None)


@pytest.mark.slow
def test_all_rows_are_measured_and_written(script, tmp_path, monkeypatch, capsys):
    options = ["--out", tmp_path, "--work", tmp_path / "models", "--seeds", "0", "--steps", "12", "--more-steps", "12"]
    options += ["--scenes", "48", "--known", "6", "--reported", "12", "--groups", "8", "--group-steps", "12"]
    monkeypatch.setattr(sys, "argv", ["groupvit_background.py", *map(str, options)])
    script.main()
    rows = json.loads((tmp_path / "background-0.json").read_text())
    for part in (
        "official threshold",
        "one threshold, 2",
        "(a) of each label, 4",
        "(b) learned",
        "(c) 12",
        "(e) 8",
        "(f)",
    ):
        assert any(name.startswith(part) for name in rows), part
    text = (tmp_path / "background.md").read_text()
    for name, results in rows.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {100 * statistics.mean(one['miou'] for one in results):.1f}" in line
        assert all(0 <= one["miou"] <= 1 for one in results)
    assert len(rows["(a) of each label, 4 scenes"]) == 1 and "oracle names" in text

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--join"])
    script.main()  # from the results alone
    assert (tmp_path / "background.md").read_text() == text
    assert (tmp_path / "models" / "groups8-steps12-seed0" / "model.safetensors").is_file()
