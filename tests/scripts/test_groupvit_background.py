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
    import pretrain_groupvit_scenes

    for name, value in {"SCENES": 12, "KNOWN": 4, "TEST": 8}.items():
        monkeypatch.setattr(pretrain_groupvit_scenes, name, value)
    small = {"KNOWN": 4, "TEST": 8, "SHOTS": (2, 4), "DRAWS": 1, "FIT_STEPS": 2}
    small["SCALES"] = {"1, 1.5": ((1.0, 1.5), True)}
    for name, value in small.items():
        monkeypatch.setattr(groupvit_background, name, value)
    yield groupvit_background
    for name in ("groupvit_background", "pretrain_groupvit_scenes"):
        sys.modules.pop(name, None)


def test_all_rows_are_measured_and_written(script, tmp_path, monkeypatch, capsys):
    options = ["--out", tmp_path, "--work", tmp_path, "--seeds", "0", "--steps", "2", "--more-steps", "2"]
    monkeypatch.setattr(sys, "argv", ["groupvit_background.py", *map(str, options)])
    script.main()
    rows = json.loads((tmp_path / "background-report-0.json").read_text())
    assert {name[:3] for name in rows} >= {"off", "no ", "one", "(a)", "(b)", "ana", "(f)", "(c)", "(e)"}
    text = (tmp_path / "background.md").read_text()
    for name, results in rows.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {100 * statistics.mean(one['miou'] for one in results):.1f}" in line
        assert all(0 <= one["miou"] <= 1 for one in results)
    assert len(rows["(a) of each label, 4 scenes"]) == 1 and "oracle names" in text
    # What is not fitted and has one scale is the plain model.
    assert rows["(f) scales 1, one threshold"][0] == pytest.approx(rows["one threshold, 4 scenes"][0])

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--join"])
    script.main()  # from the results alone
    assert (tmp_path / "background.md").read_text() == text
