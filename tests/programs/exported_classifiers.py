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
    images = [bytes(value.numpy()) for name, value in sorted(expected.items()) if name.startswith("image.")]
    assert torch.equal(processor(images=images, return_tensors="pt").pixel_values, expected["pixels"])
    for address in ("http://127.0.0.1/a.png", "/dev/zero"):
        try:
            raise AssertionError(processor(images=[address]))
        except ValueError as error:
            assert "lacks opening.py" in str(error) or "not a regular file" in str(error), error
    tokenizer = processor.tokenizer
    if processor.clean_text:
        assert processor(text="A &amp;amp; b")["input_ids"] == processor(text="a & b")["input_ids"]
    assert model.set_classes(model.class_names[::-1], tokenizer=tokenizer)(**inputs).logits.requires_grad
    loss = model(**inputs, labels=torch.ones_like(model(**inputs).logits).softmax(1)).loss
    assert loss.isfinite() and model(**inputs, class_names=["cat", "dog"]).logits.shape[1] == 2
    try:
        model.set_classes(["a", "b"], "pets", tokenizer=tokenizer)
    except ValueError as error:
        assert "templates: 'pets' has no {}: this exported code lacks template_sets.py" in str(error), error
    print("passed", source, flush=True)
