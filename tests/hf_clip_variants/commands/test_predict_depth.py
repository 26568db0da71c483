"""`predict --task depth`: lines, pictures, depth maps that can be read again, and what is wrong."""

import csv
import io
import json

import numpy as np
import pytest
from depthclip_runs import BINS, WORDS, depth_processor, depthclip_model, tiny_resnet
from PIL import Image
from tiny import tiny_tokenizer

from hf_clip_variants.annotations.depth_pictures import depth_colours, depth_file, draw_depth


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(tmp_path / "photos" / "room.png")
    Image.linear_gradient("L").resize((300, 40)).save(tmp_path / "photos" / "panorama.jpg")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    depthclip_model().save_pretrained(tmp_path / "model")
    depth_processor().save_pretrained(tmp_path / "model")
    return tmp_path


def test_photographs_in_depth_and_pictures_out(files, run):
    code, out, err = run("predict", "model", "photos")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and "1 of 3 images could not be read" in err
    assert [row["path"].rpartition("/")[2] for row in rows] == ["broken.png", "panorama.jpg", "room.png"]
    assert rows[0]["error"] and rows[0]["picture"] == ""
    for row, size in zip(rows[1:], [(300, 40), (90, 60)], strict=True):
        assert (int(row["width"]), int(row["height"])) == size and row["word"] in WORDS
        depth = np.asarray(Image.open(row["depth_map"])) * float(row["step"])
        assert depth.shape == size[::-1] and min(BINS) <= depth.min() <= depth.max() <= max(BINS)
        numbers = (depth.min(), np.median(depth), depth.max())
        found = (float(row[name]) for name in ("nearest", "median", "farthest"))
        assert list(found) == pytest.approx(numbers, abs=1e-3)
        assert Image.open(row["picture"]).width > 2 * size[0]
    again = depth_processor(do_resize=False, depth_factor=float(row["step"]))
    labels = again(Image.open("photos/room.png"), [row["depth_map"]], return_tensors="pt").labels
    np.testing.assert_allclose(labels[0].numpy(), depth, atol=1e-6)


def test_other_words_and_a_plain_clip(files, run):
    tiny_tokenizer().save_pretrained("model")
    code, out, _ = run(
        "predict",
        "photos/room.png",
        "--model",
        "model",
        "--labels",
        "close=100, far away = 400",
        "--json",
        "--out",
        "d",
    )
    (row,) = (json.loads(line) for line in out.splitlines())
    assert code == 0 and 100 < row["nearest"] <= row["farthest"] < 400 and set(row["words"]) == {"close", "far away"}
    assert (
        sum(row["words"].values()) == pytest.approx(1, abs=1e-5)
        and row["picture"].startswith("d")
        and row["step"] == 0.01
    )
    tiny_resnet(128).save_pretrained("clip")
    tiny_tokenizer().save_pretrained("clip")
    code, out, _ = run(
        "predict", "photos/room.png", "--task", "depth", "--model", "clip", "--templates", "a {} thing", "--json"
    )
    (row,) = (json.loads(line) for line in out.splitlines())
    assert code == 0 and 1 <= row["nearest"] <= row["farthest"] <= 3 and "giant" in row["words"]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--labels", "close, far"], "--labels: got 'close'; want a word and its depth above 0"),
        (["--labels", "close=0"], "--labels: got 'close=0'; want a word"),
        (["--labels", "close=1, far=3"], "has no tokenizer, which other words need"),
        (["--templates", "{} {}"], "--templates"),
        (["--top", 3], "--top: got it for depth, which has no such option"),
        (["--window", 64], "--window: got it for depth"),
    ],
)
def test_what_is_wrong_is_said(files, run, options, said):
    code, out, err = run("predict", "photos/room.png", "--model", "model", *options)
    assert code != 0 and not out.count("\n") > 1 and said in " ".join(err.split())


def test_a_model_that_reads_no_depth_is_named(files, run):
    (files / "other").mkdir()
    (files / "other" / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    code, _, err = run("predict", "photos/room.png", "--task", "depth", "--model", "other")
    assert code != 0 and "siglip, of which no depth can be read; want one of clipv-depthclip" in " ".join(err.split())


def test_pictures_and_files_of_depth_say_what_they_cannot_draw():
    colours = depth_colours(np.array([[0.1, 1, 2, 4, 9]]), 1, 4)[0]
    grey = colours.astype(int).sum(-1)
    assert (colours[0] == colours[1]).all() and (colours[3] == colours[4]).all() and grey[1] > grey[2] > grey[3]
    with pytest.raises(ValueError, match="depth: got \\[2, 2\\]; want \\[40, 60\\]"):
        draw_depth(Image.new("RGB", (60, 40)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="expected finite depths above 0"):
        depth_colours(np.zeros(3), 1, 2)
    with pytest.raises(ValueError, match="want at most"):
        depth_file(np.full((2, 2), 1e9))
    assert depth_file(np.full((2, 2), 70.0))[1] == 0.01
