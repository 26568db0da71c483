"""Training and evaluation in mixed precision as Lightning's `bf16-mixed` does it, and bases with int8 weights."""

import copy

import pytest
import torch
from adapted_classifiers import CONFIGS, KINDS, adapted, base_classifier
from tiny import tiny_pixels

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import load_adapter


PIXELS, LABELS = tiny_pixels(5), torch.arange(5)


def fit_as_lightning(model, dtype, steps: int = 3) -> list[float]:
    """A step is a closure of the optimizer with the forward pass alone under autocast; then it validates."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):

        def closure():
            with torch.autocast("cpu", dtype):
                loss = model(pixel_values=PIXELS, labels=LABELS).loss
            optimizer.zero_grad()
            loss.backward()
            return loss

        model.train()
        losses.append(float(optimizer.step(closure).detach()))
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype):
            model(pixel_values=PIXELS)
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_leaves_nothing_of_it_behind(kind, tmp_path):
    """float32 answers after it are those of the weights, and those of a fresh model with these weights."""
    model = adapted(kind)
    if kind is None:
        model.requires_grad_(True)
    losses = fit_as_lightning(model, torch.bfloat16)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        logits = model(pixel_values=PIXELS).logits
        fresh = copy.deepcopy(model)
        (fresh if kind is None else fresh.get_base_model()).forget_class_features()
        assert logits.dtype == torch.float32 and torch.equal(fresh(pixel_values=PIXELS).logits, logits)
    if kind is None:
        model.save_pretrained(tmp_path)
        again = CLIPClassifier.from_pretrained(tmp_path).eval()
        assert torch.equal(again.class_features, model.class_features)
        torch.testing.assert_close(again(pixel_values=PIXELS).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [(torch.bfloat16, None, torch.float16), (None, torch.float16, torch.bfloat16)])
def test_who_asks_first_does_not_matter(order):
    def ask(model, dtype):
        with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return model(pixel_values=PIXELS).logits

    model = base_classifier()
    for dtype in order:
        assert torch.equal(ask(model, dtype), ask(base_classifier(), dtype)), dtype


@pytest.mark.parametrize("kind", list(CONFIGS)[:-1])
def test_an_adapter_trains_saves_and_loads_on_int8_weights(kind, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")

    def int8_base():
        base = base_classifier()
        quantization.quantize_(base, quantization.Int8WeightOnlyConfig())
        return base

    model = adapted(kind, int8_base()).train()
    model(pixel_values=PIXELS, labels=LABELS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixel_values=PIXELS).logits
        again = load_adapter(tmp_path, int8_base())
        assert torch.equal(again(pixel_values=PIXELS).logits, expected)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_adapters_dtype_is_float32_or_as_peft_is_told_the_bases(kind, autocast):
    model = adapted(kind, base_classifier().to(torch.bfloat16), autocast_adapter_dtype=autocast).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32 if autocast else torch.bfloat16}
    loss = model(pixel_values=PIXELS, labels=LABELS).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
