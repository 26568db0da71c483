"""The script of GLIPv2's table of losses: every variant is measured, and a stopped command goes on."""

import json
import sys

import pytest
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import glipv2_losses

    yield glipv2_losses
    sys.modules.pop("glipv2_losses", None)


def test_a_stopped_run_goes_on_and_the_table_is_of_its_lines(script, tmp_path):
    options = ["--small", "--out", str(tmp_path), "--variants"]
    script.main([*options, "none"])
    first = (tmp_path / "runs.jsonl").read_text().splitlines()
    script.main([*options, "none,words"])
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert lines[: len(first)] == first and len(lines) == 2
    table = (tmp_path / "table.md").read_text()
    for run in map(json.loads, lines):
        assert all(0 <= run[name] <= 1 for name in script.MEASURES)
        cells = " | ".join(f"{100 * run[name]:.1f}" for name in script.MEASURES)
        assert f"| {script.TITLES[run['variant']]} | {cells} | 1 |" in table
    assert (tmp_path / "measures.png").stat().st_size
