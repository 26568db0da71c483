"""`predict --task detection`: what is printed and written, images of every kind, videos, errors as sentences."""

import csv
import io
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline
from vild_runs import NAMES, vild_model, vild_processor

from hf_clip_variants.data.videos import read_frames


LABELS = "cat, boat"


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng([seed, width, height])
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "free"
    vild_model().save_pretrained(folder)
    vild_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(80, 60), (64, 64), (80, 60)]):
        noise(*size, number).save(folder / f"photo {number}.png")
    return folder


def test_one_command_prints_boxes_and_writes_pictures_and_coco(run, model, photos, tmp_path):
    out = tmp_path / "out"
    options = ["--labels", LABELS, "--threshold", "0.05", "--out", out]
    code, printed, err = run("predict", model, photos, "--task", "detection", *options)
    assert code == 0 and f"{out} holds pictures/" in err, err
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert list(rows[0]) == ["path", "frame", "label", "score", "xmin", "ymin", "xmax", "ymax", "error"]
    assert {row["path"] for row in rows} == {str(path) for path in photos.iterdir()}
    pipe = pipeline("zero-shot-object-detection", model=str(model))
    document = json.loads((out / "annotations.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "boat"}]
    for image in document["images"]:
        mine = [row for row in rows if row["path"] == image["path"]]
        expected = pipe(image["path"], candidate_labels=LABELS, threshold=0.05)
        assert [row["label"] for row in mine if row["label"]] == [one["label"] for one in expected]
        marks = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        for mark in marks:
            row = next(r for r in mine if abs(float(r["score"]) - mark["score"]) < 1e-6)
            left, top, width, height = mark["bbox"]
            box = [float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            assert box == pytest.approx([left, top, left + width, top + height], abs=0.01)
            assert mark["category_id"] == ["cat", "boat"].index(row["label"]) + 1
            assert 0 <= left and left + width <= image["width"] and mark["segmentation"]
        assert Image.open(out / "pictures" / image["file_name"]).width > image["width"]
    assert sum(len(row["label"]) > 0 for row in rows) > 0


def test_json_own_labels_and_the_task_that_the_model_says(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folded, processor = vild_model(), vild_processor()
    folded.set_labels(NAMES, processor)
    folded.drop_text_encoder()
    folded.save_pretrained(tmp_path / "folded")
    processor.image_processor.save_pretrained(tmp_path / "folded")
    code, printed, err = run("predict", "folded", photos / "photo 0.png", "--json", "--threshold", "0.01")
    assert code == 0, err
    (row,) = [json.loads(line) for line in printed.splitlines()]
    assert code == 0 and row["objects"] and {one["label"] for one in row["objects"]} <= set(NAMES)
    assert row["picture"] == "detections/pictures/photo_0.png" and (row["width"], row["height"]) == (80, 60)
    code, _, err = run("predict", "folded", photos, "--labels", "dog")
    assert code == 1 and "text encoder was dropped, it knows its own labels only" in err


def test_images_of_every_kind_and_broken_ones(run, model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("L", (10_000, 12)).save(folder / "long.png")
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(folder / "alpha.png")
    (folder / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    code, printed, err = run("predict", model, folder, "--labels", LABELS, "--out", out, "--json")
    rows = {row["path"].rpartition("/")[2]: row for row in map(json.loads, printed.splitlines())}
    assert code == 1 and "1 of 4 images could not be read" in err and "error" in rows.pop("broken.png")
    assert all("objects" in row for row in rows.values()) and rows["long.png"]["width"] == 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", LABELS, "--window", "8"], "--window: got it for detection; it is for segmentation"),
        (["--labels", LABELS, "--top", "3"], "--top: got it for detection; it is for classification"),
        (["--labels", "cat, cat"], "'cat'"),
        (["--labels", LABELS, "--templates", "no place"], "no place"),
    ],
)
def test_errors_are_sentences(run, model, photos, options, message):
    code, _, err = run("predict", model, photos, "--task", "detection", *options)
    assert code == 1 and message in err, err


def make_video(path, frames: int = 5, size=(64, 48)) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_image(noise(*size, number))
            frame.pts, frame.time_base = 40 * number, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_video_is_a_loop_over_its_frames(run, model, tmp_path):
    make_video(tmp_path / "clip.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    files = [tmp_path / "clip.mp4", tmp_path / "broken.mp4"]
    options = ["--labels", LABELS, "--out", tmp_path / "out", "--json", "--threshold", "0.05"]
    code, printed, err = run("predict", "--model", model, *files, "--task", "detection", *options)
    *rows, last = [json.loads(line) for line in printed.splitlines()]
    assert code == 1 and "not a video that can be read" in last["error"] and "1 of 2 images" in err
    assert [row["frame"] for row in rows] == list(range(5))
    assert [row["seconds"] for row in rows] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16], abs=0.002)
    shown = list(read_frames(rows[0]["picture"]))
    assert len(shown) == 5 and shown[0][1].size == (64, 48)
    read = [image for _, image in read_frames(files[0])]
    pipe = pipeline("zero-shot-object-detection", model=str(model))
    expected = pipe(read[3], candidate_labels=LABELS, threshold=0.05)
    assert [one["label"] for one in rows[3]["objects"]] == [one["label"] for one in expected]
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [f"clip/{n:06d}" for n in range(5)]
    assert not (tmp_path / "out" / "pictures" / "broken.mp4").exists()
