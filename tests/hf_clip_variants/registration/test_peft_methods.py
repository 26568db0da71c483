"""Registration of our tuners with PEFT."""

import copy
import pickle

import pytest
import torch
from adapter_models import tiny_classifier
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from tiny import tiny_pixels
from transformers_adapters import needs_adapter_methods

import hf_clip_variants
from hf_clip_variants.adapters import CoOpConfig, load_adapter, put_adapter
from hf_clip_variants.adapters.peft_type import add_peft_type
from hf_clip_variants.registration.peft_methods import register_all


@pytest.mark.parametrize("row", hf_clip_variants.methods("adapter"), ids=lambda row: row.name)
def test_each_adapter_is_registered_with_peft(row):
    member = PeftType(row.peft_type)
    assert (
        member in list(PeftType) and getattr(PeftType, row.peft_type) is member and PeftType[row.peft_type] is member
    )
    assert (
        member == row.peft_type
        and member.value == member.name == row.peft_type
        and repr(member) == f"<PeftType.{row.peft_type}: '{row.peft_type}'>"
    )
    assert copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is row.load("config")
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is row.load("tuner")
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == f"{row.peft_type.lower()}_" == row.load("tuner").prefix
    names = row.load("layer").adapter_layer_names + row.load("layer").other_param_names
    assert names and all(name.startswith(row.load("tuner").prefix) for name in names)


def test_registering_again_changes_nothing():
    members, tuners = list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING)
    register_all()
    assert add_peft_type("CLIPV_COOP") is PeftType.CLIPV_COOP
    assert list(PeftType) == members and dict(PEFT_TYPE_TO_TUNER_MAPPING) == tuners
    assert PeftType.LORA.value == "LORA"


@needs_adapter_methods
def test_failed_injection_leaves_the_model_unchanged():
    base = tiny_classifier()
    with pytest.raises(ValueError, match="context_init_ids: -1"):
        base.add_adapter(CoOpConfig(context_init_ids=[-1]), "bad")
    assert not base._hf_peft_config_loaded
    base.add_adapter(CoOpConfig(num_context_tokens=2), "good")
    with pytest.raises(ValueError, match="context_init_ids: -1"):
        base.add_adapter(CoOpConfig(context_init_ids=[-1]), "bad")
    assert list(base.peft_config) == ["good"] and base.active_adapters() == ["good"]
    base(pixel_values=tiny_pixels())


@needs_adapter_methods
def test_works_together_with_lora():
    base = tiny_classifier()
    plain = base(pixel_values=tiny_pixels()).logits
    base.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "lora")
    with_lora = base(pixel_values=tiny_pixels()).logits
    base.add_adapter(CoOpConfig(num_context_tokens=2), "coop")
    base.set_adapter(["lora", "coop"])
    both = base(pixel_values=tiny_pixels()).logits
    base.set_adapter("coop")
    with_coop = base(pixel_values=tiny_pixels()).logits
    assert len({tuple(t.flatten().tolist()) for t in (plain, with_lora, both, with_coop)}) == 4
    base.set_adapter("lora")
    assert (base(pixel_values=tiny_pixels()).logits - with_lora).abs().max() < 1e-5


def test_error_for_a_too_old_peft_names_alternatives(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    base = tiny_classifier()
    with pytest.raises(ImportError, match=r"^add_adapter: .* >= 99.0.*get_peft_model.*PeftModel.from_pretrained"):
        base.add_adapter(CoOpConfig(), "mine")
    model = get_peft_model(base, CoOpConfig(num_context_tokens=2))
    model.save_pretrained(tmp_path)
    logits = model(pixel_values=tiny_pixels()).logits
    again = PeftModel.from_pretrained(tiny_classifier(), tmp_path)
    assert torch.equal(again(pixel_values=tiny_pixels()).logits, logits)


def test_tensors_of_wrong_shape_leave_the_model_unchanged():
    base = tiny_classifier()
    kinds = [type(m) for m in base.modules()]
    wrong = {"prompt_embedder.clipv_coop_context": torch.zeros(3, 32)}
    with pytest.raises(ValueError, match=r"has shape \[3, 32\], its configuration says \[2, 32\]"):
        put_adapter(base, CoOpConfig(num_context_tokens=2), wrong)
    assert [type(m) for m in base.modules()] == kinds and all(p.requires_grad for p in base.parameters())

    right = {"prompt_embedder.clipv_coop_context": torch.ones(2, 32)}
    model = put_adapter(base, CoOpConfig(num_context_tokens=2), right)
    with pytest.raises(ValueError, match="has shape"):
        put_adapter(model, CoOpConfig(num_context_tokens=2), wrong, "second")
    assert list(model.peft_config) == ["default"]
    put_adapter(model, CoOpConfig(num_context_tokens=2), right, "second")
    model.set_adapter("second")
    model(pixel_values=tiny_pixels())


def test_load_adapter_without_a_known_base_is_an_error(tmp_path):
    get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="base: the adapter does not say what it was trained on"):
        load_adapter(tmp_path)
    with pytest.raises(OSError, match=r"adapter_config.json: not found"):
        load_adapter(tmp_path.parent, tiny_classifier())
    with pytest.raises(TypeError, match="unknown arguments"):
        load_adapter(tmp_path, tiny_classifier(), reversion="main")


def test_load_adapter_adds_to_a_peft_model_and_can_be_trainable(tmp_path):
    get_peft_model(tiny_classifier(), CoOpConfig(num_context_tokens=2)).save_pretrained(tmp_path)
    model = load_adapter(tmp_path, tiny_classifier())
    assert not any(p.requires_grad for p in model.parameters())
    same = load_adapter(tmp_path, model, adapter_name="second", is_trainable=True)
    assert same is model and set(model.peft_config) == {"default", "second"}
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "base_model.model.prompt_embedder.clipv_coop_context.second"
    ]
