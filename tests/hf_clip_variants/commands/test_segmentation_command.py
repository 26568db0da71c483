"""`predict --task segmentation`: what is printed, what is written, every kind of image, errors as sentences."""

import csv
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image
from segmenters import save_segmenter
from transformers import pipeline

from hf_clip_variants.annotations.masks import rle_to_mask
from hf_clip_variants.commands.segmentation import file_name, read_background
from hf_clip_variants.data import make_scenes


LABELS = "cat, sky, building;house"
NAMES = ["cat", "sky", "building"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("models") / "free", "groups")


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("models") / "folded", "groups", NAMES, drop_text=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, row in enumerate(make_scenes(3, seed=1, class_names=["cat", "taco"], size=[(80, 60), (64, 64)])):
        row["image"].save(folder / f"scene {number}.png")
    return folder


def read_map(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_one_command_prints_areas_and_writes_pictures_and_masks(run, model, photos, tmp_path):
    out = tmp_path / "out"
    code, printed, err = run("predict", model, photos, "--task", "segmentation", "--labels", LABELS, "--out", out)
    assert code == 0 and f"{out} holds overlays/" in err
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert list(rows[0]) == ["path", "label", "score", "share", "pixels", "error"]
    assert {row["path"] for row in rows} == {str(path) for path in photos.iterdir()}
    document = json.loads((out / "annotations.json").read_text())
    assert document["categories"] == [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)]
    for image in document["images"]:
        label_map = read_map(out / "label_maps" / image["file_name"])
        overlay = Image.open(out / "overlays" / image["file_name"])
        assert label_map.shape == (image["height"], image["width"]) and overlay.width > 320
        mine = [row for row in rows if row["path"] == image["path"]]
        assert sum(float(row["share"]) for row in mine) == pytest.approx(1, abs=1e-5)
        for row in mine:
            assert int(row["pixels"]) == (label_map == NAMES.index(row["label"]) + 1).sum()
            assert 0 < float(row["score"]) <= 1
        assert [float(row["share"]) for row in mine] == sorted((float(r["share"]) for r in mine), reverse=True)
    assert sorted(os.listdir(out)) == ["annotations.json", "label_maps", "overlays"]


def test_json_masks_and_the_pipeline_say_the_same(run, model, photos, tmp_path):
    out = tmp_path / "out"
    options = ["--labels", LABELS, "--out", out, "--masks", "rle", "--json"]  # the task follows from --labels
    code, printed, _ = run("predict", "--model", model, photos / "scene 0.png", *options)
    (row,) = [json.loads(line) for line in printed.splitlines()]
    pipe = pipeline("zero-shot-image-segmentation", model=str(model))
    expected = pipe(str(photos / "scene 0.png"), candidate_labels=["cat", "sky", "building;house"])
    assert code == 0 and {s["label"]: s["score"] for s in row["segments"]} == {
        one["label"]: pytest.approx(one["score"], abs=2e-6) for one in expected
    }
    label_map = read_map(row["label_map"])
    document = json.loads((out / "annotations.json").read_text())
    for one in expected:
        mask = np.asarray(one["mask"]) > 0
        number = NAMES.index(one["label"]) + 1
        assert ((label_map == number) == mask).all()
        (annotation,) = [a for a in document["annotations"] if a["category_id"] == number]
        assert (rle_to_mask(annotation["segmentation"]) == mask).all() and annotation["area"] == mask.sum()
    assert row["overlay"] == str(out / "overlays" / "scene_0.png") and (row["width"], row["height"]) == (80, 60)


def test_a_model_with_labels_of_its_own_needs_none(run, folded, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, err = run("predict", folded, photos)  # the model says what the task is
    assert code == 0 and (tmp_path / "segments" / "annotations.json").is_file()
    assert {row["label"] for row in csv.DictReader(io.StringIO(printed))} <= set(NAMES)
    code, _, err = run("predict", folded, photos, "--labels", "dog")
    assert code == 1 and err.startswith(
        "Error: --labels: the model's text encoder was dropped, it knows its own labels"
    )
    assert "(cat, sky, building)" in err


def test_backgrounds_windows_and_thresholds(run, model, photos, tmp_path):
    def maps(*options):
        code, printed, err = run(
            "predict", model, photos, "--labels", LABELS, "--out", tmp_path / "o", *options, "--json"
        )
        assert code == 0, err
        return [read_map(json.loads(line)["label_map"]) for line in printed.splitlines()]

    plain = maps()
    scores = maps("--background", "0.4")
    assert any((one == 0).any() for one in scores)
    for one, other in zip(plain, scores, strict=True):
        assert (one > 0).all() and (one[other > 0] == other[other > 0]).all()
    by_label = maps("--background", json.dumps({"cat": 2.0, "sky": 0, "building": 0}))
    assert all((one != 1).all() for one in by_label)
    assert all((one == 0).all() for one in maps("--threshold", "1.0"))
    assert any((a != b).any() for a, b in zip(maps("--window", "16"), plain, strict=True))


def test_images_of_every_kind_and_broken_ones(run, model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("L", (400, 3)).save(folder / "grey.jpg")
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(folder / "alpha.png")
    Image.new("P", (30, 20)).save(folder / "palette.gif")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "turned.jpg", exif=turned)
    Image.new("1", (20_000, 15_000)).save(folder / "huge.png")
    (folder / "broken.jpg").write_bytes(b"<html>")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "alpha.png").read_bytes()[:-30])
    inputs = [folder]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        inputs.append(tmp_path / "pipe.png")
    code, printed, err = run("predict", model, *inputs, "--labels", "cat,sky", "--out", tmp_path / "out", "--json")
    rows = {os.path.basename(row["path"]): row for row in map(json.loads, printed.splitlines())}
    errors = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert code == 1 and f"{len(errors)} of {len(rows)} images could not be read" in err
    assert sorted(errors) == sorted(
        ["broken.jpg", "cut.png", "empty.png", "huge.png", *["pipe.png"] * (len(inputs) - 1)]
    )
    assert "300000000 pixels" in errors["huge.png"] and "truncated" in errors["cut.png"]
    assert all("\n" not in text and len(text) < 300 for text in errors.values())
    sizes = {name: (row["width"], row["height"]) for name, row in rows.items() if "error" not in row}
    assert sizes == {
        "one.png": (1, 1),
        "grey.jpg": (400, 3),
        "alpha.png": (30, 20),
        "palette.gif": (30, 20),
        "turned.jpg": (20, 40),
    }
    for name, row in rows.items():
        if "error" not in row:
            assert read_map(row["label_map"]).shape == sizes[name][::-1]


def test_names_of_images_and_labels_make_no_other_files(run, model, photos, tmp_path):
    for name in ("a..b", "a b", "a_b", "x" * 200, "-rf", "\x1b[31m"):
        Image.open(photos / "scene 0.png").save(tmp_path / f"{name}.png")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(["../../evil", "a/b", "CON", "\x1b[2J", "猫", "x" * 300]))
    before = set(os.listdir(tmp_path))
    out = tmp_path / "out"
    code, printed, _ = run("predict", model, tmp_path, "--labels", labels, "--out", out)
    assert code == 0 and set(os.listdir(tmp_path)) == before | {"out"}
    names = sorted(os.listdir(out / "overlays"))
    assert names == sorted(os.listdir(out / "label_maps")) and len(names) == 6 and max(map(len, names)) < 100
    taken = set()
    assert [file_name(path, taken) for path in ("a/b.jpg", "c/B.png", "/")] == ["b.png", "B-2.png", "image.png"]


def test_paths_from_standard_input(run, model, photos, tmp_path, monkeypatch):
    paths = sorted(map(str, photos.iterdir()))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths) + "\n"))
    code, printed, _ = run("predict", "--model", model, "--labels", "cat,sky", "--out", tmp_path / "out", "--json")
    assert code == 0 and [json.loads(line)["path"] for line in printed.splitlines()] == paths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "PHOTOS"], "--labels: missing, and the model has no labels of its own"),
        (["MODEL", "PHOTOS", "--labels", " , "], "--labels is empty"),
        (["MODEL", "PHOTOS", "--labels", "cat,cat"], "--labels: 'cat' is given twice, at 0 and 1"),
        (["MODEL", "PHOTOS", "--labels", "cat;dog,dog"], "--labels: 'dog' is given twice"),
        (["MODEL", "PHOTOS", "--labels", "nowhere.txt"], "nowhere.txt"),
        (["MODEL", "PHOTOS", "--labels", "cat", "--templates", "a photo"], "--templates: 'a photo' has no {}"),
        (
            ["MODEL", "PHOTOS", "--labels", "cat", "--top", "3"],
            "--top: got it beside --labels; it is for classification",
        ),
        (["MODEL", "PHOTOS", "--labels", "cat", "--adapter", "MODEL"], "--adapter: got it beside --labels"),
        (["MODEL", "PHOTOS", "--labels", "cat", "--background", "much"], "--background: got 'much'; want a number"),
        (["MODEL", "PHOTOS", "--labels", "cat", "--background", '{"dog": 1}'], "--background: thresholds by label"),
        (["MODEL", "PHOTOS", "--labels", "cat", "--out", "FILE"], "is a file; want a folder"),
        (["MODEL", "EMPTY", "--labels", "cat"], "IMAGES: no image files in"),
        (["CLIP", "PHOTOS", "--task", "segmentation"], "which does not segment by texts; want"),
        (["PHOTOS", "--labels", "cat"], "--model: missing; want a model that segments by texts"),
        (["CLIP", "PHOTOS", "--task", "classification", "--labels", "cat"], "--labels: got it for classification"),
        (["nowhere", "PHOTOS", "--task", "segmentation"], "no such folder nowhere"),
    ],
)
def test_errors_are_sentences(run, clip, model, photos, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"MODEL": model, "PHOTOS": photos, "CLIP": clip, "EMPTY": tmp_path / "empty", "FILE": tmp_path / "file"}
    code, printed, err = run("predict", *(places.get(argument, argument) for argument in arguments))
    assert code == 1 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "segments").exists() and len(err.strip().splitlines()) == 1


def test_backgrounds_are_read(tmp_path):
    (tmp_path / "b.json").write_text('{"cat": 0.5}')
    assert read_background("0.5") == 0.5 and read_background(None) is None
    assert read_background(str(tmp_path / "b.json")) == {"cat": 0.5}
    for wrong in ("true", "[]", "{}", '{"a": "b"}', "x"):
        with pytest.raises(ValueError, match="--background: got"):
            read_background(wrong)
