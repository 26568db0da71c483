"""CLIPModel from converted OpenAI weights (ViT): features, logits, loss, hidden states and gradients."""

import re

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants.modeling.clip.convert_clip import clip_from_official, to_official


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_vit")


@pytest.fixture(scope="module")
def run(fixture):
    """One forward and backward of the converted model, with what the official hooks recorded."""
    model = clip_from_official(
        fixture.state_dict, vision_heads=fixture.meta["vision_heads"], text_heads=fixture.hparam("transformer_heads")
    )
    seen = {}
    model.vision_model.pre_layrnorm.register_forward_hook(lambda m, i, out: seen.update({"visual.ln_pre": out}))
    model.vision_model.post_layernorm.register_forward_hook(lambda m, i, out: seen.update({"visual.ln_post": out}))
    model.text_model.final_layer_norm.register_forward_hook(lambda m, i, out: seen.update({"text.ln_final": out}))
    for i, layer in enumerate(model.vision_model.encoder.layers):
        layer.register_forward_hook(
            lambda m, a, out, i=i: seen.update({f"visual.block{i}_LND": _first(out).transpose(0, 1)})
        )
    images, texts = fixture.inputs["image"], fixture.inputs["text"]
    outputs = model(pixel_values=images, input_ids=texts)
    inter = {f"inter.{name}": tensor.detach() for name, tensor in seen.items()}
    n = min(len(images), len(texts))
    square, labels = outputs.logits_per_image[:n, :n], torch.arange(n)
    loss = (F.cross_entropy(square, labels) + F.cross_entropy(square.t(), labels)) / 2
    loss.backward()
    gradients = to_official({name: parameter.grad for name, parameter in model.named_parameters()}, model.config)
    results = {
        "image_features": model.get_image_features(pixel_values=images).pooler_output,
        "text_features": model.get_text_features(input_ids=texts).pooler_output,
        "logits_per_image": outputs.logits_per_image,
        "logits_per_text": outputs.logits_per_text,
        "loss_first_n_square": loss,
        **inter,
        **{f"grad.{name}": gradient for name, gradient in gradients.items()},
    }
    return model, results


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def test_configuration_from_shapes(fixture, run):
    config = run[0].config
    assert config.projection_dim == fixture.hparam("embed_dim")
    assert config.vision_config.image_size == fixture.hparam("image_resolution")
    assert config.vision_config.num_hidden_layers == fixture.hparam("vision_layers")
    assert config.vision_config.patch_size == fixture.hparam("vision_patch_size")
    assert config.text_config.max_position_embeddings == fixture.hparam("context_length")
    assert config.text_config.num_hidden_layers == fixture.hparam("transformer_layers")
    assert config.text_config.eos_token_id == fixture.text_eos_token_id()


@pytest.mark.parametrize("kind", ["features", "logits", "loss", "inter", "grad"])
def test_equals_official(fixture, run, kind):
    wanted = {name: tensor for name, tensor in fixture.outputs.items() if re.search(rf"(^|_){kind}", name)}
    assert wanted, f"the fixture has no {kind}"
    for name, expected in wanted.items():
        assert_close(run[1][name], expected, name)


def test_every_output_is_compared(fixture, run):
    assert set(fixture.outputs) <= set(run[1])
