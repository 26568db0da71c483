"""Attacks the library with generated input, or kills its commands, and prints what came of it as a table.

    python scripts/attack.py --minutes 60 --seed 8675309 --out attack.md
    python scripts/attack.py --minutes 1 --kinds images,checkpoints
    python scripts/attack.py --only "images:4713:17 png, truncated"        # a finding once more, with its traceback
    python scripts/attack.py --kills 60 --seed 8675309 --out scripts/results/attack/kills.md

Kinds of input are the generators `tests/support/attack_<kind>.py`. The same seed makes the same cases. Every case ends
in one of five ways:

right            the answer was checked against another way to get it, or is at least finite
refused clearly  ValueError or OSError, in a sentence that names the argument, field or file that was attacked
raw exception    any other exception, a message without that name, or a process that died
hang             more than 10 s, twice, not counting the time in which other programs had the processor, or more than
                 1 GB of new memory
wrong silently   an answer that is not right, or bad input that was accepted

Cases run in processes that are watched, so that one that hangs or dies costs that case alone.
"""

import os


os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; processes are forked
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import contextlib
import importlib
import json
import platform
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path


SUPPORT = Path(__file__).parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

from attack_cases import GOOD, OUTCOMES, Case, attempt, waited_for_processor  # noqa: E402


CASES_A_BATCH = 60
SECONDS_A_BATCH = 40.0
SECONDS, BYTES = 10.0, 10**9  # that a case may take
_ROOM = 8 << 30  # of addresses above those in use, before the system itself is in danger
_LISTED = 300


def all_kinds() -> list[str]:
    names = sorted(path.stem.removeprefix("attack_") for path in SUPPORT.glob("attack_*.py"))
    return [name for name in names if name != "cases"]


def cases_of(kind: str, seed: int, folder: Path) -> Iterator[Case]:
    return islice(importlib.import_module(f"attack_{kind}").cases(seed, folder), CASES_A_BATCH)


@dataclass
class Found:
    kind: str
    seed: int
    name: str
    outcome: str
    detail: str


# ---- in the watched process


def _memory(pid: int | str, field_name: str) -> int:
    """Bytes, from /proc; 0 where there is none."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(field_name)).split()[1])
    return 0


def _children(session: int) -> list[str]:
    """The other processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(stat.parent.name)
    return [pid for pid in found if pid != str(session)]


def _work(kind: str, seed: int, folder: Path, first: int, pipe: int) -> None:
    """Runs the cases of a batch from the `first` on; a line of JSON before and after each."""

    def say(*what: object) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    try:
        room, allowed = _memory("self", "VmSize") + _ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]
        room = room if allowed == resource.RLIM_INFINITY else min(room, allowed)  # as `ulimit -v` says
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for index, case in enumerate(cases_of(kind, seed, folder)):
            if index < first:
                continue
            before = _memory("self", "VmRSS")
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            say("start", index, case.name)
            outcome, detail = attempt(case, folder)
            grown = _memory("self", "VmHWM") - before
            if grown > BYTES:
                outcome, detail = "hang", f"{grown >> 20} MB of new memory"
            say("end", index, case.name, outcome, detail[:500])
    except BaseException:
        say("end", -1, "the generator itself", "raw exception", traceback.format_exc()[-400:])


class Batch:
    """A process that runs one batch, and what it said so far."""

    def __init__(self, kind: str, seed: int):
        self.kind, self.seed = kind, seed
        self.folder = Path(tempfile.mkdtemp(prefix=f"attack-{kind}-"))
        self.started = time.monotonic()
        self.tried_again: int | None = None
        self.said_something = False
        self._start(0)

    def _start(self, first: int) -> None:
        for path in self.folder.iterdir():  # the generator makes its files anew
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.running: tuple[int, str] | None = None
        self.case_started, self.waited, self.memory, self._rest = time.monotonic(), 0.0, 0, b""
        self.pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.close(self.pipe)
                os.chdir(self.folder)
                null = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(null, stream)
                _work(self.kind, self.seed, self.folder, first, writing)
            finally:
                os._exit(0)
        os.close(writing)

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.status = os.waitpid(self.pid, 0)[1]
        os.close(self.pipe)

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self, outcome: str, detail: str, name: str | None = None) -> Found:
        return Found(self.kind, self.seed, name or (self.running or (0, "before the first case"))[1], outcome, detail)

    def read(self) -> tuple[list[Found], bool]:
        """What has ended since the last time, and whether the batch goes on. Call when `pipe` is readable."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        self.said_something |= bool(lines)
        for what, index, name, *outcome in map(json.loads, lines):
            if what == "start":
                self.running, self.case_started = (index, name), time.monotonic()
                self.waited = waited_for_processor(self.pid)
                self.memory = _memory(self.pid, "VmRSS")
            else:
                self.running = None
                found.append(self._found(*outcome, name=name))
        if data:
            return found, True
        if self.running is None:
            if not self.said_something:
                found.append(self._found("raw exception", "the process ended before its first case"))
            return found, False
        pid, status = os.waitpid(self.pid, 0)
        found.append(self._found("raw exception", f"the process died, status {status}"))
        return found, self._go_on_after(reaped=True)

    def _go_on_after(self, reaped: bool = False) -> bool:
        index = self.running[0]
        if reaped:
            os.close(self.pipe)
        else:
            self._stop()
        self._start(index + 1)
        return True

    def watch(self) -> list[Found]:
        """Ends a case that takes too much."""
        if self.running is None:
            if time.monotonic() - self.case_started > 20 * SECONDS:
                found = self._found("hang", "the generator itself", "the generator itself")
                self.said_something = True
                self._stop()
                self._start(CASES_A_BATCH)
                return [found]
            return []
        if _memory(self.pid, "VmRSS") - self.memory > BYTES:
            found = self._found("hang", f"more than {BYTES >> 20} MB of new memory")
            self._go_on_after()
            return [found]
        seconds = time.monotonic() - self.case_started
        if seconds > SECONDS:
            seconds -= max(
                waited_for_processor(self.pid) - self.waited, *map(waited_for_processor, _children(self.pid)), 0.0
            )
        if seconds <= SECONDS:
            return []
        index = self.running[0]
        if self.tried_again != index:  # it may have waited for the disk
            self.tried_again = index
            self._stop()
            self._start(index)
            return []
        found = self._found("hang", f"more than {SECONDS:.0f} s")
        self._go_on_after()
        return [found]


# ---- the campaign


@dataclass
class Campaign:
    kinds: list[str]
    counts: dict[str, Counter] = field(default_factory=dict)
    bad: list[Found] = field(default_factory=list)

    def run(self, minutes: float, seed: int, workers: int = 1) -> None:
        """The kinds in turn, a batch each, `seed`, `seed + 1`, ... for each kind, until the time is over."""
        self.counts = {kind: Counter() for kind in self.kinds}
        end = time.monotonic() + 60 * minutes
        seeds, waiting = {kind: count(seed) for kind in self.kinds}, cycle(self.kinds)
        active: list[Batch] = []
        try:
            while time.monotonic() < end:
                while len(active) < workers:
                    kind = next(waiting)
                    active.append(Batch(kind, next(seeds[kind])))
                ready = select.select([batch.pipe for batch in active], [], [], 0.05)[0]
                for batch in list(active):
                    found, goes_on = batch.read() if batch.pipe in ready else ([], True)
                    found += batch.watch() if goes_on else []
                    self._count(found)
                    late = batch.running is None and time.monotonic() - batch.started > SECONDS_A_BATCH
                    if not goes_on or (late and batch.case_started > batch.started):
                        active.remove(batch)
                        batch.close()
        finally:
            for batch in active:
                batch.close()

    def _count(self, found: list[Found]) -> None:
        for one in found:
            self.counts[one.kind][one.outcome] += 1
            if one.outcome not in GOOD:
                self.bad.append(one)
                print(f"{one.outcome}: {one.kind}:{one.seed}:{one.name}: {one.detail}", file=sys.stderr, flush=True)

    def table(self) -> str:
        lines = [f"| input | cases | {' | '.join(OUTCOMES)} |", "|---" + "|---:" * (1 + len(OUTCOMES)) + "|"]
        rows = [(kind, self.counts[kind]) for kind in self.kinds]
        for name, counts in [*rows, ("all", sum(self.counts.values(), Counter()))]:
            lines.append(f"| {name} | {sum(counts.values())} | {' | '.join(str(counts[o]) for o in OUTCOMES)} |")
        return "\n".join(lines) + "\n"

    def listing(self) -> str:
        if not self.bad:
            return ""
        lines = ["", f"Findings ({len(self.bad)}); `--only 'KIND:SEED:NAME'` runs one again:", ""]
        for one in self.bad[:_LISTED]:
            detail = " ".join(one.detail.split()).replace("`", "'")
            lines.append(f"- {one.outcome}: `{one.kind}:{one.seed}:{one.name}`: `{detail}`")
        return "\n".join(lines) + "\n"


def again(text: str) -> int:
    """Runs the cases of this name in this process; exceptions keep their traceback."""
    kind, seed, name = text.split(":", 2)
    if kind not in all_kinds() or not seed.lstrip("-").isdigit():
        raise ValueError(f"--only: got {text!r}; want KIND:SEED:NAME as the list of findings has it")
    tried = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for case in cases_of(kind, int(seed), folder):
            if case.name == name:
                tried += 1
                print(*attempt(case._replace(run=_with_traceback(case.run)), folder), sep=": ")
    if not tried:
        raise ValueError(f"--only: {kind}:{seed} has no case {name!r}")
    return 0


def _with_traceback(run):
    def told():
        try:
            return run()
        except BaseException:
            traceback.print_exc()
            raise

    return told


def heading(command: str) -> str:
    import torch
    import transformers

    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return f"`{command}` ({versions})\n\n"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, help="how long to attack")
    made.add_argument("--kills", type=int, help="how many kills, over all commands")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--kinds", help=f"with commas; default: all of {', '.join(all_kinds())}; with --kills: commands")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    made.add_argument("--only", metavar="KIND:SEED:NAME", help="run one case again, in this process")
    made.add_argument("--out", type=Path, help="also write the table to this file")
    return made


def main(arguments: list[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    command = shlex.join(["python", "scripts/attack.py", *(sys.argv[1:] if arguments is None else arguments)])
    if sum(value is not None for value in (options.minutes, options.kills, options.only)) != 1:
        made.error("want one of --minutes, --kills and --only")
    if options.workers < 1:
        made.error(f"--workers: got {options.workers}; want at least 1")
    if options.only is not None:
        try:
            return again(options.only)
        except ValueError as error:
            made.error(str(error))
    if options.kills is not None:
        import kill_campaign

        page, bad = kill_campaign.run(options.kills, options.seed, options.kinds)
    else:
        kinds = all_kinds() if options.kinds is None else [word.strip() for word in options.kinds.split(",")]
        if unknown := sorted({*kinds} - {*all_kinds()}):
            made.error(f"--kinds: got {', '.join(unknown)}; want some of {', '.join(all_kinds())}")
        import torch

        torch.set_num_threads(1)
        for kind in kinds:
            importlib.import_module(f"attack_{kind}")  # once, before the forks
        campaign = Campaign(kinds)
        campaign.run(options.minutes, options.seed, options.workers)
        if not any(campaign.counts.values()):
            raise SystemExit("no case ended: the processes that run them die, or --minutes is too short")
        page, bad = campaign.table() + campaign.listing(), campaign.bad
        if untried := [kind for kind in kinds if not campaign.counts[kind].total()]:
            print(f"no case of {', '.join(untried)} was tried; want more --minutes", file=sys.stderr)
            bad = [*bad, *untried]
    page = heading(command) + page
    print(page)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
