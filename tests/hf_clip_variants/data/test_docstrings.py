"""The examples in the docstrings run and print what they show."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    ["data.image_set", "data.sources", "data.emoji", "data.few_shot", "data.augmentation", "data.features", "recipes"],
)
def test_examples(name, monkeypatch):
    module = importlib.import_module(f"hf_clip_variants.{name}")
    from hf_clip_variants import data

    names = {public: getattr(data, public) for public in data.__all__} | {"torch": importlib.import_module("torch")}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(module, extraglobs=names):
        # Markdown fences close on the line after the expected output.
        for part in example.examples:
            part.want = part.want.removesuffix("```\n")
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 0
