"""Settings of the whole test session.

Shared test code is in `tests/support` and is imported by its plain name (`pythonpath` in pyproject.toml).
"""

import os

from budgets import Budgets
from paths import SUPPORT

# The package first: tests/hf_clip_variants and tests/modeling mirror the tree and must not shadow it as namespace
# packages.
import hf_clip_variants  # noqa: F401


# Before torch is imported: pytest runs one worker per core, and more threads would compete for the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For programs that tests start as separate processes.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))


def pytest_configure(config):
    config.pluginmanager.register(Budgets(), "budgets")
