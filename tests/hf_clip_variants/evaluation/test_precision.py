"""Image encoders in int8 and bfloat16: close to float32, undone where they should be, refused where they are slow."""

import json

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from few_shot_runs import results_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from tiny_families import family_class_names, save_tiny_family
from torch import nn

from hf_clip_variants import CLIPClassifier, embedded_model
from hf_clip_variants.adapters import IVLPConfig, MaPLeConfig, VPTConfig
from hf_clip_variants.data.images import feature_cache
from hf_clip_variants.evaluation import precision as precision_module
from hf_clip_variants.evaluation.precision import (
    BFloat16Linear,
    Int8Linear,
    check_precision,
    reduce_precision,
    use_precision,
)


REDUCED = ("int8", "bf16")


@pytest.fixture(autouse=True)
def every_processor_and_layer(monkeypatch):
    """Tests run on tiny layers, and on processors without bfloat16, too."""
    monkeypatch.setattr(precision_module, "LEAST", 1)
    monkeypatch.setattr(precision_module, "cpu_has_bfloat16", lambda: True)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([(1,), (5,), (2, 3), (2, 1, 4)]),
    widths=st.tuples(st.integers(2, 70), st.integers(1, 70)),
    scale=st.floats(1e-6, 1e6),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear_layers_are_close_to_float32(rows, widths, scale, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(*widths, bias=bias).requires_grad_(False)
    hidden = scale * torch.randn(*rows, widths[0])
    hidden.view(-1, widths[0])[0] = 0
    exact = linear(hidden)
    for kind, step in ((Int8Linear, 1 / 127), (BFloat16Linear, 1 / 128)):
        found = kind(linear)(hidden)
        assert found.shape == exact.shape and found.dtype == exact.dtype
        # Half a step of the largest value in each input and each weight.
        inputs, weights = hidden.abs().amax(-1, keepdim=True), linear.weight.abs().amax(1)
        bound = step * widths[0] * inputs * weights + step * exact.abs() + 1e-6 * scale
        if bias:
            bound = bound + step * linear.bias.abs()
        assert ((found - exact).abs() <= bound).all(), kind.__name__


@pytest.mark.parametrize("precision", REDUCED)
def test_layers_are_in_place_only_where_they_should_be(precision):
    model, said = tiny_classifier().requires_grad_(False), []
    pixels = torch.randn(5, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    before, modules = model.pooled_image_features(pixels), dict(model.named_modules())
    reduced = reduce_precision(model, precision, said.append)
    found = reduced.encode(pixels)
    assert dict(model.named_modules()) == modules and torch.equal(model.pooled_image_features(pixels), before)
    assert 0.98 < F.cosine_similarity(found, before).min() and not torch.equal(found, before)
    with pytest.raises(RuntimeError), reduced.used():
        assert not torch.equal(model.pooled_image_features(pixels), before)
        raise RuntimeError
    assert dict(model.named_modules()) == modules
    reduced.encode(pixels)
    (sentence,) = said
    assert "times as fast as float32 on the first 5 images; 1 - cosine" in sentence and "of 5 get the same" in sentence


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("config", [None, VPTConfig(prompt_depth=2), MaPLeConfig(prompt_depth=2), IVLPConfig()])
def test_forward_compares_its_first_images_with_any_adapter(precision, config):
    model, said = tiny_classifier().requires_grad_(False), []
    adapted = model if config is None else get_peft_model(model, config).eval()
    pixels = torch.randn(12, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = adapted(pixel_values=pixels)
        use_precision(adapted, precision, said.append)
        found = adapted(pixel_values=pixels)
        again = adapted(pixel_values=pixels[:3])
    assert len(said) == 1 and f"first {precision_module.COMPARED} images" in said[0]
    assert 0.98 < F.cosine_similarity(found.image_embeds, exact.image_embeds).min()
    assert not torch.equal(found.image_embeds, exact.image_embeds)
    torch.testing.assert_close(again.logits, found.logits[:3], atol=0.3, rtol=0)


def test_what_is_slow_or_unknown_is_refused(monkeypatch, tmp_path):
    model = tiny_classifier()
    assert reduce_precision(model, "float32") is None
    with pytest.raises(ValueError, match="precision: got 'fp8'; want one of float32, bf16, int8"):
        reduce_precision(model, "fp8")
    with pytest.raises(ValueError, match="int8 is for a CPU, and the model is on cuda"):
        check_precision("int8", torch.device("cuda"))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no instructions for products of int8"):
        patch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1))
        reduce_precision(model, "int8")
    monkeypatch.setattr(precision_module, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="no instructions for bfloat16.*five times slower"):
        reduce_precision(model, "bf16")
    folder = save_tiny_family("clipv-clip_resnet", tmp_path)
    monkeypatch.setattr(precision_module, "LEAST", 2**30)
    resnet = CLIPClassifier.from_pretrained(folder, class_names=family_class_names("clipv-clip_resnet"))
    with pytest.raises(ValueError, match="large linear layers, and the image encoder of CLIPResNetModel has none"):
        reduce_precision(resnet, "int8")


def test_predict_and_evaluate_print_what_the_precision_changes(run, images):
    options = ["--model", embedded_model(), "--classes", "cat,dog,pizza,banana,rose,owl", "--templates", "icons"]
    exact = run("predict", images / "test", *options, "--format", "json")
    found = run("predict", images / "test", *options, "--format", "json", "--precision", "int8")
    assert exact[0] == found[0] == 0 and "--precision int8:" in found[2].replace("\n", " ")
    one, two = ([json.loads(line) for line in out.splitlines()] for out in (exact[1], found[1]))
    assert [row["path"] for row in one] == [row["path"] for row in two]
    assert one != two and all(abs(a["score"] - b["score"]) < 0.1 for a, b in zip(one, two, strict=True))

    code, out, err = run("evaluate", "--data", images, *options, "--precision", "int8", "--json")
    assert code == 0 and json.loads(out)["precision"] == "int8" and "get the same label" in err.replace("\n", " ")
    save = ["--precision", "int8", "--save", "x", "--calibrate", "x"]
    code, _, err = run("evaluate", "--data", images, *options, *save)
    assert code and "--precision: got int8 with --save" in err.replace("\n", " ")
    code, _, err = run("adapt", images, "--precision", "int8", "--no-cache-features")
    assert code and "--no-cache-features" in err


def test_adapt_keeps_features_of_each_precision_apart(run, clip, images, tmp_path, monkeypatch):
    saved = []
    save = feature_cache.FeatureStore.save
    monkeypatch.setattr(
        feature_cache.FeatureStore, "save", lambda self, d, *a: (saved.append(d["encoder"]), save(self, d, *a))[1]
    )
    common = ["adapt", images, "--model", clip, "--methods", "tip_adapter", "--shots", "1", "--seeds", "1"]
    found = {}
    for precision in ("float32", "int8"):
        out = tmp_path / precision
        code, _, err = run(*common, "--out", out, "--precision", precision)
        assert code == 0 and ("times as fast as float32" in err.replace("\n", " ")) == (precision == "int8"), err
        found[precision] = results_of(out)
    keys = set(saved)
    assert len(keys) == 2 and max(keys, key=len).removeprefix(min(keys, key=len)) == " int8"
    assert "precision" not in found["float32"]["settings"] and found["int8"]["settings"]["precision"] == "int8"
    code, _, err = run(*common, "--out", tmp_path / "int8")
    assert code and "precision" in err, "a run folder has one precision"
