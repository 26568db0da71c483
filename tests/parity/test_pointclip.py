"""PointCLIP and PointCLIP V2 equal the official code: projections, logits, the inter-view adapter, parts."""

import pytest
import torch
import torch.nn.functional as F
from parity_fixtures import assert_close, load_fixture
from pointclip_runs import pointclip_model

from hf_clip_variants.adapters import put_adapter
from hf_clip_variants.adapters.inter_view_adapter.convert import convert_inter_view_adapter
from hf_clip_variants.modeling.dual_encoders.backbones import unit_norm
from hf_clip_variants.modeling.pointclip.configuration_pointclip import PointCLIPConfig
from hf_clip_variants.modeling.pointclip.modeling_pointclip import smoothed_loss, view_logits
from hf_clip_variants.modeling.pointclip.projection_pointclip import (
    filled_grid,
    gaussian,
    in_cells,
    realistic_depth_maps,
    resized,
    sparse_depth_maps,
)
from hf_clip_variants.modeling.pointclip.segmentation_pointclip import (
    PART_GRID,
    part_logits,
    part_pictures,
    places_after_crop,
)
from hf_clip_variants.modeling.pointclip.views_pointclip import VIEW_SETS, rotations


pytestmark = pytest.mark.parity

PLACE = "view_fusion"
OFFICIAL = {  # names in the file -> ours
    "fusion_ratio": "fusion_ratio",
    "global_f.0.bn": "view_norm",
    "global_f.3": "global_linear",
    "global_f.4": "global_norm",
    "view_f.0": "view_down",
    "view_f.2": "view_up",
}
SAME_CELLS = 0.99  # of points on the border of two cells, the order of the arithmetic decides


def from_indices(fixture, name: str, shape) -> torch.Tensor:
    whole = torch.zeros(shape).flatten()
    whole[fixture.outputs[f"{name}_index"].long()] = fixture.outputs[f"{name}_value"]
    return whole.view(shape)


def assert_same_cells(found: torch.Tensor, expected: torch.Tensor, what: str):
    """The same cells are filled, up to 1 %, with the same values."""
    both, one = (found != 0) & (expected != 0), (found != 0) != (expected != 0)
    assert one.sum() <= (1 - SAME_CELLS) * (expected != 0).sum(), what
    assert ((found - expected)[both].abs() <= 1e-4).float().mean() >= SAME_CELLS, what


# ---- projections


@pytest.mark.parametrize("name, views", [("v1_zs", "sparse_6"), ("v1_fs", "sparse_10")])
def test_sparse_projection_equals_official(name, views):
    fixture = load_fixture("pointclip_projection")
    said, points = fixture.meta["hyper_parameters"][name], fixture.inputs["points"]
    config = PointCLIPConfig(projection="sparse", views=views)
    published = (config.num_views, config.resolution, config.camera_distance)
    assert published == (said["views"], said["resolution"], -said["trans"])
    matrices = VIEW_SETS[views].matrices()
    assert_close(matrices, fixture.outputs[f"{name}.rot_mat"], "rot_mat", 1e-6)
    maps = sparse_depth_maps(points, None, matrices, said["resolution"], -said["trans"])
    assert_same_cells(maps, from_indices(fixture, f"{name}.nonzero", maps.shape), name)
    if "resize" in said:
        found = resized(maps, said["resize"])[0, 1, 0]
        assert (found - fixture.outputs[f"{name}.resized_view1_channel0"]).abs().gt(1e-4).float().mean() < 0.01


def test_realistic_projection_equals_official():
    fixture = load_fixture("pointclip_projection")
    said, points, outputs = fixture.meta["hyper_parameters"]["v2_cls"], fixture.inputs["points"], fixture.outputs
    config = PointCLIPConfig()
    grid = config.grid
    assert (grid.resolution, grid.depth, config.num_views) == (said["resolution"], said["depth"], said["views"])
    assert (grid.object_ratio, grid.depth_bias) == (said["obj_ratio"], said["depth_bias"])
    assert (grid.pool, grid.pool_padding) == ((said["maxpoolz"], said["maxpoolxy"]), (0, said["maxpoolpadxy"]))
    assert grid.kernel == (said["convz"], said["convxy"]) and grid.sigma[1] == said["convsigmaxy"]
    turns = VIEW_SETS["realistic_10"].turns
    assert_close(rotations(turns[0]), outputs["v2_cls.rot_mat"], "rot_mat", 1e-6)
    assert_close(rotations(turns[1]), outputs["v2_cls.rot_mat2"], "rot_mat2", 1e-6)
    along = torch.tensor(gaussian(grid.kernel[1], grid.sigma[1]))
    assert_close(along[:, None] * along, outputs["v2_cls.kernel"][0, 0, 0], "kernel", 1e-6)

    turned = torch.matmul(points[:, None], config.view_set.matrices()).flatten(0, 1)
    cells, values = in_cells(turned, None, grid)
    part, (deep, wide) = filled_grid(cells, values, None, grid)
    whole = torch.zeros(len(turned), grid.depth, grid.resolution, grid.resolution)
    whole[:, deep : deep + part.shape[1], wide : wide + part.shape[2], wide : wide + part.shape[3]] = part
    assert_same_cells(whole, from_indices(fixture, "v2_cls.grid_nonzero", whole.shape), "grid")

    pictures = realistic_depth_maps(points, None, config.view_set.matrices(), grid)
    for found, expected in (
        (pictures[0], outputs["v2_cls.image_cloud0_channel0"]),
        (resized(pictures, outputs["v2_cls.resized_cloud0_view3"].shape[-1])[0, 3, 0],
         outputs["v2_cls.resized_cloud0_view3"]),
    ):  # fmt: skip
        assert (found - expected).abs().gt(1e-4).float().mean() < 0.01
    assert_close(pictures.flatten(0, 1).mean((1, 2)), outputs["v2_cls.image_mean_per_view"], "means", 1e-3)


# ---- logits and the adapter


def views_of(fixture) -> torch.Tensor:
    return fixture.inputs["image_features"].unflatten(0, (-1, fixture.meta["hyper_parameters"]["num_views"]))


def adapted(fixture):
    """A model with as many views and as wide as the fixture's, and its adapter layer."""
    said = fixture.meta["hyper_parameters"]
    base = pointclip_model(
        projection="sparse",
        view_angles=[[0, 0, i / said["num_views"]] for i in range(said["num_views"])],
        projection_dim=said["channel"],
    )
    config, tensors = convert_inter_view_adapter(fixture.state_dict, ratio=said["adapter_ratio"])
    config.dropout = said["dropout"]
    model = put_adapter(base, config, tensors)
    return model, model.get_base_model().get_submodule(PLACE)


def test_zero_shot_logits_equal_official():
    fixture = load_fixture("pointclip")
    given, expected = fixture.inputs, fixture.outputs
    views, texts = unit_norm(views_of(fixture)), unit_norm(given["text_features"])
    found = view_logits(views, texts, given["logit_scale"].exp())
    assert_close(found, expected["zeroshot_logits_v1"], "zeroshot_logits_v1", 1e-5)
    weighted = views * given["view_weights"][:, None]
    assert_close(view_logits(weighted, texts, 100.0), expected["zeroshot_logits_v2"], "zeroshot_logits_v2", 1e-5)


def test_adapter_logits_loss_and_gradients_equal_official():
    fixture = load_fixture("pointclip")
    given, expected, views = fixture.inputs, fixture.outputs, views_of(fixture)
    model, layer = adapted(fixture)
    name = next(iter(layer.configs))
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
    layer.eval()
    assert_close(layer.global_feature(views, name), expected["global_feature"], "global_feature", 1e-5)
    ratio = layer.configs[name].ratio
    output = torch.lerp(views.flatten(1), layer.adapted(views, name), ratio)
    assert_close(output, expected["adapter_output"], "adapter_output", 1e-5)
    fused = layer(views)
    assert_close(fused.flatten(1), expected["image_features_normalised"], "image_features_normalised", 1e-5)
    logits = view_logits(fused, unit_norm(given["text_features"]), given["logit_scale"].exp())
    assert_close(logits, expected["logits"], "logits", 1e-5)
    config = model.get_base_model().config
    assert config.label_smoothing == 0.2
    loss = smoothed_loss(logits, given["labels"], config)
    assert_close(loss, expected["loss_label_smoothing"], "loss_label_smoothing", 1e-5)
    loss.backward()
    compared = gradients_equal(layer, name, expected, "grad.")
    assert compared == {key for key in expected if key.startswith("grad.")}

    layer.train()
    layer.zero_grad()
    fused = layer(views)
    logits = view_logits(fused, unit_norm(given["text_features"]), given["logit_scale"].exp())
    loss = smoothed_loss(logits, given["labels"], config)
    assert_close(loss, expected["train.loss"], "train.loss", 1e-5)
    output = fused.flatten(1) * expected["train.adapter_output"].norm(dim=1, keepdim=True)
    assert_close(output, expected["train.adapter_output"], "train.adapter_output", 1e-5)
    loss.backward()
    assert gradients_equal(layer, name, expected, "train.grad.")
    buffers = layer.state_dict()
    for key, value in expected.items():
        if key.startswith("train.after."):
            module, _, part = key.removeprefix("train.after.").rpartition(".")
            assert_close(buffers[f"clipv_inter_view_adapter_{OFFICIAL[module]}.{name}.{part}"], value, key, 1e-5)


def gradients_equal(layer, name: str, expected, prefix: str) -> set[str]:
    ours = dict(layer.named_parameters())
    compared = set()
    for key, value in expected.items():
        if not key.startswith(prefix):
            continue
        module, _, part = key.removeprefix(prefix).rpartition(".")
        place = f"{OFFICIAL[module]}.{name}.{part}" if module else f"{OFFICIAL[part]}.{name}"
        assert_close(ours[f"clipv_inter_view_adapter_{place}"].grad, value, key, 1e-4)
        compared.add(key)
    return compared


# ---- parts


def test_parts_equal_official():
    fixture = load_fixture("pointclip_v2_segmentation")
    given, expected, said = fixture.inputs, fixture.outputs, fixture.meta["hyper_parameters"]
    grid = PART_GRID
    assert (grid.resolution, grid.depth) == (said["resolution"], said["depth"])
    assert (grid.object_ratio, grid.depth_bias) == (said["obj_ratio"], said["depth_bias"])
    assert (grid.pool, grid.pool_padding) == (
        (said["maxpoolz"], said["maxpoolxy"]),
        (said["maxpoolpadz"], said["maxpoolpadxy"]),
    )
    assert (grid.kernel, grid.sigma) == (
        (said["convz"], said["convxy"]),
        (said["convsigmaz"], said["convsigmaxy"]),
    )
    deep, wide = (torch.tensor(gaussian(*of)) for of in zip(grid.kernel, grid.sigma, strict=True))
    kernel = deep[:, None, None] * wide[:, None] * wide
    assert_close(kernel, expected["kernel"][0, 0], "kernel", 1e-5)
    pictures, seen, places = part_pictures(given["points"][0], transposed_reading=True)
    assert_close(pictures[2], expected["image_view2_channel0"], "image_view2_channel0", 1e-4)
    assert_close(pictures.mean((1, 2)), expected["image_mean_per_view"], "image_mean_per_view", 1e-4)
    assert (places == expected["point_loc_in_img"]).all(-1).float().mean() >= SAME_CELLS
    assert (seen == expected["is_seen"].bool()).float().mean() >= SAME_CELLS
    after = places_after_crop(places)
    assert (after == expected["point_loc_after_crop"]).all(-1).float().mean() >= SAME_CELLS
    # With the official places, so that rounding in them is not counted again.
    exact = expected["is_seen"].bool(), expected["point_loc_after_crop"].long()
    logits = part_logits(given["patch_features"], given["text_features"], *exact, given["view_weights"])
    assert_close(logits, expected["point_logits"][0], "point_logits", 1e-5)
    # A point that is seen nowhere has logits of 0; which of equal ones officially wins is left to torch's `topk`.
    somewhere, parts = exact[0].any(0), expected["point_segmentation"]
    assert (logits[~somewhere] == 0).all()
    assert (logits.argmax(-1) == parts)[somewhere].float().mean() >= SAME_CELLS
    own = part_logits(given["patch_features"], given["text_features"], seen, after, given["view_weights"])
    assert (own.argmax(-1) == parts)[somewhere].float().mean() >= SAME_CELLS
    # Without exchanging rows and columns, another part of the points is seen.
    assert (part_pictures(given["points"][0])[1] != seen).float().mean() > 0.1


def test_smoothing_of_zero_is_cross_entropy():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 4, -100, 2, 2])
    config = PointCLIPConfig(label_smoothing=0.0)
    assert torch.equal(smoothed_loss(logits, labels, config), F.cross_entropy(logits, labels))
    config.label_smoothing = 1e-7
    torch.testing.assert_close(smoothed_loss(logits, labels, config), F.cross_entropy(logits, labels))
