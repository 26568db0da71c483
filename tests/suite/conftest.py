"""Fetches transformers' own tests (in its source distribution, not in the wheel) once a version, and reports how they
went."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from filelock import FileLock


# Ours, in place of what the source distribution leaves out.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True}\n'
    ),
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}


def _fetch(folder: Path, version: str) -> None:
    """pip's ordinary way to a source distribution; RuntimeError with pip's last line if there is none to be had."""
    from hf_clip_variants.files.atomic_writes import staged_folder

    with staged_folder(folder) as stage:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        command += [
            "--timeout",
            "20",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
            "--dest",
            str(stage),
        ]
        ran = subprocess.run([*command, f"transformers=={version}"], capture_output=True, text=True)
        archives = list(stage.glob("transformers-*.tar.gz"))
        if not archives:
            raise RuntimeError((ran.stderr.strip().splitlines() or ["pip said nothing"])[-1])
        with tarfile.open(archives[0]) as archive:
            inside = [m for m in archive.getmembers() if m.name.split("/")[1:2] == ["tests"]]
            archive.extractall(stage, members=inside, filter="data")
        archives[0].unlink()
        (root,) = stage.iterdir()
        (root / "tests").rename(stage / "tests")
        root.rmdir()
        for name, content in STUBS.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text(content)


@pytest.fixture(scope="session")
def transformers_tests() -> Path:
    """The folder whose `tests` package is transformers'. Skips, with the reason, where it cannot be fetched."""
    import transformers

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf-clip-variants"
    folder = cache / f"transformers-{transformers.__version__}-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):  # of two workers one fetches
        if not (folder / "tests" / "test_modeling_common.py").is_file():
            try:
                _fetch(folder, transformers.__version__)
            except (RuntimeError, OSError) as error:
                pytest.skip(
                    f"transformers {transformers.__version__} has no source distribution within reach: {error}"
                )
    return folder


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = {value for report in reports for name, value in getattr(report, "user_properties", []) if name == "suite"}
    for line in sorted(lines):
        terminalreporter.write_line(line)
