"""Adapters that insert tokens into a model: with LoRA, with each other, compiled, copied and deleted."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from adapter_models import tiny_classifier
from peft import IA3Config, LoraConfig, get_peft_model, inject_adapter_in_model
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels
from transformers_adapters import needs_adapter_methods

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.adapters import CLIPAdapterConfig, CoCoOpConfig, CoOpConfig, IVLPConfig, MaPLeConfig, VPTConfig


pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
CONFIGS = {
    "coop": lambda: CoOpConfig(num_context_tokens=3),
    "cocoop": lambda: CoCoOpConfig(meta_reduction=4),
    "maple": lambda: MaPLeConfig(prompt_depth=2),
    "vpt": lambda: VPTConfig(num_prompt_tokens=3),
    "ivlp": lambda: IVLPConfig(),
}


@pytest.fixture(params=CONFIGS)
def kind(request) -> str:
    return request.param


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=tiny_pixels()).logits


@needs_adapter_methods
def test_prompts_added_after_lora_work_together(kind):
    base = tiny_classifier()
    torch.manual_seed(0)
    base.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "lora")
    with_lora = logits(base)
    base.add_adapter(CONFIGS[kind](), kind)
    with_prompts = logits(base)
    base.set_adapter(["lora", kind])
    both = logits(base)
    assert not torch.allclose(both, with_lora, atol=1e-3) and not torch.allclose(both, with_prompts, atol=1e-3)
    base(pixel_values=tiny_pixels(), labels=torch.arange(4)).loss.backward()
    moved = {name for name, p in base.named_parameters() if p.grad is not None}
    # CLIP is frozen. LoRA and prompts are trained, LoRA also in layers that the prompts wrap.
    assert all("lora_" in name or f"clipv_{kind}_" in name for name in moved)
    wrapped = [name for name in moved if "lora_" in name and "vision_model.encoder.layers.2." in name]
    assert len(wrapped) == 2 and any("clipv_" in name for name in moved)
    base.set_adapter("lora")
    torch.testing.assert_close(logits(base), with_lora, rtol=0, atol=1e-5)
    base.set_adapter(kind)
    torch.testing.assert_close(logits(base), with_prompts, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.parametrize("targets", [["q_proj"], ".*vision_model.*q_proj", "all-linear"])
@pytest.mark.parametrize("adapter", ["vpt", "maple", "ivlp"])
def test_lora_after_prompts_is_refused_where_peft_would_leave_it_out(adapter, targets):
    model = get_peft_model(tiny_classifier(), CONFIGS[adapter]())
    base, before, names = model.get_base_model(), logits(model), {name for name, _ in model.named_modules()}
    message = (
        rf"PEFT would leave LORA out of \d+ modules, such as clip\.vision_model\.\S+, because CLIPV_{adapter.upper()} "
        "wraps the layers that they are in; add LORA first"
    )
    for add in (lambda lora: inject_adapter_in_model(lora, base, "lora"), lambda lora: get_peft_model(base, lora)):
        with pytest.raises(ValueError, match=message):
            add(LoraConfig(target_modules=targets, init_lora_weights=False))
        assert {name for name, _ in model.named_modules()} == names and list(base.peft_config) == ["default"]
    twin = pickle.loads(pickle.dumps(copy.deepcopy(base)))
    with pytest.raises(ValueError, match="because CLIPV_"):
        inject_adapter_in_model(LoraConfig(target_modules=targets), twin, "lora")
    assert torch.equal(logits(model), before)


def lora(**options) -> LoraConfig:
    return LoraConfig(**({"target_modules": ["q_proj", "v_proj"]} | options))


def num_lora_layers(model, name: str) -> int:
    return sum(f"lora_A.{name}." in parameter for parameter, _ in model.named_parameters())


def _lora_model(mixed: bool = False):
    model = get_peft_model(tiny_classifier(), lora(), "first", mixed=mixed)
    return model, model.base_model.model


def _injected():
    base = inject_adapter_in_model(lora(), tiny_classifier(), "first")
    return base, base


_IA3 = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
ROUTES = {
    "add_adapter": (_lora_model, lambda model, base: model.add_adapter("later", lora())),
    "inject": (_injected, lambda model, base: inject_adapter_in_model(lora(), base, "later")),
    "inject into a PeftModel's": (_lora_model, lambda model, base: inject_adapter_in_model(lora(), base, "later")),
    "get_peft_model": (_lora_model, lambda model, base: get_peft_model(base, lora(), "later")),
    "mixed": (lambda: _lora_model(mixed=True), lambda model, base: model.add_adapter("later", lora())),
    "all-linear": (_lora_model, lambda model, base: model.add_adapter("later", lora(target_modules="all-linear"))),
    "IA3": (_injected, lambda model, base: inject_adapter_in_model(_IA3, base, "later")),
}


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.parametrize("route", ROUTES)
def test_lora_between_two_prompts_and_after_them(route):
    """LoRA first reaches every layer, and a LoRA that comes after the prompts would not: whichever way it comes."""
    prepare, add = ROUTES[route]
    for kind in ("vpt", "maple", "ivlp"):
        model, base = prepare()
        assert num_lora_layers(base, "first") == 10
        inject_adapter_in_model(CONFIGS[kind](), base, kind)
        names, before = [name for name, _ in base.named_modules()], logits(base)
        message = rf"out of \d+ modules, such as clip\.vision_model\.\S+, because CLIPV_{kind.upper()} wraps"
        with pytest.raises(ValueError, match=message):
            add(model, base)
        assert [name for name, _ in base.named_modules()] == names and sorted(base.peft_config) == ["first", kind]
        assert torch.equal(logits(base), before)
    inject_adapter_in_model(lora(target_modules=".*text_model.*q_proj"), base, "text")
    assert num_lora_layers(base, "text") == 2
    base.peft_config.pop("text")
    with pytest.raises(ValueError, match="PEFT would leave LORA out"):  # the same name again
        inject_adapter_in_model(lora(), base, "text")


def test_lora_on_modules_that_prompts_do_not_wrap_can_be_added_later():
    model = get_peft_model(tiny_classifier(), CONFIGS["vpt"]())
    base, before = model.get_base_model(), logits(model)
    inject_adapter_in_model(LoraConfig(target_modules=".*text_model.*q_proj", init_lora_weights=False), base, "lora")
    assert sorted(base.peft_config) == ["default", "lora"] and not torch.allclose(logits(model), before, atol=1e-3)
    assert sum("lora_A" in name for name, _ in base.named_parameters()) == 2


SAME_MODULE = [
    ("vpt", "maple"),
    ("maple", "vpt"),
    ("ivlp", "vpt"),
    ("coop", "maple"),
    ("ivlp", "coop"),
    ("cocoop", "coop"),
]


@needs_adapter_methods
@pytest.mark.parametrize(("first", "second"), SAME_MODULE)
def test_two_kinds_of_prompts_on_one_module_are_refused(first, second):
    base = tiny_classifier()
    base.add_adapter(CONFIGS[first](), "first")
    before = logits(base)
    with pytest.raises(
        ValueError, match=f"CLIPV_{second.upper()} cannot be added, CLIPV_{first.upper()} already changes"
    ):
        base.add_adapter(CONFIGS[second](), "second")
    assert torch.equal(logits(base), before) and list(base.peft_config) == ["first"]
    base.delete_adapter("first")
    base.add_adapter(CONFIGS[second](), "second")
    torch.manual_seed(0)
    assert not torch.allclose(logits(base), before, atol=1e-3)


@needs_adapter_methods
def test_prompts_on_nested_modules_are_refused():
    for first, second in (("coop", "maple"), ("maple", "coop")):
        base = tiny_clip()
        configs = {"coop": CoOpConfig(num_context_tokens=2), "maple": MaPLeConfig(prompt_depth=2, context_init=None)}
        base.add_adapter(configs[first], "first")
        with pytest.raises(ValueError, match="already changes text_model.embeddings"):
            base.add_adapter(configs[second], "second")


@needs_adapter_methods
@pytest.mark.parametrize("text", ["coop", "cocoop"])
def test_prompts_on_different_modules_work_together(text):
    base = tiny_classifier()
    base.add_adapter(CONFIGS[text](), "text")
    alone = logits(base)
    base.add_adapter(CONFIGS["vpt"](), "images")
    base.add_adapter(CLIPAdapterConfig(), "features")
    base.set_adapter(["text", "images"])
    two = logits(base)
    base.set_adapter(["text", "images", "features"])
    three = logits(base)
    assert not torch.allclose(two, alone, atol=1e-3) and not torch.allclose(three, two, atol=1e-4)
    base.set_adapter("text")
    torch.testing.assert_close(logits(base), alone, rtol=0, atol=1e-5)


# Two layers are enough for deep prompts; tracing costs the time.
SHALLOW = {"vision_config": {"num_hidden_layers": 2}}


@pytest.mark.filterwarnings("ignore")
def test_compiled_logits_equal_eager_logits(kind):
    """Without an eager forward pass before, and after the adapter has changed."""
    model = get_peft_model(tiny_classifier(**SHALLOW), CONFIGS[kind]()).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(logits(compiled), logits(model), rtol=0, atol=1e-5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "clipv_" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with model.disable_adapter():
        torch.testing.assert_close(logits(compiled), logits(tiny_classifier(**SHALLOW)), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compiled_classifier_equals_eager_classifier(tmp_path):
    tiny_classifier(**SHALLOW).save_pretrained(tmp_path)
    expected = logits(tiny_classifier(**SHALLOW))
    torch._dynamo.reset()
    torch.testing.assert_close(
        logits(torch.compile(CLIPClassifier.from_pretrained(tmp_path), backend="eager")), expected, rtol=0, atol=1e-5
    )
    torch._dynamo.reset()
    new = tiny_classifier(class_names=CLASS_NAMES[::-1], **SHALLOW)  # no features cached yet
    new = torch.compile(new, backend="eager")
    torch.testing.assert_close(logits(new), expected.flip(1), rtol=0, atol=1e-5)


def test_copy_uses_its_own_prompts_and_can_be_freed(kind):
    """Wrapped layers without tensors look them up in the model: a copy's layers must use the copy."""
    model = get_peft_model(tiny_classifier(), CONFIGS[kind]())
    before, twin = logits(model), copy.deepcopy(model)
    dependent = [module for module in twin.modules() if hasattr(module, "_root")]
    assert all(module._root[0] is twin.get_base_model() for module in dependent)
    assert bool(dependent) == (kind in ("maple", "vpt", "ivlp"))
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "clipv_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(logits(model), before) and not torch.allclose(logits(twin), before, atol=1e-3)

    references = [weakref.ref(module) for module in twin.modules()]
    del twin, dependent, parameter
    gc.collect()
    assert [ref for ref in references if ref() is not None] == []


def test_unload_frees_all_adapter_layers(kind):
    base = tiny_classifier()
    model = get_peft_model(base, CONFIGS[kind]())
    model(pixel_values=tiny_pixels(), labels=torch.arange(4)).loss.backward()
    layers = [weakref.ref(module) for module in base.modules() if hasattr(module, "adapter_layer_names")]
    assert layers
    model.unload()
    del model
    gc.collect()
    assert [ref for ref in layers if ref() is not None] == []
