"""The README of each method. That its Python runs is tested with all READMEs, in tests/test_readme.py."""

from pathlib import Path

import pytest

import hf_clip_variants


READMES = [
    Path(hf_clip_variants.__file__).parent / "adapters" / row.name / "README.md"
    for row in hf_clip_variants.methods("adapter")
]


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_every_readme_says_what_a_reader_looks_for(page):
    text = page.read_text(encoding="utf-8")
    for heading in (
        "What it is.", "When to use it.", "What trains.", "Their numbers", "Ours", "Differences from paper and code.", "Official weights", "Citation",
    ):  # fmt: skip
        assert f"**{heading}**" in text, heading
