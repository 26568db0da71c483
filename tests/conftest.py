"""Settings of the whole test session.

Shared test code is in `tests/support` and is imported by its plain name (`pythonpath` in pyproject.toml).
"""

import gc
import os
import sys

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


def pytest_collection_finish(session):
    # Trainer collects garbage at the end of each training. Two thirds of a short one's time went into visiting what
    # the libraries made when they were imported.
    gc.collect()
    gc.freeze()
    if "datasets" in sys.modules:  # it sleeps 5 s each time that a stream of several shards ends
        sys.modules["datasets"].config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
