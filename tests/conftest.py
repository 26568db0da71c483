"""Shared test code (`tiny`, `parity_fixtures`, `fake_hub`, …) is imported by name."""

import os
import sys
from pathlib import Path

# The package first: tests/hf_clip_variants and tests/modeling mirror the tree and must not shadow it as namespace packages.
import hf_clip_variants  # noqa: F401


# Before anything imports torch: pytest runs one worker a core, and threads of all of them would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent))
