"""The attack script tells the five outcomes apart, survives all of them, and repeats what it found; the kill campaign
notices what differs after a kill.
"""

import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
from attack_cases import OUTCOMES, WRONG, Case, attempt
from paths import SCRIPTS


@pytest.fixture
def script(monkeypatch):
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):  # which the script sets
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import attack

    yield attack
    for name in ("attack", "kill_campaign"):
        sys.modules.pop(name, None)


def _raise(error):
    raise error


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _grow():
    """Memory that is new whatever this process has freed before: a list of bytes is put into what a test left free."""
    new = mmap.mmap(-1, 3 * 10**8)
    new.write(bytes(len(new)))


BEHAVIOUR = {
    "right": lambda: 3,
    "wrong": lambda: WRONG + "four",
    "clear": lambda: _raise(ValueError("size: got -1; want at least 1")),
    "other error": lambda: _raise(KeyError("size")),
    "no name": lambda: _raise(ValueError("shapes do not match here")),
    "sleeps": lambda: time.sleep(60),
    "grows": _grow,
    "dies": _die,
    "also right": lambda: "text",
}
EXPECTED = {"right": 2, "wrong silently": 1, "refused clearly": 1, "raw exception": 3, "hang": 2}


@pytest.fixture
def fake(script, monkeypatch):
    """A kind of attack whose cases behave in every way; the limits are small."""
    module = SimpleNamespace(
        cases=lambda seed, folder: (Case("fake", f"{name} {seed}", run, ("size",)) for name, run in BEHAVIOUR.items())
    )
    monkeypatch.setitem(sys.modules, "attack_fake", module)
    monkeypatch.setattr(script, "all_kinds", lambda: ["fake"])
    monkeypatch.setattr(script, "SECONDS", 0.5)
    monkeypatch.setattr(script, "BYTES", 10**8)
    return script


def test_each_outcome_is_counted_and_the_others_go_on(fake):
    campaign = fake.Campaign(["fake"])
    campaign.run(0.15, seed=7)
    of_first = Counter(found.outcome for found in campaign.bad if found.seed == 7)
    assert of_first == {name: count for name, count in EXPECTED.items() if name not in OUTCOMES[:2]}
    assert {found.name for found in campaign.bad if found.outcome == "hang" and found.seed == 7} == {
        "sleeps 7",
        "grows 7",
    }
    assert campaign.counts["fake"]["right"] >= 2 and campaign.counts["fake"]["refused clearly"] >= 1
    table = campaign.table().splitlines()
    assert table[0] == f"| input | cases | {' | '.join(OUTCOMES)} |"
    assert table[2].startswith("| fake |") and table[-1].startswith("| all |")
    assert "`fake:7:wrong 7`: `wrong: four`" in campaign.listing()


def test_a_limit_of_memory_from_outside_is_kept_and_no_batch_ends_unseen(fake, monkeypatch):
    limits, allowed = [], fake.resource.getrlimit
    monkeypatch.setattr(fake.resource, "getrlimit", lambda which: (5 << 30, 5 << 30))
    monkeypatch.setattr(fake.resource, "setrlimit", lambda which, pair: limits.append(pair))
    monkeypatch.setattr(fake, "cases_of", lambda *arguments: iter(()))
    reading, writing = os.pipe()
    fake._work("fake", 1, None, 0, writing)
    os.close(writing)
    assert limits[0][0] <= 5 << 30 and os.read(reading, 99) == b""
    os.close(reading)
    monkeypatch.setattr(fake.resource, "getrlimit", allowed)
    monkeypatch.setattr(fake, "_work", lambda *arguments: None)
    campaign = fake.Campaign(["fake"])
    campaign.run(0.01, seed=7)
    assert "ended before its first case" in campaign.bad[0].detail


def test_a_finding_is_repeated(fake, capsys):
    assert fake.main(["--only", "fake:7:other error 7"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("raw exception: KeyError") and "Traceback" in said.err
    for wrong in ("fake:7:no such case", "fake:x:right", "nothing"):
        with pytest.raises(SystemExit):
            fake.main(["--only", wrong])


@pytest.mark.parametrize("wrong", [[], ["--minutes", "1", "--kills", "2"], ["--minutes", "1", "--kinds", "x"]])
def test_wrong_arguments_are_refused(fake, wrong):
    with pytest.raises(SystemExit):
        fake.main(wrong)


@pytest.mark.parametrize(
    ("error", "named", "outcome"),
    [
        (ValueError("labels: got 7; want 0..4"), ("labels",), "refused clearly"),
        (ValueError("labels: got 7; want 0..4"), ("pixels",), "raw exception"),
        (OSError("pixels"), ("pixels",), "raw exception"),
        (TypeError("labels: got 7; want 0..4"), ("labels",), "raw exception"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid labels byte"), ("labels",), "raw exception"),
        (ValueError("labels: got 7; want 0..4"), (), "refused clearly"),
        (ValueError("the number of dimensions differs"), (), "raw exception"),
    ],
)
def test_only_a_sentence_with_the_name_is_clear(error, named, outcome, tmp_path):
    assert attempt(Case("fake", "a case", lambda: _raise(error), named), tmp_path)[0] == outcome


def test_every_kind_has_a_generator_with_repeatable_cases(script, tmp_path):
    assert {"checkpoints", "commands", "bases", "texts", "markup", "batches"} <= set(script.all_kinds())
    first, again = (
        [case.name for case in islice(script.cases_of("texts", 3, tmp_path / part), 9)] for part in ("one", "two")
    )
    assert first == again and len(set(first)) == 9


# ---- kills


def _writes_some(folder, careless: bool):
    """Two files. Called again, it makes the ones that are missing; `careless`, an unfinished one stays."""
    for name in "ab":
        path = folder / f"{name}.txt"
        if not path.exists():
            part = path if careless else folder / f"{name}.part"
            with open(part, "w") as file:
                file.write("half, ")
                file.flush()
                os.mkdir(folder / "mark")
                file.write("whole")
            os.rename(part, path)
            os.rmdir(folder / "mark")


def test_differences_after_a_kill_are_found(script, tmp_path):
    import kill_campaign

    outcomes = Counter()
    for careless in (True, False):

        def run(careless=careless):
            if (tmp_path / "run" / "mark").exists():
                os.rmdir(tmp_path / "run" / "mark")
            _writes_some(tmp_path / "run", careless)

        command = kill_campaign.Command("fake", tmp_path / "run", run)
        command.clean()
        command.folder.mkdir()
        writes = kill_campaign._run(command)
        expected = command.left()
        for nth in range(1, writes + 1):
            command.clean()
            assert kill_campaign._run(command, nth=nth) == -signal.SIGKILL
            kill_campaign._run(command)
            wrong = kill_campaign.differences(command.left(), expected)
            outcomes[careless, bool(wrong)] += 1
        assert kill_campaign.kill_once(command, random.Random(0), writes, 0, 0.0)
    assert outcomes == {(True, False): 6, (True, True): 2, (False, False): 8}


def test_times_are_left_out_and_nothing_else(script):
    from kill_campaign import comparable, differences

    one, other = b'{"seconds": 1.5, "loss": [1, 2]}', b'{"seconds": 2.5, "loss": [1, 2]}'
    assert comparable("run.json", one) == comparable("run.json", other)
    assert comparable("runs.jsonl", one) == comparable("runs.jsonl", other)
    assert comparable("run.txt", b"took 1.5 s, got 3") == comparable("run.txt", b"took 12 s, got 3")
    found = differences(
        {"run.json": comparable("run.json", one), "new": b""}, {"run.json": {"loss": [1, 3]}, "gone": b""}
    )
    assert found == ["gone is missing", "new is too many", "run.json.loss[1]: 2, not 3"]
