"""`predict` on meshes and clouds: lines, depth maps, parts, and what is wrong."""

import csv
import io
import json

import numpy as np
import pytest
import trimesh
from peft import get_peft_model
from PIL import Image
from pointclip_runs import clouds, cube, point_processor, pointclip_model, set_model
from tiny import CLASS_NAMES

from hf_clip_variants.adapters import InterViewAdapterConfig
from hf_clip_variants.annotations.point_pictures import draw_depth_maps, draw_parts


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meshes").mkdir()
    trimesh.Trimesh(*cube(), process=False).export(tmp_path / "meshes" / "cube.glb")
    np.save(tmp_path / "meshes" / "cloud.npy", clouds(1)[0].numpy())
    (tmp_path / "meshes" / "broken.ply").write_bytes(b"ply nothing")
    (tmp_path / "meshes" / "notes.txt").write_text("not a mesh")
    pointclip_model().save_pretrained(tmp_path / "model")
    point_processor().save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_mesh_in_its_classes_depth_maps_and_parts_out(files, run):
    code, out, err = run(
        "predict", "meshes", "--model", "model", "--labels", "chair, red table", "--parts", "leg, seat", "--top", 2
    )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and [row["path"].rpartition("/")[2] for row in rows] == ["broken.ply", "cloud.npy", "cube.glb"]
    assert "cannot be read as .ply" in rows[0]["error"] and "1 of 3" in err
    for row in rows[1:]:
        assert {row["label"], row["label_2"]} == {"chair", "red table"}
        assert float(row["score"]) + float(row["score_2"]) == pytest.approx(1, abs=1e-4)
    for name, count in (("cloud", 60), ("cube", 2048)):
        picture = Image.open(f"shapes/depth_maps/{name}.png")
        assert np.asarray(picture.convert("L")).std() > 10
        assert Image.open(f"shapes/parts/{name}.png").width > 900
        parts = list(csv.DictReader(open(f"shapes/parts/{name}.csv", encoding="utf-8")))
        assert len(parts) == count and {one["part"] for one in parts} <= {"leg", "seat"}


def test_set_classes_an_adapter_and_json(files, run):
    set_model().save_pretrained("set")
    point_processor().save_pretrained("set")
    get_peft_model(set_model(), InterViewAdapterConfig()).save_pretrained("adapter")
    code, out, _ = run("predict", "set", "meshes/cube.glb", "--json", "--out", "written")
    (plain,) = (json.loads(line) for line in out.splitlines())
    assert code == 0 and plain["label"] in CLASS_NAMES and plain["picture"].startswith("written")
    code, out, _ = run(
        "predict", "meshes/cube.glb", "--model", "set", "--json", "--adapter", "adapter", "--up-axis", "z"
    )
    (adapted,) = (json.loads(line) for line in out.splitlines())
    assert code == 0 and adapted["score"] != plain["score"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "model"], "labels: model has no classes of its own"),
        (["--model", "model", "--labels", "a, b", "--classes", "a, b"], "--labels, --classes: got both"),
        (["--model", "model", "--labels", "a, b", "--masks", "rle"], "--masks: got it for clouds of points"),
        (["--model", "model", "--labels", "a, a"], "'a' is given twice"),
        (["--task", "points", "--labels", "a"], "cube.glb is a file; want a folder"),
    ],
)
def test_wrong_options_are_said(files, run, options, message):
    code, _, err = run("predict", "meshes/cube.glb", *options)
    assert code in (1, 2) and message in " ".join(err.split())


def test_pictures_of_wrong_shapes_are_said():
    with pytest.raises(ValueError, match="want \\(views, side, side\\)"):
        draw_depth_maps(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="points, parts: got"):
        draw_parts(np.zeros((3, 3)), np.zeros(2, int), ["a"])
