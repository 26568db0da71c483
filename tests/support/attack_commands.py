"""Attacks on command lines: every command with arguments of which at least one is wrong, made from what the command
itself says about its arguments.

What is right: exit code 2 for wrong usage, 1 for what cannot be done, with one line on standard error that names the
argument or what came for it; no traceback, nothing on standard output, and nothing written.
"""

import contextlib
import functools
import io
import itertools
import os
import random
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path

from attack_cases import WRONG, Case
from few_shot_runs import save_images, save_tiny_clip
from segmenters import save_segmenter

from hf_clip_variants import cli


KIND = "commands"
_NEVER = ("--help", "--version", "--install-completion", "--show-completion")
_LISTS = ["", ",", "x", "0", "-1", "1,1", "1,x", "1.5", "nan", "1,,2,x", "all,coop", "coop,coop", "copo", "1-4"]


@functools.cache
def _parameters(command: str) -> tuple:
    return tuple(p for p in cli.load_command(command).params if not set(p.opts) & set(_NEVER))


def _is_option(parameter) -> bool:
    return parameter.opts[0].startswith("-")


def _choices(parameter) -> tuple:
    annotation = parameter.type_descriptor.annotation
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _low(parameter) -> float | None:
    return getattr(parameter, "min", None)


def _wrong_value(rng: random.Random, parameter) -> str | None:
    """A value that the parameter cannot have, by its declaration; None if every text may be right."""
    kind, low = parameter.type_descriptor.annotation, _low(parameter)
    if choices := _choices(parameter):
        return rng.choice(["", "nothing", "None", f"{choices[0]}x", "{}"])
    if kind is int:
        found = rng.choice(["", "x", "1.5", "nan", "1,2", "0x10", " "])
        return str(int(low) - rng.choice([1, 5, 10**20])) if low is not None and rng.random() < 0.5 else found
    if kind is float:
        found = rng.choice(["", "x", "1,2", " ", "1.2.3"])
        return str(low - rng.choice([0.1, 1, 1e300])) if low is not None and rng.random() < 0.5 else found
    return None


def _sound(place: Path, parameter) -> str:
    """A value that may be right, so that the wrong one is reached."""
    name = parameter.name
    if name in ("data", "source", "inputs", "images", "test_data"):
        return str(place / "data")
    if name in ("model", "base", "folder"):
        return str(place / "clip")
    if name == "repo_id":
        return "me/thing"
    if name == "file":
        return str(place / "clip" / "model.safetensors")
    return str(place / "out")


def _line(rng: random.Random, place: Path, command: str) -> tuple[list[str], str]:
    """Arguments of a command of which the last that is made is wrong, and the name of that one."""
    parameters = _parameters(command)
    arguments = [_sound(place, p) for p in parameters if not _is_option(p)]
    needed = [p for p in parameters if _is_option(p) and p.required]
    arguments += [part for p in needed for part in (p.opts[0], _sound(place, p))]
    options = [p for p in parameters if _is_option(p)]
    if any(p.opts[0] == "--task" for p in options) and rng.random() < 0.3:
        arguments += ["--task", "segmentation"]
        if "--model" not in arguments:
            arguments += ["--model", str(place / "segmenter")]
        if rng.random() < 0.7:
            arguments += ["--labels", "cat, dog"]
    which = rng.choice(
        ["unknown", "value", "value", "value", "missing value", "no arguments", "too many", "path", "flag"]
    )
    typed = [p for p in options if not p.is_flag and _wrong_value(random.Random(0), p) is not None]
    if which == "value" and typed:
        parameter = rng.choice(typed)
        return [command, *arguments, parameter.opts[0], _wrong_value(rng, parameter)], parameter.opts[0]
    if which == "missing value" and (with_value := [p for p in options if not p.is_flag]):
        parameter = rng.choice(with_value)
        return [command, *arguments, parameter.opts[0]], parameter.opts[0]
    if which == "no arguments" and any(p.required for p in parameters):
        return [command], "Missing"
    if which == "too many" and arguments and not any(p.nargs == -1 for p in parameters):
        return [command, "spare", *arguments, "more"], "argument"
    flags = [p for p in options if p.is_flag]
    if which == "flag" and flags:
        flag = rng.choice(flags).opts[0]
        return [command, *arguments, f"{flag}=x"], flag
    files = [
        p for p in options if p.name in ("model", "adapter", "base", "device", "methods", "shots", "seeds", "run")
    ]
    if which == "path" and files:
        parameter = rng.choice(files)
        bad = {
            "device": ["gpx", "cuda:x", "", "cpu:"],
            "methods": _LISTS[12:],
            "shots": _LISTS[:9],
            "seeds": _LISTS[:9],
        }
        nowhere = [
            "/nowhere/at/all",
            "a/b/c/d",
            str(place / "nothing"),
            str(place / "clip" / "config.json"),
            "no such",
        ]
        return [command, *arguments, parameter.opts[0], rng.choice(bad.get(parameter.name, nowhere))], parameter.opts[
            0
        ]
    unknown = "--" + "".join(rng.choices("abcdefghij-", k=rng.randint(5, 12))).strip("-")
    return [command, *arguments, unknown, "x"], unknown


def _run(line: list[str]) -> tuple[int, str, str]:
    """Code, standard output and standard error of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(list(line))
        except SystemExit as exit:
            return exit.code or 0, out.getvalue(), err.getvalue()
    raise RuntimeError("main came back")


def _tree(place: Path) -> list[str]:
    return sorted(path.as_posix() for path in place.rglob("*"))


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever."""
    rng = random.Random(f"{KIND} {seed}")
    place = Path(folder) / "place"
    shutil.rmtree(place, ignore_errors=True)
    save_tiny_clip(place / "clip")
    save_segmenter(place / "segmenter", "decoder")
    save_images(place / "data", {"train": ["fluentflat"], "test": ["notov1"]}, ("cat", "dog"))
    before = _tree(place)
    commands = [name for name in cli.COMMANDS if name not in ("demo",)]
    for count in itertools.count():
        line, named = _line(random.Random(rng.random()), place, rng.choice(commands))
        shown = " ".join(part.replace(str(place), "PLACE") for part in line)

        def run(line=line, named=named):
            os.environ["COLUMNS"] = "200"
            code, out, err = _run(line)
            try:
                if (after := _tree(place)) != before:
                    return f"{WRONG}wrote {sorted({*after} - {*before})[:3]}"
            finally:
                for path in {*map(Path, _tree(place))} - {*map(Path, before)}:
                    shutil.rmtree(path, ignore_errors=True)
            if code == 0:
                return f"{WRONG}accepted"
            if "Traceback" in err or not re.search(r"^Error: ", err, re.MULTILINE):
                raise RuntimeError(f"code {code}, {err[-300:]!r}")
            if out.strip():
                return f"{WRONG}printed {out[:100]!r}"
            raise ValueError(re.search(r"^Error: (.*)", err, re.MULTILINE)[1])

        # The value itself names what is wrong, where an argument is several things; a missing model may be told first.
        values = tuple(part for part in line[1:] if len(part) > 3)
        yield Case(KIND, f"{count} {shown[:160]}", run, (named, "--model: name a", *values))
