import json

import pytest
import torch
from tiny_families import (
    FAMILIES,
    SIGLIP_FAMILIES,
    family_class_names,
    save_tiny_family,
    tiny_dual_encoder,
    tiny_family_inputs,
    tiny_family_pixels,
    tiny_family_tokenizer,
)

from hf_clip_variants import CLIPClassifier
from hf_clip_variants.modeling.dual_encoders import backbones
from hf_clip_variants.modeling.dual_encoders.backbones import family_of, find_family
from hf_clip_variants.modeling.dual_encoders.family_siglip2 import _as_patches


@pytest.fixture(scope="module", params=FAMILIES)
def model_type(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(model_type, tmp_path_factory):
    return save_tiny_family(model_type, tmp_path_factory.mktemp(model_type))


def prompts_of(model_type) -> list[str]:
    template = family_of(model_type).default_template
    return [template.format(name) for name in family_class_names(model_type)]


def own_text_features(model_type, model, texts) -> torch.Tensor:
    """The output of transformers' model for the output of its tokenizer."""
    with torch.no_grad():
        return model.get_text_features(**tiny_family_inputs(model_type, texts)).pooler_output


def test_classifier_equals_the_familys_own_forward(model_type, checkpoint, tmp_path):
    model = tiny_dual_encoder(model_type)
    pixels = tiny_family_pixels(model_type)
    with torch.no_grad():
        expected = model(**pixels, **tiny_family_inputs(model_type, prompts_of(model_type)))
    classifier = CLIPClassifier.from_pretrained(checkpoint, class_names=family_class_names(model_type)).eval()
    assert classifier.config.backbone_model_type == model_type
    assert type(classifier.clip) is type(model)
    with torch.no_grad():
        found = classifier(**pixels)
    torch.testing.assert_close(found.logits, expected.logits_per_image, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, rtol=1e-5, atol=1e-6)

    classifier.save_pretrained(tmp_path)
    again = CLIPClassifier.from_pretrained(tmp_path).eval()
    assert again.config.backbone_model_type == model_type and again.class_names == classifier.class_names
    with torch.no_grad():
        # Weights read by memory map lie elsewhere in memory, which moves convolutions by a rounding.
        torch.testing.assert_close(again(**pixels).logits, found.logits, rtol=1e-5, atol=1e-5)


def test_labels_of_transformers_pipeline_are_encoded_as_the_family_does(model_type, checkpoint):
    classifier = CLIPClassifier.from_pretrained(checkpoint, class_names=family_class_names(model_type)).eval()
    texts = prompts_of(model_type)[:3]
    expected = own_text_features(model_type, classifier.clip, texts)
    with torch.no_grad():
        found = classifier.get_class_features(tiny_family_inputs(model_type, texts)["input_ids"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_instead_of_ids_and_prompts_of_any_length(model_type):
    """The same features from ids, from their embeddings, one by one, with more padding and in variants."""
    family, model = family_of(model_type), tiny_dual_encoder(model_type)
    texts = prompts_of(model_type)
    expected = own_text_features(model_type, model, texts)
    rows = [tiny_family_tokenizer(model_type)(text).input_ids for text in texts]
    longest = max(map(len, rows))
    padding = family.padding_id(model.config)
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    embeds = family.token_embedding_of(model)(ids)

    def check(found, expected=expected):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        check(family.encode_text(model, ids))
        check(family.encode_text(model, ids, inputs_embeds=embeds))
        check(family.encode_text(model, ids, max_tokens_per_chunk=1), expected)
        check(torch.cat([family.encode_text(model, torch.tensor([row])) for row in rows]))
        if model_type not in SIGLIP_FAMILIES:
            check(family.encode_text(model, torch.nn.functional.pad(ids, (0, 3), value=padding)))
        variants = torch.stack([embeds[0, :2], embeds[0, :2]])
        check(family.encode_text(model, ids, position_ids=torch.arange(longest)))
        if (
            model_type not in SIGLIP_FAMILIES
        ):  # all prompts start alike there: SOS or [CLS], and a word of the template
            check(family.encode_text(model, ids, prefix_embeds=variants), torch.stack([expected, expected]))


def test_deep_prompts_are_inputs_of_their_layer(model_type):
    """The encoder's own states change nothing; others change the output and get a gradient."""
    family, model = family_of(model_type), tiny_dual_encoder(model_type)
    texts = prompts_of(model_type)
    ids = tiny_family_inputs(model_type, texts[:1])["input_ids"]
    start, layers = family.num_start_tokens, model.get_submodule(family.text_layers)
    seen = {}
    handles = [
        layer.register_forward_pre_hook(lambda module, args, i=i: seen.__setitem__(i, args[0].detach()))
        for i, layer in enumerate(layers)
    ]
    plain = own_text_features(model_type, model, texts[:1])
    for handle in handles:
        handle.remove()
    states = {i: hidden[0, start : start + 2].clone().requires_grad_() for i, hidden in seen.items()}
    same = family.encode_text(model, ids, deep_prompts=states, deep_start=start)
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
    other = family.encode_text(model, ids, deep_prompts={1: states[1].flip(-1)}, deep_start=start)
    assert (other - plain).abs().max() > 1e-3
    other.sum().backward()
    assert states[1].grad.abs().max() > 0
    assert not any(layer._forward_pre_hooks for layer in layers)
    with pytest.raises(ValueError, match=r"deep_prompts\[2\]: expected .* for one of 2 layers"):
        family.encode_text(model, ids, deep_prompts={2: states[1]}, deep_start=start)


def test_square_images_for_naflex_may_come_as_pixels():
    model = tiny_dual_encoder("siglip2")
    family = family_of("siglip2")
    pixels = torch.randn(2, 3, 24, 24)
    patches, mask, shapes = _as_patches(pixels, 8)
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    by_processor = convert_image_to_patches(pixels[1].numpy(), 8)
    assert (patches[1].numpy() == by_processor).all()
    with torch.no_grad():
        a = family.image_features(model, pixels).pooler_output
        b = model.get_image_features(patches, mask, shapes).pooler_output
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="25 x 24 pixels, expected multiples of the patch size 8"):
        family.image_features(model, torch.zeros(1, 3, 25, 24))


def test_frozen_text_encoder_has_no_dropout_in_training(model_type, checkpoint):
    classifier = CLIPClassifier.from_pretrained(checkpoint, class_names=family_class_names(model_type))
    texts = classifier.requires_grad_(False).train()._encode_classes()
    assert torch.equal(texts, classifier.eval()._encode_classes())


def test_unknown_family_is_an_error_that_lists_the_known():
    with pytest.raises(
        ValueError, match="'bert' is not supported, expected one of clip, clipv-clip_resnet, altclip, .*siglip2"
    ):
        family_of("bert")


@pytest.mark.parametrize("model_type", ["../clip", "os.path", "clipv-", "clipv-clip", "clip_resnet", "", None])
def test_unknown_model_types_import_nothing(model_type):
    assert find_family(model_type) is None


def test_exported_code_encodes_plain_prompts_the_same(model_type, monkeypatch):
    """It has no `prompt_encoding.py`: whole rows, which are also the reference for the packed ones."""
    family, model = family_of(model_type), tiny_dual_encoder(model_type)
    ids = tiny_family_inputs(model_type, prompts_of(model_type))["input_ids"]
    with torch.no_grad():
        packed = family.encode_text(model, ids)
        monkeypatch.setattr(backbones, "_prompt_encoding", None)
        torch.testing.assert_close(family.encode_text(model, ids), packed, rtol=1e-4, atol=1e-5)
        by_one = family.encode_text(model, ids, max_tokens_per_chunk=1)
        torch.testing.assert_close(by_one, packed, rtol=1e-4, atol=1e-5)
    plain = family.encode_text(model, ids)
    (expected,) = torch.autograd.grad(plain.square().sum(), family.token_embedding_of(model).weight)
    again = family.encode_text(model, ids, checkpoint=True, max_tokens_per_chunk=1)
    (found,) = torch.autograd.grad(again.square().sum(), family.token_embedding_of(model).weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", SIGLIP_FAMILIES)
def test_an_encoder_without_the_head_that_pools_is_refused_by_name(model_type, tmp_path):
    tiny_dual_encoder(model_type).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"vision_config\.vision_use_head: False"):
        CLIPClassifier.from_pretrained(tmp_path, class_names=["cat", "dog"])
