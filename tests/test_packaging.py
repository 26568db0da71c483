"""Contents of the wheel and the sdist; an installed wheel works outside the repository."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

import hf_clip_variants


SOURCE_FOLDERS = ("hf_clip_variants", "modeling", "scripts", "tests")
NOT_SOURCE = (".*", "__pycache__", "*.py[cod]")
RUN_FOLDERS = ("clip-demo", "run", "runs")  # folders that the README's commands write into a checkout


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(copy of the sources, sdist, wheel made from the sdist), built offline with the installed setuptools."""
    source = tmp_path_factory.mktemp("build") / "source"
    for name in SOURCE_FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    for name in RUN_FOLDERS:
        (source / name / "adapters").mkdir(parents=True)
        (source / name / "adapters" / "adapter_model.safetensors").write_bytes(b"not source")
        (source / name / "results.json").write_text("{}")
    out = source.parent / "out"
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PIP_NO_INDEX": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr, "setuptools warns"
    for leftover in ("build", "hf_clip_variants.egg-info", *RUN_FOLDERS):
        shutil.rmtree(source / leftover, ignore_errors=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, sdist, wheel


@pytest.mark.slow
def test_wheel_holds_the_library_only(built):
    source, _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        about = archive.read(metadata).decode()
    expected = {f"hf_clip_variants/{name}" for name in files(source / "hf_clip_variants")}
    expected |= {f"hf_clip_variants/modeling/{name}" for name in files(source / "modeling")}
    assert names == expected
    assert {"hf_clip_variants/py.typed", "hf_clip_variants/assets/emoji-clip-tiny/model.safetensors"} <= names
    assert f"Version: {hf_clip_variants.__version__}\n" in about and "License-Expression: Apache-2.0\n" in about


@pytest.mark.slow
def test_sdist_holds_sources_tests_and_scripts(built):
    source, sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = {name for name in files(source) if name not in names}
    assert missing == set()
    assert not {name.partition("/")[0] for name in names} & set(RUN_FOLDERS), "runs stay at home"
    assert {"tests/conftest.py", "pyproject.toml", "LICENSE", "modeling/__init__.py"} <= names
    assert any(name.startswith("scripts/") for name in names)


@pytest.mark.slow
def test_installed_wheel_works_outside_the_repository(built, tmp_path):
    _, _, wheel = built
    target = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    program = """
import json, sys
import hf_clip_variants
from hf_clip_variants.cli import main
from pathlib import Path
from transformers import AutoModelForZeroShotImageClassification
here = Path(hf_clip_variants.__file__).parent
model = hf_clip_variants.CLIPClassifier.from_pretrained(here / "assets" / "emoji-clip-tiny")
print(json.dumps({
    "folder": str(here.parent),
    "modeling": sys.modules[type(model).__module__].__file__,
    "auto": AutoModelForZeroShotImageClassification._model_mapping[type(model.config)].__name__,
    "second copy": "modeling" in sys.modules,
}))
main(["methods", "--json"])
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    run = {"capture_output": True, "text": True, "timeout": 250, "cwd": tmp_path, "env": environment, "check": True}
    seen, rows = map(json.loads, subprocess.run([sys.executable, "-c", program], **run).stdout.splitlines()[-2:])
    assert seen["folder"] == str(target) and seen["modeling"].startswith(str(target / "hf_clip_variants" / "modeling"))
    assert seen["auto"] == "CLIPClassifier" and seen["second copy"] is False
    assert [row["name"] for row in rows] == [row.name for row in hf_clip_variants.methods()]


def test_tests_run_on_the_editable_install():
    modeling = importlib.import_module("hf_clip_variants.modeling")
    assert Path(modeling.__file__) == ROOT / "modeling" / "__init__.py"
    assert Path(hf_clip_variants.__file__).parent == ROOT / "hf_clip_variants"


def test_installed_versions_satisfy_the_requirements():
    """So the suite has run within every bound of pyproject.toml."""
    from importlib.metadata import version

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [
        *project["dependencies"],
        *project["optional-dependencies"]["text"],
        *project["optional-dependencies"]["test"],
    ]
    for requirement in map(Requirement, listed):
        assert requirement.specifier.contains(version(requirement.name), prereleases=True), requirement
