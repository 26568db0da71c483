"""Rules about the source code, from CONTRIBUTING.md. Each test lists all offenders.

tests/support/source_rules.py finds them.
"""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
from paths import FIXTURES, ROOT, SUPPORT, TESTS
from source_rules import (
    LAYER_OF,
    broken_imports,
    dangerous_lines,
    method_patterns,
    named_methods,
    own_location,
    parse,
    prints,
    upward_imports,
)

from hf_clip_variants.registry import methods


MODELING, PACKAGE = ROOT / "modeling", ROOT / "hf_clip_variants"
TRAVELLING = sorted(MODELING.rglob("*.py"))
LIBRARY = sorted(PACKAGE.rglob("*.py")) + TRAVELLING
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
TEST_FILES = sorted(TESTS.rglob("*.py"))

MAX_LINES = 700
FORBIDDEN_FILES = {"utils.py", "helpers.py", "misc.py", "base.py", "common_utils.py", "util.py", "helper.py"}
# Files that may be directly in a root; every other file is in a listed folder.
LOOSE_FILES = {
    PACKAGE: {"__init__.py", "cli.py", "optional_dependencies.py", "py.typed", "__init__.pyi"},
    MODELING: {"__init__.py"},
}
ROOMS = {
    PACKAGE: {room for room in LAYER_OF if room not in ("cli", "optional_dependencies", "modeling")} | {"assets"},
    MODELING: {"dense", "detection", "dual_encoders", "losses", "decoding", "loading_and_saving", "points", "video"}
    | {"posts", "questions", "strokes", "synthesis"}
    | {row.name for row in methods("model")}
    | {"clip", "chinese_clip"},  # converters to transformers' own classes
}

# Adapters are built on the classifier: it may be named everywhere.
PATTERNS = method_patterns(row for row in methods() if row.name != "clip_classifier")
# File or folder of a method -> other methods that it may name, and why.
BUILDS_ON = {
    "modeling/audioclip/": ({"clip_resnet"}, "AudioCLIP is a CLIP-ResNet with a third encoder"),
    "modeling/depthclip/": ({"clip_resnet"}, "its image encoder is a CLIP-ResNet, as in the paper"),
    "modeling/clip_vil/": ({"clip_resnet"}, "its image encoder may be a CLIP-ResNet"),
    "modeling/glipv2/": ({"glip"}, "GLIPv2 is a GLIP with more losses and heads"),
    "modeling/dual_encoders/template_sets.py": ({"actionclip"}, "its sixteen prompts are a named set of templates"),
    "modeling/slip/": ({"clip_resnet"}, "its image encoder may be a CLIP-ResNet"),
    "hf_clip_variants/adapters/maple/": ({"vpt"}, "`vpt_deep` is a way to place prompts"),
    "hf_clip_variants/adapters/ivlp/": (
        {"maple", "vpt"},
        "same repository: placed like MaPLe's prompts, stored like VPT's",
    ),
    "hf_clip_variants/adapters/vpt/": (
        {"ivlp"},
        "same repository: an IVLP checkpoint given to VPT's converter is named",
    ),
    "hf_clip_variants/adapters/prompts/text_prompts.py": (
        {"maple", "vpt"},
        "the two ways to place prompts are named after them",
    ),
    "hf_clip_variants/data/few_shot_sampling.py": (
        {"coop"},
        "the rule that picks the shots is an argument: 'coop' or 'tip'",
    ),
    "hf_clip_variants/adapters/clip_adapter/": ({"coop"}, "its authors train with CoOp's trainer"),
    "hf_clip_variants/adapters/cocoop/": ({"coop"}, "same authors and trainer"),
    "hf_clip_variants/adapters/inter_view_adapter/": ({"coop"}, "its authors train with CoOp's trainer"),
    "hf_clip_variants/adapters/linear_head/": ({"coop"}, "the name of a rule that picks shots"),
    "hf_clip_variants/adapters/prompts/few_shot.py": ({"coop"}, "MaPLe's repository is based on CoOp's"),
    "hf_clip_variants/adapters/prompts/official_layouts.py": ({"vpt"}, "names of tensors in files of several methods"),
    "hf_clip_variants/few_shot/recipes.py": ({"coop"}, "the name of a schedule and of a rule that picks shots"),
    "hf_clip_variants/few_shot/fitting.py": ({"coop"}, "the name of an augmentation"),
    "hf_clip_variants/training/lr_schedules.py": ({"slip"}, "the name of a schedule"),
    "hf_clip_variants/training/pretraining_data.py": ({"slip"}, "the name of an augmentation"),
    "hf_clip_variants/commands/arguments.py": ({"coop"}, "the name of a folder layout"),
    "hf_clip_variants/data/images/labelled_sets.py": ({"coop"}, "the name of a folder layout"),
    "modeling/dual_encoders/prompts.py": ({"slip"}, "its truncation of texts is an argument"),
    "modeling/loading_and_saving/checkpoint_format.py": ({"vpt"}, "names of tensors in files of several methods"),
    "hf_clip_variants/data/augmentation/views.py": ({"coop"}, "the name of an augmentation"),
    "hf_clip_variants/data/augmentation/batches.py": ({"slip"}, "the name of an augmentation"),
    "hf_clip_variants/data/images/coop_layout.py": ({"coop"}, "the name of a folder layout"),
    "hf_clip_variants/data/images/sources.py": ({"coop"}, "the name of a folder layout"),
    "hf_clip_variants/few_shot/protocols.py": ({"coop"}, "the name of a folder layout"),
    "hf_clip_variants/commands/draw.py": ({"clipdraw"}, "its command"),
    "hf_clip_variants/commands/paint.py": ({"vqgan_clip"}, "its command"),
    "hf_clip_variants/synthesis/painting_results.py": ({"vqgan_clip"}, "what its command loads and writes"),
    "hf_clip_variants/commands/sketch.py": ({"clipasso"}, "its command"),
    "modeling/clip/": ({"clip_resnet"}, "its converter names a CLIP-ResNet"),
    "modeling/chinese_clip/": ({"clip_resnet"}, "a CLIP-ResNet given to this converter is named"),
    "modeling/losses/contrastive_loss.py": ({"slip"}, "its gradient over ranks is an argument"),
}


def name_of(path) -> str:
    return path.relative_to(ROOT).as_posix()


def assert_none(offenders: dict[str, list]) -> None:
    """`offenders`: file -> what is wrong with it."""
    lines = [f"{file}: {offence}" for file, offences in offenders.items() for offence in offences]
    assert not lines, "\n" + "\n".join(lines)


# ---- the rules


def test_no_code_is_run_from_files():
    assert {"checkpoint_reader.py", "convert_clip.py"} <= {path.name for path in LIBRARY}
    assert_none({name_of(path): dangerous_lines(parse(path)) for path in LIBRARY + SCRIPTS})


def test_modeling_imports_third_party_and_relative_modules_only():
    """Annotations must be real, not strings: transformers' strict configurations read them."""
    assert_none({name_of(path): broken_imports(path, MODELING) for path in TRAVELLING})


def test_no_line_of_modeling_imports_the_package():
    """Not in an example either: readers copy those, and the code travels to where the package is not."""
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(MODELING.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.match(r"\s*import hf_clip_variants", line)
    ]
    assert not lines, lines


def test_files_are_short_silent_and_well_named():
    offenders = {}
    for path in LIBRARY + SCRIPTS + TEST_FILES:
        lines = path.read_text(encoding="utf-8").count("\n")
        found = [f"{lines} lines, fewer than {MAX_LINES} are allowed"] if lines >= MAX_LINES else []
        found += ["the name does not describe the content"] if path.name in FORBIDDEN_FILES else []
        offenders[name_of(path)] = found + (prints(parse(path)) if path in LIBRARY else [])
    assert_none(offenders)


def test_every_file_is_in_a_listed_folder():
    """In `hf_clip_variants/` and `modeling/`; a new room is added to `ROOMS`, and to `LAYERS` in source_rules.py."""
    for root, allowed in LOOSE_FILES.items():
        entries = [path for path in root.iterdir() if path.name != "__pycache__"]
        assert {path.name for path in entries if path.is_file()} <= allowed
        assert {path.name for path in entries if path.is_dir()} <= ROOMS[root] | {row.name for row in methods()}


def test_imports_go_one_way():
    assert_none(upward_imports(LIBRARY))


def test_methods_are_named_only_in_their_folder_and_row():
    folders = {
        row.name: f"{'modeling' if row.kind == 'model' else 'hf_clip_variants/adapters'}/{row.name}/"
        for row in methods()
    }
    offenders, needed = {}, {place: set() for place in BUILDS_ON}
    for path in LIBRARY:
        file = name_of(path)
        found = {} if file.startswith("hf_clip_variants/registry/") else named_methods(parse(path), PATTERNS)
        for method, lines in found.items():
            if file.startswith(folders[method]):
                continue
            place = next(
                (place for place in needed if file == place or file.startswith(place.rstrip("/") + "/")), file
            )
            if place in BUILDS_ON and method in BUILDS_ON[place][0]:
                needed[place].add(method)
            else:
                offenders.setdefault(file, []).append(f"names {method} in lines {', '.join(map(str, lines))}")
    assert_none(offenders)
    for place, methods_there in needed.items():
        spare = BUILDS_ON[place][0] - methods_there
        assert not spare, f"{place}: remove {sorted(spare)} from the table"


def test_tests_take_file_locations_from_paths():
    assert_none({name_of(path): own_location(parse(path)) for path in TEST_FILES if path != SUPPORT / "paths.py"})


def test_parity_fixtures_are_complete_and_all_used():
    """One file per method or part of a method; variants are parameters of its tests (`fixtures_like`)."""
    calls = [
        node
        for path in (TESTS / "parity").glob("*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
    ]
    calls = [
        call for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("fixtures_like", "load_fixture")
    ]
    patterns = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    names = [path.parent.name for path in FIXTURES.glob("*/meta.json")]
    assert not [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]


# ---- the rules find what they should find


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
        "from os import system\nsystem('ls')",
    ],
)
def test_dangerous_lines_are_found(code):
    assert dangerous_lines(ast.parse(code))


def test_harmless_lines_pass():
    for code in (
        "model.eval()",
        "import numpy\nnumpy.load(path)",
        "'torch.load(path)'",
        "import json\njson.load(file)",
    ):
        assert not dangerous_lines(ast.parse(code))


def test_broken_imports_are_found(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "prompts.py").touch()
    path = tmp_path / "clip" / "modeling_x.py"
    path.write_text(
        "from ..prompts import a\nfrom . import b\nimport torch\n"  # fine
        "from ...outside import c\nfrom .absent import d\nimport hf_clip_variants.hub.export\n"
        "from modeling.clip import e\n"
        "from __future__ import annotations\n"
    )
    assert [line.split(":")[0] for line in broken_imports(path, tmp_path)] == [f"line {i}" for i in range(4, 9)]


def test_upward_and_circular_imports_are_found(tmp_path):
    sources = {
        "hf_clip_variants/__init__.py": "from .commands.adapt import adapt\n",
        "hf_clip_variants/adapters/loading.py": "from ..modeling.losses import a\nfrom .coop import b\n"
        "def f():\n    from ..few_shot.fitting import c\n    from hf_clip_variants import load_images, __version__\n",
        "hf_clip_variants/data/images.py": "import hf_clip_variants.files.atomic_writes\n"
        "import hf_clip_variants.hub\n",
        "hf_clip_variants/files/atomic_writes.py": "from .. import metrics\n",
        "hf_clip_variants/metrics/rank.py": "from ..data.images import d\nimport hf_clip_variants\n",
        "hf_clip_variants/evaluation/probes.py": "from ..hub import e\n",
        "modeling/clip/convert_clip.py": "from ..losses import f\nfrom ...files import g\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    found = upward_imports(sorted(tmp_path.rglob("*.py")), tmp_path)
    assert {
        file.removeprefix("hf_clip_variants/"): [offence.split(":")[0] for offence in offences]
        for file, offences in found.items()
    } == {
        "adapters/loading.py": ["line 4", "line 5"],
        "data/images.py": ["line 2", "line 1"],  # 1, 1 and 1: data, files, metrics, data
        "files/atomic_writes.py": ["line 1"],
        "metrics/rank.py": ["line 2", "line 1"],
        "modeling/clip/convert_clip.py": ["line 2"],
    }


def test_method_names_are_found():
    lines = ('"""CoOp, MaPLe."""', "from .coop.config import X", "f(cocoop=1)", "TipAdapterConfig", "x.slip_views")
    lines += ('"CLIPV_VPT and clip_adapters"', "clip", '"SLIP"', "slipper, coops, CoOperate")
    assert named_methods(ast.parse("\n".join(lines)), PATTERNS) == {
        "coop": [2],
        "cocoop": [3],
        "tip_adapter": [4],
        "slip": [5, 8],
        "vpt": [6],
    }


def test_own_locations_and_prints_are_found():
    source = "import os\nROOT = Path(__file__).parents[2]\nos.path.dirname(__file__)\n"
    tree = ast.parse(source + "assert caught == __file__\nPath(x.__file__)\nprint(1)")
    assert sorted(own_location(tree)) == ["line 2: __file__", "line 3: __file__"]
    assert [line[:6] for line in prints(tree)] == ["line 6"]


# ---- `modeling` is imported under one name


def run(code: str) -> subprocess.CompletedProcess:
    """In a new process whose working directory, and so its import path, is the repository root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_modeling_is_imported_under_one_name():
    done = run(
        "import sys, hf_clip_variants.modeling; print(sorted(m for m in sys.modules if m.split('.')[0] == 'modeling'))"
    )
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
    done = run("import modeling")
    assert done.returncode == 1 and "ImportError" in done.stderr and "hf_clip_variants.modeling" in done.stderr
