"""GroupViT's official rule of segmentation: maps, scores, thresholds, sliding windows."""

import pytest
import torch
from groupvit_runs import converted
from parity_fixtures import assert_close, load_fixture
from torch.nn import functional as F

from hf_clip_variants import GroupViTForSemanticSegmentation
from hf_clip_variants.modeling.dense.label_maps import argmax_labels
from hf_clip_variants.modeling.groupvit.segmentation_groupvit import compose_group_maps, resize_group_maps


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("groupvit_segmentation")


def images(fixture) -> list[str]:
    return sorted(name.removeprefix("pixel_values_") for name in fixture.inputs if name[-1].isdigit())


def run(fixture, index, background=None):
    model = converted(fixture, GroupViTForSemanticSegmentation, background=background)
    pixels = fixture.inputs[f"pixel_values_{index}"]
    with torch.no_grad():
        return model(pixels, class_embeddings=fixture.inputs["text_embedding"])


def test_features_and_maps_equal_official(fixture):
    compared = 0
    for index in images(fixture):
        outputs, pixels = run(fixture, index), fixture.inputs[f"pixel_values_{index}"]
        for name, ours in (("image_feat", outputs.group_embeds), ("image_x", outputs.image_embeds)):
            assert_close(ours, F.normalize(fixture.outputs[f"{name}_{index}"], dim=-1), f"{name}_{index}")
        patch = fixture.meta["img_encoder"]["patch_size"]
        size = tuple(pixels.shape[-2:])
        for stage in range(len(outputs.stage_maps)):
            name = f"attn_map_{index}_stage{stage}"
            if name in fixture.outputs:
                maps = compose_group_maps(outputs.stage_maps[: stage + 1], tuple(edge // patch for edge in size))
                assert_close(resize_group_maps(maps, size).permute(0, 2, 3, 1), fixture.outputs[name], name)
                compared += 1
    assert compared


def test_scores_and_labels_without_background_equal_official(fixture):
    for index in images(fixture):
        logits = run(fixture, index).logits
        assert torch.equal(logits.argmax(1), fixture.outputs[f"labels_nobg_{index}"].long()), index
        if f"pred_nobg_{index}" in fixture.outputs:
            assert_close(logits, fixture.outputs[f"pred_nobg_{index}"], index)


def test_scores_and_labels_with_thresholds_equal_official(fixture):
    for index in images(fixture):
        for number, threshold in enumerate(fixture.meta[f"thresholds_{index}"]):
            outputs = run(fixture, index, threshold)
            name = f"{index}_t{number}"
            assert_close(outputs.logits, fixture.outputs[f"pred_bg_{name}"], name)
            assert torch.equal(outputs.logits.argmax(1), fixture.outputs[f"labels_bg_{name}"].long()), name
            assert torch.equal(outputs.background_scores, outputs.logits[:, 0])
            classes = len(fixture.inputs["text_embedding"])
            same = run(fixture, index, [threshold] * classes)  # a threshold of each class, all equal
            assert torch.equal(same.logits, outputs.logits), name


@pytest.mark.parametrize("batch_size", [1, 4])
def test_sliding_windows_equal_official(fixture, batch_size):
    slide = fixture.meta["slide"]
    model = converted(fixture, GroupViTForSemanticSegmentation, background=slide["bg_thresh"])
    with torch.no_grad():
        scores = model.sliding_window_logits(
            fixture.inputs["pixel_values_slide"],
            tuple(slide["crop"]),
            tuple(slide["stride"]),
            class_embeddings=fixture.inputs["text_embedding"],
            batch_size=batch_size,
        )
    assert_close(scores, fixture.outputs["slide_scores"], "slide_scores")
    # The official code takes the softmax before the argmax, which changes no label.
    labels = argmax_labels(scores, tuple(slide["ori_shape"]))
    assert torch.equal(labels, fixture.outputs["slide_probs_rescaled_argmax"].long())


def test_transformers_formula_gives_other_labels(fixture):
    """Its formula, from the same features and maps: scale applied twice, no gating, soft maps."""
    agreement = []
    for index in images(fixture):
        outputs = run(fixture, index)
        classes = F.normalize(fixture.inputs["text_embedding"], dim=-1)
        scale = torch.tensor(fixture.meta["logit_scale"]).exp()
        logits = outputs.group_embeds @ classes.T * scale * scale
        size = tuple(fixture.inputs[f"pixel_values_{index}"].shape[-2:])
        maps = resize_group_maps(outputs.group_maps, size)
        theirs = torch.einsum("bghw,bgn->bnhw", maps, logits).argmax(1)
        agreement.append((theirs == fixture.outputs[f"labels_nobg_{index}"]).float().mean().item())
    assert min(agreement) < 0.9, agreement
