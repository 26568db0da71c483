"""Tables and plots whose numbers are those of the papers' definitions."""

import io

import pytest
from paths import SCRIPTS
from PIL import Image

from hf_clip_variants.few_shot.plots import plot
from hf_clip_variants.few_shot.protocols import PROTOCOLS
from hf_clip_variants.few_shot.results import entries_of, markdown, rows_of
from hf_clip_variants.few_shot.run_folder import RunFolder


def record(protocol, method, shots, seed, tests, data="pets", title=None, model="clip"):
    """`tests`: evaluation -> (part, of, accuracy in %, or a reason)."""

    def entry(part, of, value):
        about = {"part": part, "of": of, "images": 10, "classes": 5}
        return (
            {"accuracy": None, "why": value} | about if isinstance(value, str) else {"accuracy": value / 100} | about
        )

    about = {"protocol": protocol, "data": data, "model": model, "method": method, "title": title or method}
    results = {"tests": {name: entry(*test) for name, test in tests.items()}, "seconds": {"train": 1.0}}
    return about | {"shots": shots, "seed": seed} | results | {"environment": {"device": "cpu", "threads": 1}}


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
    """The rows of the table under **title**, such as `"CoOp | 61.0 ± 1.0"`."""
    lines = page.split(f"**{title}**\n\n")[1].split("\n\n")[0].splitlines()
    return [line.removeprefix("| ").removesuffix(" |") for line in lines if not line.startswith("| ---")]


def test_few_shot_tables_have_one_column_per_number_of_shots():
    page = markdown(few_shot_records(), "command")
    assert table_rows(page, "pets: a") == [
        "method | 0 shots | 1 shot | 4 shots",
        "zero-shot CLIP | 50.0 |  | ",
        "CoOp |  | 61.0 ± 1.0 | 82.0 ± 2.0",
    ]
    assert table_rows(page, "Average over 2 test sets")[1:] == [
        "zero-shot CLIP | 60.0 |  | ",
        "CoOp |  | 66.0 ± 1.0 | 86.0 ± 1.0",
    ]
    assert "mean ± standard deviation over 2 seeds (1, 2)" in page and "`command`" in page and "missing" not in page


def test_a_seed_without_all_evaluations_is_left_out_of_the_average():
    records = few_shot_records()
    del records[2]["tests"]["b"]
    page = markdown(records, "command", missing=3)
    one_shot = {
        name: table_rows(page, name)[2].split(" | ")[2] for name in ("Average over 2 test sets", "pets: a", "pets: b")
    }
    assert list(one_shot.values()) == ["65.0", "61.0 ± 1.0", "70.0"]
    assert "3 runs are missing; repeat the command" in page


def base_to_new_records():
    def tests(base, new):
        return {"base": ("base", "pets", base), "new": ("new", "pets", new)}

    why = "the adapter caches images"
    return [
        record("base_to_new", "zero_shot", 0, 0, tests(69.34, 74.22), title="zero-shot CLIP"),
        record("base_to_new", "coop", 16, 1, tests(90.0, 10.0)),
        record("base_to_new", "coop", 16, 2, tests(10.0, 90.0)),
        record("base_to_new", "tip_adapter", 16, 1, tests(80.0, why)),
        record("base_to_new", "tip_adapter", 16, 2, tests(82.0, why)),
    ]


def test_the_harmonic_mean_is_taken_of_the_averages_over_seeds():
    """50 here; the average of the seeds' own harmonic means would be 18."""
    rows = table_rows(markdown(base_to_new_records(), "command"), "pets")
    assert rows == [
        "method | Base | New | HM",
        "zero-shot CLIP | 69.3 | 74.2 | 71.7",
        "tip_adapter | 81.0 ± 1.0 | - | -",
        "coop | 50.0 ± 40.0 | 50.0 ± 40.0 | 50.0 ± 0.0",
    ]


def test_methods_without_an_answer_for_other_classes_have_a_dash_and_the_reason_below():
    page = markdown(base_to_new_records(), "command")
    assert "\n-: tip_adapter cannot classify other classes: the adapter caches images.\n" in page
    assert "pets (base) 10 in 5 classes; pets (new) 10 in 5 classes" in page


def transfer_records(protocol="cross_dataset"):
    def tests(source, *targets):
        return {"in": ("source", "in", source)} | {f"t{i}": ("target", f"t{i}", t) for i, t in enumerate(targets)}

    return [
        record(protocol, "zero_shot", 0, 0, tests(66.0, 40.0, 60.0), title="zero-shot CLIP", data="in"),
        record(protocol, "coop", 16, 1, tests(70.0, 50.0, 60.0), data="in"),
        record(protocol, "coop", 16, 2, tests(72.0, 54.0, 64.0), data="in"),
        record(protocol, "tip_adapter", 16, 1, tests(68.0, "fixed", "fixed"), data="in"),
    ]


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalisation"])
def test_transfer_tables_have_the_source_first_and_the_targets_mean_last(protocol):
    rows = table_rows(markdown(transfer_records(protocol), "command"), "Trained on in")
    assert rows == [
        "method | source: in | t0 | t1 | mean of targets",
        "zero-shot CLIP | 66.0 | 40.0 | 60.0 | 50.0",
        "tip_adapter | 68.0 | - | - | -",
        "coop | 71.0 ± 1.0 | 52.0 ± 2.0 | 62.0 ± 2.0 | 57.0 ± 2.0",
    ]


def test_several_shots_get_a_column_and_several_models_a_section_each():
    records = [
        *base_to_new_records(),
        record("base_to_new", "coop", 4, 1, {"base": ("base", "pets", 1.0), "new": ("new", "pets", 1.0)}),
    ]
    assert table_rows(markdown(records, "command"), "pets")[:4] == [
        "method | shots | Base | New | HM",
        "zero-shot CLIP | 0 | 69.3 | 74.2 | 71.7",
        "tip_adapter | 16 | 81.0 ± 1.0 | - | -",
        "coop | 4 | 1.0 | 1.0 | 1.0",
    ]
    other = [record | {"model": "other"} for record in base_to_new_records()]
    page = markdown([*base_to_new_records(), *other], "command", plots={("other", "base_to_new"): "x.png"})
    assert page.index("## clip") < page.index("## other") < page.index("(x.png)")


def test_the_order_of_rows_does_not_depend_on_the_order_of_records():
    records = list(reversed(few_shot_records()))
    assert rows_of(records) == [("zero_shot", 0), ("coop", 1), ("coop", 4)]
    assert list(entries_of(records)["evaluation"].unique()) == ["a", "b"]


def test_committed_lines_give_the_committed_table():
    folder = SCRIPTS / "results" / "few_shot_emoji"
    page = (folder / "table.md").read_text(encoding="utf-8")
    records = sorted(RunFolder(folder).records().values(), key=lambda r: page.index(r["data"]))
    plots = {("emoji-clip-tiny", protocol): f"{protocol}.png" for protocol in PROTOCOLS}
    assert markdown(records, page.split("`")[1], plots=plots) == page


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


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dollars_in_names_begin_no_formula(protocol):
    records = [record | {"title": "$${x}" + record["title"]} for record in RECORDS[protocol]]
    assert plot(protocol, records)[1:4] == b"PNG"


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
