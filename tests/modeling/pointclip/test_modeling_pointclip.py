"""Projections and their invariants, view weights, degenerate clouds, any dual encoder, classes, parts."""

import json

import numpy as np
import pytest
import torch
from pointclip_runs import clouds, point_processor, pointclip_config, pointclip_model, set_model
from tiny import CLASS_NAMES, tiny_clip, tiny_tokenizer
from tiny_families import tiny_dual_encoder, tiny_family_inputs
from transformers import AutoModel

from hf_clip_variants import PointCLIPConfig, PointCLIPModel
from hf_clip_variants.modeling.pointclip import projection_pointclip
from hf_clip_variants.modeling.pointclip.modeling_pointclip import ensemble_logits, smoothed_loss
from hf_clip_variants.modeling.pointclip.projection_pointclip import (
    GridSettings,
    densified,
    realistic_depth_maps,
    sparse_depth_maps,
)
from hf_clip_variants.modeling.pointclip.projection_reference_pointclip import (
    realistic_depth_maps_reference,
    sparse_depth_maps_reference,
)
from hf_clip_variants.modeling.pointclip.segmentation_pointclip import part_pictures
from hf_clip_variants.modeling.pointclip.views_pointclip import SEARCHED_ON_TEST_LABELS, VIEW_SETS


SMALL = GridSettings(resolution=40)


def sparse(points, mask=None, views="sparse_6"):
    return sparse_depth_maps(points, mask, VIEW_SETS[views].matrices(), 48, 1.6)


def realistic(points, mask=None, settings=SMALL):
    return realistic_depth_maps(points, mask, VIEW_SETS["realistic_10"].matrices(), settings)


PROJECTIONS = pytest.mark.parametrize("project", [sparse, realistic])


# ---- projections


def test_both_projections_equal_the_plain_way():
    points, views = clouds(3, 200), VIEW_SETS["realistic_10"].matrices()
    expected = sparse_depth_maps_reference(points, VIEW_SETS["sparse_6"].matrices(), 48, 1.6)
    torch.testing.assert_close(sparse(points), expected, rtol=0, atol=2e-6)
    odd = {"pool": (2, 4), "pool_padding": (1, 1), "kernel": (3, 5)}
    for settings in (
        SMALL,
        GridSettings(resolution=24, object_ratio=1.0, depth_bias=0.0),
        GridSettings(resolution=20, object_ratio=1.0, pool=(3, 9), pool_padding=(1, 4), kernel=(3, 7)),
        GridSettings(resolution=30, depth=12, object_ratio=0.5, **odd),
    ):
        found, plain = realistic(points, None, settings), realistic_depth_maps_reference(points, views, settings)
        assert found.shape == plain.shape
        # A point on the border of two cells may be in either.
        assert ((found - plain).abs() > 1e-5).float().mean() < 2e-3, settings


def test_the_sparse_projection_is_the_same_with_and_without_gradient(monkeypatch):
    """With points outside, behind the camera, missing and in one pixel; in parts, as large batches go."""
    points = torch.cat([clouds(3, 200), 3 * clouds(3, 60, seed=1), clouds(3, 40).repeat(1, 3, 1)], 1)
    mask = torch.rand(3, points.shape[1], generator=torch.Generator().manual_seed(2)) < 0.8
    monkeypatch.setattr(projection_pointclip, "_PIXELS_AT_ONCE", 48**2)
    for there in (None, mask):
        expected = sparse(points.clone().requires_grad_(), there).detach()
        torch.testing.assert_close(sparse(points, there), expected, rtol=0, atol=2e-6)
        assert 0 < (expected > 0).float().mean() < 0.5
    with torch.no_grad():
        found = sparse(points.clone().requires_grad_(), mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@PROJECTIONS
def test_the_order_of_points_and_doubled_clouds_change_nothing(project):
    points = clouds(2, 100)
    expected = project(points)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(project(points[:, order]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(project(torch.cat([points, points], 1)), expected, rtol=0, atol=1e-6)


@PROJECTIONS
def test_points_that_are_not_there_change_nothing(project):
    points, mask = clouds(3, 100), torch.zeros(3, 130, dtype=torch.bool)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(2))
    mask[:, order[:100]] = True
    padded = torch.full((3, 130, 3), 9.0)
    padded[mask] = points.flatten(0, 1)
    torch.testing.assert_close(project(padded, mask), project(points), rtol=0, atol=1e-6)


def test_turning_about_the_upright_axis_goes_from_side_to_side():
    points = clouds(2, 100)
    turned = torch.stack([points[..., 2], points[..., 1], -points[..., 0]], -1)  # by +pi/2 about y
    before, after = sparse(points), sparse(turned)
    for side in range(3):
        assert ((before[:, side] - after[:, side + 1]).abs() > 1e-5).float().mean() < 1e-3


def test_the_realistic_projection_ignores_size_and_place():
    points = clouds(2, 100)
    moved = realistic(0.25 * points + torch.tensor([0.5, -0.25, 1.0]))
    assert ((moved - realistic(points)).abs() > 1e-4).float().mean() < 0.02  # points on borders of cells


@PROJECTIONS
def test_gradients_reach_the_points(project):
    points = clouds(2, 50).requires_grad_()
    project(points).square().sum().backward()
    assert points.grad.isfinite().all() and (points.grad.abs().sum(-1) > 0).float().mean() > 0.3
    # As a number says: one point alone in its pixel, moved along the line of sight.
    point = torch.tensor([[[0.05, 0.1, 0.0]]], requires_grad=True)
    depth = sparse_depth_maps(point, None, torch.eye(3)[None], 48, 1.6)
    depth.sum().backward()
    torch.testing.assert_close(point.grad, torch.tensor([[[0.0, 0.0, 1.0]]]))
    assert depth.max().item() == pytest.approx(1.6)


def test_a_pixel_is_the_harmonic_mean_of_its_depths_and_empty_ones_are_black():
    points = torch.tensor([[[0.0, 0.0, -0.6], [0.0, 0.0, 0.4]]])  # depths 1 and 2
    depth = sparse_depth_maps(points, None, torch.eye(3)[None], 48, 1.6)
    assert depth.max().item() == pytest.approx(2 / (1 / 1 + 1 / 2)) and (depth > 0).sum() == 1


@PROJECTIONS
@pytest.mark.parametrize(
    "points",
    [torch.zeros(1, 1, 3), torch.full((1, 7, 3), 0.3), torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])],
    ids=["one", "equal", "line"],
)
def test_clouds_of_no_extent_give_finite_pictures(project, points):
    points = points.clone().requires_grad_()
    pictures = project(points)
    assert pictures.isfinite().all() and pictures.max() > pictures.min()
    pictures.sum().backward()
    assert points.grad.isfinite().all()


def test_clouds_far_from_0_stay_in_the_grid():
    """There, a float has steps of 1: points may be rounded to beside their own box."""
    for settings in (SMALL, GridSettings(resolution=40, depth_bias=0.0, object_ratio=1.0)):
        pictures = realistic(clouds(8, 60) + 1e7, None, settings)
        assert pictures.min() >= 0 and pictures.max() <= 1 and (pictures < 1).flatten(2).any(2).all()


def test_points_outside_of_the_sparse_picture_are_left_out():
    beside_and_behind = torch.tensor([[[5.0, 0.0, 0.0], [0.0, -5.0, 0.0], [0.0, 0.0, -5.0]]])
    assert (sparse_depth_maps(beside_and_behind, None, torch.eye(3)[None], 48, 1.6) == 0).all()


def test_a_million_points_are_drawn_in_bounded_parts():
    points = torch.randn(1, 1_000_000, 3) / 4
    model = pointclip_model()
    assert model.project_points(points).shape == (1, 10, 3, 24, 24)


def test_spreading_and_smoothing_are_a_pooling_and_a_convolution():
    settings = GridSettings(resolution=30, depth=9, pool=(3, 6), pool_padding=(1, 2), kernel=(3, 3))
    grid = torch.rand(2, 9, 30, 30, generator=torch.Generator().manual_seed(0))
    dense, start = densified(grid, (0, 0), settings)
    pooled = torch.nn.functional.max_pool3d(grid[:, None], (3, 6, 6), 1, (1, 2, 2))
    assert start == (0, 0) and dense.shape[1:] == pooled.shape[2:]


# ---- the model


def test_texts_of_the_call_and_set_classes_give_the_same_logits(tmp_path):
    model, processor = pointclip_model(), point_processor()
    prompts = [f"point cloud of a big {name}." for name in CLASS_NAMES]
    with torch.no_grad():
        expected = model(clouds(), **processor(prompts, return_tensors="pt")).logits
        with pytest.raises(ValueError, match="class_names: no classes are set"):
            model(clouds())
        model.set_classes(CLASS_NAMES, processor, "point cloud of a big {}.")
        torch.testing.assert_close(model(clouds()).logits, expected, rtol=1e-5, atol=1e-5)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(clouds()).logits, expected, rtol=1e-5, atol=1e-5)
    assert list(loaded.config.id2label.values()) == CLASS_NAMES


def test_class_sentences_of_a_language_model_are_averaged(tmp_path):
    sentences = {name: [f"a depth map of a {name}.", f"{name}!"] for name in CLASS_NAMES}
    (tmp_path / "prompts.json").write_text(json.dumps(sentences))
    model = pointclip_model().set_classes(CLASS_NAMES, tiny_tokenizer(), tmp_path / "prompts.json")
    other = pointclip_model().set_classes(CLASS_NAMES, tiny_tokenizer(), ["a depth map of a {}.", "{}!"])
    torch.testing.assert_close(model.class_features, other.class_features)
    before = model.class_features.clone()
    for names, templates in ((["a", "a"], "{}"), (CLASS_NAMES, "none"), ([*CLASS_NAMES, "more"], sentences)):
        with pytest.raises(ValueError):
            model.set_classes(names, tiny_tokenizer(), templates)
    assert torch.equal(model.class_features, before)


def test_view_weights_weight_views():
    model, points = set_model(), clouds()
    with torch.no_grad():
        plain = model(points)
        model.config.view_weights = 10 * [0.5]
        torch.testing.assert_close(model(points).logits, 0.5 * plain.logits)
        model.config.view_weights = [1.0] + 9 * [0.0]
        first = plain.logits.new_zeros(plain.logits.shape)
        scale = model.clip.logit_scale.exp() / 10**0.5
        first = scale * plain.point_embeds[:, 0] @ plain.text_embeds.T
        torch.testing.assert_close(model(points).logits, first)
    for backbones in SEARCHED_ON_TEST_LABELS.values():
        for weights in backbones.values():
            assert pointclip_config(view_weights=list(weights)).view_weights == list(weights)


def test_kept_view_features_and_parts_of_a_batch_give_the_same():
    model, points = set_model(), clouds(5)
    with torch.no_grad():
        outputs = model(points)
        again = model(view_features=outputs.view_features)
        torch.testing.assert_close(again.logits, outputs.logits)
        model.config.views_at_once = 20  # two clouds
        torch.testing.assert_close(model(points).logits, outputs.logits, rtol=1e-4, atol=1e-4)
        mask = torch.ones(5, 60, dtype=torch.long)
        mask[3, 30:] = 0
        in_parts = model(points, mask).logits
        model.config.views_at_once = 320
        torch.testing.assert_close(model(points, mask).logits, in_parts, rtol=1e-4, atol=1e-4)
        features = model.get_point_features(points, output_hidden_states=True)
    torch.testing.assert_close(features.pooler_output, outputs.view_features, rtol=1e-4, atol=1e-4)
    assert features.hidden_states[0].shape[0] == 50


@pytest.mark.parametrize("family", ["siglip", "clipv-clip_resnet", "chinese_clip"])
def test_any_dual_encoder_sees_clouds(family, tmp_path):
    clip = tiny_dual_encoder(family).eval()
    model = PointCLIPModel.from_clip(clip, projection="sparse")
    text = tiny_family_inputs(family)
    text = {name: text[name] for name in ("input_ids", "attention_mask") if name in text}
    with torch.no_grad():
        texts = clip.get_text_features(**text).pooler_output
        logits = model.point_text_logits(clouds(), texts)
        views = clip.get_image_features(pixel_values=model.project_points(clouds()).flatten(0, 1)).pooler_output
    views = torch.nn.functional.normalize(views, dim=-1).view(4, 6, -1).sum(1) / 6**0.5
    expected = model.family.logit_scale(clip) * views @ torch.nn.functional.normalize(texts, dim=-1).T
    if model.family.logit_bias(clip) is not None:
        expected = expected + model.family.logit_bias(clip)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    if family != "chinese_clip":
        with pytest.raises(ValueError, match="has no patches in the joint space"):
            model.segment_parts(clouds(1), texts)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.backbone_model_type == family
    with torch.no_grad():
        torch.testing.assert_close(loaded.point_text_logits(clouds(), texts), logits, rtol=1e-4, atol=1e-4)


def test_settings_of_the_projection_can_be_given_when_a_checkpoint_is_loaded(tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    model = PointCLIPModel.from_pretrained(tmp_path / "clip", projection="sparse")
    assert (model.config.views, model.config.resolution, model.config.camera_distance) == ("sparse_6", 128, 1.6)
    model.save_pretrained(tmp_path / "sparse")
    few_shot = PointCLIPModel.from_pretrained(tmp_path / "sparse", views="sparse_10").config
    assert (few_shot.projection, few_shot.resolution, few_shot.camera_distance) == ("sparse", 224, 1.4)
    back = PointCLIPModel.from_pretrained(tmp_path / "sparse", projection="realistic").config
    assert (back.views, back.resolution) == ("realistic_10", 112)


def test_normalised_pictures_are_what_the_mean_and_deviation_say():
    plain, model = pointclip_model(), pointclip_model(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 2.0, 0.5])
    expected = plain.project_points(clouds())
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    torch.testing.assert_close(model.project_points(clouds()), (expected - mean) / std)


def test_the_logits_of_a_network_are_added():
    ours, network = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 3.0]])
    assert ensemble_logits(ours, network, 0.5).tolist() == [[2.0, 2.5]]
    with pytest.raises(ValueError, match=r"network_logits: got \[1, 3\], expected \[1, 2\]"):
        ensemble_logits(ours, torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        ensemble_logits(ours, network, float("nan"))


def test_the_loss_smooths_labels_as_published():
    logits, config = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), PointCLIPConfig()
    target = torch.full((3, 4), 0.2 / 3)
    target[torch.arange(3), torch.tensor([1, 0, 3])] = 0.8
    expected = -(target * logits.log_softmax(-1)).sum(1).mean()
    torch.testing.assert_close(smoothed_loss(logits, torch.tensor([1, 0, 3]), config), expected)
    with pytest.raises(ValueError, match="labels"):
        smoothed_loss(logits, torch.tensor([1, 0, 4]), config)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"points": torch.zeros(2, 5)}, r"points: got \[2, 5\], expected \[clouds, points, 3\]"),
        ({"points": torch.zeros(2, 0, 3)}, r"points: got \[2, 0, 3\], expected at least one"),
        ({"points": torch.zeros(2, 5, 3, dtype=torch.long)}, "points: got torch.int64"),
        ({"points": torch.tensor([[[0.0] * 3], [[0.0, float("nan"), 0.0]]])}, r"NaN .* in points\[1\]"),
        ({"points": np.zeros((2, 5, 3))}, "points: got ndarray"),
        ({"points": clouds(2), "points_mask": torch.ones(2, 4)}, r"points_mask: got shape \[2, 4\]"),
        ({"points": clouds(2, 4), "points_mask": torch.tensor([[1] * 4, [0] * 4])}, "cloud 1 has no points"),
        ({"points": clouds(2), "labels": torch.tensor([0, 9])}, r"labels\[1\] is 9"),
        ({}, "points, view_features: give exactly one"),
        ({"view_features": torch.zeros(2, 9, 24)}, r"view_features: got \[2, 9, 24\], expected \[clouds, 10, 24\]"),
        ({"view_features": torch.zeros(2, 10, 24, dtype=torch.long)}, "view_features: got torch.int64"),
    ],
)
def test_wrong_inputs_are_said(given, message):
    with pytest.raises(ValueError, match=message):
        set_model()(**given)


# ---- parts


def test_parts_of_any_number_of_points(monkeypatch):
    model = pointclip_model()
    texts = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    points, mask = clouds(2, 90), torch.ones(2, 90, dtype=torch.bool)
    mask[1, 50:] = False
    monkeypatch.setattr(model, "_patch_embeds", counted(model._patch_embeds))
    found = model.segment_parts(points, texts, mask)
    assert found.shape == (2, 90, 3) and (found[1, 50:] == 0).all() and found.isfinite().all()
    alone = model.segment_parts(points[1:, :50], texts)
    torch.testing.assert_close(found[1:, :50], alone, rtol=1e-4, atol=1e-4)
    assert len(model._patch_embeds.pictures) == 3
    assert model.segment_parts(torch.zeros(1, 1, 3), texts).isfinite().all()
    for method in (model.segment_parts, model.point_text_logits):
        for wrong in (texts[:, :5], texts[0], texts.tolist(), None):
            with pytest.raises(ValueError, match="text_features: expected .batch, 24., got"):
                method(points, wrong)
    with pytest.raises(ValueError, match="parts: NaN or infinite numbers, because text_features"):
        model.segment_parts(points, texts * torch.nan)


def counted(function):
    def run(pictures):
        run.pictures.append(pictures)
        return function(pictures)

    run.pictures = []
    return run


def test_what_is_in_front_is_seen_and_what_is_behind_is_not():
    """A plate before a plate: of the rear one only what looks past the front one is seen in the front view."""
    side = torch.linspace(-1, 1, 60)
    grid = torch.cartesian_prod(side, side)
    plates = [torch.cat([scale * grid, torch.full((len(grid), 1), z)], 1) for scale, z in ((1.0, 0.5), (1.0, -0.5))]
    _, seen, places = part_pictures(torch.cat(plates))
    shares = torch.stack([seen[:, : len(grid)].float().mean(1), seen[:, len(grid) :].float().mean(1)])
    assert (shares.max(1).values > 0.9).all() and ((shares - shares.flip(0)).abs().amax(0) > 0.5).any()
    assert places.min() >= 0 and places.max() < 224
