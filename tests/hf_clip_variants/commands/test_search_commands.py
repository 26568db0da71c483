"""`index` and `search` on the command line: what they print, exit codes, forms, files that cannot be read."""

import csv
import io
import json
import os
import shutil
import sys

import pytest
from media_folders import NAMES, save_pictures

from hf_clip_variants import build_index, embedded_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def made(clip, folder, tmp_path_factory):
    return build_index(folder, clip, tmp_path_factory.mktemp("place") / "index", device="cpu").folder


def test_an_index_is_made_and_its_search_is_named(run, clip, folder, tmp_path):
    code, out, err = run("index", folder, "--model", clip, "--out", tmp_path / "index")
    assert (code, err.strip()) == (0, "")
    assert out == f'{tmp_path}/index: 6 image files; 6 vectors. hf-clip-variants search {tmp_path}/index "a red car"\n'


def test_the_trained_model_finds_things_by_name(run, folder, tmp_path, monkeypatch):
    run("index", folder, "--model", embedded_model(), "--out", tmp_path / "index")
    for name in ("pizza", "banana", "owl"):
        code, out, _ = run("search", tmp_path / "index", name, "--templates", "an emoji of {}", "--csv", "--top", 1)
        assert code == 0 and next(csv.DictReader(io.StringIO(out)))["path"] == f"{folder}/pictures/{name}/notov1.png"
    monkeypatch.chdir(folder)  # the table shows paths as they are seen from here
    code, out, _ = run("search", tmp_path / "index", "an emoji of a pizza")
    lines = [line.split()[1] for line in out.splitlines() if "notov1" in line]
    assert code == 0 and "an emoji of a pizza" in out and len(lines) == 6 and lines[0] == "pictures/pizza/notov1.png"


def test_all_forms_hold_the_same(run, made, tmp_path):
    _, text, _ = run("search", made, "a cat", "--json", "--top", 3)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [sorted(line) for line in lines] == [["end", "kind", "path", "score", "start"]] * 3
    _, text, _ = run("search", made, "a cat", "--csv", "--top", 3)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["path"], float(r["score"])) for r in rows] == [(line["path"], line["score"]) for line in lines]
    _, page, _ = run("search", made, "a cat", "--html", "--top", 3)
    assert page.startswith("<!doctype html>") and page.count("data:image/png") == 3
    for name, expected in (("a.csv", text), ("a.html", page)):
        code, out, err = run("search", made, "a cat", "--top", 3, "--out", tmp_path / name)
        assert (code, out) == (0, "") and (tmp_path / name).read_text() == expected and "3 found" in err
    run("search", made, "a cat", "--top", 3, "--out", tmp_path / "a.jsonl")
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == lines


def test_pictures_are_looked_for_and_the_index_updates_without_naming_its_model(run, made, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    code, out, _ = run("search", made, "--image", folder / NAMES[2], "--json", "--top", 1)
    assert json.loads(out)["path"] == str(folder / NAMES[2])
    code, out, _ = run("search", made, "--image", folder / NAMES[2], "--json", "--top", 1, "--files", moved)
    assert json.loads(out)["path"] == str(moved / NAMES[2])
    code, out, _ = run("index", folder, "--out", made, "--json")
    assert code == 0 and json.loads(out) == {"index": str(made), "files": {"image": 6}, "vectors": 6, "unreadable": []}


def test_files_that_cannot_be_read_are_printed_and_the_exit_code_says_so(run, clip, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "files")
    (copy / "[bold]\x1b[31m.png").write_bytes(b"")
    code, out, err = run("index", copy, "--model", clip, "--out", tmp_path / "index", "--json")
    assert code == 1 and json.loads(out)["unreadable"] == [
        {"path": "[bold]\x1b[31m.png", "error": "the file is empty"}
    ]
    assert "[bold]\\x1b[31m.png: the file is empty" in err and "1 of 7 files could not be read" in err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_a_name_of_other_bytes_is_reported(run, clip, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "files")
    (copy / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    code, _, err = run("index", copy, "--model", clip, "--out", tmp_path / "index")
    assert code == 1 and "caf\\udce9.png: the file name is not valid UTF-8; rename it" in err
    assert run("search", tmp_path / "index", "a cat")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nowhere"], "SOURCE: no such file or folder nowhere"),
        (["index", "<FILES>", "--model", "nowhere/x/y"], "--model: no such folder nowhere/x/y"),
        (["index", "<FILES>", "--model", "<CLIP>", "--device", "fast"], "--device: got 'fast'"),
        (["index", "<FILES>"], "--model: missing, and <OUT> is no index that has one; want a folder or Hub id"),
        (["index", "<FILES>", "--model", "<CLIP>", "--fps", "0"], "--fps: got 0.0; want a number in 0.0001..1000"),
        (
            ["index", "<FILES>", "--model", "<CLIP>", "--column", "a"],
            "--column: <FILES> is a folder of files, which has none",
        ),
        (["search", "<FILES>", "a cat"], "INDEX: no index in <FILES>"),
        (["search", "<INDEX>"], "TEXT: missing; want a text, --image or --sound"),
        (["search", "<INDEX>", "a", "--csv", "--json"], "--json: got it beside --csv; want one of them"),
        (["search", "<INDEX>", "a", "--out", "a.txt"], "--out: a.txt has no form"),
        (
            ["search", "<INDEX>", "a", "--kinds", "picture"],
            "--kinds: got ['picture']; want some of image, video, audio",
        ),
        (["search", "<INDEX>", "a", "--image", "no.png"], "--image: no such file no.png"),
        (["search", "<INDEX>", "a", "--templates", "photo of"], "--templates: 'photo of' has no {}"),
        (["search", "<INDEX>", "--sound", "<SOUND>"], "--sound: <CLIP> encodes image and video only"),
        (
            ["search", "<INDEX>", "a", "--model", "<OTHER>"],
            "--model: <INDEX> was made with <CLIP> (CLIPModel); got <OTHER>",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, made, clip, folder, tmp_path, arguments, message):
    places = {
        "<FILES>": folder,
        "<INDEX>": made,
        "<CLIP>": clip,
        "<OUT>": tmp_path / "none",
        "<OTHER>": embedded_model(),
    }
    places["<SOUND>"] = folder / NAMES[0]
    for name, place in places.items():
        message = message.replace(name, str(place))
    arguments = [str(places.get(word, word)) for word in arguments]
    if arguments[0] == "index":
        arguments += ["--out", str(tmp_path / "none")]
    code, out, err = run(*arguments)
    assert (code, out) == (1, "") and message in err and err.count("\n") == 1
