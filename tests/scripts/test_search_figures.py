"""The figures of search: exact search finds what brute force finds, and the index holds the plain loop's features."""

import sys

import pytest
from paths import SCRIPTS


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import search_figures

    yield search_figures
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("search_figures", None)


def test_the_small_tables_hold_what_they_claim(script, tmp_path):
    pytest.importorskip("faiss")
    assert script.main(["--small", "--out", str(tmp_path / "figures.md")]) == 0
    text = (tmp_path / "figures.md").read_text()
    assert text.startswith("Written by `python scripts/search_figures.py --small")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    of = {row[1]: row for row in rows}
    assert of["ours, exact, from the disk"][2] == of["NumPy, all in memory"][2] == "1.000"
    built = next(row for row in rows if row[0].startswith("embedded CLIP"))
    assert float(built[-1]) < 1e-3 and float(built[2]) > 0 and float(built[3]) > 0
