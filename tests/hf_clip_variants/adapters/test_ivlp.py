"""IVLP: what the contract of all adapters does not test."""

import pytest
import torch
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import CLASS_NAMES, tiny_pixels

from hf_clip_variants.adapters import IVLPConfig, VPTConfig


def ivlp(seed: int = 0, base=None, **config) -> PeftModel:
    base = base if base is not None else tiny_classifier()
    torch.manual_seed(seed)
    return get_peft_model(base, IVLPConfig(**config))


def text_side(model: PeftModel):
    return model.get_base_model().prompt_embedder


def class_features(model) -> torch.Tensor:
    return getattr(model, "get_base_model", lambda: model)().get_class_features().detach()


def image_features(model) -> torch.Tensor:
    return getattr(model, "get_base_model", lambda: model)().get_image_features(tiny_pixels()).pooler_output.detach()


def test_depth_zero_leaves_an_encoder_unchanged():
    base = tiny_classifier()
    classes, images = class_features(base), image_features(base)
    text_only = ivlp(vision_depth=0)
    assert torch.equal(image_features(text_only), images)
    assert not torch.allclose(class_features(text_only), classes, atol=1e-3)
    vision_only = ivlp(text_depth=0)
    assert torch.equal(class_features(vision_only), classes)
    assert not torch.allclose(image_features(vision_only), images, atol=1e-3)
    assert text_only.peft_config["default"].target_modules == ["prompt_embedder"]
    assert "prompt_embedder" not in vision_only.peft_config["default"].target_modules
    with pytest.raises(ValueError, match="text_depth, vision_depth: both 0"):
        IVLPConfig(text_depth=0, vision_depth=0)


def test_without_text_prompts_it_equals_vpt():
    model = ivlp(text_depth=0, num_vision_tokens=3)
    vpt = get_peft_model(tiny_classifier(), VPTConfig(num_prompt_tokens=3))
    with torch.no_grad():
        prompts = model.get_base_model().clip.vision_model.embeddings.clipv_ivlp_vision_prompts["default"]
        vpt.get_base_model().clip.vision_model.embeddings.clipv_vpt_prompts["default"].copy_(prompts)
    assert torch.equal(vpt(pixel_values=tiny_pixels()).logits, model(pixel_values=tiny_pixels()).logits)


def test_one_layer_from_words_starts_from_zero_shot_clip_but_deep_prompts_do_not():
    zero_shot = class_features(tiny_classifier())
    shallow, deep = ivlp(text_depth=1), ivlp(text_depth=2)
    torch.testing.assert_close(class_features(shallow), zero_shot, rtol=0, atol=1e-5)
    assert torch.equal(*(text_side(m).clipv_ivlp_context["default"] for m in (shallow, deep)))
    assert not torch.allclose(class_features(deep), zero_shot, atol=1e-3)
    assert "default" not in text_side(shallow).clipv_ivlp_text_prompts


def test_text_prompts_do_not_change_image_features():
    model = ivlp()
    images, classes = image_features(model), class_features(model)
    with torch.no_grad():
        for parameter in text_side(model).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(image_features(model), images)
    assert not torch.allclose(class_features(model), classes, atol=1e-3)


def test_words_after_the_learned_tokens_are_kept():
    """With two learned tokens, "of a" stays in each prompt of "a photo of a"."""
    features = [class_features(ivlp(context_init=words)) for words in ("a photo of a", "a photo of the")]
    assert not torch.allclose(*features, atol=1e-3)
    config = ivlp(context_init="a photo", num_text_tokens=2).peft_config["default"]
    assert len(config.context_init_ids) == 2
    with pytest.raises(ValueError, match="'a photo' has 2 tokens, fewer than the 3 learned ones"):
        ivlp(context_init="a photo", num_text_tokens=3)
    ivlp(context_init="a photo", num_text_tokens=3, text_depth=0)  # without text prompts, the words are not used


@pytest.mark.parametrize(("text", "vision"), [((2, 2), (2, 3)), ((4, 1), (3, 0)), ((1, 0), (5, 2))])
def test_number_of_parameters(text, vision):
    model = ivlp(num_text_tokens=text[0], text_depth=text[1], num_vision_tokens=vision[0], vision_depth=vision[1])
    assert model.get_nb_trainable_parameters()[0] == text[0] * text[1] * 32 + vision[0] * vision[1] * 40


def test_class_names_may_change_after_training(tmp_path):
    model = ivlp(seed=1)
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(tiny_classifier(class_names=["owl", *CLASS_NAMES[:2]]), tmp_path)
    expected = model(pixel_values=tiny_pixels()).logits
    torch.testing.assert_close(other(pixel_values=tiny_pixels()).logits[:, 1:], expected[:, :2], rtol=0, atol=1e-4)
