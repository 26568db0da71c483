"""Tables of the few-shot protocols as in the papers, from the records of runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..registry import few_shot_entries
from .protocols import PROTOCOLS


if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "few_shot": "Few-shot accuracy",
    "base_to_new": "Base-to-new generalisation",
    "cross_dataset": "Cross-dataset transfer",
    "domain_generalisation": "Domain generalisation",
}
ZERO_SHOT_ROW = ("zero_shot", 0)
Row = tuple[str, int]  # method, shots


def entries_of(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Records of one protocol and model -> one row per run and evaluation; `accuracy` in %, or NaN and the reason in
    `why`."""
    import pandas as pd

    about = ("data", "method", "shots", "seed")
    rows = [
        {name: record[name] for name in about} | {"evaluation": name, "why": None} | test
        for record in records
        for name, test in record["tests"].items()
    ]
    entries = pd.DataFrame(rows)
    entries["accuracy"] = 100 * entries["accuracy"].astype(float)
    same = entries["of"] == entries["data"]
    entries["title"] = entries["of"].where(same, entries["data"] + ": " + entries["of"])
    return entries


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Zero-shot first, then the methods in the order of the table of methods, fewer shots first."""
    order = {"zero_shot": -1} | {method: place for place, method in enumerate(few_shot_entries())}
    rows = {(record["method"], record["shots"]) for record in records}
    return sorted(rows, key=lambda row: (order.get(row[0], len(order)), row[0], row[1]))


def per_seed(entries: pd.DataFrame) -> pd.Series:
    """(method, shots, seed) -> mean over the evaluations; seeds that lack one are left out."""
    runs = ["method", "shots", "seed"]
    wide = entries.pivot(index=runs, columns=["data", "evaluation"], values="accuracy")
    return wide.mean(axis=1, skipna=False).dropna()


def over_seeds(values: pd.Series) -> pd.DataFrame:
    """(method, shots) -> mean, spread (population standard deviation, 0 for a single seed) and count of its seeds."""
    groups = values.groupby(level=["method", "shots"])
    return groups.agg(["mean", "count"]).assign(spread=groups.std(ddof=0))


def statistics_of(entries: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` of the mean over the evaluations."""
    return over_seeds(per_seed(entries))


def harmonic_statistics(base: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The harmonic mean of the averages over seeds, as in papers; its spread is that of the seeds' own harmonic
    means."""

    def harmonic(b: pd.Series, n: pd.Series) -> pd.Series:
        b, n = b.align(n, join="inner")
        return (2 * b * n / (b + n)).fillna(0.0)

    of_base, of_new = statistics_of(base), statistics_of(new)
    found = harmonic(of_base["mean"], of_new["mean"]).to_frame("mean")
    spread = over_seeds(harmonic(per_seed(base), per_seed(new)))["spread"]
    return found.assign(count=of_base["count"], spread=spread.reindex(found.index).fillna(0.0))


def _texts(found: pd.DataFrame) -> pd.Series:
    """`"57.3 ± 1.2"`, or `"57.3"` for one seed."""
    import pandas as pd

    rows = zip(found["mean"], found["spread"], found["count"], strict=True)
    texts = [f"{mean:.1f} ± {spread:.1f}" if count > 1 else f"{mean:.1f}" for mean, spread, count in rows]
    return pd.Series(texts, index=found.index, dtype=object)


# -------------------------------------------------------------------------------------------------------------- tables
# Each: entries and rows -> a title and a table of texts for every part of the page.

Tables = Iterator[tuple[str, "pd.DataFrame"]]


def test_sets_of(entries: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, entries) of each test set; if there are several, their average comes first."""
    sets = list(entries.groupby("title", sort=False))
    return [(f"average of {len(sets)}", entries), *sets] if len(sets) > 1 else sets


def _few_shot(entries: pd.DataFrame, rows: Sequence[Row]) -> Tables:
    """A column for each number of shots."""
    shots, methods = sorted({k for _, k in rows}), list(dict.fromkeys(method for method, _ in rows))
    for title, own in test_sets_of(entries):
        table = _texts(statistics_of(own)).unstack("shots").reindex(index=methods, columns=shots)
        yield title, table.set_axis([f"{k} shot{'s' * (k != 1)}" for k in shots], axis=1).fillna("")


def _base_to_new(entries: pd.DataFrame, rows: Sequence[Row]) -> Tables:
    """Base, new, and their harmonic mean."""
    import pandas as pd

    for title, own in test_sets_of(entries):
        base, new = own[own["part"] == "base"], own[own["part"] == "new"]
        found = {"Base": statistics_of(base), "New": statistics_of(new), "HM": harmonic_statistics(base, new)}
        table = pd.DataFrame({name: _texts(values) for name, values in found.items()}).reindex(rows)
        yield title, table.dropna(subset="Base").fillna("-")


def _transfer(entries: pd.DataFrame, rows: Sequence[Row]) -> Tables:
    """One table per source: a column for the source, one for each target, and the mean of several targets."""
    import pandas as pd

    for data, own in entries.groupby("data", sort=False):
        columns = {}
        for part in ("source", "target"):
            for of, single in own[own["part"] == part].groupby("of", sort=False):
                columns[f"source: {of}" if part == "source" else of] = _texts(statistics_of(single))
        targets = own[own["part"] == "target"]
        if targets["of"].nunique() > 1:
            columns["mean of targets"] = _texts(statistics_of(targets))
        yield f"Trained on {data}", pd.DataFrame(columns).reindex(rows).dropna(how="all").fillna("-")


TABLES = {"few_shot": _few_shot, "base_to_new": _base_to_new}  # of the others: _transfer


def _table_lines(title: str, table: pd.DataFrame, titles: Mapping[str, str], with_shots: bool) -> list[str]:
    """Markdown lines. Rows are methods, or with `with_shots` pairs of method and shots."""
    header = ["method", *(["shots"] if with_shots else []), *table.columns]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row, cells in zip(table.index, table.to_numpy().tolist(), strict=True):
        method, shots = row if isinstance(row, tuple) else (row, None)
        lines.append([titles[method], *([str(shots)] if with_shots else []), *cells])
    title = title.replace("average of", "Average over") + (" test sets" if title.startswith("average of") else "")
    return [f"**{title}**", "", *("| " + " | ".join(cells) + " |" for cells in lines), ""]


def markdown(
    records: Sequence[Mapping[str, Any]],
    command: str,
    missing: int = 0,
    plots: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """The page: every model's tables, with captions.

    Args:
        records: of runs.
        command: that made them.
        missing: how many runs are not done.
        plots: (model, protocol) -> file name of its plot.
    """
    lines = ["# Few-shot protocols", "", f"`{command}`", ""]
    if missing:
        lines += [f"{missing} runs are missing; repeat the command to have them done.", ""]
    seeds = sorted({r["seed"] for r in records if r["method"] != ZERO_SHOT_ROW[0]})
    over = f"mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    lines += [f"Accuracy in %, {over if len(seeds) > 1 else 'one seed'}.", ""]
    for model in dict.fromkeys(r["model"] for r in records):
        lines += [f"## {model}", ""]
        for protocol in PROTOCOLS:
            own = [r for r in records if r["model"] == model and r["protocol"] == protocol]
            if own:
                lines += _section(protocol, own, (plots or {}).get((model, protocol)))
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(protocol: str, records: Sequence[Mapping[str, Any]], plot: str | None) -> list[str]:
    titles = {record["method"]: record["title"] for record in records}
    entries, rows = entries_of(records), rows_of(records)
    with_shots = protocol != "few_shot" and len({k for m, k in rows if m != ZERO_SHOT_ROW[0]}) > 1
    lines = [f"### {TITLES[protocol]}", ""]
    for title, table in TABLES.get(protocol, _transfer)(entries, rows):
        lines += _table_lines(title, table, titles, with_shots)
    notes = list(dict.fromkeys(r["note"] for r in records if r.get("note")))
    halves = {"base": " (base)", "new": " (new)"}
    sizes = dict.fromkeys(
        f"{e.of}{halves.get(e.part, '')} {e.images} in {e.classes} classes" for e in entries.itertuples()
    )
    notes.append(f"Test images: {'; '.join(sizes)}.")
    for why, own in entries.dropna(subset="why").groupby("why", sort=False):
        named = ", ".join(titles[method] for method in own["method"].unique())
        notes.append(f"-: {named} cannot classify other classes: {why}.")
    lines += [line for note in notes for line in (note, "")]
    if plot:
        lines += [f"![{TITLES[protocol]}]({plot})", ""]
    seconds = sum(sum(r["seconds"].values()) for r in records)
    machines = dict.fromkeys(_machine(r["environment"]) for r in records)
    return [*lines, f"{len(records)} runs, {seconds:.0f} s; {'; '.join(machines)}.", ""]


def _machine(environment: Mapping[str, Any]) -> str:
    device = environment.get("device", "cpu")
    place = environment.get("cpu", device) if device == "cpu" else device
    count = environment.get("threads") if device == "cpu" else None
    threads = f", {count} thread{'s' * (count > 1)}" if count else ""
    return f"{place}{threads}, torch {environment.get('torch')}, transformers {environment.get('transformers')}"


__all__ = ["entries_of", "harmonic_statistics", "markdown", "rows_of", "statistics_of", "test_sets_of"]
