"""An adapter's file says which backbone it is for; what of it could not be checked is said, once."""

import json
import warnings

import pytest
import torch
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model

from hf_clip_variants import CLIPAdapterConfig, CoOpConfig, load_adapter
from hf_clip_variants.modeling.dual_encoders import fingerprint as module


LOADERS = {
    "load_adapter": lambda base, folder: load_adapter(folder, base),
    "PeftModel": PeftModel.from_pretrained,
    "transformers": lambda base, folder: base.load_adapter(folder),
}


@pytest.fixture
def folder(tmp_path):
    get_peft_model(tiny_classifier(), CLIPAdapterConfig()).save_pretrained(tmp_path)
    return tmp_path


def change(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def said_while(action) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(one.message) for one in caught if "fingerprint" in str(one.message)]


@pytest.mark.parametrize("loader", LOADERS)
def test_the_right_backbone_in_any_dtype_loads_without_a_word(loader, folder):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert said_while(lambda dtype=dtype: LOADERS[loader](tiny_classifier().to(dtype), folder)) == []


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("old", "words"), [(None, "has no fingerprint"), ("v1", "only 24 of the values"), ("meta", "not all of them")]
)
def test_what_could_not_be_checked_is_said_once(loader, old, words, folder):
    v2 = json.loads((folder / "adapter_config.json").read_text())["backbone_fingerprint"].split(":")
    first = "v1:" + ":".join(module._first_form(tiny_classifier().clip))
    value = {"v1": first, "meta": ":".join([*v2[:4], "", "", "", ""]), None: None}[old]
    change(folder, backbone_fingerprint=value)
    said = said_while(lambda: LOADERS[loader](tiny_classifier(), folder))
    assert len(said) == 1 and words in said[0] and said[0].startswith("backbone_fingerprint: ")
    if old == "v1":
        with pytest.raises(ValueError, match="backbone_fingerprint: the adapter was made for"):
            LOADERS[loader](tiny_classifier(seed=1), folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_one_other_weight_is_another_backbone(loader, folder):
    base = tiny_classifier()
    base.clip.vision_model.encoder.layers[1].layer_norm1.bias.data[3] += 1e-6
    with pytest.raises(ValueError, match="backbone_fingerprint: the adapter .*'v2:.* backbone has 'v2:"):
        LOADERS[loader](base, folder)
    assert said_while(lambda: load_adapter(folder, base, allow_other_backbone=True)) == []


@pytest.mark.parametrize("value", ["", "v9:x", 5, ["v2"], {"a": 1}, True])
def test_a_fingerprint_of_another_form_is_refused_by_name(value, folder):
    change(folder, backbone_fingerprint=value)
    with pytest.raises(ValueError, match="backbone_fingerprint: .*(want|expected)"):
        load_adapter(folder, tiny_classifier())


def test_a_new_adapter_is_no_cause_for_a_warning(tmp_path):
    base = tiny_classifier()
    model = get_peft_model(base, CoOpConfig(num_context_tokens=2))
    assert said_while(lambda: model.add_adapter("more", CoOpConfig(num_context_tokens=2))) == []
    assert "is_from_file" not in model.peft_config["default"].to_dict()


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("setting", [{"num_attention_heads": 1}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-3}])
def test_equal_weights_with_other_settings_are_another_backbone(part, setting, folder):
    with pytest.raises(ValueError, match="backbone_fingerprint: the adapter was made for"):
        LOADERS["load_adapter"](tiny_classifier(**{part: setting}), folder)
