"""Results of the few-shot protocols: one JSON line a cell, and tables in the shape of the papers' tables. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..registry import few_shot_entries
from .protocols import PROTOCOLS, harmonic_mean


TITLES = {
    "few_shot": "Few-shot accuracy",
    "base_to_new": "Base-to-new generalisation",
    "cross_dataset": "Cross-dataset transfer",
    "domain_generalisation": "Domain generalisation",
}
ZERO_SHOT_ROW = ("zero_shot", 0)


class ResultLines:
    """OUT/cells-<rank>.jsonl: every process appends to a file of its own, and reads those of all.

    A line is written in one piece and flushed to the disk. What a killed process left at the end of a file is no line: it is not read, and cut off
    before the next one is written.

    Args:
        folder: OUT, made if missing.
        rank (`int`): of this process.

    Example:

    ```python
    >>> import tempfile
    >>> lines = ResultLines(tempfile.mkdtemp())
    >>> lines.append({"method": "coop", "seed": 1})
    >>> lines.read()
    [{'method': 'coop', 'seed': 1}]
    ```
    """

    def __init__(self, folder: str | os.PathLike, rank: int = 0):
        self.folder, self.rank = Path(folder), rank
        self.path = self.folder / f"cells-{rank}.jsonl"
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {self.folder} is a file; want a folder")

    @property
    def work(self) -> Path:
        """OUT/work: features, locks and unfinished trainings. May be deleted when nothing runs; git does not see it."""
        folder = self.folder / "work"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        return folder

    def read(self) -> list[dict[str, Any]]:
        """The records of all processes. ValueError for a line in the middle that is not JSON (file and number are named)."""
        records = []
        for path in sorted(self.folder.glob("cells-*.jsonl")):
            lines = path.read_bytes().split(b"\n")
            for number, line in enumerate(lines[:-1], start=1):  # the last ends in no newline: empty, or torn
                try:
                    records.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(
                        f"out: {path}, line {number} is not JSON ({error}); remove the line to have it redone"
                    ) from error
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = _end_of_lines(file)
            os.ftruncate(file, end)
            try:
                if os.pwrite(file, line, end) < len(line):
                    raise OSError(f"{self.path}: the disk is full")
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process a rank works in the folder; a killed one leaves no lock behind. ValueError for a second."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.work / f".cells-{self.rank}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"out: another process is working in {self.folder}") from None
        try:
            yield
        finally:
            lock.release()


def _end_of_lines(file: int, block: int = 65536) -> int:
    """The offset behind the last newline."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - block)
        place = os.pread(file, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`["profile was null, now \\"tiny\\""]`: the settings in which two cells of one name differ."""

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 80 else text[:79] + "…"

    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {short(before.get(name))}, now {short(now.get(name))}" for name in names]


# -------------------------------------------------------------------------------------------------------------- numbers

Row = tuple[str, int]  # method, shots
Seeds = dict[int, float]  # seed -> accuracy in %


@dataclass(frozen=True)
class Column:
    """One exam of one data set, with every method's accuracy in it."""

    data: str
    exam: str
    part: str
    of: str
    pictures: int
    classes: int
    scores: dict[Row, Seeds]
    why: dict[Row, str]  # of those that could not be asked

    @property
    def title(self) -> str:
        return self.of if self.of == self.data else f"{self.data}: {self.of}"


@dataclass(frozen=True)
class Block:
    """A part of a table under a title of its own."""

    title: str
    header: list[str]
    rows: list[list[str]]


def columns_of(records: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Records of one protocol and model -> their exams, in the order of the records."""
    found: dict[tuple[str, str], Column] = {}
    for record in records:
        row = record["method"], record["shots"]
        for exam, test in record["tests"].items():
            column = found.setdefault(
                (record["data"], exam),
                Column(record["data"], exam, test["part"], test["of"], test["pictures"], test["classes"], {}, {}),
            )
            if test["accuracy"] is None:
                column.why[row] = test["why"]
            else:
                column.scores.setdefault(row, {})[record["seed"]] = 100 * test["accuracy"]
    return list(found.values())


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Zero-shot first, then the methods in the order of the recipes' table, fewer shots first."""
    order = {"zero_shot": -1} | {method: place for place, method in enumerate(few_shot_entries())}
    rows = {(record["method"], record["shots"]) for record in records}
    return sorted(rows, key=lambda row: (order.get(row[0], len(order)), row[0], row[1]))


def mean_over(columns: Sequence[Column], row: Row) -> Seeds:
    """seed -> mean over the columns, for seeds that all of them have."""
    scores = [column.scores.get(row, {}) for column in columns]
    seeds = set.intersection(*(set(s) for s in scores)) if scores else set()
    return {seed: statistics.fmean(s[seed] for s in scores) for seed in sorted(seeds)}


def mean_and_spread(seeds: Seeds) -> tuple[float, float]:
    """Mean and standard deviation over seeds (population: a single seed has 0)."""
    return statistics.fmean(seeds.values()), statistics.pstdev(seeds.values())


def harmonic_over(base: Seeds, new: Seeds) -> tuple[float, float] | None:
    """The harmonic mean of the averages over seeds, as papers have it, and the spread of the seeds' own. None without one of them."""
    if not base or not new:
        return None
    each = [harmonic_mean(base[seed], new[seed]) for seed in base if seed in new] or [0.0]
    return harmonic_mean(mean_and_spread(base)[0], mean_and_spread(new)[0]), statistics.pstdev(each)


def _text(seeds: Seeds) -> str:
    return _number(*mean_and_spread(seeds), len(seeds)) if seeds else "-"


def _number(mean: float, spread: float, count: int) -> str:
    return f"{mean:.1f} ± {spread:.1f}" if count > 1 else f"{mean:.1f}"


# --------------------------------------------------------------------------------------------------------------- tables


def few_shot_blocks(columns: Sequence[Column], rows: Sequence[Row], titles: Mapping[str, str]) -> list[Block]:
    """A block a test set, with a column a number of shots; first their average where there are several."""
    shots = sorted({k for _, k in rows})
    header = ["method", *(f"{k} shot{'s' * (k != 1)}" for k in shots)]
    methods = list(dict.fromkeys(method for method, _ in rows))

    def block(title: str, chosen: Sequence[Column]) -> Block:
        cells = [[_text(s) if (s := mean_over(chosen, (m, k))) else "" for k in shots] for m in methods]
        return Block(title, header, [[titles[m], *c] for m, c in zip(methods, cells, strict=True)])

    average = [block(f"Average over {len(columns)} test sets", columns)] if len(columns) > 1 else []
    return average + [block(column.title, [column]) for column in columns]


def base_to_new_blocks(columns: Sequence[Column], rows: Sequence[Row], titles: Mapping[str, str]) -> list[Block]:
    """A block a test set: base, new, and their harmonic mean; first the average where there are several."""
    several = len({k for m, k in rows if m != ZERO_SHOT_ROW[0]}) > 1
    sets = list(dict.fromkeys((c.data, c.of) for c in columns))

    def block(title: str, chosen: Sequence[tuple[str, str]]) -> Block:
        lines = []
        for row in rows:
            base, new = (
                mean_over([c for c in columns if (c.data, c.of) in chosen and c.part == part], row)
                for part in ("base", "new")
            )
            if not base:
                continue
            harmonic = harmonic_over(base, new)
            shown = "-" if harmonic is None else _number(*harmonic, len(base))
            lines.append([titles[row[0]], *([str(row[1])] if several else []), _text(base), _text(new), shown])
        return Block(title, ["method", *(["shots"] if several else []), "Base", "New", "HM"], lines)

    average = [block(f"Average over {len(sets)} test sets", sets)] if len(sets) > 1 else []
    named = {(c.data, c.of): c.title for c in columns}
    return average + [block(named[key], [key]) for key in sets]


def transfer_blocks(columns: Sequence[Column], rows: Sequence[Row], titles: Mapping[str, str]) -> list[Block]:
    """A block a source: a column for it, one for each target, and the targets' mean where there are several."""
    several = len({k for m, k in rows if m != ZERO_SHOT_ROW[0]}) > 1
    blocks = []
    for data in dict.fromkeys(c.data for c in columns):
        own = [c for c in columns if c.data == data]
        sources, targets = ([c for c in own if c.part == part] for part in ("source", "target"))
        header = [
            "method",
            *(["shots"] if several else []),
            *(f"source: {c.of}" for c in sources),
            *(c.of for c in targets),
        ]
        lines = []
        for row in rows:
            seeds = [c.scores.get(row, {}) for c in (*sources, *targets)]
            if any(seeds):
                first = [titles[row[0]], *([str(row[1])] if several else [])]
                lines.append(
                    [*first, *map(_text, seeds), *([_text(mean_over(targets, row))] if len(targets) > 1 else [])]
                )
        blocks.append(
            Block(f"Trained on {data}", [*header, *(["mean of targets"] if len(targets) > 1 else [])], lines)
        )
    return blocks


BLOCKS = {
    "few_shot": few_shot_blocks,
    "base_to_new": base_to_new_blocks,
    "cross_dataset": transfer_blocks,
    "domain_generalisation": transfer_blocks,
}


def block_lines(block: Block) -> list[str]:
    """Markdown."""
    align = ["---", *["---:"] * (len(block.header) - 1)]
    table = [block.header, align, *block.rows]
    return [f"**{block.title}**", "", *("| " + " | ".join(cells) + " |" for cells in table), ""]


def why_not_asked(columns: Iterable[Column], titles: Mapping[str, str]) -> list[str]:
    """`["-: Tip-Adapter cannot be asked about other classes: the adapter caches …"]`, each reason once."""
    methods: dict[str, dict[str, None]] = {}
    for column in columns:
        for (method, _), why in column.why.items():
            methods.setdefault(why, {})[titles[method]] = None
    return [f"-: {', '.join(named)} cannot be asked about other classes: {why}." for why, named in methods.items()]


def markdown(
    records: Sequence[Mapping[str, Any]],
    command: str,
    missing: int = 0,
    plots: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """The page: every model's tables, with captions.

    Args:
        records: of cells.
        command: that made them.
        missing: how many cells are not done.
        plots: (model, protocol) -> file name of its plot.
    """
    lines = ["# Few-shot protocols", "", f"`{command}`", ""]
    if missing:
        lines += [f"{missing} cells are missing; repeat the command to have them done.", ""]
    seeds = sorted({r["seed"] for r in records if r["method"] != ZERO_SHOT_ROW[0]})
    over = (
        f"mean ± standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))})"
        if len(seeds) > 1
        else "one seed"
    )
    lines += [f"Accuracy in %, {over}.", ""]
    for model in dict.fromkeys(r["model"] for r in records):
        lines += [f"## {model}", ""]
        for protocol in PROTOCOLS:
            own = [r for r in records if r["model"] == model and r["protocol"] == protocol]
            if own:
                lines += _section(protocol, own, (plots or {}).get((model, protocol)))
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(protocol: str, records: Sequence[Mapping[str, Any]], plot: str | None) -> list[str]:
    titles = {record["method"]: record["title"] for record in records}
    columns, rows = columns_of(records), rows_of(records)
    lines = [f"### {TITLES[protocol]}", ""]
    for block in BLOCKS[protocol](columns, rows, titles):
        lines += block_lines(block)
    notes = list(dict.fromkeys(r["note"] for r in records if r.get("note")))
    halves = {"base": " (base)", "new": " (new)"}
    sizes = dict.fromkeys(f"{c.of}{halves.get(c.part, '')} {c.pictures} in {c.classes} classes" for c in columns)
    notes += [f"Test pictures: {'; '.join(sizes)}.", *why_not_asked(columns, titles)]
    lines += [line for note in notes for line in (note, "")]
    if plot:
        lines += [f"![{TITLES[protocol]}]({plot})", ""]
    seconds = sum(sum(r["seconds"].values()) for r in records)
    machines = dict.fromkeys(_machine(r["environment"]) for r in records)
    return [*lines, f"{len(records)} cells, {seconds:.0f} s; {'; '.join(machines)}.", ""]


def _machine(environment: Mapping[str, Any]) -> str:
    device = environment.get("device", "cpu")
    place = environment.get("cpu", device) if device == "cpu" else device
    threads = (
        f", {environment['threads']} thread{'s' * (environment['threads'] > 1)}"
        if device == "cpu" and "threads" in environment
        else ""
    )
    return f"{place}{threads}, torch {environment.get('torch')}, transformers {environment.get('transformers')}"


__all__ = [
    "Block", "Column", "ResultLines", "block_lines", "columns_of", "harmonic_over", "markdown", "mean_and_spread", "mean_over", "rows_of",
    "what_differs", "why_not_asked",
]  # fmt: skip
