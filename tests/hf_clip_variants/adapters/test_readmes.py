"""The READMEs of the adapters. tests/test_readme.py runs their Python blocks."""

from pathlib import Path

import pytest

import hf_clip_variants


READMES = [
    Path(hf_clip_variants.__file__).parent / "adapters" / row.name / "README.md"
    for row in hf_clip_variants.methods("adapter")
]


SECTIONS = (
    "What it is.",
    "When to use it.",
    "What trains.",
    "Their numbers",
    "Ours",
    "Differences from paper and code.",
    "Official weights",
    "Citation",
)


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_readme_has_all_sections(page):
    text = page.read_text(encoding="utf-8")
    for heading in SECTIONS:
        assert f"**{heading}**" in text, heading
