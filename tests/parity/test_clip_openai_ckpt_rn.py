"""A ResNet checkpoint as OpenAI ships it (mixed float16 and float32, stray keys): nothing but shapes tells the architecture."""

import pytest
from openai_checkpoint_parity import check_features_logits_and_loss, common_hyper_parameters
from parity_fixtures import load_fixture

from hf_clip_variants.conversion.checkpoint_reader import read_state_dict
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("clip_openai_ckpt_rn")


@pytest.fixture(scope="module")
def model(fixture):
    return clip_resnet_from_official(read_state_dict(fixture.folder / "state_dict.safetensors"))


def test_hyper_parameters_from_shapes(fixture, model):
    vision = model.config.vision_config
    own = {
        "vision_layers": vision.depths,
        "vision_width": vision.width,
        "vision_patch_size": None,
    }
    assert common_hyper_parameters(model) | own == fixture.meta["hparams_expected"]
    assert vision.num_attention_heads == vision.hidden_size // 64


def test_features_logits_and_loss(fixture, model):
    check_features_logits_and_loss(fixture, model)
