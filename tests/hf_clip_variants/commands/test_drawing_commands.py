"""`draw` and `sketch`: files, pages, JSON, going on, and what is wrong."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from tiny import tiny_clip, tiny_tokenizer
from tiny_families import save_tiny_family

import hf_clip_variants.files.atomic_writes as drawing_writes
from hf_clip_variants.commands.drawing import chosen_seeds, file_stem
from hf_clip_variants.data.videos import read_frames
from hf_clip_variants.modeling.strokes.stroke_drawing import StrokeDrawing


@pytest.fixture
def guide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_clip().save_pretrained(tmp_path / "guide")
    tiny_tokenizer().save_pretrained(tmp_path / "guide")
    picture = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(picture).ellipse((8, 6, 30, 24), fill="red")
    picture.save("disc.png")
    Image.new("L", (40, 30), 255).save("mask.png")
    return "guide"


def test_texts_in_drawings_and_a_page_out(guide, run):
    options = ("--strokes", 4, "--steps", 3, "--seeds", 2, "--out", "out", "--guide", guide, "--preview")
    code, out, err = run("draw", "a cat", "a dog | a pig:0.5", *options)
    assert code == 0, err
    assert "similarity" in out and out.count("(best)") == 2 and "index.html" in err
    rows = json.loads(open("out/results.json", encoding="utf-8").read())["drawings"]
    assert [row["name"] for row in rows] == ["a-cat-0", "a-cat-1", "a-dog-a-pig-0-5-0", "a-dog-a-pig-0-5-1"]
    for row in rows:
        svg, exact = (StrokeDrawing.load(f"out/{row['name']}.{kind}") for kind in ("svg", "safetensors"))
        assert len(svg) == 4 and svg.to_svg() == exact.to_svg()
        assert Image.open(f"out/{row['name']}.png").size == (512, 512)
        assert Image.open(f"out/{row['name']}.gif").n_frames >= 4
    page = open("out/index.html", encoding="utf-8").read()
    assert page.count('class="card') == 4 and page.count('class="card best"') == 2
    code, again, err = run("draw", "a cat", "a dog | a pig:0.5", *options)  # nothing is left to do
    assert code == 0 and again == out
    code, _, err = run("draw", "a bird", *options)
    assert code == 1 and "another prompts" in err


def test_several_guides_draw_a_story_with_a_preview_and_a_film(guide, run, monkeypatch):
    from hf_clip_variants.commands import drawing

    save_tiny_family("chinese_clip", "chinese")
    monkeypatch.setattr(drawing, "_PREVIEW_EVERY", 0.0)
    seen = []

    def look(path, content, write=drawing_writes.write_atomically):
        if Path(path).name == "preview.png":
            seen.append(Image.open(io.BytesIO(content)).size)
        return write(path, content)

    monkeypatch.setattr(drawing_writes, "write_atomically", look)
    options = ("--strokes", 4, "--steps", 3, "--guide", guide, "--guide", "chinese", "--out", "out")
    code, out, err = run(
        "draw", "一只猫 ^ a dog", *options, "--guide-weight", 1, "--guide-weight", 0.5, "--mp4", "--preview", "--json"
    )
    assert code == 0, err
    row = json.loads(out)
    assert len(row["similarities"]) == 2 and row["similarity"] == row["similarities"][0]
    settings = json.loads(open("out/results.json", encoding="utf-8").read())["settings"]
    assert settings["guide"] == [guide, "chinese"] and settings["guide_weights"] == [1.0, 0.5]
    assert seen == [(268, 268)] * 3 and not Path("out/preview.png").exists()
    frames = [image for _, image in read_frames(f"out/{row['name']}.mp4")]
    assert len(frames) == 6 and frames[0].size == (256, 256)
    code, _, err = run("draw", "一只猫 ^ a dog", *options)  # other weights
    assert code == 1 and "another guide_weights" in err


def test_a_film_without_its_library_is_told_at_once(guide, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, err = run("draw", "a cat", "--mp4", "--guide", guide)
    assert (
        code == 1 and '--mp4 needs av: pip install "hf-clip-variants[video]"' in err and not Path("drawing").exists()
    )


def test_photos_in_sketches_out(guide, run):
    options = ("--strokes", "4,2", "--steps", 3, "--guide", guide, "--json")
    code, out, err = run("sketch", "disc.png", *options, "--mask", "mask.png", "--out", "out")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["name"], row["strokes"]) for row in rows] == [("disc-4", 4), ("disc-2", 2)]
    assert open("out/disc-2.svg").read().count("<path") == 2 and 'class="photo"' in open("out/index.html").read()
    more = ("--colour", "--squash", "--stages", 2, "--text", "a {disc}")
    code, out, _ = run("sketch", "disc.png", *options, *more, "--out", "colours")
    assert code == 0 and json.loads(out.splitlines()[0])["loss"] != rows[0]["loss"]
    halved = ("--dtype", "bfloat16", "--start", "edges")
    code, out, _ = run("sketch", "disc.png", *options, *halved, "--out", "halved")
    assert code == 0 and json.loads(out.splitlines()[0])["loss"] != rows[0]["loss"]
    settings = json.loads(open("halved/results.json").read())["settings"]
    assert settings["dtype"] == "bfloat16" and settings["start"] == "edges" and settings["speed"] == 1
    settings = json.loads(open("colours/results.json").read())["settings"]
    assert (
        settings["color"] and settings["speed"] == 4 and settings["stages"] == 2 and settings["text"] == ["a {disc}"]
    )
    colors = StrokeDrawing.load("colours/disc-2.safetensors").colors
    assert (colors[:, 3] == 1).all() and (colors[:, :3] > 0).any()


def test_several_guides_sketch_a_photo(guide, run):
    save_tiny_family("chinese_clip", "chinese")
    options = ("--strokes", 2, "--steps", 3, "--guide", guide, "--guide", "chinese", "--out", "out", "--json")
    code, out, err = run("sketch", "disc.png", *options, "--text", "一只猫", "--guide-weight", 1, "--guide-weight", 2)
    assert code == 0, err
    row = json.loads(out)
    assert len(row["similarities"]) == 2 and row["similarity"] == row["similarities"][0]
    settings = json.loads(open("out/results.json", encoding="utf-8").read())["settings"]
    assert settings["guide"] == [guide, "chinese"] and settings["guide_weights"] == [1.0, 2.0]
    code, _, err = run("sketch", "disc.png", *options, "--text", "一只猫")  # other weights
    assert code == 1 and "another guide_weights" in err
    code, _, err = run("sketch", "disc.png", "--guide", guide, "--guide", "disc.png")
    assert code == 1 and "--guide: disc.png is a file" in err


def test_the_embedded_guide_draws_offline(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("draw", "a red apple", "--steps", 2, "--strokes", 4)
    assert code == 0 and "a-red-apple.svg" in out, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("draw", " "), "TEXT: empty"),
        (("draw", "a cat:0"), "expected text:weight:stop"),
        (("draw", "a cat", "--strokes", 0), "strokes"),
        (("draw", "a cat", "--seeds", "x"), "--seeds"),
        (("draw", "a cat", "--seeds", "1,1"), "--seeds"),
        (("draw", "a cat", "--start", "none.svg"), "--start: no such file"),
        (("draw", "a cat", "--image-prompt", "none.png"), "--image-prompt: no such file"),
        (("draw", "a cat", "--out", "disc.png"), "--out: disc.png is a file"),
        (("draw", "a cat", "--guide", "disc.png"), "--guide: disc.png is a file"),
        (("draw", "a cat", "--guide", "guide", "--guide", "disc.png"), "--guide: disc.png is a file"),
        (("draw", "a cat", "--guide-weight", 1, "--guide-weight", 2), "--guide-weight: 2, want one for each of 1"),
        (("draw", "a cat ^ "), "expected a text that is not empty"),
        (("sketch", "none.png"), "PHOTO: no such file"),
        (("sketch", "disc.png", "--strokes", "0"), "--strokes"),
        (("sketch", "disc.png", "--strokes", "4,4"), "--strokes"),
        (("sketch", "disc.png", "--start", "corners"), "--start"),
        (("sketch", "disc.png", "--dtype", "int8"), "--dtype"),
        (("sketch", "disc.png", "--mask", "mask.png", "--mask", "mask.png"), "--mask: 2 masks"),
        (("sketch", "disc.png", "--text", "a", "--text", "b"), "--text: 2 texts"),
        (("sketch", "disc.png", "--text", " "), "--text: empty"),
        (("sketch", "disc.png", "--strokes", "4,2", "--stages", 3), "--stages: 3, want at most as many"),
    ],
)
def test_what_is_wrong_is_named(arguments, said, guide, run):
    code, _, err = run(*arguments, *(() if "--guide" in arguments else ("--guide", guide)))
    assert code in (1, 2) and said in err and "Traceback" not in err


def test_seeds_are_a_number_or_a_list():
    assert chosen_seeds("3") == [0, 1, 2] and chosen_seeds("7,") == [7] and chosen_seeds("5, 2") == [5, 2]
    for text in ("0", "-1", "1,1", "", "1000"):
        with pytest.raises(ValueError, match="--seeds"):
            chosen_seeds(text)
    taken = set()
    assert [file_stem(text, taken) for text in ("../../x", "CON", "a/b", "x" * 300)][0] == "x"
    assert all(len(name) <= 42 and "/" not in name for name in taken)
