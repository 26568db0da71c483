"""`paint`: files, pages, JSON, going on, and what is wrong."""

import json

import pytest
from painting_runs import tiny_vqgan
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_tokenizer

from hf_clip_variants.commands.paint import _sides
from hf_clip_variants.data.videos import read_frames


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_clip().save_pretrained(tmp_path / "guide")
    tiny_tokenizer().save_pretrained(tmp_path / "guide")
    tiny_vqgan().save_pretrained(tmp_path / "vqgan")
    Image.new("RGB", (40, 30), "red").save("red.png")
    Image.new("L", (40, 30), 255).save("mask.png")
    return "--guide", "guide", "--vqgan", "vqgan", "--cuts", 2


def test_texts_in_pictures_and_a_page_out(parts, run):
    options = (
        "--learning-rate",
        2,
        "--steps",
        3,
        "--seeds",
        2,
        "--size",
        "32x24",
        "--out",
        "out",
        "--preview",
        *parts,
    )
    code, out, err = run("paint", "a cat", "a dog | a pig:-0.5 ^ a cow", *options)
    assert code == 0, err
    assert "similarity" in out and out.count("(best)") == 2 and "index.html" in err
    rows = json.loads(open("out/results.json", encoding="utf-8").read())["pictures"]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1] and rows[0]["name"] == "a-cat-0"
    for row in rows:
        assert row["size"] == [32, 24] and Image.open(f"out/{row['name']}.png").size == (512, 384)
        assert Image.open(f"out/{row['name']}.gif").n_frames >= 2
        assert load_file(f"out/{row['name']}.safetensors")["codes"].shape == (12, 16)
    page = open("out/index.html", encoding="utf-8").read()
    assert page.count('<article class="card') == 4 and page.count('class="card best"') == 2
    pictures = {row["name"]: open(f"out/{row['name']}.png", "rb").read() for row in rows}
    code, again, err = run("paint", "a cat", "a dog | a pig:-0.5 ^ a cow", *options)  # nothing is left to do
    assert code == 0 and again == out
    assert all(open(f"out/{name}.png", "rb").read() == content for name, content in pictures.items())
    code, _, err = run("paint", "a bird", *options)
    assert code == 1 and "another prompts" in err


def test_several_guides_paint_a_film(parts, run):
    options = ("--guide", "guide", "--steps", 2, "--mp4", "--json", "--out", "out", *parts)
    code, out, err = run("paint", "a cat", *options)
    assert code == 0, err
    row = json.loads(out)
    assert len(row["similarities"]) == 2 and row["similarities"][0] == row["similarities"][1]
    assert json.loads(open("out/results.json", encoding="utf-8").read())["guide"] == ["guide", "guide"]
    assert len(list(read_frames("out/a-cat.mp4"))) == 5


def test_a_picture_is_changed(parts, run):
    options = ("--start", "red.png", "--mask", "mask.png", "--steps", 2, "--keep", 1, "--json", *parts)
    code, out, err = run("paint", "a cat", "--image-prompt", "red.png", *options)
    assert code == 0, err
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert row["size"] == [40, 30] and row["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("paint", " "), "TEXT: empty"),
        (("paint", "a cat:0"), "expected text:weight:stop"),
        (("paint", "a cat ^ "), "expected a text that is not empty"),
        (("paint", "a cat", "--size", "big"), "--size: big; want pixels"),
        (("paint", "a cat", "--size", "4"), "--size: 4; want sides of 8..4096"),
        (("paint", "a cat", "--start", "none.png"), "--start: no such file none.png; want a picture, or one of mean"),
        (("paint", "a cat", "--mask", "mask.png"), "--mask: given without a picture"),
        (("paint", "a cat", "--mask", "none.png"), "--mask: no such file"),
        (("paint", "a cat", "--method", "new"), "cut_method: 'new'"),
        (("paint", "a cat", "--out", "red.png"), "--out: red.png is a file"),
        (("paint", "a cat", "--vqgan", "red.png"), "--vqgan: red.png is a file"),
        (("paint", "a cat", "--steps", 0), "steps"),
    ],
)
def test_what_is_wrong_is_named(arguments, said, parts, run):
    code, _, err = run(*arguments, *(parts[:2] if "--vqgan" in arguments else parts))
    assert code in (1, 2) and said in err and "Traceback" not in err


def test_sizes_are_a_side_or_two():
    assert _sides("96x64") == (64, 96) and _sides("64") == (64, 64) and _sides(None) is None
    for text in ("", "x", "1x2x3", "-8", "8.5", "999999999"):
        with pytest.raises(ValueError, match="--size"):
            _sides(text)
