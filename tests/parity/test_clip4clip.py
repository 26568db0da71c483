"""CLIP4Clip from converted official weights: features, heads, similarities, losses, gradients, initial heads."""

import pytest
import torch
from parity_fixtures import assert_close, fixtures_like, load_fixture

from hf_clip_variants.modeling.clip.convert_clip import clip_from_official
from hf_clip_variants.modeling.clip4clip.configuration_clip4clip import CLIP4ClipConfig
from hf_clip_variants.modeling.clip4clip.convert_clip4clip import clip4clip_from_official, to_official, unused_names
from hf_clip_variants.modeling.clip4clip.modeling_clip4clip import CLIP4ClipModel


pytestmark = pytest.mark.parity

WHOLE = [name for name in fixtures_like("clip4clip_*") if name != "clip4clip_init"]
HEAD_WIDTH = 16  # of the fixtures' attention heads, said by their patches


def heads(fixture) -> dict:
    said = fixture.meta["hyper_parameters"]
    return {
        "vision_heads": said["vision_width"] // HEAD_WIDTH,
        "text_heads": said["text_width"] // HEAD_WIDTH,
    }


def convert(fixture) -> CLIP4ClipModel:
    model = clip4clip_from_official(
        fixture.state_dict, **heads(fixture), head_heads=fixture.meta["hyper_parameters"]["cross_heads"]
    )
    model.freeze_layers(-1)
    return model


def inputs(fixture) -> dict[str, torch.Tensor]:
    given = fixture.inputs
    return {
        "input_ids": given["input_ids"][:, 0],
        "pixel_values_videos": given["video"][:, 0, :, 0],
        "video_mask": given["video_mask"][:, 0],
    }


@pytest.mark.parametrize("name", WHOLE)
def test_conversion_uses_every_weight_and_is_bit_identical(name):
    fixture = load_fixture(name)
    model, said = convert(fixture), fixture.meta["hyper_parameters"]
    assert (model.config.similarity_head, model.config.patch_embedding) == (said["sim_header"], said["linear_patch"])
    back, unused = to_official(model.state_dict(), model.config), unused_names(fixture.state_dict)
    assert back.keys() | set(unused) == fixture.state_dict.keys() and not back.keys() & set(unused)
    assert all(torch.equal(tensor, fixture.state_dict[key]) for key, tensor in back.items())
    half = {key: t.half() if "weight" in key or "proj" in key else t for key, t in fixture.state_dict.items()}
    assert clip4clip_from_official(half, **heads(fixture), head_heads=said["cross_heads"]).dtype == torch.float32


@pytest.mark.parametrize("name", WHOLE)
def test_features_similarities_and_loss_equal_official(name):
    fixture = load_fixture(name)
    model, given, expected = convert(fixture), inputs(fixture), fixture.outputs
    found = model(**given, return_loss=True)
    there = given["video_mask"].bool()
    texts = model.get_text_features(given["input_ids"]).pooler_output
    assert_close(texts, expected["text_features"], "text_features", 1e-5)
    assert_close(found.frame_features[there], expected["frame_features"][there], "frame_features", 1e-5)
    assert_close(found.logits_per_text, expected["similarity"], "similarity", 1e-5)
    some = model(**given | {"input_ids": given["input_ids"][:3]}).logits_per_text
    assert_close(some, expected["similarity_first3_texts"], "similarity_first3_texts", 1e-5)
    assert_close(found.loss, expected["loss"], "loss", 1e-5)
    if "video_embeds_normalised" in expected:
        assert_close(found.video_embeds, expected["video_embeds_normalised"], "video_embeds_normalised", 1e-5)
    if "sequence_head_output" in expected:
        mine = model.temporal_features(found.frame_features, given["video_mask"])
        assert_close(mine[there], expected["sequence_head_output"][there], "sequence_head_output", 1e-5)
    if "pooled_output_matched_pairs" in expected:
        hidden = model.pair_scorer.hidden_states(texts, found.frame_features, given["video_mask"])
        assert_close(model.pair_scorer.pooled(hidden), expected["pooled_output_matched_pairs"], "pooled", 1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_gradients_equal_official(name):
    fixture = load_fixture(name)
    model = convert(fixture)
    model(**inputs(fixture), return_loss=True).loss.backward()
    gradients = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    official = to_official(gradients, model.config)
    compared = [key for key in fixture.outputs if key.startswith("grad.")]
    for key in compared:
        expected = fixture.outputs[key]
        assert_close(official[key.removeprefix("grad.")], expected, key, 1e-4)
    without = {key for key in fixture.meta["parameters_without_gradient"] if key in official}
    assert compared and all(not official[key].any() for key in without)


def test_heads_start_from_the_text_encoder_as_in_the_official_code():
    fixture = load_fixture("clip4clip_init")
    said, compared = fixture.meta["hyper_parameters"], set()
    clip = clip_from_official(fixture.state_dict, **heads(fixture))
    for case in sorted({key.split("/")[0] for key in fixture.outputs}):
        head, patches = case.rsplit("_", 1)
        model = CLIP4ClipModel.from_clip(
            clip,
            similarity_head=head,
            patch_embedding=patches,
            head_config={"num_hidden_layers": said["cross_layers"], "num_attention_heads": said["cross_heads"]},
        )
        assert isinstance(model.config, CLIP4ClipConfig)
        official = to_official(model.state_dict(), model.config)
        for key, expected in fixture.outputs.items():
            name = key.partition("/")[2]
            if key.startswith(case + "/") and not (head == "seqLSTM" and name.startswith("frame_position")):
                assert torch.equal(official[name], expected), key  # of seqLSTM, those positions are not used
                compared.add(case)
    assert compared >= {"seqTransf_3d", "tightTransf_2d"}
