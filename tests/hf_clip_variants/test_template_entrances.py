"""Wherever a template comes in, it is no format string: `{}` is its place, and everything else in braces is refused at
once."""

import ast
import json
import re
import time

import pytest
from paths import ROOT
from tiny import CLASS_NAMES, tiny_clip, tiny_tokenizer

from hf_clip_variants import CLIPClassifier, CLIPClassifierConfig
from hf_clip_variants.commands.arguments import check_templates
from hf_clip_variants.data.pairs.batches import PairReader
from hf_clip_variants.few_shot.protocols import templates_for
from hf_clip_variants.modeling.dual_encoders.prompts import resolve_templates


TEMPLATES = ["a {{}}", "{.x}{}", "{:3000000000}{}", "{0}", "{name!r} {}", "{} {", "} {}", "{[a]}{}", "{}{}", "{{{}}}"]


@pytest.fixture(scope="module")
def entrances(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    good = CLIPClassifier.from_pretrained(folder, class_names=CLASS_NAMES)
    good.save_pretrained(folder / "classifier")

    def saved(template):
        path = folder / "classifier" / "config.json"
        values = json.loads(path.read_text()) | {"templates": [template]}
        path.write_text(json.dumps(values))
        CLIPClassifier.from_pretrained(folder / "classifier")

    def file(suffix, text):
        (folder / f"t{suffix}").write_text(text)
        resolve_templates(str(folder / f"t{suffix}"), CLASS_NAMES)

    return {
        "set_classes": lambda t: good.set_classes(CLASS_NAMES, t),
        "set_classes, a list": lambda t: good.set_classes(CLASS_NAMES, [t]),
        "from_pretrained": lambda t: CLIPClassifier.from_pretrained(folder, class_names=CLASS_NAMES, templates=[t]),
        "class prompts": lambda t: good.set_classes(["cat"], {"cat": ["fine", t]}),
        "configuration": lambda t: CLIPClassifierConfig(templates=[t]),
        "config.json": saved,
        "lines": lambda t: file(".txt", f"fine {{}}\n{t}\n"),
        "JSON": lambda t: file(".json", json.dumps([t])),
        "prompts in JSON": lambda t: file(".json", json.dumps({name: [t] for name in CLASS_NAMES})),
        "--templates": check_templates,
        "protocols": lambda t: templates_for("emoji:notov1", t),
        "pre-training": lambda t: PairReader(0, 8, (t,)),
    }


@pytest.mark.parametrize("template", TEMPLATES)
def test_other_braces_are_refused_at_every_entrance(entrances, template):
    for name, enter in entrances.items():
        start = time.monotonic()
        with pytest.raises(ValueError, match="templates?") as error:
            enter(template)
        assert time.monotonic() - start < 5, name
        assert re.search(r"braces|more than one|has no", str(error.value)), (name, str(error.value))


def test_no_text_of_a_user_is_a_format_string():
    """`.format` and `.format_map` are for our own texts: literals, constants in capitals, or a method's card."""
    offenders = []
    for folder in ("hf_clip_variants", "modeling", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if isinstance(node.func.value, ast.Constant):
                    continue
                if node.func.attr in ("format", "format_map") and not re.match(
                    r"_?[A-Z_]+$|official$|ours$|template$|\(?_PIPELINE|super\(\)$", ast.unparse(node.func.value)
                ):
                    offenders.append(f"{path.name}:{node.lineno}: {ast.unparse(node.func.value)}")
    allowed = {"model_cards.py"}  # its snippets are constants of the package
    assert not [line for line in offenders if line.partition(":")[0] not in allowed], offenders
