"""CLIP-ResNet from converted OpenAI weights: feature maps, features, logits, loss and gradients."""

import re

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official, to_official


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_resnet")


@pytest.fixture(scope="module")
def model(fixture):
    return clip_resnet_from_official(
        fixture.state_dict, vision_heads=fixture.meta["vision_heads"], text_heads=fixture.hparam("transformer_heads")
    )


@pytest.fixture(scope="module")
def results(fixture, model):
    """One forward and backward of the converted model, under the fixture's names."""
    images, texts = fixture.inputs["image"], fixture.inputs["text"]
    outputs = model(pixel_values=images, input_ids=texts, output_hidden_states=True)
    n = min(len(images), len(texts))
    square, labels = outputs.logits_per_image[:n, :n], torch.arange(n)
    loss = (F.cross_entropy(square, labels) + F.cross_entropy(square.t(), labels)) / 2
    model.zero_grad()
    loss.backward()
    gradients = to_official(
        {name: parameter.grad for name, parameter in model.named_parameters()}, model.config, buffers=False
    )
    stages = dict(
        zip(
            ["avgpool", "layer1", "layer2", "layer3", "layer4"], outputs.vision_model_output.hidden_states, strict=True
        )
    )
    return {
        "image_features": model.get_image_features(pixel_values=images).pooler_output,
        "text_features": model.get_text_features(input_ids=texts).pooler_output,
        "logits_per_image": outputs.logits_per_image,
        "logits_per_text": outputs.logits_per_text,
        "loss_first_n_square": loss,
        **{f"inter.visual.{name}": stage for name, stage in stages.items()},
        "inter.text.ln_final": outputs.text_model_output.last_hidden_state,
        **{f"grad.{name}": gradient for name, gradient in gradients.items()},
    }


def test_configuration_from_shapes(fixture, model):
    config = model.config
    text, vision = config.text_config, config.vision_config
    assert config.projection_dim == vision.projection_dim == fixture.hparam("embed_dim")
    assert vision.image_size == fixture.hparam("image_resolution")
    assert vision.depths == fixture.hparam("vision_layers")
    assert vision.hidden_size == 32 * fixture.hparam("vision_width")
    assert vision.num_attention_heads == fixture.meta["vision_heads"]
    assert text.max_position_embeddings == fixture.hparam("context_length")
    assert text.num_hidden_layers == fixture.hparam("transformer_layers")
    assert text.eos_token_id == fixture.text_eos_token_id()


@pytest.mark.parametrize("kind", ["features", "logits", "loss", "inter", "grad"])
def test_equals_official(fixture, results, kind):
    wanted = {name: tensor for name, tensor in fixture.outputs.items() if re.search(rf"(^|_){kind}", name)}
    assert wanted, f"the fixture has no {kind}"
    for name, expected in wanted.items():
        assert_close(results[name], expected, name)


def test_every_output_is_compared(fixture, results):
    assert set(fixture.outputs) <= set(results)


def test_model_loss_equals_official(fixture, model):
    n = min(len(fixture.inputs["image"]), len(fixture.inputs["text"]))
    inputs = {"pixel_values": fixture.inputs["image"][:n], "input_ids": fixture.inputs["text"][:n]}
    model.zero_grad()
    loss = model(**inputs, return_loss=True).loss
    assert_close(loss, fixture.outputs["loss_first_n_square"], "loss")
    loss.backward()
    gradients = to_official({name: p.grad for name, p in model.named_parameters()}, model.config, buffers=False)
    for name, expected in fixture.outputs.items():
        if name.startswith("grad."):
            assert_close(gradients[name.removeprefix("grad.")], expected, name)


def test_backbone_and_folded_encoder_equal_official(fixture, model):
    """Feature maps of the backbone, and features with batch normalisation folded into the convolutions."""
    from hf_clip_variants import CLIPResNetBackbone

    backbone = CLIPResNetBackbone(model.config.vision_config).eval()
    backbone.out_features = backbone.stage_names
    backbone.load_state_dict(
        {name: tensor for name, tensor in model.vision_model.state_dict().items() if "attnpool" not in name}
    )
    names = ["avgpool", "layer1", "layer2", "layer3", "layer4"]
    model.fuse_batch_norm()
    with torch.no_grad():
        maps = backbone(fixture.inputs["image"]).feature_maps
        folded = model.get_image_features(fixture.inputs["image"], output_hidden_states=True)
    model.unfuse_batch_norm()
    for name, plain, fused in zip(names, maps, folded.hidden_states, strict=True):
        assert_close(plain, fixture.outputs[f"inter.visual.{name}"], name)
        assert_close(fused, fixture.outputs[f"inter.visual.{name}"], f"{name}, folded")
    assert_close(folded.pooler_output, fixture.outputs["image_features"], "image_features, folded")
