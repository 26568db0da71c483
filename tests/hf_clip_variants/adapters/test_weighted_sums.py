"""`add_weighted_adapter`: sums of learned vectors, and what has none."""

import re

import pytest
import torch
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from tiny import tiny_clip, tiny_pixels
from transformers import ViTConfig, ViTForImageClassification

from hf_clip_variants.adapters import (
    CLIPAdapterConfig,
    CoCoOpConfig,
    CoOpConfig,
    IVLPConfig,
    LinearHeadConfig,
    MaPLeConfig,
    TipAdapterConfig,
    VPTConfig,
)


def _vit():
    sizes = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=24, patch_size=8, num_labels=5)).eval()


SUMMED = {
    "coop": (tiny_classifier, lambda: CoOpConfig(num_context_tokens=3)),
    "coop_class_specific": (tiny_classifier, lambda: CoOpConfig(num_context_tokens=2, class_specific=True)),
    "ivlp": (tiny_classifier, IVLPConfig),
    "ivlp_on_clip": (tiny_clip, lambda: IVLPConfig(context_init=None)),
    "vpt": (tiny_classifier, lambda: VPTConfig(num_prompt_tokens=3)),
    "vpt_on_vit": (_vit, lambda: VPTConfig(num_prompt_tokens=3)),
    "linear_head": (tiny_classifier, lambda: LinearHeadConfig(alpha=0.5)),
}


def adapted(base, config, *more):
    """A model with adapters "cats" (`config`), "dogs" and so on (`more`), all with random tensors."""
    torch.manual_seed(0)
    model = get_peft_model(base, config, "cats")
    for name, other in zip(("dogs", "cows"), more, strict=False):
        model.add_adapter(name, other)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "clipv_" in name:
                parameter.add_(torch.randn(parameter.shape))
    return model.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    texts = {"input_ids": torch.tensor([[1, 5, 6, 2]])} if model.config.model_type == "clip" else {}
    output = model(pixel_values=tiny_pixels(), **texts)
    return output.logits_per_image if texts else output.logits


@pytest.mark.parametrize("kind", SUMMED)
def test_tensors_are_the_weighted_sum(kind, tmp_path):
    base, config = SUMMED[kind]
    model = adapted(base(), config(), config(), config())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    model.add_weighted_adapter(["cats", "dogs"], [1, 0], "first")
    model.add_weighted_adapter(["cats", "dogs", "cows"], [0.5, 0.75, -1.0], "sum", combination_type="linear")
    parts = [get_peft_model_state_dict(model, adapter_name=name) for name in ("cats", "dogs", "cows", "sum")]
    assert len(parts[3]) and all(part.keys() == parts[0].keys() for part in parts)
    for a, b, c, found in zip(*(part.values() for part in parts), strict=True):
        torch.testing.assert_close(found, 0.5 * a + 0.75 * b - c, rtol=1e-5, atol=1e-6)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    before = logits(model)
    model.set_adapter("first")
    assert torch.equal(logits(model), before)
    model.set_adapter("sum")
    summed = logits(model)
    assert not torch.allclose(summed, before, atol=1e-3)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    again = PeftModel.from_pretrained(base(), tmp_path / "sum") if kind != "vpt_on_vit" else model
    torch.testing.assert_close(logits(again), summed, rtol=0, atol=1e-5)


def test_logits_of_summed_linear_heads_are_the_sum():
    """What a linear head adds to the logits is linear in its tensors."""
    model = adapted(tiny_classifier(), LinearHeadConfig(alpha=0.5), LinearHeadConfig(alpha=0.5, trainable=True))
    model.add_weighted_adapter(["cats", "dogs"], [0.25, 0.5], "both")
    with model.disable_adapter():
        plain = logits(model)
    added = {}
    for name in ("cats", "dogs", "both"):
        model.set_adapter(name)
        added[name] = logits(model) - plain
    torch.testing.assert_close(added["both"], 0.25 * added["cats"] + 0.5 * added["dogs"], rtol=1e-4, atol=1e-4)


def test_a_sum_keeps_the_dtype_and_forgets_what_was_measured():
    model = get_peft_model(tiny_classifier().bfloat16(), CoOpConfig(), "cats", autocast_adapter_dtype=False)
    model.add_adapter("dogs", CoOpConfig(context_init_ids=[5] * 16), autocast_adapter_dtype=False)
    model.peft_config["cats"].temperature = 2.0
    model.add_weighted_adapter(["cats", "dogs"], [0.5, 0.5], "both")
    assert {p.dtype for name, p in model.named_parameters() if ".both" in name} == {torch.bfloat16}
    assert model.peft_config["both"].temperature is None and model.peft_config["cats"].temperature == 2.0
    assert model.peft_config["both"].class_names == model.peft_config["cats"].class_names


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: CoCoOpConfig(meta_reduction=4), "CLIPV_COCOOP 'cats' cannot be part of a weighted sum"),
        (lambda: MaPLeConfig(prompt_depth=2), "CLIPV_MAPLE 'cats' cannot be part of a weighted sum"),
        (CLIPAdapterConfig, "CLIPV_CLIP_ADAPTER 'cats' cannot be part of a weighted sum"),
        (TipAdapterConfig, "CLIPV_TIP_ADAPTER 'cats' cannot be part of a weighted sum"),
        (lambda: VPTConfig(projection_dim=7), "because its prompts are projected (projection_dim)"),
        (lambda: LinearHeadConfig(gamma=1.0, cache_size=3), "because it has cached images"),
    ],
)
def test_what_is_not_linear_is_refused_by_name(config, reason):
    model = adapted(tiny_classifier(), config(), config())
    names = {name for name, _ in model.named_modules()}
    with pytest.raises(ValueError, match=re.escape(reason)):
        model.add_weighted_adapter(["cats", "dogs"], [0.5, 0.5], "both")
    assert {name for name, _ in model.named_modules()} == names and sorted(model.peft_config) == ["cats", "dogs"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"adapters": ["cats", "birds"]}, "adapters: got ['birds']; want a list of ['cats', 'cows', 'dogs']"),
        ({"adapters": "cats"}, "adapters: got 'cats'; want a list"),
        ({"adapters": []}, "adapters: got []; want a list"),
        ({"adapters": ["cats", "cows"]}, "'cats' and 'cows' differ in num_context_tokens, 3 and 4; want the same"),
        ({"weights": [1.0]}, "weights: got [1.0]; want a finite number for each of the 2 adapters"),
        ({"weights": [1.0, float("nan")]}, "weights: got [1.0, nan]; want a finite number"),
        ({"weights": ["1", 2]}, "weights: got ['1', 2]; want a finite number"),
        ({"adapter_name": "dogs"}, "adapter_name: the model has 'dogs' already; want a new name"),
        ({"combination_type": "svd"}, "combination_type: got 'svd'; vectors of adapters have one sum: 'linear'"),
        ({"density": 0.5}, "density; vectors of adapters have one sum: 'linear', without options"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, error):
    configs = [CoOpConfig(num_context_tokens=count) for count in (3, 3, 4)]
    model = adapted(tiny_classifier(), *configs)
    arguments = {"adapters": ["cats", "dogs"], "weights": [0.5, 0.5], "adapter_name": "both"} | change
    with pytest.raises(ValueError, match=re.escape(error)):
        model.add_weighted_adapter(**arguments)
    assert sorted(model.peft_config) == ["cats", "cows", "dogs"]
