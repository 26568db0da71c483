"""DepthCLIP equals the official code: features, text weights, logits, depth, and both kinds of metrics."""

import pytest
import torch
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants import DepthCLIPForDepthEstimation
from hf_clip_variants.metrics.depth import KITTI_METRICS, NYU_METRICS, kitti_depth_metrics, nyu_depth_metrics
from hf_clip_variants.modeling.clip_resnet.convert_clip_resnet import clip_resnet_from_official
from hf_clip_variants.modeling.depthclip.modeling_depthclip import expected_depth, halved_channels, text_weights
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm


pytestmark = pytest.mark.parity

DEPTH = 1e-4  # metres
LOGIT_SCALE = 100.0  # of the official code; not the dual encoder's own


def official_options(said: dict) -> dict:
    return {
        "depth_words": said["depth_classes"],
        "bin_centers": said["bin_list"],
        "templates": [one.replace("{}", "{object}", 1).replace("{}", "{distance}") for one in said["depth_templates"]],
        "object_word": said["obj_classes"][0],
        "temperature": said["temperature"],
    }


@pytest.fixture(scope="module")
def whole():
    fixture = load_fixture("depthclip")
    said = fixture.meta["hyper_parameters"]
    clip = clip_resnet_from_official(
        fixture.state_dict, vision_heads=said["width"] * 32 // 64 or 1, text_heads=max(said["tw"] // 16, 1)
    )
    model = DepthCLIPForDepthEstimation.from_clip(clip, **official_options(said))
    assert model.config.feature_projection == "official"
    return fixture, model


def with_words(fixture, model):
    features = model.get_text_features(fixture.inputs["text_ids"]).pooler_output
    return model.set_depth_embeddings(text_weights(features.unflatten(0, (len(model.config.depth_words), -1))))


def test_sentences_are_the_official_ones(whole):
    fixture, model = whole
    assert [text for row in model.config.texts for text in row] == fixture.meta["prompts_in_order"]


@torch.no_grad()
def test_text_weights_equal_official(whole):
    fixture, model = whole
    assert_close(with_words(fixture, model).word_embeddings().T, fixture.outputs["text_weights"], "text_weights")


@torch.no_grad()
def test_features_logits_and_depth_equal_official(whole):
    fixture, model = whole
    images, outputs = fixture.inputs["images"], fixture.outputs
    with_words(fixture, model)
    tokens = model.clip.vision_model._maps(images)[-1].flatten(2).transpose(1, 2)
    assert_close(tokens, outputs["patch_features"], "patch_features")
    features, _ = model.get_patch_features(images)
    assert_close(features, outputs["patch_features_subsampled"], "patch_features_subsampled")
    answer = model(images)
    logits = answer.word_logits.flatten(2).transpose(1, 2) * model.config.temperature
    assert_close(logits, outputs["similarity_logits_before_temperature"], "logits")
    depth = expected_depth(answer.word_logits, model.bins())
    assert (depth - outputs["depth"][:, 0]).abs().max() < DEPTH
    mirrored = expected_depth(model(images.flip(-1)).word_logits, model.bins()).flip(-1)
    assert ((depth + mirrored) / 2 - outputs["depth_flip_averaged"][:, 0]).abs().max() < DEPTH
    assert (answer.predicted_depth - outputs["depth_full_resolution"][:, 0]).abs().max() < DEPTH


@torch.no_grad()
def test_head_of_published_sizes_equals_official():
    fixture = load_fixture("depthclip_head")
    said, inputs, outputs = fixture.meta["hyper_parameters"], fixture.inputs, fixture.outputs
    weights = text_weights(inputs["text_features"][:, None])
    assert_close(weights.T, outputs["text_weights"], "text_weights")
    features = halved_channels(unit_norm(inputs["patch_features"]))
    logits = (LOGIT_SCALE / said["temperature"] * features @ weights.T).transpose(1, 2).unflatten(2, said["grid"])
    depth = expected_depth(logits, torch.tensor(said["bin_list"]))
    assert (depth - outputs["depth"][:, 0]).abs().max() < DEPTH
    full = F.interpolate(
        depth[:, None], size=[32 * side for side in said["grid"]], mode="bilinear", align_corners=True
    )
    rows = outputs["depth_full_first_rows"]  # each fourth one, which the fixture does not say
    steps = range(1, full.shape[2] // len(rows) + 1)
    assert min((full[0, 0, ::step][: len(rows)] - rows).abs().max() for step in steps) < DEPTH


def test_metrics_equal_official():
    fixture = load_fixture("depthclip_metrics")
    inputs = fixture.inputs
    nyu, kitti = (inputs["nyu_pred"], inputs["nyu_gt"]), (inputs["kitti_pred"], inputs["kitti_gt"])
    for name, names, found in (
        ("nyu_crop", NYU_METRICS, nyu_depth_metrics(*nyu)),
        ("nyu_nocrop", NYU_METRICS, nyu_depth_metrics(*nyu, crop=False)),
        ("kitti_crop_cap80", KITTI_METRICS, kitti_depth_metrics(*kitti)),
        ("kitti_nocrop_cap50", KITTI_METRICS, kitti_depth_metrics(*kitti, crop=False, largest_depth=50)),
    ):
        assert tuple(found) == names
        assert_close(torch.tensor(list(found.values())), fixture.outputs[name], name)
