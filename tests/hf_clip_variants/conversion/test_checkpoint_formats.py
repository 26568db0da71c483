"""The table's checkpoint formats: conversion and command need a method's descriptor and row, nothing else."""

import ast
import dataclasses
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from official_files import plain
from tiny import EMOJI_CLIP, tiny_clip
from transformers import AutoModel, CLIPModel

import hf_clip_variants
from hf_clip_variants import convert_checkpoint, load_adapter, registry
from hf_clip_variants.adapters.checkpoint_format import AdapterFormat
from hf_clip_variants.adapters.clip_adapter.convert import convert_clip_adapter
from hf_clip_variants.conversion.detect import detect_method, load_format
from hf_clip_variants.conversion.options import COMMON_OPTIONS, offered_options
from hf_clip_variants.modeling.loading_and_saving.checkpoint_format import BuiltModel, ModelFormat, Signature


PACKAGE = Path(hf_clip_variants.__file__).parent
ENTRIES = registry.checkpoint_entries()


# The formats in the table


@pytest.mark.parametrize("name", ENTRIES)
def test_a_descriptor_has_its_rows_kind_and_is_in_a_methods_folder(name):
    row, entry = ENTRIES[name]
    assert type(load_format(name)) is {"model": ModelFormat, "adapter": AdapterFormat}[row.kind]
    # Some formats have a folder of their own, some that of the method whose files they are.
    folders = {"model": "modeling.{0}.convert_{0}:CHECKPOINTS", "adapter": "adapters.{0}.convert:CHECKPOINTS"}
    assert entry.descriptor in {folders[row.kind].format(one) for one in (name, row.name)}
    assert row.as_dict()["checkpoints"] == [entry.name for entry in row.checkpoints]


def test_names_and_options_are_unique():
    assert len(ENTRIES) == sum(len(row.checkpoints) for row in registry.methods())
    assert len({entry.title for _, entry in ENTRIES.values()}) == len(ENTRIES)
    offered = offered_options()
    for _, entry in ENTRIES.values():
        for option in entry.options:
            assert entry in offered[option.name].formats and entry.title in offered[option.name].help
    for kind, options in COMMON_OPTIONS.items():
        of_the_kind = tuple(entry for row, entry in ENTRIES.values() if row.kind == kind)
        assert all(offered[option.name].formats == of_the_kind for option in options)


def test_the_conversion_and_the_hub_name_no_method():
    """In code and messages; docstrings may. CLIP and its classifier may be named, since all methods use them."""
    names = {*ENTRIES, *(row.name for row in registry.methods())} - {"clip", "clip_classifier"}
    pattern = re.compile(rf"(?<![a-z])({'|'.join(sorted(names))})(?![a-z])")
    files = [*(PACKAGE / "conversion").glob("*.py"), *(PACKAGE / "hub").glob("*.py")]
    found = [
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in [*files, PACKAGE / "commands" / "convert.py"]
        for text in words_of(path.read_text(encoding="utf-8"))
        if pattern.search(text)
    ]
    assert len(files) > 10 and not found


def words_of(source: str) -> list[str]:
    """Names, imported modules and strings of a program, without docstrings."""
    tree, found = ast.parse(source), []
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.append(node.value)
        found += [
            str(getattr(node, field)) for field in ("id", "attr", "arg", "name", "module") if hasattr(node, field)
        ]
    return found


def test_the_search_for_names_finds_all_kinds_of_mentions():
    for source in (
        "from ..adapters.coop import x",
        "'slip' == method",
        "f(keep=coop)",
        "import a.slip",
        "coop_files()",
    ):
        assert any(re.search("coop|slip", word) for word in words_of(source)), source
    assert not any("coop" in word for word in words_of('def f():\n    """As coop."""'))


# A format of nobody, declared as any other


@pytest.fixture
def declare(monkeypatch):
    """Adds a row with one format, whose descriptor is the given one; as if a folder had been added."""

    def declare(format, like, **entry):
        row = registry.method(like)
        package = registry.KINDS[row.kind].package
        module = types.ModuleType(f"hf_clip_variants.{package}.toy.convert")
        module.CHECKPOINTS = format
        monkeypatch.setitem(sys.modules, module.__name__, module)
        entry = registry.CheckpointEntry("toy", "Toy", f"{package}.toy.convert:CHECKPOINTS", **entry)
        toy = dataclasses.replace(row, name="toy", title="Toy", checkpoints=(entry,))
        monkeypatch.setattr(registry, "_METHODS", (*registry._METHODS, toy))
        # The command reads the table when it is imported.
        import hf_clip_variants.commands.convert  # noqa: F401

        monkeypatch.delitem(sys.modules, "hf_clip_variants.commands.convert")

    return declare


def build_toy(official):
    """CLIP's weights behind `toy.`; the option `scale` multiplies the temperature."""
    model = tiny_clip()
    model.load_state_dict({name.removeprefix("toy."): t for name, t in official.weights.items() if name != "toy.step"})
    model.logit_scale.data *= official.options.get("scale", 1.0)
    official.notes.append(f"read {len(official.other_files)} more files")
    return BuiltModel(model, unused=["toy.step"], image_settings={"resample": 2})


TOY_MODEL = ModelFormat(
    signature=Signature(every=(r"toy\.vision_model\.",)),
    build=build_toy,
    other_files=lambda path, options: [path.with_name("toy.json")],
    elsewhere={r"tiny\.": "This is a tiny toy."},
)


def test_a_toy_model_is_recognised_and_converted(declare, run, tmp_path, monkeypatch):
    scale = registry.Option("scale", float, "times the temperature.", default="1.0", flag="--times")
    declare(TOY_MODEL, "clip_resnet", options=(scale,))
    weights = {f"toy.{name}": t for name, t in tiny_clip(seed=3).state_dict().items()}
    file = plain(weights | {"toy.step": torch.ones(1)}, tmp_path / "toy.pt")
    (tmp_path / "toy.json").write_text("{}")

    result = convert_checkpoint(file, tmp_path / "out", tokenizer=EMOJI_CLIP, scale=0.5, compare=True)
    assert (result.method, result.kind, result.dropped) == ("toy", "CLIPModel", ["toy.step"])
    assert result.notes == ["read 1 more files"] and len(result.sources) == 2 and result.difference < 1e-5
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert type(loaded) is CLIPModel and torch.equal(loaded.logit_scale, weights["toy.logit_scale"] / 2)

    monkeypatch.setenv("COLUMNS", "160")  # a line of help on one line
    code, out, _ = run("convert", "--help")
    assert code == 0 and re.search(r"--times .*Toy: times the temperature.*1\.0", out) and "toy." in out
    assert out.index("Models") < out.index("--times") < out.index("Adapters")
    code, out, err = run("convert", file, tmp_path / "typed", "--times", "0.5", "--tokenizer", "none")
    assert code == 0 and out.startswith("CLIPModel: ") and "Note: read 1 more files" in out, err
    typed = AutoModel.from_pretrained(tmp_path / "typed")
    assert torch.equal(typed.logit_scale, loaded.logit_scale)

    with pytest.raises(ValueError, match="scale: given, but it belongs to toy, and this is coop"):
        convert_checkpoint(file, tmp_path / "no", "coop", scale=0.5)
    code, _, err = run("convert", file, tmp_path / "no", "--activation", "gelu")
    assert code == 1 and "activation: given, but it belongs to clip, clip_resnet, and this is toy" in err
    with pytest.raises(ValueError, match="base: given, but it belongs to tip_adapter, .*, and this is toy"):
        convert_checkpoint(file, tmp_path / "no", base="x")
    with pytest.raises(ValueError, match=r"tiny.pt has names of no method known here: .*This is a tiny toy\."):
        detect_method(["tiny.weight"], "tiny.pt")
    with pytest.raises(ValueError, match="m.pt could be clip or toy, say which"):
        detect_method(["visual.a", "text_projection", "toy.vision_model.b"], "m.pt")
    assert not (tmp_path / "no").exists()


def test_a_toy_adapter_is_recognised_and_converted(declare, run, tmp_path):
    ratio = registry.Option("mix", ("a little", "all"), "how much of it.")
    toy = AdapterFormat(
        signature=Signature(every=(r"toy\.down$", r"toy\.up$")),
        tensors=("down", "up"),
        convert=lambda official: convert_clip_adapter(
            {"fc.0.weight": official.weights["toy.down"], "fc.2.weight": official.weights["toy.up"]},
            ratio=1.0 if official.options.get("mix") == "all" else 0.1,
        ),
    )
    declare(toy, "clip_adapter", options=(ratio,))
    width = CLIPModel.from_pretrained(EMOJI_CLIP).config.projection_dim
    down = torch.randn(width // 4, width, generator=torch.Generator().manual_seed(0))
    file = plain({"toy.down": down, "toy.up": down.t().contiguous(), "epoch": torch.ones(1)}, tmp_path / "toy.pt")
    arguments = ("convert", file, tmp_path / "out", "--base", EMOJI_CLIP, "--classes", "cat, dog")
    code, out, err = run(*arguments, "--mix", "all", "--compare")
    assert code == 0 and "Not needed: epoch" in out and "Before and after saving" in out, err
    config = load_adapter(tmp_path / "out").peft_config["default"]
    assert config.ratio == 1.0 and config.hidden_width(width) == width // 4
    assert run(*arguments, "--mix", "some")[0] == 2
    code, _, err = run(*arguments, "--ratio", "0.3")
    assert code == 1 and "ratio: given, but it belongs to clip_adapter, and this is toy" in err


def test_one_option_with_two_meanings_is_an_error(declare):
    with pytest.raises(ValueError, match="keep_head: the table has two options of this name"):
        declare(TOY_MODEL, "clip_resnet", options=(registry.Option("keep_head", str, "another."),))
        offered_options()
