"""Loads exported classifiers with the code in their folders, without the package, and compares their logits."""

import sys

import block_package  # noqa: F401  before torch and transformers
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, AutoProcessor


for source in sys.argv[1:]:
    expected = load_file(f"{source.rpartition('/')[2]}.safetensors")
    model = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    inputs = {name.removeprefix("inputs."): value for name, value in expected.items() if name.startswith("inputs.")}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=1e-5, atol=1e-4)
        model.forget_class_features()
        torch.testing.assert_close(model(**inputs).logits, expected["logits"], rtol=1e-4, atol=1e-3)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    tokenizer = processor.tokenizer
    if processor.clean_text:
        assert processor(text="A &amp;amp; b")["input_ids"] == processor(text="a & b")["input_ids"]
    assert model.set_classes(model.class_names[::-1], tokenizer=tokenizer)(**inputs).logits.requires_grad
    try:
        model.set_classes(["a", "b"], "pets", tokenizer=tokenizer)
    except ValueError as error:
        assert "templates: 'pets' has no {}: this exported code lacks template_sets.py" in str(error), error
    print("passed", source, flush=True)
