"""A checkpoint in OpenAI's format (two precisions, extra keys): the architecture is inferred from shapes."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture
from safetensors.torch import load_file
from torch.nn import functional as F

from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.clip.convert_clip import clip_from_official
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=fixtures_like("clip_openai_ckpt_*"))
def fixture(request):
    return load_fixture(request.param)


@pytest.fixture(scope="module")
def model(fixture):
    resnet = fixture.meta["hparams_expected"]["vision_patch_size"] is None
    convert = clip_resnet_from_official if resnet else clip_from_official
    return convert(read_state_dict(fixture.folder / "state_dict.safetensors"))


def vision_hyper_parameters(vision) -> dict:
    """Under OpenAI's names."""
    if hasattr(vision, "depths"):
        assert vision.num_attention_heads == vision.hidden_size // 64
        return {"vision_layers": vision.depths, "vision_width": vision.width, "vision_patch_size": None}
    return {
        "vision_layers": vision.num_hidden_layers,
        "vision_width": vision.hidden_size,
        "vision_patch_size": vision.patch_size,
    }


def test_hyper_parameters_from_shapes(fixture, model):
    text, vision = model.config.text_config, model.config.vision_config
    found = vision_hyper_parameters(vision) | {
        "embed_dim": model.config.projection_dim,
        "image_resolution": vision.image_size,
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "transformer_width": text.hidden_size,
        "transformer_heads": text.num_attention_heads,
        "transformer_layers": text.num_hidden_layers,
    }
    assert found == fixture.meta["hparams_expected"]


def test_features_logits_and_loss(fixture, model):
    stored = load_file(fixture.folder / "state_dict.safetensors")
    assert torch.float16 in {tensor.dtype for tensor in stored.values()}, "the fixture is meant to be mixed precision"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    images, texts = fixture.inputs["image"], fixture.inputs["text"]
    with torch.no_grad():
        outputs = model(pixel_values=images, input_ids=texts)
        n = min(len(images), len(texts))
        square, labels = outputs.logits_per_image[:n, :n], torch.arange(n)
        actual = {
            "image_features": model.get_image_features(pixel_values=images).pooler_output,
            "text_features": model.get_text_features(input_ids=texts).pooler_output,
            "logits_per_image": outputs.logits_per_image,
            "logits_per_text": outputs.logits_per_text,
            "loss_first_n_square": (F.cross_entropy(square, labels) + F.cross_entropy(square.t(), labels)) / 2,
        }
    for name, expected in fixture.outputs.items():
        assert_close(actual[name], expected, name)
