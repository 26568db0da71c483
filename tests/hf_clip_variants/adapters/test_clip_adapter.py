"""CLIP-Adapter: what the contract of all adapters does not test."""

import pytest
import torch
import torch.nn.functional as F
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import tiny_clip, tiny_pixels, tiny_tokenizer

from hf_clip_variants.adapters import CLIPAdapterConfig
from hf_clip_variants.adapters.clip_adapter.layer import blend, bottleneck


def _outputs(model):
    return model(pixel_values=tiny_pixels())


def test_bottleneck_and_blend_equal_a_calculation_by_hand():
    features = torch.tensor([[1.0, -2.0]])
    down, up = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    # down: (-1, 2) -> ReLU (0, 2); up: (2, -2) -> ReLU (2, 0)
    assert bottleneck(features, down, up).tolist() == [[2.0, 0.0]]
    assert bottleneck(features, down, up, output_relu=False).tolist() == [[2.0, -2.0]]
    assert blend(features, torch.tensor([[2.0, 0.0]]), 0.25).tolist() == [[1.25, -1.5]]


@pytest.mark.parametrize("modality", ["image", "text", "both"])
def test_ratio_zero_gives_clip_and_ratio_one_the_adapter_alone(modality):
    base = tiny_classifier()
    zero_shot = _outputs(base)
    features = base.get_image_features(tiny_pixels()).pooler_output
    model = get_peft_model(base, CLIPAdapterConfig(modality=modality, ratio=0.0))
    assert torch.equal(_outputs(model).logits, zero_shot.logits)
    model.peft_config["default"].ratio = 1.0
    output = _outputs(model)
    if modality != "text":
        layer = base.image_feature_adapter
        alone = bottleneck(
            features, layer.clipv_clip_adapter_down["default"].weight, layer.clipv_clip_adapter_up["default"].weight
        )
        torch.testing.assert_close(output.image_embeds, F.normalize(alone, dim=-1))
    # The other modality does not change.
    if modality != "both":
        untouched = "text_embeds" if modality == "image" else "image_embeds"
        assert torch.equal(output[untouched], zero_shot[untouched])


def test_ratio_can_be_changed_after_loading(tmp_path):
    model = get_peft_model(tiny_classifier(), CLIPAdapterConfig(ratio=0.2))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_classifier(), tmp_path)
    sweep = []
    for ratio in (0.0, 0.2, 0.6):
        loaded.peft_config["default"].ratio = ratio
        sweep.append(_outputs(loaded).logits)
    assert torch.equal(sweep[0], _outputs(tiny_classifier()).logits)
    assert torch.equal(sweep[1], _outputs(model).logits)
    assert not torch.equal(sweep[2], sweep[1])


def test_text_has_its_own_ratio():
    base = tiny_classifier()
    model = get_peft_model(base, CLIPAdapterConfig(modality="both", ratio=0.0, text_ratio=0.5))
    output, zero_shot = _outputs(model), _outputs(tiny_classifier())
    assert torch.equal(output.image_embeds, zero_shot.image_embeds)
    assert not torch.equal(output.text_embeds, zero_shot.text_embeds)
    model.peft_config["default"].text_ratio = None
    assert torch.equal(_outputs(model).text_embeds, zero_shot.text_embeds)


def test_learnable_ratio_starts_from_the_given_value_and_gets_a_gradient():
    bases = tiny_classifier(), tiny_classifier()
    models = []
    for base, learnable in zip(bases, (False, True), strict=True):
        torch.manual_seed(0)
        models.append(get_peft_model(base, CLIPAdapterConfig(ratio=0.3, learnable_ratio=learnable)))
    fixed, model = models
    torch.testing.assert_close(_outputs(model).logits, _outputs(fixed).logits)
    logit = model.get_base_model().image_feature_adapter.clipv_clip_adapter_ratio_logit["default"]
    F.cross_entropy(_outputs(model).logits, torch.arange(4)).backward()
    assert logit.grad.abs() > 0


def test_bottleneck_width_is_rounded_down():
    layer = get_peft_model(tiny_classifier(), CLIPAdapterConfig(reduction=7)).get_base_model().image_feature_adapter
    assert layer.clipv_clip_adapter_down["default"].weight.shape == (24 // 7, 24)


def test_plain_clip_model_and_classifier_agree():
    bases = tiny_classifier(), tiny_clip()
    models = []
    for base in bases:
        torch.manual_seed(0)
        models.append(get_peft_model(base, CLIPAdapterConfig(modality="both")))
    on_classifier, on_clip = models
    names = on_classifier.get_base_model().class_names
    ids = tiny_tokenizer()([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt").input_ids
    expected = on_clip(input_ids=ids, pixel_values=tiny_pixels()).logits_per_image
    torch.testing.assert_close(_outputs(on_classifier).logits, expected, rtol=0, atol=1e-5)


def test_adapter_of_a_classifier_is_refused_on_a_plain_clip_model(tmp_path):
    get_peft_model(tiny_classifier(), CLIPAdapterConfig()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"target_modules: the adapter wraps \['image_feature_adapter'\], on a CLIPModel"
    ):
        PeftModel.from_pretrained(tiny_clip(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality": "audio"}, "modality: 'audio', expected one of 'image', 'text', 'both'"),
        ({"reduction": 0}, "reduction: 0"),
        ({"ratio": 1.5}, "ratio: 1.5, expected a number between 0 and 1"),
        ({"text_ratio": -0.1}, "text_ratio: -0.1"),
        ({"ratio": 0.0, "learnable_ratio": True}, "ratio: 0.0 cannot be learned"),
    ],
)
def test_invalid_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CLIPAdapterConfig(**arguments)


def test_training_beats_zero_shot():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 24, generator=generator)
    labels = torch.arange(40) % 5
    features = centres[labels] + 0.3 * torch.randn(40, 24, generator=generator)
    torch.manual_seed(0)
    model = get_peft_model(tiny_classifier(), CLIPAdapterConfig(ratio=0.6))
    with model.disable_adapter():
        zero_shot = (model(image_features=features).logits.argmax(1) == labels).float().mean()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(100):
        loss = F.cross_entropy(model(image_features=features).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = (model(image_features=features).logits.argmax(1) == labels).float().mean()
    assert trained > zero_shot + 0.3
