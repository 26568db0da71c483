"""Folders of the repository that tests use."""

from pathlib import Path


TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
FIXTURES = TESTS / "fixtures"
MANIFESTS = FIXTURES / "official_manifests"
PROGRAMS = TESTS / "programs"
SCRIPTS = ROOT / "scripts"
