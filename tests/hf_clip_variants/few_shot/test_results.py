"""Lines that survive a kill, and tables whose numbers are those of the papers' definitions."""

import io
import json

import pytest
from killing import file_size_limit
from PIL import Image

from hf_clip_variants.few_shot.plots import plot
from hf_clip_variants.few_shot.protocols import PROTOCOLS
from hf_clip_variants.few_shot.results import ResultLines, columns_of, markdown, rows_of, what_differs


# ---- lines


def test_what_a_kill_left_at_the_end_is_not_read_and_does_not_spoil_the_next_line(tmp_path):
    lines = ResultLines(tmp_path)
    for seed in (1, 2):
        lines.append({"seed": seed, "name": "Käse"})
    whole = lines.path.read_bytes()
    for torn in (b"{", b'{"seed": 3', b'{"seed": 3}', "é".encode()[:1], b"\0" * 70_000):
        lines.path.write_bytes(whole + torn)
        assert [record["seed"] for record in lines.read()] == [1, 2]
        lines.append({"seed": 4})
        assert lines.path.read_bytes() == whole + b'{"seed": 4}\n'
    lines.path.write_bytes(b'{"seed"')
    assert lines.read() == []
    lines.append({"seed": 5})
    assert lines.read() == [{"seed": 5}]


def test_every_process_reads_all_and_writes_its_own(tmp_path):
    first, second = ResultLines(tmp_path), ResultLines(tmp_path, rank=1)
    assert first.read() == []
    first.append({"seed": 1})
    second.append({"seed": 2})
    assert first.read() == second.read() == [{"seed": 1}, {"seed": 2}]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["cells-0.jsonl", "cells-1.jsonl"]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    lines = ResultLines(tmp_path)
    lines.append({"seed": 1})
    lines.path.write_bytes(b"oops\n" + lines.path.read_bytes())
    with pytest.raises(ValueError, match="cells-0.jsonl, line 1 is not JSON"):
        lines.read()


def test_a_full_disk_leaves_the_lines_that_were_there(tmp_path):
    lines = ResultLines(tmp_path)
    lines.append({"seed": 1})
    with file_size_limit(400), pytest.raises(OSError):
        lines.append({"text": "x" * 1000})
    assert lines.path.read_bytes() == b'{"seed": 1}\n'


def test_two_processes_of_one_rank_do_not_work_in_one_folder(tmp_path):
    with ResultLines(tmp_path).locked():
        with pytest.raises(ValueError, match="another process is working in"), ResultLines(tmp_path).locked():
            pass
        with ResultLines(tmp_path, rank=1).locked():
            pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; want a folder"):
        ResultLines(tmp_path / "file")
    assert (tmp_path / "work" / ".gitignore").read_text() == "*\n"


def test_settings_that_differ_are_named():
    assert what_differs({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == []
    assert what_differs({"a": 1, "profile": None}, {"a": 1, "profile": "tiny", "new": {}}) == [
        'profile was null, now "tiny"',
        "new was null, now {}",
    ]


# ---- tables


def record(protocol, method, shots, seed, tests, data="pets", title=None, model="clip"):
    """`tests`: exam -> (part, of, accuracy in %, or a reason)."""

    def entry(part, of, value):
        about = {"part": part, "of": of, "pictures": 10, "classes": 5}
        return (
            {"accuracy": None, "why": value} | about if isinstance(value, str) else {"accuracy": value / 100} | about
        )

    return {
        "protocol": protocol, "data": data, "model": model, "method": method, "title": title or method, "shots": shots, "seed": seed,
        "tests": {name: entry(*test) for name, test in tests.items()}, "seconds": {"train": 1.0}, "environment": {"device": "cpu", "threads": 1},
    }  # fmt: skip


def few_shot_records():
    records = [
        record(
            "few_shot", "zero_shot", 0, 0, {"a": ("test", "a", 50.0), "b": ("test", "b", 70.0)}, title="zero-shot CLIP"
        )
    ]
    for shots, seed, a, b in ((1, 1, 60, 70), (1, 2, 62, 72), (4, 1, 80, 90), (4, 2, 84, 90)):
        records.append(
            record("few_shot", "coop", shots, seed, {"a": ("test", "a", a), "b": ("test", "b", b)}, title="CoOp")
        )
    return records


def table_rows(page, title):
    """The rows of the block under **title**, as lists of cells."""
    lines = page.split(f"**{title}**\n\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def test_few_shot_tables_have_a_column_a_number_of_shots():
    page = markdown(few_shot_records(), "command")
    assert table_rows(page, "pets: a") == [
        ["method", "0 shots", "1 shot", "4 shots"], ["zero-shot CLIP", "50.0", "", ""], ["CoOp", "", "61.0 ± 1.0", "82.0 ± 2.0"],
    ]  # fmt: skip
    assert table_rows(page, "Average over 2 test sets")[1:] == [
        ["zero-shot CLIP", "60.0", "", ""],
        ["CoOp", "", "66.0 ± 1.0", "86.0 ± 1.0"],
    ]
    assert "mean ± standard deviation over 2 seeds (1, 2)" in page and "`command`" in page and "missing" not in page


def test_a_seed_that_is_missing_somewhere_is_in_no_average():
    records = few_shot_records()
    del records[2]["tests"]["b"]
    page = markdown(records, "command", missing=3)
    assert table_rows(page, "Average over 2 test sets")[2][2] == "65.0" and table_rows(page, "pets: b")[2][2] == "70.0"
    assert table_rows(page, "pets: a")[2][2] == "61.0 ± 1.0" and "3 cells are missing; repeat the command" in page


def base_to_new_records():
    def tests(base, new):
        return {"base": ("base", "pets", base), "new": ("new", "pets", new)}

    return [
        record("base_to_new", "zero_shot", 0, 0, tests(69.34, 74.22), title="zero-shot CLIP"),
        record("base_to_new", "coop", 16, 1, tests(90.0, 10.0)), record("base_to_new", "coop", 16, 2, tests(10.0, 90.0)),
        record("base_to_new", "tip_adapter", 16, 1, tests(80.0, "the adapter caches pictures")),
        record("base_to_new", "tip_adapter", 16, 2, tests(82.0, "the adapter caches pictures")),
    ]  # fmt: skip


def test_the_harmonic_mean_is_that_of_the_averages_over_seeds():
    """50 here; the average of the seeds' own harmonic means would be 18."""
    rows = table_rows(markdown(base_to_new_records(), "command"), "pets")
    assert rows == [
        ["method", "Base", "New", "HM"], ["zero-shot CLIP", "69.3", "74.2", "71.7"], ["coop", "50.0 ± 40.0", "50.0 ± 40.0", "50.0 ± 0.0"],
        ["tip_adapter", "81.0 ± 1.0", "-", "-"],
    ]  # fmt: skip


def test_methods_that_cannot_be_asked_have_a_dash_and_the_reason_below():
    page = markdown(base_to_new_records(), "command")
    assert "\n-: tip_adapter cannot be asked about other classes: the adapter caches pictures.\n" in page
    assert "pets (base) 10 in 5 classes; pets (new) 10 in 5 classes" in page


def transfer_records(protocol="cross_dataset"):
    def tests(source, *targets):
        return {"in": ("source", "in", source)} | {f"t{i}": ("target", f"t{i}", t) for i, t in enumerate(targets)}

    return [
        record(protocol, "zero_shot", 0, 0, tests(66.0, 40.0, 60.0), title="zero-shot CLIP", data="in"),
        record(protocol, "coop", 16, 1, tests(70.0, 50.0, 60.0), data="in"), record(protocol, "coop", 16, 2, tests(72.0, 54.0, 64.0), data="in"),
        record(protocol, "tip_adapter", 16, 1, tests(68.0, "fixed", "fixed"), data="in"),
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalisation"])
def test_transfer_tables_have_the_source_first_and_the_targets_mean_last(protocol):
    rows = table_rows(markdown(transfer_records(protocol), "command"), "Trained on in")
    assert rows == [
        ["method", "source: in", "t0", "t1", "mean of targets"], ["zero-shot CLIP", "66.0", "40.0", "60.0", "50.0"],
        ["coop", "71.0 ± 1.0", "52.0 ± 2.0", "62.0 ± 2.0", "57.0 ± 2.0"], ["tip_adapter", "68.0", "-", "-", "-"],
    ]  # fmt: skip


def test_shots_get_a_column_where_there_are_several_and_models_a_part_each():
    records = [
        *base_to_new_records(),
        record("base_to_new", "coop", 4, 1, {"base": ("base", "pets", 1.0), "new": ("new", "pets", 1.0)}),
    ]
    assert table_rows(markdown(records, "command"), "pets")[:3] == [
        ["method", "shots", "Base", "New", "HM"], ["zero-shot CLIP", "0", "69.3", "74.2", "71.7"], ["coop", "4", "1.0", "1.0", "1.0"],
    ]  # fmt: skip
    other = [record | {"model": "other"} for record in base_to_new_records()]
    page = markdown([*base_to_new_records(), *other], "command", plots={("other", "base_to_new"): "x.png"})
    assert page.index("## clip") < page.index("## other") < page.index("(x.png)")


def test_rows_stand_in_one_order_whoever_finished_first():
    records = list(reversed(few_shot_records()))
    assert rows_of(records) == [("zero_shot", 0), ("coop", 1), ("coop", 4)]
    assert json.loads(json.dumps([column.exam for column in columns_of(records)])) == ["a", "b"]


RECORDS = {
    "few_shot": few_shot_records(),
    "base_to_new": base_to_new_records(),
    "cross_dataset": transfer_records(),
    "domain_generalisation": transfer_records("domain_generalisation"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("which", ["all", "zero-shot", "one seed"])
def test_every_protocol_has_a_plot(protocol, which):
    records = {"all": RECORDS[protocol], "zero-shot": RECORDS[protocol][:1], "one seed": RECORDS[protocol][:2]}[which]
    image = Image.open(io.BytesIO(plot(protocol, records)))
    assert image.format == "PNG" and min(image.size) > 200
    assert len(image.convert("L").getcolors()) > 20, "something is drawn"


def test_error_bars_are_the_spread_over_seeds(monkeypatch):
    from matplotlib.axes import Axes

    bars = {}
    original = Axes.errorbar

    def remember(self, x, y, yerr=None, **options):
        bars.setdefault(options["label"], []).append((list(y), list(yerr)))
        return original(self, x, y, yerr=yerr, **options)

    monkeypatch.setattr(Axes, "errorbar", remember)
    plot("few_shot", RECORDS["few_shot"])
    assert bars == {"CoOp": [([66.0, 86.0], [1.0, 1.0]), ([61.0, 82.0], [1.0, 2.0]), ([71.0, 90.0], [1.0, 0.0])]}
