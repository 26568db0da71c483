"""`predict --task news`: a table or an image with its text in; answers, reasons and pictures out."""

import csv
import io
import json

import numpy as np
import pytest
from fnd_clip_runs import fnd_clip_model, news_processor
from PIL import Image
from tiny import tiny_clip

from hf_clip_variants.annotations.post_pictures import Bar, draw_post, wrapped


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fnd_clip_model().save_pretrained("model")
    news_processor().save_pretrained("model")
    Image.new("RGB", (40, 30), "red").save("a.png")
    Image.new("RGB", (20, 30), "blue").save("b.jpg")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "b.txt").write_text("a cat in the town")
    rows = "id,text,images,label\nx1,A big fire in the town .,a.png|b.jpg,1\nx2,no image,gone.png,0\n"
    (tmp_path / "posts.csv").write_text(rows + "x3,the dog,broken.png,1\n")
    return tmp_path


def test_a_table_in_answers_reasons_and_pictures_out(files, run):
    code, out, err = run("predict", "posts.csv", "b.jpg", "a.png", "--task", "news", "--model", "model")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and "3 of 5 posts could not be read" in err
    assert [row["path"] for row in rows] == ["posts.csv#x1", "posts.csv#x2", "posts.csv#x3", "b.jpg", "a.png"]
    for row in (rows[0], rows[3]):
        assert row["label"] in ("rumor", "nonrumor") and 0.5 <= float(row["score"]) <= 1 and not row["error"]
        assert -1 <= float(row["similarity"]) <= 1 and row["layer"] in "0123"
        assert all(0 <= float(row[name]) <= 1 for name in ("text", "image", "cross"))
    assert "no image" in rows[1]["error"] and "broken.png" in rows[2]["error"]
    assert rows[4]["error"] == "no text: want a.txt beside it, or a table of posts"
    for name in ("posts-x1", "b"):
        assert np.asarray(Image.open(f"posts/{name}.png").convert("L")).std() > 10


def test_json_from_a_folder_by_the_model_alone(files, run):
    (files / "some").mkdir()
    for name in ("b.jpg", "b.txt"):
        (files / name).rename(files / "some" / name)
    code, out, _ = run("predict", "model", "some", "--json", "--out", "written", "--top", 2)
    (found,) = (json.loads(line) for line in out.splitlines())
    assert code == 0 and set(found["weights"]) == {"text", "image", "cross"} and len(found["layers"]) == 4
    assert sum(found["layers"]) == pytest.approx(1, abs=1e-4) and len(found["top"]) == 2
    assert found["picture"].startswith("written")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--task", "news"], "b.jpg is a file; want a folder"),
        (["--model", "model", "--labels", "a, b"], "--labels: got it for posts, whose classes are the model's"),
        (
            ["--model", "clip", "--task", "news"],
            "model: clip is a clip, which does not read a text and an image",
        ),
    ],
)
def test_wrong_options_are_said(files, run, options, message):
    tiny_clip().save_pretrained("clip")
    code, _, err = run("predict", "b.jpg", *options)
    assert code != 0 and message in " ".join(err.split())


def test_pictures_of_posts():
    image = Image.new("RGB", (10, 40), "green")
    full, empty = (np.asarray(draw_post(image, "words", "true", [Bar("text", "1", share)], [1.0])) for share in (1, 0))
    assert full.shape == (420, 900, 3) and (full != empty).any(-1)[:, 640:].any()
    assert draw_post(None, "", "true", []).size == (900, 420)
    lines = wrapped("消防员还没有办法" * 40, 300)
    assert len(lines) == 4 and lines[-1].endswith("…") and wrapped("short", 300) == ["short"]
