"""Many runs of the protocols in one folder: divided over processes, each done once, with a table and plots at the
end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.images.labelled_sets import absolute_source
from ..files.atomic_writes import write_atomically
from ..files.json_files import digest
from .plots import plot
from .protocols import Plan, load_task, templates_for
from .results import markdown
from .run_folder import RunFolder, key_of
from .runner import ZERO_SHOT, FewShotRunner, Run, overrides_by_method


EPOCH_LINES_EVERY = 30.0  # seconds


def make_runs(
    plans: Sequence[Plan],
    models: Sequence[str],
    methods: Sequence[str],
    shots_of: Callable[[Plan], Sequence[int]],
    seeds: Sequence[int],
) -> list[Run]:
    """Every method, number of shots and seed on every plan and model, and zero-shot CLIP.

    Neighbours in the list differ in the seed only. They go to different processes, which then share all other work.
    ValueError for a run that is listed twice.
    """
    runs = []
    for model in models:
        for plan in plans:
            runs.append(Run(plan, model))
            runs += [Run(plan, model, m, k, s) for m in methods for k in shots_of(plan) for s in seeds]
    if len({run.key for run in runs}) < len(runs):
        raise ValueError(
            "methods, models, shots, seeds: something is given twice, or two data sets have one name; "
            "write NAME=SOURCE"
        )
    return runs


class Benchmark:
    """Does those of `runs` that are missing in a folder.

    Args:
        out: the folder; `runs-<rank>.jsonl`, `table.md` and plots go there.
        runs: from `make_runs`; the same in every process.
        templates, reading: see `load_task`.
        profile, overrides: see `FewShotRunner`.
        rank, world_size: this process does every `world_size`-th run.
        say: is called with lines about the progress.

    Raises:
        ValueError: unknown methods or overrides; the folder holds one of the runs with other settings (named).
    """

    def __init__(
        self,
        out: str | os.PathLike,
        runs: Sequence[Run],
        *,
        templates: str | Sequence[str] | None = None,
        profile: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        reading: Mapping[str, Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
        say: Callable[[str], None] = print,
    ):
        self.folder = RunFolder(out, rank, world_size)
        self.runs, self.templates, self.reading, self.say = list(runs), templates, dict(reading or {}), say
        self.methods = list(dict.fromkeys(run.method for run in runs if run.method != ZERO_SHOT))
        self.shots = sorted({run.shots for run in runs if run.shots})
        self.profile, self.overrides = profile, dict(overrides or {})
        by_method = overrides_by_method(self.methods, self.overrides)
        self.settings = {run.key: self._settings(run, by_method.get(run.method, {})) for run in runs}

    def _settings(self, run: Run, overrides: dict[str, Any]) -> dict[str, Any]:
        """The settings that the results of a run depend on, besides its name."""
        from ..data.images.emoji import embedded_model

        embedded = Path(run.model) == embedded_model()  # its path differs between machines
        return {
            "model": "embedded" if embedded else absolute_source(run.model),
            **run.plan.settings(),
            "templates": templates_for(run.plan.data, self.templates),
            "profile": self.profile,
            "overrides": overrides,
            "reading": self.reading,
        }

    def run(self, command: str, device: str | None = None) -> tuple[str, int]:
        """Do the missing runs of this process. Returns the table, which names `command`, and how many runs failed."""
        with self.folder.locked():
            records = self.folder.records()
            for key, record in records.items():
                if key in self.settings:
                    self._check_same(record, self.settings[key], record["contents"])
            # Each process takes every n-th of all runs, not of the missing ones: processes start at different times
            # and would not agree on which are missing.
            mine = self.runs[self.folder.rank :: self.folder.world_size]
            mine = [run for run in mine if run.key not in records or records[run.key].get("error")]
            failed = 0
            if mine:
                self.say(f"{len(mine)} of {len(self.runs)} runs to do")
                failed = self._run(mine, list(records.values()), device)
            else:
                every = f": all {len(self.runs)} runs are in {self.folder.path} already"
                self.say("nothing to do" + (every if self.folder.world_size == 1 else ""))
            return self._write_tables(command), failed

    def _check_same(self, record: Mapping[str, Any], settings: Mapping[str, Any], contents: Mapping[str, str]) -> None:
        what = ", ".join(map(str, key_of(record)))
        self.folder.check_same(what, (record["settings"], record["contents"]), (settings, contents))

    def _run(self, mine: Sequence[Run], before: Sequence[Mapping[str, Any]], device: str | None) -> int:
        tasks, contents, read, failed = {}, {}, {}, 0
        seeds = list(dict.fromkeys(run.seed for run in self.runs if run.shots))
        for plan in {id(run.plan): run.plan for run in self.runs}.values():  # of all: features are computed for all
            self.say(f"reading {plan.name} for {plan.protocol}")
            shots = sorted({run.shots for run in self.runs if run.plan is plan and run.shots})
            task = load_task(plan, shots, seeds, templates=self.templates, reading=self.reading, read=read)
            for remark in task.draws.remarks:
                self.say(f"{plan.name}: {remark}")
            tasks[id(plan)], contents[id(plan)] = task, task.contents()
            for record in before:
                if (record["protocol"], record["data"]) == (plan.protocol, plan.name):
                    weights = {k: v for k, v in record["contents"].items() if k == "model"}  # compared below
                    self._check_same(record, record["settings"], contents[id(plan)] | weights)

        progress = _Progress(len(mine), self.say)
        for model in dict.fromkeys(run.model for run in mine):
            runner = FewShotRunner(
                model,
                self.folder.work,
                list(tasks.values()),
                self.methods,
                self.shots,
                profile=self.profile,
                overrides=self.overrides,
                device=device,
                on_epoch=progress.epoch,
            )
            weights, name = {"model": digest(runner.key)}, Run(self.runs[0].plan, model).names["model"]
            for record in before:
                if record["model"] == name and "model" in record["contents"]:  # earlier versions did not write it
                    self._check_same(record, record["settings"], record["contents"] | weights)
            for run in (run for run in mine if run.model == model):
                start = time.monotonic()
                record = run.names | runner.attempt(tasks[id(run.plan)], run) | {"note": run.plan.note}
                record |= {"settings": self.settings[run.key], "contents": contents[id(run.plan)] | weights}
                self.folder.append(record)
                failed += bool(record.get("error"))
                progress.run(run, record, time.monotonic() - start)
        return failed

    def _write_tables(self, command: str) -> str:
        """table.md and plots from the records of all processes; the last process to finish writes the complete
        ones."""
        from filelock import FileLock

        with FileLock(self.folder.work / ".table.lock"):
            done = {key: r for key, r in self.folder.records().items() if not r.get("error")}
            order = {run.key: place for place, run in enumerate(self.runs)}
            records = sorted(done.values(), key=lambda record: order.get(key_of(record), len(order)))
            several = len({record["model"] for record in records}) > 1
            plots = {}
            for model, protocol in dict.fromkeys((r["model"], r["protocol"]) for r in records):
                of_model = "-" + "".join(c if c.isalnum() else "-" for c in model) if several else ""
                plots[model, protocol] = f"{protocol}{of_model}.png"
                own = [r for r in records if (r["model"], r["protocol"]) == (model, protocol)]
                write_atomically(self.folder.path / plots[model, protocol], plot(protocol, own))
            page = markdown(records, command, sum(key not in done for key in order), plots)
            write_atomically(self.folder.path / "table.md", page)
        return page


class _Progress:
    """A line for each finished run, and one every half minute in long trainings."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self._say = total, say
        self.done, self.started, self.last = 0, time.monotonic(), time.monotonic()

    def say(self, text: str) -> None:
        self._say(text)
        self.last = time.monotonic()

    def epoch(self, label: str, done: int, epochs: int) -> None:
        if time.monotonic() - self.last > EPOCH_LINES_EVERY:
            self.say(f"    epoch {done} of {epochs}")

    def run(self, run: Run, record: Mapping[str, Any], seconds: float) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        left_text = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
        scores = ", ".join(
            f"{name} {'-' if test['accuracy'] is None else format(100 * test['accuracy'], '.1f')}"
            for name, test in record["tests"].items()
        )
        name = f"{run.plan.protocol}, {run.plan.name}: {run}"
        text = f"{name} failed: {record['error']}" if record.get("error") else f"{name}: {scores}"
        self.say(f"[{self.done}/{self.total}] {text} ({seconds:.1f} s; {left_text} left)")


__all__ = ["Benchmark", "make_runs"]
