"""The script of ViLD's table: every variant is measured, and a stopped command goes on."""

import json
import sys

import pytest
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import vild_on_scenes

    yield vild_on_scenes
    sys.modules.pop("vild_on_scenes", None)


def test_a_stopped_run_goes_on_and_the_table_is_of_its_lines(script, tmp_path):
    options = ["--small", "--out", str(tmp_path), "--variants"]
    script.main([*options, "vild"])
    first = (tmp_path / "runs.jsonl").read_text().splitlines()
    script.main([*options, "text,vild"])
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert lines[: len(first)] == first  # what is done is not done again
    runs = {run["variant"]: run for run in map(json.loads, lines)}
    assert set(runs) == {"crops", "vild", "text"} and len(lines) == 3
    assert all(0 <= run[name] <= 1 for run in runs.values() for name in ("base/AR@100", "AP", "base/AP"))
    table = (tmp_path / "table.md").read_text()
    for variant, run in runs.items():
        row = next(row for row in table.splitlines() if row.startswith(f"| {script.TITLES[variant]} |"))
        assert f"| {100 * run['base/AP']:.1f} | {100 * run['novel/AP']:.1f} |" in row
    assert (tmp_path / "curves.png").stat().st_size and (tmp_path / "boxes.png").stat().st_size
