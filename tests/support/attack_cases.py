"""Attacks: what a case is, and what counts as a good answer to it.

Generators are in `attack_<kind>.py`: `cases(seed, folder)` makes cases for ever, or some number of them; the same seed
makes the same cases. Files go below `folder`. `scripts/attack.py` runs them for as long as one likes, `tests/attacks/`
runs some of each.
"""

import contextlib
import itertools
import json
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple


OUTCOMES = ("right", "refused clearly", "raw exception", "hang", "wrong silently")
GOOD = OUTCOMES[:2]
WRONG = "wrong: "

_REFUSALS = (ValueError, OSError)
_ARGUMENT_FIRST = re.compile(r"(--)?[A-Za-z_][\w.-]*(\[[^\]]*\])*( [A-Za-z_][\w.]*)?(:| is | has | are )")


class Case(NamedTuple):
    """An attack.

    `run` returns a value, which is a right answer, or a text that starts with `"wrong: "`: an answer was given, and it
    is not the right one. Or it raises.

    With `named`, a refusal must hold one of these words: the argument, field or file that was attacked. Without, see
    `is_clear`.
    """

    kind: str
    name: str
    run: Callable[[], object]
    named: tuple[str, ...] = ()


class Finding(NamedTuple):
    case: Case
    outcome: str
    detail: str


def is_clear(error: BaseException, case: Case, folder: Path) -> bool:
    """Whether an error says in a sentence what is wrong: ValueError or OSError, of three words at least, and with the
    name of what was attacked.

    That is one of `case.named`; if the case names nothing, a path below `folder`, an argument in front
    (`class_names: ...`), or a word of the case's name.
    """
    if not isinstance(error, _REFUSALS) or isinstance(error, UnicodeError | json.JSONDecodeError):
        return False
    message = str(error)
    if len(message.split()) < 3:
        return False
    if case.named:
        return any(name in message for name in case.named)
    words = re.findall(r"[A-Za-z_]\w{3,}", case.name)
    return (
        str(folder) in message
        or _ARGUMENT_FIRST.match(message) is not None
        or any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in words)
    )


def attempt(case: Case, folder: Path) -> tuple[str, str]:
    """Runs a case in this process: its outcome, and what to say about it."""
    try:
        answer = case.run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if is_clear(error, case, folder):
            return "refused clearly", str(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
        return "raw exception", found
    if isinstance(answer, str) and answer.startswith(WRONG):
        return "wrong silently", answer
    return "right", ""


def findings(cases: Iterable[Case], count: int, folder: Path) -> Iterator[Finding]:
    """For tests: the bad outcomes of the first `count` cases."""
    for case in islice(cases, count):
        outcome, detail = attempt(case, folder)
        if outcome not in GOOD:
            yield Finding(case, outcome, detail)


def in_turn(kind: str, attacks: Sequence[Callable], seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn: (random numbers, folder of the case) -> (name, run, named). Files of a case
    are removed when it has run."""
    rng = random.Random(f"{kind} {seed}")
    for count in itertools.count():
        place = Path(folder) / f"{count}"
        place.mkdir(parents=True)
        name, run, named = attacks[count % len(attacks)](random.Random(rng.random()), place)

        def tidy(run=run, place=place):
            try:
                return run()
            finally:
                shutil.rmtree(place, ignore_errors=True)

        yield Case(kind, f"{count} {name}", tidy, named)


def waited_for_processor(pid: int | str = "self") -> float:
    """Seconds for which a thread of a process was ready to run and another program had the processor; the longest of
    its threads. 0 where the system does not tell."""
    longest = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            longest = max(longest, int(task.read_text().split()[1]) / 1e9)
    return longest
