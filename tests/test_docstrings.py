"""Every example in a docstring of the library runs and prints the output shown."""

import doctest
import importlib

import pytest
from paths import ROOT


LIBRARY = {"hf_clip_variants": ROOT / "hf_clip_variants", "hf_clip_variants.modeling": ROOT / "modeling"}
WITH_EXAMPLES = sorted(
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
    for package, folder in LIBRARY.items()
    for path in folder.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


class MarkdownParser(doctest.DocTestParser):
    """Examples are in Markdown fences; the closing fence comes right after the expected output."""

    def parse(self, string, name="<string>"):
        return super().parse(string.replace("```", "\n"), name)


def test_library_has_docstring_examples():
    assert (
        "hf_clip_variants.registry" in WITH_EXAMPLES
        and "hf_clip_variants.modeling.dual_encoders.prompts" in WITH_EXAMPLES
    )


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_the_output_shown(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(parser=MarkdownParser()).find(module, name):
        runner.run(test)
    assert runner.tries > 0 and runner.failures == 0, "see the captured output"
