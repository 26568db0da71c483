"""CSV files that spreadsheets open: text is never a formula, and what we wrote is read back as it was."""

import csv
import io

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_clip_variants.commands.predict import _csv_writer
from hf_clip_variants.data.csv_cells import csv_line, escape_cell, unescape_cell
from hf_clip_variants.data.tables import open_table
from hf_clip_variants.few_shot.csv_files import predictions_csv, results_csv


texts = st.text(
    st.one_of(st.sampled_from("=+-@\t\r'\",;|\n\u2028\x0b\x1c a"), st.characters(exclude_categories=["Cs"]))
)


@settings(max_examples=100, deadline=None)
@given(texts)
@example("=cmd|' /C calc'!A0")
@example("'=x")
@example("+1")
@example("-1")
@example("@x")
@example("\tx")
@example("\rx")
def test_no_text_is_a_formula_and_each_comes_back(text):
    cell = escape_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) and unescape_cell(cell) == text
    line = csv_line([text, -1.5, text])
    assert list(csv.reader(io.StringIO(line, newline=""), strict=True)) == [[cell, "-1.5", cell]]


@settings(max_examples=40, deadline=None)
@given(st.lists(texts.filter(lambda text: text.strip() and "\0" not in text), min_size=1, max_size=5))
def test_evaluate_reads_the_table_of_predict(tmp_path_factory, names):
    file = tmp_path_factory.mktemp("t") / "all.csv"
    with open(file, "w", encoding="utf-8", newline="") as stream:
        write = _csv_writer(stream, 1)
        for name in names:
            write({"path": f"{name}.png", "label": name, "score": 0.5, "probability": None})
        write({"path": "=broken.png", "error": "=why"})
    rows = [values for _, values in open_table(file, None, ("path", "label")).rows()]
    assert [row[:2] for row in rows] == [[f"{name}.png", name] for name in names] + [["=broken.png", ""]]


def test_other_peoples_tables_keep_their_apostrophes(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\n'-1.png,'=a\n")
    assert [values for _, values in open_table(tmp_path / "t.csv", None, ()).rows()] == [["'-1.png", "'=a"]]


def test_the_tables_of_adapt_are_escaped():
    section = {"name": "@test", "labels": [0], "ids": ["=1.png"], "zero_shot": ([0], [0.25]), "adapted": None}
    assert predictions_csv(["-a"], [section]).splitlines()[1] == "'@test,'=1.png,'-a,'-a,0.250000,,"
    results = {"data": {"test_sets": {"=t": {"images": 3}}}}
    rows = [{"method": "coop", "tests": {"=t": {"accuracy": 0.5, "gain": -0.25, "interval": (-0.5, 0.0)}}}]
    line = results_csv(results, rows).splitlines()[1]
    assert line.startswith("'=t,3,coop,") and ",-0.25,-0.5,0.0," in line
