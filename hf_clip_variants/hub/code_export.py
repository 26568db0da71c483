"""The code that a model needs, as flat files, which `hub.export_with_code` saves with the weights."""

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path


TRAVELS = "hf_clip_variants.modeling"
_FROM = re.compile(rb"from(?:\s|\\\n)*((?:\.(?:\s|\\\n)*)+[\w.]*)(?:\s|\\\n)+import\b")
# How transformers finds the files to copy when the folder is loaded or saved again.
_SEEN_BY_TRANSFORMERS = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


def _source_file(module: str) -> Path | None:
    """The file of a module; None for a package, or if there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
        return None
    return Path(spec.origin)


def _travelling_imports(source: bytes, module: str) -> list[tuple[ast.ImportFrom, str]]:
    """Every import of a module of `modeling/`, with the full name of that module.

    ValueError for imports that cannot be exported.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            absolute = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            absolute = [node.module]
        else:
            absolute = []
        for name in absolute:
            if name.split(".")[0] in ("hf_clip_variants", "modeling"):
                raise ValueError(
                    f"{module}, line {node.lineno}: `{name}` is not exported under this name, import it relatively"
                )
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        package = module.rpartition(".")[0]
        target = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        if not target.startswith(TRAVELS + "."):
            raise ValueError(f"{module}, line {node.lineno}: `{target}` is outside of {TRAVELS} and cannot travel")
        if _source_file(target) is None:
            names = ", ".join(alias.name for alias in node.names)
            raise ValueError(
                f"{module}, line {node.lineno}: `{target}` is not a module with a file of its own; write "
                f"`from {'.' * node.level}{node.module or ''}<module> import ...` instead of importing {names} from a "
                "package"
            )
        found.append((node, target))
    return found


def _flattened(source: bytes, imports: list[tuple[ast.ImportFrom, str]]) -> bytes:
    """The source with `from .module import` instead of `from ..package.module import`; nothing else changes."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    for node, target in sorted(imports, key=lambda found: (found[0].lineno, found[0].col_offset), reverse=True):
        start = starts[node.lineno - 1] + node.col_offset
        match = _FROM.match(source, start)
        if match is None:
            raise ValueError(f"line {node.lineno}: an import in a form that cannot be rewritten")
        # Replaced as a whole: transformers' search wants `from`, module and `import` on one line.
        source = source[:start] + b"from ." + target.rpartition(".")[2].encode() + b" import" + source[match.end() :]
    return source


def travelling_code(
    modules: Iterable[str], version: str, by_name: Mapping[str, Iterable[str]] | None = None
) -> dict[str, bytes]:
    """File name -> source of the given modules of `modeling/` and of all that they import there, for one flat folder.

    Args:
        modules: full names, `hf_clip_variants.modeling.clip_classifier.modeling_clip_classifier`.
        version: of this package, for the note on top of each file.
        by_name: module -> modules that it finds by name instead of importing them, such as the family of a
            classifier's backbone. They are exported, too. An import of each is added at the end of the module's file,
            because transformers copies only files that it sees imported.

    Raises:
        ValueError: two modules have the same file name; an import that cannot travel; a docstring that transformers
            would take for an import.
    """
    files: dict[str, bytes] = {}
    origin: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = _source_file(module)
        if path is None or not module.startswith(TRAVELS + "."):
            raise ValueError(f"{module}: not a module of {TRAVELS}, its code cannot be exported")
        if origin.get(path.name) == module:
            continue
        if path.name in origin:
            raise ValueError(
                f"{path.name}: {origin[path.name]} and {module} would be the same file, rename one of them"
            )
        origin[path.name] = module
        source = path.read_bytes()
        imports = _travelling_imports(source, module)
        text = _flattened(source, imports)
        meant = {target.rpartition(".")[2] for _, target in imports}
        seen = {a or b for a, b in _SEEN_BY_TRANSFORMERS.findall(text.decode())}
        if seen - meant:
            raise ValueError(
                f"{module}: a line of text reads like an import of {', '.join(sorted(seen - meant))}, "
                "and transformers would look for it"
            )
        if meant - seen:
            raise ValueError(
                f"{module}: the import of {', '.join(sorted(meant - seen))} must start a line, transformers does not "
                "see it otherwise"
            )
        for name in sorted({*(by_name or {}).get(module, ())} - {target for _, target in imports}):
            text += f"\nfrom .{name.rpartition('.')[2]} import *  # noqa: E402, F403 (found by name)\n".encode()
            waiting.append(name)
        note = f"# {module} of hf-clip-variants {version}, Apache-2.0; imports made flat, otherwise unchanged.\n"
        files[path.name] = note.encode() + text
        waiting += [target for _, target in imports]
    return dict(sorted(files.items()))
