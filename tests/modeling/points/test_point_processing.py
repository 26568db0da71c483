"""Clouds and meshes in every form, and in none: files, sampling, orientation, what is wrong with them."""

import builtins
import importlib

import h5py
import numpy as np
import pytest
import torch
import trimesh
from pointclip_runs import clouds, cube, point_processor
from transformers import AutoProcessor

from hf_clip_variants import PointCloudProcessor
from hf_clip_variants.modeling.points.point_decoding import MESH_FORMATS, read_shapes
from hf_clip_variants.modeling.points.point_sampling import (
    augment_points,
    farthest_points,
    in_unit_sphere,
    sample_surface,
    with_y_up,
)


def processed(source, **settings) -> torch.Tensor:
    return PointCloudProcessor(**settings)(source, return_tensors="pt")["points"]


@pytest.fixture(scope="module")
def random_cloud():
    return np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


# ---- forms


def test_every_form_of_a_cloud_gives_the_same_points(random_cloud, tmp_path):
    np.save(tmp_path / "a.npy", random_cloud)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["label"] = np.stack([random_cloud, 2 * random_cloud]), np.zeros((2, 1))
    wide = np.concatenate([random_cloud, np.ones_like(random_cloud)], 1)  # with normals
    expected = processed(random_cloud)
    assert expected.shape == (1, 300, 3)
    for source in (torch.from_numpy(random_cloud), wide.astype(np.float64), random_cloud.tolist(), [random_cloud]):
        assert torch.equal(processed(source), expected)
    assert torch.equal(processed(str(tmp_path / "a.npy")), expected)
    assert torch.equal(processed(tmp_path / "a.npy"), expected)
    both = processed(tmp_path / "a.h5")
    assert len(both) == 2 and torch.equal(both[:1], expected)
    torch.testing.assert_close(both[1], both[0])  # the size of a cloud changes nothing
    assert len(processed([random_cloud, tmp_path / "a.h5", np.stack([random_cloud] * 3)])) == 6


@pytest.mark.parametrize("suffix", MESH_FORMATS)
def test_every_mesh_format_is_sampled_by_area(suffix, tmp_path):
    corners, faces = cube()
    corners[:, 1] *= 8  # two of six sides are small
    trimesh.Trimesh(corners, faces, process=False).export(tmp_path / f"box{suffix}")
    points = processed(tmp_path / f"box{suffix}", num_points=4000, num_sampled=4000, do_normalize=False)[0].numpy()
    assert points.shape == (4000, 3)
    assert np.allclose(points.min(0), [0, 0, 0], atol=0.05) and np.allclose(points.max(0), [1, 8, 1], atol=0.05)
    on_ends = (points[:, 1] < 1e-5) | (points[:, 1] > 8 - 1e-5)
    assert on_ends.mean() == pytest.approx(2 / 34, abs=0.015)
    again = processed(tmp_path / f"box{suffix}", num_points=4000, num_sampled=4000, do_normalize=False)[0].numpy()
    assert np.array_equal(points, again)
    other = processed(tmp_path / f"box{suffix}", num_points=4000, num_sampled=4000, do_normalize=False, seed=1)[0]
    assert not np.array_equal(points, other.numpy())


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_meshes_without_faces_are_clouds_of_their_vertices(suffix, random_cloud, tmp_path):
    if suffix == ".obj":
        lines = "\n".join(f"v {x} {y} {z}" for x, y, z in random_cloud)
        (tmp_path / "a.obj").write_text(lines + "\n")
    else:
        trimesh.PointCloud(random_cloud).export(tmp_path / f"a{suffix}")
    found = processed(tmp_path / f"a{suffix}", do_normalize=False)[0].numpy()
    assert np.allclose(found, random_cloud, atol=1e-5)


def test_parts_of_a_scene_are_where_the_file_puts_them(tmp_path):
    scene = trimesh.Scene()
    for shift in (0.0, 10.0):
        moved = np.eye(4)
        moved[0, 3] = shift
        scene.add_geometry(trimesh.Trimesh(*cube(), process=False), transform=moved)
    scene.export(tmp_path / "two.glb")
    points = processed(tmp_path / "two.glb", do_normalize=False, num_points=None)[0]
    assert points[:, 0].max() == pytest.approx(11, abs=0.01) and ((points[:, 0] > 1) & (points[:, 0] < 10)).sum() == 0


# ---- sampling and orientation


def test_degenerate_triangles_do_no_harm():
    corners, faces = cube()
    flat = np.array([[0, 0, 0], [1, 1, 1]])
    points = sample_surface(corners, np.concatenate([flat, faces, flat]), 5000, seed=3)
    outside = np.abs(points - 0.5).max(1)
    assert np.allclose(outside, 0.5, atol=1e-5)  # each point is on a side
    assert np.array_equal(sample_surface(corners, flat, 10), corners[np.arange(10) % 8])


def test_farthest_points_are_spread_and_first_ones_are_first(random_cloud):
    cloud = np.concatenate([np.zeros((5000, 3), np.float32), random_cloud])
    spread = processed(cloud, num_points=64, point_rule="farthest", do_normalize=False)[0].numpy()
    assert len(np.unique(spread, axis=0)) == 64
    plain = farthest_points(random_cloud, 3)
    first = np.linalg.norm(random_cloud - random_cloud.mean(0), axis=1).argmax()
    second = np.linalg.norm(random_cloud - random_cloud[first], axis=1).argmax()
    assert np.array_equal(plain[:2], random_cloud[[first, second]])
    assert np.array_equal(processed(random_cloud, num_points=7, do_normalize=False)[0].numpy(), random_cloud[:7])


def test_orientations_are_rotations_that_put_up_to_plus_y():
    axes = np.eye(3)
    for axis, name in enumerate("xyz"):
        turned = with_y_up(axes, name)
        assert np.array_equal(turned[axis], [0, 1, 0]) and np.linalg.det(turned) == pytest.approx(1)
    with pytest.raises(ValueError, match="up_axis: 'w', expected one of y, z, x"):
        PointCloudProcessor(up_axis="w")


def test_clouds_fit_the_unit_sphere_and_are_padded_with_a_mask(random_cloud):
    batch = PointCloudProcessor()([100 * random_cloud + 7, random_cloud[:9]], return_tensors="pt")
    assert batch["points_mask"].sum(1).tolist() == [300, 9]
    radius = batch["points"].norm(dim=-1).amax(1)
    assert torch.allclose(radius, torch.ones(2)) and batch["points"][0].mean(0).abs().max() < 1e-6
    assert (batch["points"][1, 9:] == 0).all()


def test_augmentation_is_seeded_and_in_its_ranges(random_cloud):
    cloud = torch.from_numpy(np.stack([random_cloud] * 40))
    found = augment_points(cloud, torch.Generator().manual_seed(0))
    assert torch.equal(found, augment_points(cloud, torch.Generator().manual_seed(0)))
    extent = (found.amax(1) - found.amin(1)) / (cloud.amax(1) - cloud.amin(1))
    assert extent.min() >= 2 / 3 - 1e-5 and extent.max() <= 1.5 + 1e-5 and extent.std() > 0.1
    assert not torch.equal(found[:, :, 0].argsort(1)[0], cloud[:, :, 0].argsort(1)[0])  # shuffled


# ---- what is wrong


@pytest.mark.parametrize(
    "source, message",
    [
        (None, "points: got None"),
        ([], "points: no objects"),
        (np.zeros((0, 3)), r"points\[0\]: got \[0, 3\], expected at least one point"),
        (np.zeros((3, 500)), "expected numbers \\(points, 3\\); transpose it"),
        (np.zeros(5), r"shape \[5\]"),
        (np.zeros((5, 2)), r"shape \[5, 2\]"),
        (np.array([["a", "b", "c"]]), "expected numbers"),
        ([np.zeros((4, 3)), np.array([[0, 0, 0], [0, np.nan, 0]])], r"points\[1\]: NaN .* of point 1"),
        (np.array([[0, 0, np.inf]]), "NaN or infinite coordinates of point 0"),
        (np.full((2, 3), 1e30), "coordinates of up to 1e\\+30"),
        ({"points": 1}, "points: got dict"),
        ([[[1, 2, 3], [1, 2]]], "a list that is no array"),
        ("cloud.xyz", "cloud.xyz"),
    ],
)
def test_what_is_no_cloud_is_said(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cloud.xyz").write_text("0 0 0")
    with pytest.raises(ValueError, match=message):
        PointCloudProcessor()(source)


def test_one_point_equal_points_and_a_million_are_right():
    one = processed(np.array([[5.0, 6.0, 7.0]]))
    assert torch.equal(one, torch.zeros(1, 1, 3))
    assert torch.equal(processed(np.full((40, 3), 3.0)), torch.zeros(1, 40, 3))
    million = np.random.default_rng(0).normal(size=(1_000_000, 3))
    assert processed(million, num_points=None).shape == (1, 1_000_000, 3)
    assert processed(million).shape == (1, 1024, 3)
    assert np.linalg.norm(in_unit_sphere(million), axis=1).max() == pytest.approx(1)


@pytest.mark.parametrize("suffix", [".npy", ".h5", *MESH_FORMATS])
def test_damaged_and_missing_files_are_named(suffix, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"none{suffix}: no such file"):
        PointCloudProcessor()(tmp_path / f"none{suffix}")
    (tmp_path / f"bad{suffix}").write_bytes(b"\x00\x01this is nothing of the kind" * 3)
    with pytest.raises(ValueError, match=f"bad{suffix}: (cannot be read|no vertices)"):
        PointCloudProcessor()(tmp_path / f"bad{suffix}")
    (tmp_path / f"empty{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match=f"empty{suffix}"):
        PointCloudProcessor()(tmp_path / f"empty{suffix}")


def test_pickled_arrays_and_foreign_data_sets_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="a.npy: cannot be read as .npy"):
        read_shapes(tmp_path / "a.npy")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': ((8, 3), \n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match="a.npy: cannot be read as .npy"):
        read_shapes(tmp_path / "a.npy")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["y"] = np.zeros((4, 3)), np.zeros((4, 3))
    with pytest.raises(ValueError, match='no data set "data" of'):
        read_shapes(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["data"] = np.zeros((4, 3))
    sound = (tmp_path / "c.h5").read_bytes()
    for place in range(0, 160, 4):  # sizes and addresses of the head
        (tmp_path / "c.h5").write_bytes(sound[:place] + b"\xff" * 4 + sound[place + 4 :])
        try:
            assert np.isfinite(read_shapes(tmp_path / "c.h5")[0].vertices).all()
        except ValueError as error:
            assert "c.h5: cannot be read as .h5" in str(error)


@pytest.mark.parametrize("suffix, module", [(".ply", "trimesh"), (".h5", "h5py")])
def test_without_the_extra_the_error_names_it(suffix, module, tmp_path, monkeypatch):
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    real = importlib.import_module

    def missing(name, *args):
        if name == module:
            raise ModuleNotFoundError(name, name=name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "hf-clip-variants\[points\]"'):
        read_shapes(tmp_path / f"a{suffix}")
    assert builtins.__import__ is not missing


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_points": 0}, "num_points: 0, expected a number in 1"),
        ({"num_points": True}, "num_points: True"),
        ({"num_sampled": None}, "num_sampled: None"),
        ({"point_rule": "random"}, "point_rule: 'random', expected one of first, farthest"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_wrong_settings_are_said(settings, message):
    with pytest.raises(ValueError, match=message):
        PointCloudProcessor(**settings)
    with pytest.raises(ValueError, match=message):
        PointCloudProcessor()(np.zeros((4, 3)), **settings)
    with pytest.raises(TypeError, match="points_per_cloud: unknown"):
        PointCloudProcessor()(np.zeros((4, 3)), points_per_cloud=3)


def test_the_processor_gives_what_it_names_and_refuses_nothing_at_all(tmp_path):
    processor = point_processor()
    inputs = processor(["a chair", "a lamp"], clouds(2), return_tensors="pt")
    assert set(inputs) == set(processor.model_input_names)
    assert inputs["points"].shape == (2, 50, 3) and inputs["input_ids"].shape[0] == 2
    with pytest.raises(ValueError, match="text, points: got neither"):
        processor()
    sparse = processor(points=clouds(2), points_kwargs={"num_points": 9}, return_tensors="pt")
    assert set(sparse) == {"points", "points_mask"} and sparse["points"].shape == (2, 9, 3)
    point_processor(up_axis="z", seed=4).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert (loaded.feature_extractor.up_axis, loaded.feature_extractor.seed) == ("z", 4)
    assert loaded.to_dict() == point_processor(up_axis="z", seed=4).to_dict()
