"""Exported source files of `export_with_code`."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from paths import PROGRAMS
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import family_class_names, save_tiny_family, tiny_family_pixels

from hf_clip_variants import CLIPClassifier, CLIPClassifierProcessor
from hf_clip_variants.hub import code_export
from hf_clip_variants.hub.code_export import TRAVELS, travelling_code
from hf_clip_variants.hub.export import export_with_code


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


REFUSED = {
    "same file": (
        {"a.x": "from ..b.y import z", "b.y": "from ..c.x import z", "c.x": "z = 1"},
        "x.py: .*modeling.a.x and .*modeling.c.x would be the same file",
    ),
    "package itself": (
        {"a.x": "from . import y", "a.y": ""},
        "line 1: .*modeling.a` is not a module with a file of its own; write `from .<module> import",
    ),
    "package": ({"a.x": "\nfrom ..b import z", "b.y": "z = 1"}, "line 2: .*modeling.b` is not a module"),
    "outside": ({"a.x": "from ...registry import z"}, "line 1: `hf_clip_variants.registry` is outside of"),
    "absolute": (
        {"a.x": "from hf_clip_variants.registry import z"},
        "line 1: `hf_clip_variants.registry` is not exported under this name",
    ),
    "modeling": ({"a.x": "import modeling.prompts"}, "line 1: `modeling.prompts` is not exported under this name"),
    "text": ({"a.x": '"""Text.\n\n    from .helper import z\n"""'}, "reads like an import of helper"),
    "unseen": ({"a.x": "z = 1; from .y import z", "a.y": "z = 1"}, "the import of y must start a line"),
}


@pytest.mark.parametrize("sources, said", REFUSED.values(), ids=REFUSED)
def test_imports_that_cannot_be_exported_are_refused_with_file_and_line(modules, sources, said):
    with pytest.raises(ValueError, match=said):
        modules(sources, "a.x")


def test_modules_found_by_name_are_exported_and_imported_at_the_end(modules, monkeypatch):
    sources = {"a.x": "z = 1\n", "a.y": "from ..b.w import z\n", "b.w": "z = 1\n"}
    modules(sources, "a.x")  # lets travelling_code find them
    by_name = {f"{TRAVELS}.a.x": [f"{TRAVELS}.a.y"], f"{TRAVELS}.a.y": [f"{TRAVELS}.b.w"]}
    code = {name: source.decode() for name, source in travelling_code([f"{TRAVELS}.a.x"], "1", by_name).items()}
    assert sorted(code) == ["w.py", "x.py", "y.py"]
    assert code["x.py"].endswith("z = 1\n\nfrom .y import *  # noqa: E402, F403 (found by name)\n")
    assert code["y.py"].count("import") == 2, "imported already: the note on top, and the import"


# ---- what a classifier takes along

MAX_FILES, MAX_LINES = 14, 3150
# What only makes work safer or faster, and what only some classifiers need.
AT_HOME = {"opening.py", "stored_images.py", "configuration_checks.py", "forward_checks.py", "checkpoints.py"}
AT_HOME |= {"weight_files.py", "text_side.py", "prompt_encoding.py", "image_encoding.py", "row_encoding.py"}
AT_HOME |= {"template_sets.py", "class_name_files.py", "text_cleaning.py", "label_calibration.py"}
OWN_FILES = {
    "clip": set(),
    "clipv-clip_resnet": {"family_clip_resnet.py", "modeling_clip_resnet.py", "contrastive_loss.py"},
    "siglip": {"family_siglip.py"},
    "siglip2": {"family_siglip.py", "family_siglip2.py"},
    "chinese_clip": {"family_chinese_clip.py"},
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """model_type -> (folder of an exported classifier, its logits for `tiny_family_pixels`)."""
    root, found = tmp_path_factory.mktemp("exports"), {}
    for model_type in OWN_FILES:
        checkpoint = save_tiny_family(model_type, root / f"{model_type}-backbone")
        classifier = CLIPClassifier.from_pretrained(checkpoint, class_names=family_class_names(model_type)).eval()
        processor = CLIPClassifierProcessor.from_clip(checkpoint, clean_text=model_type == "siglip")
        with torch.no_grad():
            logits = classifier(**tiny_family_pixels(model_type)).logits
        found[model_type] = export_with_code(classifier, processor, root / model_type), logits
    return found


def test_a_classifier_on_clip_needs_few_files_and_lines(exports):
    files = {path.name: path.read_text(encoding="utf-8") for path in exports["clip"][0].glob("*.py")}
    assert len(files) <= MAX_FILES, sorted(files)
    lines = sum(source.count("\n") for source in files.values())
    assert lines <= MAX_LINES, (
        f"{lines} lines travel: { ({name: source.count(chr(10)) for name, source in files.items()}) }"
    )


def test_what_a_fresh_process_does_not_need_stays_at_home(exports):
    for model_type, (folder, _) in exports.items():
        of_text = {"text_cleaning.py"} if model_type == "siglip" else set()
        assert {path.name for path in folder.glob("*.py")} & AT_HOME == of_text, model_type


def test_label_calibration_is_exported_with_classifiers_for_several_labels(exports, tmp_path):
    folder, _ = exports["clip"]
    several = CLIPClassifier.from_pretrained(folder, problem_type="multi_label_classification")
    exported = export_with_code(several, None, tmp_path / "several")
    assert "label_calibration.py" in {path.name for path in exported.glob("*.py")}


def test_each_family_exports_its_own_module_only(exports):
    of_clip = {path.name for path in exports["clip"][0].glob("*.py")}
    for model_type, own in OWN_FILES.items():
        more = {path.name for path in exports[model_type][0].glob("*.py")} - of_clip
        assert own <= more, model_type
        assert {name for name in more if name.startswith("family_")} == {n for n in own if n.startswith("family_")}
        assert model_type == "clipv-clip_resnet" or more - {"text_cleaning.py"} == own


def test_text_cleaning_is_exported_with_processors_that_use_it(exports, tmp_path):
    folder, _ = exports["clip"]
    assert not (folder / "text_cleaning.py").exists()
    classifier = CLIPClassifier.from_pretrained(folder)
    processor = CLIPClassifierProcessor.from_clip(folder, clean_text=True)
    with_cleaning = export_with_code(classifier, processor, tmp_path / "clean")
    assert {p.name for p in with_cleaning.glob("*.py")} == {p.name for p in folder.glob("*.py")} | {"text_cleaning.py"}


def encoded_images() -> list[bytes]:
    """Files that transformers' own processors get wrong, or that are read in strips where the package is."""
    grey = Image.fromarray((np.arange(40 * 30).reshape(40, 30) * 50 % 65536).astype(np.uint16))
    clear = Image.linear_gradient("L").resize((50, 40)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((50, 40)).rotate(90))
    turned, large = Image.linear_gradient("L").resize((50, 40)).convert("RGB"), Image.radial_gradient("L")
    turned.getexif()[0x0112] = 6
    found = []
    for image in (grey, clear, turned, large.resize((3000, 2700))):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", exif=image.getexif())
        found.append(buffer.getvalue())
    return found


@pytest.mark.slow
def test_exported_classifiers_of_each_family_run_without_the_package(exports, tmp_path):
    for model_type, (_, logits) in exports.items():
        inputs = {f"inputs.{name}": value for name, value in tiny_family_pixels(model_type).items()}
        images = {f"image.{i}": torch.tensor(list(one), dtype=torch.uint8) for i, one in enumerate(encoded_images())}
        processor = CLIPClassifierProcessor.from_pretrained(exports[model_type][0])
        images["pixels"] = processor(images=encoded_images(), return_tensors="pt").pixel_values
        save_file(inputs | images | {"logits": logits}, tmp_path / f"{model_type}.safetensors")
    several = CLIPClassifier.from_pretrained(exports["clip"][0], problem_type="multi_label_classification").eval()
    inputs = load_file(tmp_path / "clip.safetensors")
    with torch.no_grad():
        inputs["logits"] = several(inputs["inputs.pixel_values"]).logits
    processor = CLIPClassifierProcessor.from_pretrained(exports["clip"][0])
    folder = export_with_code(several, processor, tmp_path / "several labels")
    save_file(inputs, tmp_path / "several labels.safetensors")
    sources = [
        str(folder),
        *(str(folder) for folder, _ in exports.values()),
        "alice/siglip2",
        "alice/clipv-clip_resnet",
    ]
    with FakeHub() as hub:
        for source in sources[-2:]:
            hub.create(source, exports[source.partition("/")[2]][0])
        ran = subprocess.run(
            [sys.executable, str(PROGRAMS / "exported_classifiers.py"), *sources],
            env={**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert ran.stdout.splitlines() == [f"passed {source}" for source in sources]


def test_modules_of_other_packages_are_refused():
    with pytest.raises(
        ValueError, match="transformers.models.clip.modeling_clip: not a module of hf_clip_variants.modeling"
    ):
        travelling_code(["transformers.models.clip.modeling_clip"], "1")


def test_all_of_modeling_can_be_exported_and_needs_only_the_packages_dependencies(tmp_path):
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
    assert {"modeling_clip_classifier.py", "prompts.py", "checkpoints.py"} <= set(code)
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
