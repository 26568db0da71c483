"""The speeds in README.md are those that were measured."""

import json

import pytest
from paths import SCRIPTS


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import speed_readme

    return speed_readme


def test_figures_are_those_of_the_results(program):
    program.main(["--check"])  # SystemExit otherwise


def test_other_figures_are_reported_and_rewritten(program, tmp_path):
    readme, text = tmp_path / "README.md", program.README.read_text(encoding="utf-8")
    results = [json.loads(line) for line in program.RESULTS.read_text(encoding="utf-8").splitlines()]
    figure = program.Figures(results).x("coop_step")
    assert f"| {figure} |" in text
    readme.write_text(text.replace(f"| {figure} |", "| 99.9 x |"), encoding="utf-8")
    with pytest.raises(SystemExit, match="its speeds are not those of speed_cpu.jsonl"):
        program.main(["--check", "--readme", str(readme)])
    program.main(["--readme", str(readme)])
    assert readme.read_text(encoding="utf-8") == text
    readme.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="expected <!-- speed:start -->"):
        program.main(["--readme", str(readme)])


@pytest.mark.parametrize(
    "ratio, text", [(0.87, "0.87 x"), (1.648, "1.65 x"), (19.68, "19.7 x"), (66.64, "66.6 x"), (2301.7, "2,300 x")]
)
def test_ratios_have_as_many_digits_as_are_known(program, ratio, text):
    assert program.Figures([{"row": "toy", "ratio": ratio}]).x("toy") == text


def test_what_was_not_measured_is_not_in_the_table(program):
    measured = {"row": "class_embeddings", "ratio": 3.0}, {"row": "adapt_500", "ratio": 4.0}
    first, second = program.table(list(measured)).splitlines()[2:]
    assert first.startswith("| `adapt`, 500 images") and first.endswith("| 4.0 x |  |")
    assert second.endswith("| open_clip's zero-shot classifier | 3.0 x |  |")
