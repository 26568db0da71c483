"""Time budgets: 20 s per test unless it is marked `slow`; per method a minute, or 3 % of the time of all tests if that
is more: the same tests take twice as long on a busy machine. A pytest plugin, see `tests/conftest.py`.

Measured is the smaller of wall time and processor time, with child processes: other programs on a busy machine
increase the first, and processes that a test starts in parallel add up in the second.
"""

import re
import resource
import time
from collections import defaultdict

import pytest
from processes import server_seconds

from hf_clip_variants.registry import methods


SECONDS_PER_TEST, SECONDS_PER_METHOD, PART_PER_METHOD = 20, 60, 0.03
SLACK = 3  # processors differ, and shared ones are slower


def clock() -> tuple[float, float]:
    """Wall time, and processor time of this process and its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages) + server_seconds()


def since(start: tuple[float, float]) -> float:
    return min(now - then for now, then in zip(clock(), start, strict=True))


def method_patterns() -> dict[str, re.Pattern]:
    """Name of a row -> pattern of its tests' ids: the name, or the prefix of its classes. Longest names first."""
    found = {}
    for row in sorted(methods(), key=lambda row: -len(row.name)):
        prefix = row.config.split(":")[1].removesuffix("Config")
        found[row.name] = re.compile(rf"(?<![a-z0-9]){row.name}(?![a-z0-9])|{prefix}(?![a-z])")
    return found


class Budgets:
    def __init__(self):
        self.patterns, self.of_methods, self.all, self.long = method_patterns(), defaultdict(float), 0.0, []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        item.user_properties.append(["seconds", 0.0])
        return (yield)

    def _phase(self, item):
        start = clock()
        try:
            return (yield)
        finally:
            item.user_properties[0][1] += since(start)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item):
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        start = clock()
        result = yield from self._phase(item)
        if since(start) > SECONDS_PER_TEST * SLACK and not item.get_closest_marker("slow"):
            pytest.fail(f"{since(start):.0f} s: more than {SECONDS_PER_TEST} s, and not marked slow", pytrace=False)
        return result

    def pytest_runtest_logreport(self, report):
        """Runs in the process that starts the workers, or in the only one."""
        seconds = dict(report.user_properties).get("seconds")
        if report.when != "teardown" or seconds is None:
            return
        self.all += seconds
        method = next((name for name, pattern in self.patterns.items() if pattern.search(report.nodeid)), None)
        if method:
            self.of_methods[method] += seconds
        if seconds > SECONDS_PER_TEST:
            self.long.append((seconds, report.nodeid))

    def whole_run(self) -> bool:
        return len(self.of_methods) == len(self.patterns)

    def too_long(self) -> list[str]:
        """Methods over their budget, if the tests of all methods ran."""
        limit = max(SECONDS_PER_METHOD, PART_PER_METHOD * self.all) if self.whole_run() else float("inf")
        return [name for name, seconds in self.of_methods.items() if seconds > limit]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput") and self.too_long() and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if not self.whole_run():
            return
        spent = sorted(self.of_methods.items(), key=lambda pair: -pair[1])
        terminalreporter.write_line(
            f"seconds of all tests: {self.all:.0f}; per method: "
            + ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent)
        )
        for seconds, nodeid in sorted(self.long, reverse=True):
            terminalreporter.write_line(f"{seconds:.0f} s: {nodeid}")
        for name in self.too_long():
            terminalreporter.write_line(
                f"FAILED {name}: more than {SECONDS_PER_METHOD} s and {PART_PER_METHOD:.0%} of all tests", red=True
            )
