"""Downloads transformers' own tests once per version, and reports their results.

They are in the source distribution, not in the wheel.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from filelock import FileLock


# Replacements of modules that are not in the source distribution.
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
    """Downloads the source distribution with pip; RuntimeError with pip's last line if that fails."""
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
    """The folder that holds transformers' `tests` package. Skips, with the reason, if it cannot be downloaded."""
    import transformers

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf-clip-variants"
    folder = cache / f"transformers-{transformers.__version__}-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):  # only one of two workers downloads
        if not (folder / "tests" / "test_modeling_common.py").is_file():
            try:
                _fetch(folder, transformers.__version__)
            except (RuntimeError, OSError) as error:
                pytest.skip(
                    f"transformers {transformers.__version__} cannot be downloaded as a source distribution: {error}"
                )
    return folder


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = {value for report in reports for name, value in getattr(report, "user_properties", []) if name == "suite"}
    for line in sorted(lines):
        terminalreporter.write_line(line)
