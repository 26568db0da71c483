"""What `export_with_code` does to source files."""

import re
import sys

import pytest

from hf_clip_variants.hub import code_export
from hf_clip_variants.hub.code_export import TRAVELS, travelling_code


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes modules below `modeling/` of a toy package, `{"clip.text": source}`, and exports from the given ones."""

    def export(sources: dict[str, str], start: str) -> dict[str, str]:
        files = {}
        for name, source in sources.items():
            files[f"{TRAVELS}.{name}"] = path = tmp_path / name / f"{name.rpartition('.')[2]}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.encode())
        monkeypatch.setattr(code_export, "_source_file", files.get)
        code = travelling_code([f"{TRAVELS}.{start}"], "1.2.3")
        bodies = {name: source.decode().partition("\n")[2] for name, source in code.items()}
        for source in bodies.values():
            compile(source, "exported", "exec")
        return bodies

    return export


def test_imports_of_every_form_become_flat_and_the_rest_stays(modules):
    source = '''"""Ünïcode, and a word about `from ..clip.text import x` in the middle."""
from ..clip.text import (
    tokenize,  # why
    clean as tidy,
)
from \\
    .. \\
    clip.text import tokenize as again
from.sibling import a
from ..top import b; NONE = None
NAME = "from ..clip.text import nothing"


def later():
\tfrom ..clip.text import tokenize
\treturn tokenize("é"), a, b
'''
    leaf = "tokenize = clean = a = b = str\n"
    code = modules(
        {"model.modeling_x": source, "model.sibling": "from ..top import b\na = b\n", "clip.text": leaf, "top": leaf},
        "model.modeling_x",
    )
    assert sorted(code) == ["modeling_x.py", "sibling.py", "text.py", "top.py"]
    assert (
        code["modeling_x.py"]
        == '''"""Ünïcode, and a word about `from ..clip.text import x` in the middle."""
from .text import (
    tokenize,  # why
    clean as tidy,
)
from .text import tokenize as again
from .sibling import a
from .top import b; NONE = None
NAME = "from ..clip.text import nothing"


def later():
\tfrom .text import tokenize
\treturn tokenize("é"), a, b
'''
    )
    assert code["sibling.py"] == "from .top import b\na = b\n" and code["text.py"] == leaf


@pytest.mark.parametrize("sources, said", [
    ({"a.x": "from ..b.y import z", "b.y": "from ..c.x import z", "c.x": "z = 1"}, "x.py: .*modeling.a.x and .*modeling.c.x would be the same file"),
    ({"a.x": "from . import y", "a.y": ""}, "line 1: .*modeling.a` is not a module with a file of its own; write `from .<module> import"),
    ({"a.x": "\nfrom ..b import z", "b.y": "z = 1"}, "line 2: .*modeling.b` is not a module"),
    ({"a.x": "from ...registry import z"}, "line 1: `hf_clip_variants.registry` is outside of"),
    ({"a.x": "from hf_clip_variants.registry import z"}, "line 1: `hf_clip_variants.registry` stays behind"),
    ({"a.x": "import modeling.prompts"}, "line 1: `modeling.prompts` stays behind"),
    ({"a.x": '"""Text.\n\n    from .helper import z\n"""'}, "reads like an import of helper"),
        ({"a.x": "z = 1; from .y import z", "a.y": "z = 1"}, "the import of y must start a line"),
])  # fmt: skip
def test_what_cannot_travel_is_refused_with_file_and_line(modules, sources, said):
    with pytest.raises(ValueError, match=said):
        modules(sources, "a.x")


def test_modules_of_others_are_refused():
    with pytest.raises(
        ValueError, match="transformers.models.clip.modeling_clip: not a module of hf_clip_variants.modeling"
    ):
        travelling_code(["transformers.models.clip.modeling_clip"], "1")


def test_everything_in_modeling_travels_and_needs_only_what_the_package_needs(tmp_path):
    from importlib.metadata import requires

    from transformers.dynamic_module_utils import get_imports, get_relative_imports

    from hf_clip_variants.registry import methods

    wanted = [row.config.partition(":")[0] for row in methods("model")]
    wanted += [
        reference.partition(":")[0]
        for row in methods("model")
        for reference in (row.model, row.processor)
        if reference
    ]
    wanted += [r.partition(":")[0] for row in methods("model") for r in row.image_processors.values()]
    code = travelling_code({f"hf_clip_variants.{name}" for name in wanted}, "1.2.3")
    assert {"modeling_clip_classifier.py", "prompts.py", "staged_saving.py"} <= set(code)
    own = {
        re.match(r"[\w.-]+", requirement)[0]
        for requirement in requires("hf-clip-variants")
        if "extra" not in requirement
    }
    allowed = {{"pillow": "PIL"}.get(name, name) for name in own} | sys.stdlib_module_names
    for name, source in code.items():
        (tmp_path / name).write_bytes(source)
    for name in code:
        assert set(get_imports(tmp_path / name)) <= allowed, name
        assert {f"{module}.py" for module in get_relative_imports(tmp_path / name)} <= set(code)
        first = (tmp_path / name).read_text().partition("\n")[0]
        assert first.startswith(f"# {TRAVELS}.") and "1.2.3, Apache-2.0" in first
