"""Kills commands with SIGKILL, runs them again and compares what they leave with an uninterrupted run, byte by byte.

Run by `scripts/attack.py --kills N`. A command is killed right before a random write below its folder, or, the other
half of the times, at a random moment; `push` also at a random request to the Hub (one on loopback). Then the same
command is run again, to its end. Every file must be equal, with these exceptions, which differ between two
uninterrupted runs:

- in JSON files, JSON lines and CSV: the fields `LEFT_OUT`, which are times; in texts and pages, what `TIMES` finds;
- the files `SKIPPED`: locks, the arguments that a trainer pickles with the date in them, and the state of a run that
  makes pictures, which holds the seconds that it took.
"""

import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attack_checkpoints import official_weights
from fake_hub import FakeHub, hub_in_this_process
from few_shot_runs import save_images, save_tiny_clip
from killing import run_and_kill
from official_files import letters_tokenizer, plain
from painting_runs import tiny_vqgan
from PIL import Image


OUTCOMES = ("equal", "different", "failed to go on")
LEFT_OUT = (
    "seconds",
    "seconds_per_view",
    "pairs_a_second",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)
TIMES = (
    re.compile(rb"((&lt;|<) ?)?\d+(\.\d+)? ?(s|min|seconds|minutes)\b"),
    re.compile(rb"\d+(\.\d+)? (pairs|images) a second"),
)
SKIPPED = (".lock", "training_args.bin", "state.safetensors")
_TIMEOUT = 300.0


@dataclass
class Command:
    """`run()` does it in this process; `left()` gives what it left, name -> content; `clean()` removes that."""

    name: str
    folder: Path
    run: Callable[[], Any]
    hub: "_KillingHub | None" = None

    def left(self) -> dict[str, Any]:
        if self.hub is not None:
            return {name: comparable(name, data) for name, data in self.hub.repos[_REPOSITORY].files.items()}
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        files = [path for path in files if not path.name.endswith(SKIPPED)]
        return {path.relative_to(self.folder).as_posix(): comparable(path.name, path.read_bytes()) for path in files}

    def clean(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.hub is not None:
            self.hub.repos.clear()


def comparable(name: str, data: bytes) -> Any:
    """A file's content without times."""
    with contextlib.suppress(ValueError):
        if name.endswith(".json"):
            return _without_times(json.loads(data))
        if name.endswith(".jsonl"):
            return [_without_times(json.loads(line)) for line in data.splitlines()]
    if name.endswith(".csv"):
        return [_without_times(row) for row in csv.DictReader(data.decode().splitlines())]
    if name.endswith((".md", ".html", ".txt")):
        for pattern in TIMES:
            data = pattern.sub(b"", data)
    return data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(each) for name, each in value.items() if name not in LEFT_OUT}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


def differences(actual: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What differs, file by file."""
    found = [f"{name} is missing" for name in expected.keys() - actual.keys()]
    found += [f"{name} is too many" for name in actual.keys() - expected.keys()]
    for name in sorted(expected.keys() & actual.keys()):
        if actual[name] != expected[name]:
            found.append(f"{name}{_where(actual[name], expected[name])}")
    return found


def _where(actual: Any, expected: Any, path: str = "") -> str:
    if isinstance(actual, dict) and isinstance(expected, dict):
        for name in {**actual, **expected}:
            if actual.get(name) != expected.get(name):
                return _where(actual.get(name), expected.get(name), f"{path}.{name}")
    if isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            if one != other:
                return _where(one, other, f"{path}[{index}]")
    if isinstance(actual, bytes) and isinstance(expected, bytes):
        at = len(os.path.commonprefix([actual, expected]))
        part = slice(max(at - 20, 0), at + 40)
        return f"{path} at byte {at}: {actual[part]!r}, not {expected[part]!r}"
    return f"{path}: {str(actual)[:80]}, not {str(expected)[:80]}"


# ---- the commands

_REPOSITORY = "alice/kills"


class _KillingHub(FakeHub):
    """Kills its client when it gets the n-th request, which it serves nevertheless."""

    victim, nth, seen = 0, None, 0

    def _next_fault(self, request: str):
        self.seen += 1
        if self.nth is not None and self.seen == self.nth:
            os.kill(self.victim, signal.SIGKILL)
        return super()._next_fault(request)


def _command_line(*arguments: object) -> None:
    from hf_clip_variants import cli
    from hf_clip_variants.few_shot import training_loop
    from hf_clip_variants.search import building
    from hf_clip_variants.synthesis import runs

    training_loop.SAVE_EVERY_SECONDS = 0.0  # every epoch is kept, so kills fall into trainings, too
    building.PART_SIZE = 2  # and every second file of an index
    runs.SAVE_EVERY_SECONDS = 0.0  # and every step of a picture
    _succeed(partial(cli.main, list(map(str, arguments))))


def _script(name: str, *arguments: object) -> None:
    import importlib

    _succeed(partial(importlib.import_module(name).main, list(map(str, arguments))))


def _succeed(program: Callable[[], int | None]) -> None:
    """Without its output; RuntimeError with the end of it, unless it ends with code 0."""
    with tempfile.TemporaryFile("w+") as said:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = program()
            except SystemExit as exit:
                code = exit.code
        if code:
            said.seek(0)
            raise RuntimeError(f"code {code}: {said.read()[-600:]}")


def commands(place: Path, hub: _KillingHub) -> list[Command]:
    """Each at its smallest."""
    clip = save_tiny_clip(place / "clip")
    data = save_images(place / "data", {"train": ["fluentflat", "emojione"], "test": ["notov1"]})
    weights = official_weights()
    official = plain(weights, place / "official.pt")
    letters = letters_tokenizer(len(weights["token_embedding.weight"]), place / "letters")
    fast = ["--methods", "tip_adapter_f,coop", "--shots", "1", "--profile", "tiny", "--set", "epochs=2"]
    out = {
        name: place / "out" / name
        for name in ("adapt", "pretrain", "benchmark", "push", "convert", "export", "index", "draw", "paint", "sketch")
    }
    smoke = ["--smoke", "--steps", "4", "--batch-size", "8", "--save-every", "1", "--workers", "0"]

    def push():
        _command_line("push", out["push"] / "run", _REPOSITORY, "--private")

    _command_line("export", clip, out["push"] / "run", "--classes", "cat, dog, owl")
    model = place / "to-push"
    shutil.move(out["push"] / "run", model)
    return [
        Command(
            "adapt",
            out["adapt"],
            partial(_command_line, "adapt", data, "--model", clip, "--out", out["adapt"] / "run", *fast),
        ),
        Command("pretrain", out["pretrain"], partial(_script, "pretrain", *smoke, "--out", out["pretrain"] / "run")),
        Command(
            "benchmark",
            out["benchmark"],
            partial(
                _script,
                "few_shot_benchmark",
                *("--small", "--model", clip, "--data", data, "--protocols", "few_shot,base_to_new"),
                *("--methods", "tip_adapter,coop", "--profile", "tiny", "--out", out["benchmark"] / "run"),
            ),
        ),
        Command("push", out["push"], partial(_command_line, "push", model, _REPOSITORY, "--private"), hub),
        Command(
            "convert",
            out["convert"],
            partial(
                _command_line,
                *("convert", official, out["convert"] / "run", "--tokenizer", letters, "--compare"),
            ),
        ),
        Command(
            "export",
            out["export"],
            partial(_command_line, "export", clip, out["export"] / "run", "--classes", "cat, dog, owl"),
        ),
        Command(
            "index",
            out["index"],
            partial(_command_line, "index", data, "--model", clip, "--out", out["index"] / "run", "--batch-size", 2),
        ),
        *_picture_commands(out, clip, place),
    ]


def _picture_commands(out: dict[str, Path], clip: Path, place: Path) -> list[Command]:
    """Those that optimise pictures, with two seeds each."""
    tiny_vqgan().save_pretrained(place / "vqgan")
    photo = place / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((48, 40)).save(photo)
    few = ("--guide", clip, "--steps", 8, "--seeds", 2)
    lines = {
        "draw": ("a cat ^ a dog | an owl:-0.5", "--strokes", 6, "--mp4", *few),
        "paint": ("a cat ^ a dog", "--vqgan", place / "vqgan", "--cuts", 2, "--learning-rate", 2, *few),
        "sketch": (photo, "--strokes", "4,2", "--color", *few),
    }
    return [
        Command(name, out[name], partial(_command_line, name, *line, "--out", out[name] / "run"))
        for name, line in lines.items()
    ]


# ---- kills


def _run(command: Command, **kill: Any) -> int:
    command.folder.mkdir(parents=True, exist_ok=True)

    def on_start(child: int) -> None:
        if command.hub is not None:
            command.hub.victim, command.hub.seen = child, 0

    return run_and_kill(command.run, command.folder, timeout=_TIMEOUT, on_start=on_start, **kill)


def kill_once(command: Command, rng: random.Random, writes: int, requests: int, seconds: float) -> str:
    """Kills the command at a random place, which is returned. Shorter times are tried if it had finished before."""
    command.clean()
    if requests and rng.random() < 0.5:
        command.hub.nth = rng.randint(1, requests)
        try:
            killed, what = _run(command), f"request {command.hub.nth} of {requests}"
        finally:
            command.hub.nth = None
    elif writes and rng.random() < 0.5:
        nth = rng.randint(1, writes)
        killed, what = _run(command, nth=nth), f"write {nth} of {writes}"
    else:
        after = rng.uniform(0.05, 0.95) * seconds
        killed, what = _run(command, after=after), f"{after:.2f} s of {seconds:.2f}"
    if killed != -signal.SIGKILL:
        return kill_once(command, rng, writes, requests, seconds * 0.7)
    return what


def campaign(command: Command, kills: int, rng: random.Random) -> tuple[Counter, list[str], int]:
    """Outcomes of `kills` kills, what was found, and the number of files that were compared."""
    command.clean()
    started = time.monotonic()
    writes = _run(command)
    seconds = time.monotonic() - started
    requests = command.hub.seen if command.hub is not None else 0
    expected = command.left()
    command.clean()
    _run(command)
    found = [f"{command.name}: two uninterrupted runs: {each}" for each in differences(command.left(), expected)]
    outcomes: Counter = Counter()
    for _ in range(kills):
        place = kill_once(command, rng, writes, requests, seconds)
        try:
            _run(command)
        except AssertionError as error:
            outcomes["failed to go on"] += 1
            found.append(f"{command.name}, killed at {place}: failed to go on: {str(error)[-400:]}")
            continue
        wrong = differences(command.left(), expected)
        outcomes["different" if wrong else "equal"] += 1
        found += [f"{command.name}, killed at {place}: {each}" for each in wrong]
    command.clean()
    return outcomes, found, len(expected)


def run(kills: int, seed: int, names: str | None = None) -> tuple[str, list[str]]:
    """The table and the list of findings, as markdown; the findings."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    lines = [f"| command | files | kills | {' | '.join(OUTCOMES)} |", "|---" + "|---:" * 5 + "|"]
    findings, total = [], Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, _hub(Path(folder) / "home") as hub:
        known = commands(Path(folder), hub)
        wanted = [word.strip() for word in names.split(",")] if names else [command.name for command in known]
        if unknown := sorted({*wanted} - {command.name for command in known}):
            raise SystemExit(f"--kinds: got {', '.join(unknown)}; want some of {', '.join(c.name for c in known)}")
        chosen = [command for command in known if command.name in wanted]
        for index, command in enumerate(chosen):
            mine = kills // len(chosen) + (index < kills % len(chosen))
            outcomes, found, files = campaign(command, mine, random.Random(f"{command.name} {seed}"))
            total += outcomes
            findings += found
            for each in found:
                print(each, file=sys.stderr, flush=True)
            row = " | ".join(str(outcomes[name]) for name in OUTCOMES)
            lines.append(f"| {command.name} | {files} | {mine} | {row} |")
            print(lines[-1], file=sys.stderr, flush=True)
    lines.append(f"| all | | {kills} | {' | '.join(str(total[name]) for name in OUTCOMES)} |")
    lines += [
        "",
        f"Compared byte by byte. Left out: the fields {', '.join(LEFT_OUT)}; times in texts; files {SKIPPED}.",
    ]
    if findings:
        lines += ["", "Findings:", "", *(f"- `{' '.join(each.split()).replace('`', chr(39))}`" for each in findings)]
    return "\n".join(lines) + "\n", findings


@contextlib.contextmanager
def _hub(home: Path):
    import fake_hub

    original, fake_hub.FakeHub = fake_hub.FakeHub, _KillingHub
    try:
        with hub_in_this_process(home) as hub:
            yield hub
    finally:
        fake_hub.FakeHub = original
