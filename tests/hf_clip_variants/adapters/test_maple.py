"""MaPLe: what the contract of all adapters does not test."""

import pytest
import torch
from adapter_models import tiny_classifier
from peft import PeftModel, get_peft_model
from tiny import CLASS_NAMES, tiny_clip, tiny_pixels
from transformers import CLIPConfig, CLIPModel
from transformers.masking_utils import create_causal_mask

from hf_clip_variants.adapters import MaPLeConfig


PATCHES = 9  # of tests/support/tiny.py: 24 px in patches of 8


def maple(seed: int = 0, class_names=CLASS_NAMES, **config) -> PeftModel:
    base = tiny_classifier(class_names=class_names)
    torch.manual_seed(seed)
    return get_peft_model(base, MaPLeConfig(**{"prompt_depth": 2} | config))


def text_side(model: PeftModel):
    return model.get_base_model().prompt_embedder


def image_side(model: PeftModel):
    return model.get_base_model().clip.vision_model.embeddings


def image_features(model: PeftModel) -> torch.Tensor:
    return model.get_base_model().get_image_features(tiny_pixels()).pooler_output


@torch.no_grad()
def change(*parameters: torch.Tensor) -> None:
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def test_all_layers_see_the_prompts_and_the_output_has_none():
    model = maple(num_prompt_tokens=4)
    vision, lengths = model.get_base_model().clip.vision_model, []
    for layer in vision.encoder.layers:
        bare = getattr(layer, "base_layer", layer)
        bare.register_forward_hook(lambda module, args, output: lengths.append((args[0].shape[1], output.shape[1])))
    last = vision(tiny_pixels()).last_hidden_state
    assert lengths == [(1 + PATCHES + 4, 1 + PATCHES + 4)] * 3
    assert last.shape == (4, 1 + PATCHES, 40)


def test_visual_prompts_depend_on_text_prompts():
    model = maple()
    before = image_features(model)
    for parameter in (
        text_side(model).clipv_maple_context["default"],
        text_side(model).clipv_maple_text_prompts["default"],
    ):
        change(parameter)
        after = image_features(model)
        assert not torch.allclose(after, before, atol=1e-3)
        before = after


def test_zero_projections_remove_the_coupling():
    """Image features then do not depend on the text prompts; class features still do."""
    model = maple()
    features, classes = image_features(model), model.get_base_model().get_class_features()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "clipv_maple_projection" in name:
                parameter.zero_()
    uncoupled = image_features(model)
    assert not torch.allclose(uncoupled, features, atol=1e-3)
    change(text_side(model).clipv_maple_context["default"])
    assert torch.equal(image_features(model), uncoupled)
    assert not torch.allclose(model.get_base_model().get_class_features(), classes, atol=1e-3)


def test_depth_one_has_no_deep_prompts():
    model = maple(prompt_depth=1)
    assert [n for n, p in model.named_parameters() if p.requires_grad and "text_prompts" in n] == []
    wrapped = model.peft_config["default"].target_modules
    assert wrapped == ["clip.vision_model.embeddings", "clip.vision_model.encoder.layers.2", "prompt_embedder"]
    # The context starts from the first n tokens of a zero-shot prompt: before training, class features are CLIP's.
    zero_shot = tiny_classifier().get_class_features()
    torch.testing.assert_close(model.get_base_model().get_class_features(), zero_shot, rtol=0, atol=1e-5)


def test_projections_after_the_first_start_equal():
    base = tiny_classifier(text_config={"num_hidden_layers": 3})
    weight = image_side(get_peft_model(base, MaPLeConfig(prompt_depth="all"))).clipv_maple_projection_weight["default"]
    assert len(weight) == 3 and torch.equal(weight[1], weight[2]) and not torch.equal(weight[0], weight[1])


def test_one_projection_serves_all_layers():
    model = maple(share_projection=True)
    weight, bias = (
        getattr(image_side(model), f"clipv_maple_projection_{part}")["default"] for part in ("weight", "bias")
    )
    assert weight.shape == (1, 40, 32)
    for layer in range(2):
        expected = text_side(model).layer_prompts("default", layer) @ weight[0].T + bias[0]
        torch.testing.assert_close(image_side(model).layer_prompts("default", layer, 3), expected.expand(3, -1, -1))


def parameter_count(n: int, depth: int, text: int, image: int, share: bool = False) -> int:
    return (1 if share else depth) * (text * image + image) + depth * n * text


@pytest.mark.parametrize(("n", "depth", "share"), [(2, 2, False), (3, 1, False), (2, 2, True)])
def test_number_of_parameters(n, depth, share):
    model = maple(num_prompt_tokens=n, prompt_depth=depth, share_projection=share)
    assert model.get_nb_trainable_parameters()[0] == parameter_count(n, depth, 32, 40, share)


def test_number_of_parameters_is_that_of_the_paper():
    """ViT-B/16 with the defaults: 3.555 M parameters; 0.40 M with one projection."""
    text = {"hidden_size": 512, "num_attention_heads": 8}
    config = CLIPConfig(text_config=text, vision_config={"hidden_size": 768, "patch_size": 16})
    for share, count in ((False, 3_555_072), (True, 403_200)):
        with torch.device("meta"):
            settings = MaPLeConfig(context_init="a photo of a", context_init_ids=[320, 1125, 539, 320])
            settings.share_projection = share
            model = get_peft_model(CLIPModel(config), settings)
        assert model.get_nb_trainable_parameters()[0] == count == parameter_count(2, 9, 512, 768, share)


def vpt_deep_reference(model: PeftModel) -> torch.Tensor:
    """Class features of style "vpt_deep": n tokens without positions after SOS; all words keep their positions."""
    classifier, prompt_module = model.get_base_model(), text_side(model)
    encoder, ids = classifier.clip.text_model, classifier.prompt_ids[:, 0].long()
    words = encoder.embeddings(input_ids=ids)
    depth, hidden = prompt_module.shape_of("default").depth, words
    for number, layer in enumerate(encoder.encoder.layers):
        if number < depth:
            prompts = prompt_module.layer_prompts("default", number).expand(len(ids), -1, -1)
            rest = hidden[:, 1:] if number == 0 else hidden[:, 1 + prompts.shape[1] :]
            hidden = torch.cat([hidden[:, :1], prompts, rest], dim=1)
        mask = create_causal_mask(encoder.config, hidden, None, None)
        hidden = layer(hidden, mask, is_causal=True)
    assert hidden.shape[1] == ids.shape[1] + prompts.shape[1]
    end = (ids == classifier.padding_id).int().argmax(dim=1) + prompts.shape[1]
    return classifier.clip.text_projection(encoder.final_layer_norm(hidden[torch.arange(len(ids)), end]))


@pytest.mark.parametrize("depth", [1, 2])
def test_vpt_deep_inserts_tokens_and_keeps_positions_of_words(depth):
    model = maple(num_prompt_tokens=5, prompt_depth=depth, text_prompt_style="vpt_deep")  # more tokens than words
    config = model.peft_config["default"]
    classifier = model.get_base_model()
    ids = text_side(model)(classifier.class_prompts, classifier.get_input_embeddings()).input_ids
    start = classifier.prompt_ids[:, 0]
    assert torch.equal(torch.cat([ids[:, :1], ids[:, 6:]], dim=1), start)  # no word is replaced
    assert len(config.context_init_ids) == 4
    torch.testing.assert_close(classifier.get_class_features(), vpt_deep_reference(model), rtol=0, atol=1e-5)


def test_text_prompt_styles_differ():
    features = [
        maple(text_prompt_style=style).get_base_model().get_class_features() for style in ("maple", "vpt_deep")
    ]
    assert not torch.allclose(*features, atol=1e-3)


def test_fewer_words_than_learned_tokens_are_refused():
    with pytest.raises(ValueError, match="context_init: 'a photo' has 2 tokens, fewer than the 3 learned ones"):
        maple(context_init="a photo", num_prompt_tokens=3)
    with pytest.raises(ValueError, match="has 1 tokens, fewer than the 2 learned ones"):
        MaPLeConfig(context_init_ids=[320])
    with pytest.raises(ValueError, match="context_init: 'a photo of a' needs a tokenizer"):
        get_peft_model(tiny_clip(), MaPLeConfig(prompt_depth=1))


def test_class_names_may_change_after_training(tmp_path):
    model = maple(seed=1)
    change(text_side(model).clipv_maple_context["default"])
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(tiny_classifier(class_names=["owl", *CLASS_NAMES[:2]]), tmp_path)
    expected = model(pixel_values=tiny_pixels()).logits
    torch.testing.assert_close(other(pixel_values=tiny_pixels()).logits[:, 1:], expected[:, :2], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompt_tokens": 0}, "num_prompt_tokens: 0, expected a whole number of at least 1"),
        ({"prompt_depth": 0}, "prompt_depth: 0"),
        ({"prompt_depth": "deep"}, "prompt_depth: 'deep', expected a number of layers or 'all'"),
        ({"text_prompt_style": "vpt"}, "text_prompt_style: 'vpt', expected one of 'maple', 'vpt_deep'"),
    ],
)
def test_invalid_configuration_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaPLeConfig(**arguments)
