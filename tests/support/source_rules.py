"""Rules of tests/test_house_rules.py on the syntax tree of source files. Functions return offences."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from paths import ROOT


PACKAGE = "hf_clip_variants"

# Functions that run code or unpickle. `conversion/checkpoint_reader.py` reads foreign files without them.
FORBIDDEN_NAMES = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "builtins.eval",
    "builtins.exec",
    "builtins.__import__",
    "os.system",
    "os.popen",
    "pandas.read_pickle",
}
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_ARGUMENTS = {"allow_pickle": True, "shell": True, "weights_only": False}

# From the top down. A folder imports folders of its own line and of the lines below.
LAYERS = (
    ("commands", "cli"),
    ("few_shot", "training", "conversion", "search", "synthesis"),
    ("evaluation", "hub"),
    ("adapters",),
    ("annotations", "data", "metrics", "files", "pipelines", "registration", "registry", "optional_dependencies"),
    ("modeling",),
)
LAYER_OF = {room: len(LAYERS) - i for i, rooms in enumerate(LAYERS) for room in rooms}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# ---- code that is run from files


def aliases_of(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, from the imports."""
    names = {name: f"builtins.{name}" for name in ("eval", "exec", "__import__")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def full_name(node: ast.AST, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        inner = full_name(node.value, aliases)
        return f"{inner}.{node.attr}" if inner else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


def dangerous_lines(tree: ast.AST) -> list[str]:
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


# ---- imports


def broken_imports(path: Path, root: Path) -> list[str]:
    """Imports of a file of `root` (modeling/) that would fail after an export to the Hub."""
    found = []
    depth = len(path.relative_to(root).parts)  # 1 for files directly in modeling/
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            target = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
            if node.level > depth or not (target.with_suffix(".py").exists() or target.is_dir()):
                found.append(f"line {node.lineno}: {'.' * node.level}{node.module or ''}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found += [f"line {node.lineno}: {m}" for m in modules if m.split(".")[0] in (PACKAGE, "modeling")]
            if "__future__" in modules:
                found.append(f"line {node.lineno}: __future__ (transformers reads the annotations)")
    return found


def module_of(path: Path, root: Path = ROOT) -> tuple[str, ...]:
    """Dotted name, split: `modeling/` is installed inside the package."""
    parts = path.relative_to(root).with_suffix("").parts
    return (PACKAGE, *parts) if parts[0] == "modeling" else parts


def own_imports(tree: ast.AST, module: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and dotted name of each import of the package in `module`, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names] if base == (PACKAGE,) else [base]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name[0] == PACKAGE)


def room_of(module: tuple[str, ...]) -> str:
    """The folder whose layer counts. adapters/<method>/few_shot.py counts as few_shot, which uses it."""
    return "few_shot" if module[1] == "adapters" and module[-1] == "few_shot" else module[1]


def upward_imports(paths: Iterable[Path], root: Path = ROOT) -> dict[str, list[str]]:
    """File -> imports of a higher layer or of the root package's public names, and circular imports within a layer.

    The root package itself may import everything, because it imports lazily.
    """
    found, in_layer = defaultdict(list), defaultdict(list)
    for path in paths:
        module = module_of(path, root)
        if module in ((PACKAGE, "__init__"), (PACKAGE, "modeling", "__init__")):
            continue
        room, file = room_of(module), path.relative_to(root).as_posix()
        for line, target in own_imports(parse(path), module):
            to, said = target[1] if len(target) > 1 else "", f"line {line}: {'.'.join(target)}"
            if to == room or to == "__version__":
                continue
            if LAYER_OF.get(to, len(LAYERS) + 1) > LAYER_OF[room]:
                found[file].append(said)
            elif LAYER_OF[to] == LAYER_OF[room]:
                in_layer[room, to].append((file, said))
    for (room, to), places in in_layer.items():
        if room in _reachable(to, in_layer):
            for file, said in places:
                found[file].append(f"{said} (a circle: {to} imports {room})")
    return dict(found)


def _reachable(start: str, edges: Iterable[tuple[str, str]]) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        room = todo.pop()
        seen.add(room)
        todo += [to for at, to in edges if at == room and to not in seen]
    return seen


# ---- methods' names


def method_patterns(rows) -> dict[str, re.Pattern]:
    """Name of a row -> pattern of its names: in lower or upper case, prefix of its classes, title."""
    patterns = {}
    for row in rows:
        prefix = row.config.split(":")[1].removesuffix("Config")
        ways = (
            rf"(?<![a-z0-9]){row.name}(?![a-z0-9])",
            rf"(?<![A-Z0-9]){row.name.upper()}(?![A-Z0-9])",
            *(rf"(?<![A-Za-z]){re.escape(name)}(?![a-z])" for name in (prefix, row.title)),
        )
        patterns[row.name] = re.compile("|".join(ways))
    return patterns


def named_methods(tree: ast.AST, patterns: dict[str, re.Pattern]) -> dict[str, list[int]]:
    """Name of a row -> lines whose code names it (identifiers, imports, strings; not docstrings)."""
    found = defaultdict(set)
    for line, word in _words(tree):
        for name, pattern in patterns.items():
            if pattern.search(word):
                found[name].add(line)
    return {name: sorted(lines) for name, lines in found.items()}


def _words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = list(ast.walk(tree))
    firsts = [node.body[0] for node in nodes if isinstance(node, documented) and node.body]
    docstrings = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
        for field in ("id", "attr", "name", "arg", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0) or node.value.lineno, value


# ---- style


def prints(tree: ast.AST) -> list[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    lines = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    return [f"line {line}: print() (use logging, or the command line's console)" for line in lines]


def own_location(tree: ast.AST) -> list[str]:
    """Lines that derive paths from the file's own location, which break when the file moves."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    here = [call.lineno for call in calls if any(isinstance(a, ast.Name) and a.id == "__file__" for a in call.args)]
    return [f"line {line}: __file__" for line in here]
