"""Rules about the source itself (CONTRIBUTING.md), checked on the syntax tree so that comments and strings do not matter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT


TRAVELLING = sorted((ROOT / "modeling").rglob("*.py"))
LIBRARY = sorted((ROOT / "hf_clip_variants").rglob("*.py")) + TRAVELLING
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
MAX_LINES = 700

# What runs code or unpickles. `hf_clip_variants/conversion/checkpoint_reader.py` is the only door for foreign files, and needs none of these either.
FORBIDDEN_NAMES = {
    "torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "builtins.eval", "builtins.exec", "builtins.__import__", "os.system", "os.popen", "pandas.read_pickle",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_ARGUMENTS = {"allow_pickle": True, "shell": True, "weights_only": False}
FORBIDDEN_FILES = {"utils.py", "helpers.py", "misc.py", "base.py", "common_utils.py", "util.py", "helper.py"}


def aliases_of(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, from the imports."""
    names = {name: f"builtins.{name}" for name in ("eval", "exec", "__import__")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def full_name(node: ast.AST, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        inner = full_name(node.value, aliases)
        return f"{inner}.{node.attr}" if inner else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


def dangerous_lines(source: str) -> list[str]:
    tree = ast.parse(source)
    aliases, found = aliases_of(tree), []
    for node in ast.walk(tree):
        name = full_name(node, aliases)
        if name in FORBIDDEN_NAMES or name.split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"line {node.lineno}: {name}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {node.lineno}: import {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            if node.arg in FORBIDDEN_ARGUMENTS and node.value.value is FORBIDDEN_ARGUMENTS[node.arg]:
                found.append(f"line {node.value.lineno}: {node.arg}={node.value.value}")
    return found


def broken_imports(path: Path, root: Path) -> list[str]:
    """Imports of a travelling file that would not survive its journey to the Hub."""
    found = []
    depth = len(path.relative_to(root).parts)  # 1 directly in modeling/
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            target = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
            if node.level > depth or not (target.with_suffix(".py").exists() or target.is_dir()):
                found.append(f"line {node.lineno}: {'.' * node.level}{node.module or ''}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found += [
                f"line {node.lineno}: {m}" for m in modules if m.split(".")[0] in ("hf_clip_variants", "modeling")
            ]
    return found


def test_there_is_something_to_check():
    assert {"checkpoint_reader.py", "convert_clip.py"} <= {path.name for path in LIBRARY}


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=True)",
        "from torch import load\nload(path)",
        "from torch import jit\njit.load(path)",
        "import functools, torch\nf = functools.partial(torch.load, map_location='cpu')",
        "import pickle",
        "from pickle import loads as parse",
        "import joblib.numpy_pickle",
        "def f():\n    import yaml\n    return yaml.load(text)",
        "eval('1')",
        "run = exec",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(command, shell=True)",
        "from os import system",
    ],
)
def test_the_check_sees(code):
    if code == "from os import system":
        code += "\nsystem('ls')"
    assert dangerous_lines(code)


@pytest.mark.parametrize(
    "code", ["model.eval()", "import numpy\nnumpy.load(path)", "'torch.load(path)'", "import json\njson.load(file)"]
)
def test_the_check_lets_pass(code):
    assert not dangerous_lines(code)


@pytest.mark.parametrize("path", LIBRARY + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_files(path):
    assert not dangerous_lines(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: str(path.relative_to(ROOT)))
def test_modeling_can_travel(path):
    """Third-party packages and relative siblings only; real annotations (transformers' strict configurations read them)."""
    assert not broken_imports(path, ROOT / "modeling")
    futures = [
        n
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.ImportFrom) and n.module == "__future__"
    ]
    assert not futures


def test_import_check_sees(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "prompts.py").touch()
    path = tmp_path / "clip" / "modeling_x.py"
    path.write_text(
        "from ..prompts import a\nfrom . import b\nimport torch\n"  # fine
        "from ...outside import c\nfrom .absent import d\nimport hf_clip_variants.hub.export\nfrom modeling.clip import e\n"
    )
    assert [line.split(":")[0] for line in broken_imports(path, tmp_path)] == ["line 4", "line 5", "line 6", "line 7"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_silent(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") < MAX_LINES
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    prints = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not prints, f"print() in lines {prints}: use logging, or the command line's console"


def test_file_names_say_what_is_inside():
    python = LIBRARY + SCRIPTS + sorted((ROOT / "tests").rglob("*.py"))
    assert not [str(path.relative_to(ROOT)) for path in python if path.name in FORBIDDEN_FILES]


def run(code: str) -> subprocess.CompletedProcess:
    """In a fresh process whose working directory, and so its import path, is the repository root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_one_set_of_modeling_classes():
    done = run(
        "import sys, hf_clip_variants.modeling; print(sorted(m for m in sys.modules if m.split('.')[0] == 'modeling'))"
    )
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
    done = run("import modeling")
    assert done.returncode == 1 and "ImportError" in done.stderr and "hf_clip_variants.modeling" in done.stderr
