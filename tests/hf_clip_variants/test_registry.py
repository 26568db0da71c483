"""The table of methods, and its registration with transformers and PEFT."""

import ast
import importlib
import json
import logging
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_clip_variants
from hf_clip_variants import optional_dependencies, registry
from hf_clip_variants.registry import method, methods


ROOT = Path(hf_clip_variants.__file__).parent
MODELS, ADAPTERS = methods("model"), methods("adapter")


def name(row):
    return row.name


# The table


def test_methods_are_unique_and_filtered_by_kind():
    names = [row.name for row in methods()]
    assert len(set(names)) == len(names) == len(MODELS) + len(ADAPTERS) and MODELS and ADAPTERS
    assert len({row.title for row in methods()}) == len(names)
    with pytest.raises(ValueError, match="kind: got 'tuner', expected 'model', 'adapter', 'synthesis' or None"):
        methods("tuner")


@pytest.mark.parametrize("row", methods(), ids=name)
def test_row_is_complete(row):
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", row.name)
    assert re.fullmatch(r"\d{4}\.\d{5}", row.paper.arxiv)
    assert row.paper.year == 2000 + int(row.paper.arxiv[:2])
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.code.repository)
    assert row.summary.endswith(".") and len(row.summary) <= 110 and "\n" not in row.summary
    kind, parts = (
        registry.KINDS[row.kind],
        {part for k in registry.KINDS.values() for part in (*k.required, *k.optional)},
    )
    assert all(getattr(row, part) for part in kind.required)
    assert not any(getattr(row, part) for part in parts - {*kind.required, *kind.optional})
    assert bool(row.model_type) == (kind.registered_with == "transformers")
    assert bool(row.peft_type) == (kind.registered_with == "peft")
    hash(row)  # all fields are immutable


def test_synthesis_methods_are_exported_but_not_registered():
    """Methods that optimise pixels or strokes have a row and public names, but no Auto classes or PEFT type."""
    paper, code = registry.Paper("Toy", "2601.00001", 2026), registry.OfficialCode("somebody/toy", None)
    toy = registry.Method(
        "toy",
        "synthesis",
        "Toy",
        paper,
        code,
        "text-to-image",
        "A toy.",
        config="synthesis.toy.config:ToyConfig",
        generator="synthesis.toy.generator:ToyGenerator",
    )
    assert toy.folder == "hf_clip_variants.synthesis.toy" and toy.model_type is toy.peft_type is None
    assert toy.exports == {
        "ToyConfig": "hf_clip_variants.synthesis.toy.config",
        "ToyGenerator": "hf_clip_variants.synthesis.toy.generator",
    }
    assert toy.as_dict()["kind"] == "synthesis" and not methods("synthesis")


@pytest.mark.parametrize("row", methods(), ids=name)
def test_classes_of_a_row_are_in_its_folder(row):
    package = registry.KINDS[row.kind].package
    folder = ROOT.parent / package if package == "modeling" else ROOT / package
    assert (folder / row.name / "__init__.py").is_file()
    references = [row.config, row.model, row.feature_extractor, row.layer, row.tuner, *row.auto_classes.values()]
    # Methods for label maps share their processors, and so do those for videos and for clouds of points.
    shared = ("modeling.dense.", "modeling.video.", "modeling.points.")
    processors = [row.processor, *row.image_processors.values()]
    references += [one for one in processors if one and not one.startswith(shared)]
    references += [part for submodel in row.submodels for part in (submodel.config, *submodel.auto_classes.values())]
    for reference in filter(None, references):
        module, class_name = registry.split_reference(reference)
        assert module.startswith(f"{row.folder}."), reference
        file = (folder / row.name / module.rpartition(".")[2]).with_suffix(".py")
        classes = [
            node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
        ]
        assert class_name in classes, f"{reference}: {file} has {classes}"


@pytest.mark.parametrize("row", MODELS, ids=name)
def test_classes_of_a_model_agree_with_its_row(row):
    config = row.load("config")
    assert config.model_type == row.model_type
    for part in ("model", *row.auto_classes):
        assert row.load(part).config_class is config
    for submodel in row.submodels:
        config = registry.load_reference(submodel.config)
        assert config.model_type == f"{row.model_type}_{submodel.name}"
        assert all(
            registry.load_reference(reference).config_class is config for reference in submodel.auto_classes.values()
        )


@pytest.mark.parametrize("row", ADAPTERS, ids=name)
def test_classes_of_an_adapter_agree_with_its_row(row):
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert row.load("config")().peft_type == row.peft_type
    assert row.load("tuner").prefix == f"{row.peft_type.lower()}_"
    assert issubclass(row.load("layer"), BaseTunerLayer)


def test_unknown_names_are_refused_with_suggestions():
    assert method("coop").title == "CoOp"
    with pytest.raises(
        ValueError, match=r"method: unknown 'tip-adapter'; did you mean 'tip_adapter' or 'clip_adapter'\?"
    ):
        method("tip-adapter")
    known = ", ".join(row.name for row in methods())
    with pytest.raises(ValueError, match=f"method: unknown 'zzz'. Known: {known}$"):
        method("zzz")
    with pytest.raises(ValueError, match="part: coop has no 'processor'; it has config, layer, tuner"):
        method("coop").load("processor")
    with pytest.raises(ValueError, match="part: coop has no 'summary'"):
        method("coop").load("summary")


# Public names


def test_public_names_are_lazy_complete_and_typed():
    assert hf_clip_variants.__all__ == sorted(hf_clip_variants.__all__, key=lambda n: (n[0].islower(), n))
    assert {export for row in methods() for export in row.exports} <= set(hf_clip_variants.__all__)
    for export in hf_clip_variants.__all__:
        assert getattr(hf_clip_variants, export).__name__ == export
    assert set(hf_clip_variants.__all__) <= set(dir(hf_clip_variants)) and "__version__" in dir(hf_clip_variants)
    # The names for type checkers equal those at run time.
    tree = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: f"hf_clip_variants.{node.module}" for node in imports for alias in node.names}
    of_the_table = dict.fromkeys(("method", "methods"), "hf_clip_variants.registry")
    assert typed == hf_clip_variants._SOURCES | of_the_table and set(typed) == set(hf_clip_variants.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'CoCoCoOp'"):
        _ = hf_clip_variants.CoCoCoOp


def test_missing_optional_dependency_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ImportError, match=r'^Text cleaning needs ftfy: pip install "hf-clip-variants\[text\]"$'):
        optional_dependencies.require("ftfy", "Text cleaning")
    with pytest.raises(
        ValueError, match="module: 'torch' is not an optional dependency; known: av, faiss, ftfy, h5py"
    ):
        optional_dependencies.require("torch", "This")

    def fail(module):
        raise ModuleNotFoundError("No module named 'ftfy'", name="ftfy")

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.delitem(vars(hf_clip_variants), "CoOpConfig", raising=False)
    with pytest.raises(
        ImportError, match=r'hf_clip_variants.CoOpConfig needs ftfy: pip install "hf-clip-variants\[text\]"'
    ):
        _ = hf_clip_variants.CoOpConfig


def test_extras_are_those_of_the_package():
    from importlib.metadata import metadata

    assert set(optional_dependencies.EXTRAS.values()) <= set(metadata("hf-clip-variants").get_all("Provides-Extra"))


# transformers


@pytest.mark.parametrize("row", MODELS, ids=name)
def test_auto_classes_know_the_model(row, tmp_path):
    import transformers
    from transformers import AutoConfig, AutoImageProcessor

    config = AutoConfig.for_model(row.model_type)
    assert type(config) is row.load("config")
    config.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is row.load("config")
    for auto_class in row.auto_classes:
        mapping = getattr(transformers, auto_class)._model_mapping
        assert type(config) in mapping and mapping[type(config)] is row.load(auto_class)
        # Not mapping.values(): in 5.23 transformers' own AutoModel entries do not all load.
        assert dict(mapping._extra_content)[type(config)] is row.load(auto_class)
        assert row.load(auto_class) in dict(pickle.loads(pickle.dumps(mapping))._extra_content).values()
    if row.processor:
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

        assert PROCESSOR_MAPPING[type(config)] is row.load("processor")
        assert processor_class_from_name(row.load("processor").__name__) is row.load("processor")
    for backend, reference in row.image_processors.items():
        from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

        image_processor = registry.load_reference(reference)
        assert IMAGE_PROCESSOR_MAPPING[type(config)][backend] is image_processor
        image_processor().save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is image_processor
    if row.feature_extractor:
        from transformers import AutoFeatureExtractor
        from transformers.models.auto.feature_extraction_auto import (
            FEATURE_EXTRACTOR_MAPPING,
            feature_extractor_class_from_name,
        )

        feature_extractor = row.load("feature_extractor")
        assert FEATURE_EXTRACTOR_MAPPING[type(config)] is feature_extractor
        assert feature_extractor_class_from_name(feature_extractor.__name__) is feature_extractor
        feature_extractor().save_pretrained(tmp_path)
        assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is feature_extractor


@pytest.mark.parametrize(
    ("task", "arguments"),
    [("image-classification", {}), ("zero-shot-image-classification", {"candidate_labels": ["cat", "forest"]})],
)
def test_stock_pipelines_load_a_saved_model(task, arguments, tmp_path):
    """Model, tokenizer and image processor are found by name, and the pipeline knows the model class."""
    from adapter_models import tiny_classifier
    from PIL import Image
    from tiny import CLASS_NAMES, tiny_tokenizer
    from transformers import pipeline

    from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor

    tiny_classifier().save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPClassifierProcessor(CLIPClassifierImageProcessor(**size), tiny_tokenizer()).save_pretrained(tmp_path)
    complaints = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())
    logging.getLogger("transformers.pipelines").addHandler(handler)
    try:
        pipe = pipeline(task, model=str(tmp_path))
    finally:
        logging.getLogger("transformers.pipelines").removeHandler(handler)
    assert not [text for text in complaints if "not supported" in text]
    assert type(pipe.model).__name__ == "CLIPClassifier"
    assert type(pipe.image_processor) is CLIPClassifierImageProcessor
    answers = pipe(Image.new("RGB", (50, 30), "red"), **arguments)
    assert {answer["label"] for answer in answers} <= set(arguments.get("candidate_labels", CLASS_NAMES))


def test_entries_of_transformers_are_kept():
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    assert MODEL_MAPPING[CLIPConfig] is CLIPModel


# In a new process, with every order of imports


FIRST = {
    "ours first": "import hf_clip_variants",
    "theirs first": "import peft",  # and with it transformers
    # Our configuration module imports transformers' Auto module, which has an entry for it. Then an adapter imports
    # PEFT, which registers that adapter, while another thread imports PEFT too.
    "a submodule first, in a race": """
from hf_clip_variants.modeling.clip_classifier.configuration_clip_classifier import CLIPClassifierConfig
import threading; other = threading.Thread(target=__import__, args=('peft',)); other.start()
from hf_clip_variants.adapters.coop.config import CoOpConfig
other.join()
""",
}
THEN = """
import sys
import hf_clip_variants
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as mapping
print("hf_clip_variants.modeling.clip_classifier.modeling_clip_classifier" in sys.modules)
config = AutoConfig.for_model("clipv-clip_classifier")
print(type(config) in AutoModel._model_mapping, mapping[type(config)].__name__)
import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners
for row in hf_clip_variants.methods("adapter"):
    print(row.name, configs[row.peft_type].__name__, tuners[row.peft_type].__name__)
from hf_clip_variants.registration.auto_classes import register
register()
"""
# What torch takes to import is paid once; neither transformers nor PEFT has been imported when a program starts.
FORK_FOR_EACH = """
import json, os, sys
import torch
assert not {"transformers", "peft", "hf_clip_variants"} & set(sys.modules)
for program in json.loads(sys.stdin.read()):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        exec(program, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, program
"""


@pytest.mark.slow
def test_methods_are_registered_in_any_import_order():
    programs = json.dumps([f"{first}\nprint({name!r})\n{THEN}" for name, first in FIRST.items()])
    new_process = [sys.executable, "-W", "error::RuntimeWarning", "-c", FORK_FOR_EACH]
    done = subprocess.run(new_process, input=programs, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    adapters = [f"{row.name} {row.config.split(':')[1]} {row.tuner.split(':')[1]}" for row in ADAPTERS]
    assert done.stdout.splitlines() == [
        line for name in FIRST for line in (name, "False", "True CLIPClassifier", *adapters)
    ]
