"""The Python in each method's README runs, and prints what it shows."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import blocks, same_output

import hf_clip_variants


READMES = [
    Path(hf_clip_variants.__file__).parent / "adapters" / row.name / "README.md"
    for row in hf_clip_variants.methods("adapter")
]


@pytest.mark.slow
def test_python_blocks_run_and_print_what_they_show(tmp_path):
    found = [block for page in READMES for block in blocks(page.read_text(encoding="utf-8"))]
    assert len(found) >= len(READMES)
    mark = "--- next block ---"
    program = f"\nprint({mark!r})\n".join(block["code"] for block in found)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    for block, printed in zip(found, done.stdout.split(f"{mark}\n"), strict=True):
        assert block["output"] is None or same_output(printed, block["output"]), (
            f"{block['code']}\nprinted:\n{printed}"
        )


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_every_readme_says_what_a_reader_looks_for(page):
    text = page.read_text(encoding="utf-8")
    for heading in (
        "What it is.", "When to use it.", "What trains.", "Their numbers", "Ours", "Differences from paper and code.", "Official weights", "Citation",
    ):  # fmt: skip
        assert f"**{heading}**" in text, heading
