"""ChineseCLIPModel from converted OFA-Sys/Chinese-CLIP weights: features, logits, loss and gradients."""

import pytest
import torch
from adapter_models import Compared
from parity_fixtures import load_fixture

from hf_clip_variants.modeling.chinese_clip.convert_chinese_clip import chinese_clip_from_official, to_official


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("chinese_clip")


@pytest.fixture
def model(fixture):
    hyper = fixture.meta["hyper"]
    return chinese_clip_from_official(
        fixture.state_dict,
        text_heads=hyper["text_heads"],
        vision_heads=hyper["vision_width"] // hyper["vision_head_width"],
    )


def test_configuration_from_shapes(fixture, model):
    hyper = fixture.meta["hyper"]
    text, vision = model.config.text_config, model.config.vision_config
    assert {
        "embed_dim": model.config.projection_dim,
        "image_resolution": vision.image_size,
        "vision_patch_size": vision.patch_size,
        "vision_width": vision.hidden_size,
        "vision_layers": vision.num_hidden_layers,
        "vision_head_width": vision.hidden_size // vision.num_attention_heads,
        "text_hidden_size": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "text_intermediate": text.intermediate_size,
        "vocab": text.vocab_size,
        "max_position": text.max_position_embeddings,
        "pad": text.pad_token_id,
    } == hyper


def test_equals_official_code(fixture, model):
    compare = Compared(fixture)
    ids, pixels = fixture.inputs["input_ids"], fixture.inputs["pixel_values"]
    mask = (ids != fixture.meta["hyper"]["pad"]).long()
    outputs = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True)
    compare("image_features", model.get_image_features(pixels).pooler_output)
    compare("text_features", model.get_text_features(ids, attention_mask=mask).pooler_output)
    compare("image_features_normed", outputs.image_embeds)
    compare("text_features_normed", outputs.text_embeds)
    compare("logit_scale_exp", model.logit_scale.exp())
    compare("logits_per_image", outputs.logits_per_image)
    compare("loss", outputs.loss)

    outputs.loss.backward()
    gradients = to_official({name: parameter.grad for name, parameter in model.named_parameters()}, model.config)
    for name in fixture.outputs:
        if name.startswith("grad."):
            compare(name, gradients[name.removeprefix("grad.")])
    compare.assert_complete()


def test_without_attention_mask_padding_changes_features(fixture, model):
    """The official code derives the mask from the ids; here the caller must pass it."""
    ids, pad = fixture.inputs["input_ids"], fixture.meta["hyper"]["pad"]
    padded = torch.cat([ids, torch.full_like(ids[:, :2], pad)], dim=1)
    with torch.no_grad():
        expected = fixture.outputs["text_features"]
        masked = model.get_text_features(padded, attention_mask=(padded != pad).long()).pooler_output
        plain = model.get_text_features(padded).pooler_output
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()
