"""The plugin that checks the time budgets (tests/support/budgets.py)."""

import subprocess
import sys

import pytest
from budgets import method_patterns


CONFTEST = """
import re
import budgets
budgets.SECONDS_PER_TEST, budgets.SLACK = 0.2, 1.5
budgets.SECONDS_PER_METHOD, budgets.PART_PER_METHOD = 0.4, 0.5
budgets.method_patterns = lambda: {name: re.compile(name) for name in ("coop", "maple")}
def pytest_configure(config):
    config.addinivalue_line("markers", "slow: ...")
    config.pluginmanager.register(budgets.Budgets())
"""
TESTS = """
import time, pytest
def work(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds: pass
def test_quick(): pass
def test_waits(): time.sleep(0.4)
def test_long(): work(0.4)
@pytest.mark.slow
def test_long_and_marked(): work(0.4)
"""


def run(folder, tests: str, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", *arguments]
    return subprocess.run([*command, "--rootdir", str(folder), str(folder)], capture_output=True, text=True)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_long_test_fails_unless_marked_slow_or_waiting(tmp_path, workers):
    done = run(tmp_path, TESTS, "-n", workers)
    assert "1 failed, 3 passed" in done.stdout and "more than 0.2 s, and not marked slow" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("methods", "workers", "fails"),
    [
        ("coop,maple", "0", True),
        ("coop,maple", "1", True),
        ("coop,maple,other", "0", False),  # all tests take longer, as on a slow machine
        ("coop", "0", False),  # not the tests of all methods
        ("maple,coop 2", "0", False),  # more than half of the time, but less than 0.4 s
    ],
)
def test_method_over_its_budget_fails_the_run(tmp_path, methods, workers, fails):
    work = TESTS.partition("def test_quick")[0]
    long = f"@pytest.mark.slow\n@pytest.mark.parametrize('x', {methods.split(',')})\n"
    long += 'def test_it(x): work({"coop": 0.9, "other": 2}.get(x, 0.1))\n'
    done = run(tmp_path, work + long, "-n", workers)
    assert f"{methods.count(',') + 1} passed" in done.stdout and done.returncode == fails, done.stdout
    assert ("FAILED coop: more than 0.4 s and 50% of all tests" in done.stdout) == fails


def test_methods_are_found_in_test_ids():
    patterns = method_patterns()

    def method_of(nodeid):
        return next((name for name, pattern in patterns.items() if pattern.search(nodeid)), None)

    found = {
        "tests/modeling/slip/test_slip_ranks.py::test_it[simclr]": "slip",
        "test_contract.py::TestContract::test_it[clip_adapter_on_clip]": "clip_adapter",
        "test_converters.py::TestCoCoOp::test_it": "cocoop",
        "tests/parity/test_coop.py::test_it": "coop",
        "tests/test_cli.py::test_it": None,
    }
    assert {nodeid: method_of(nodeid) for nodeid in found} == found
