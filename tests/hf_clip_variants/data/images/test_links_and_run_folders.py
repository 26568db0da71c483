"""What lies in a folder of images besides images: links, loops, FIFOs, and the run folder of `adapt`."""

import os
import socket

import pytest
from PIL import Image

from hf_clip_variants.data.images.folders import read_class_folders, walk
from hf_clip_variants.data.images.sources import load_images
from hf_clip_variants.evaluation.prediction import find_images
from hf_clip_variants.files.json_files import write_json


def save(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / "data" / name / "1.png")
    return tmp_path / "data"


def found(folder):
    """Paths below the folder, as `adapt` and as `predict` read them."""
    (split,) = read_class_folders(folder).values()
    classes = sorted("/".join(parts) for files in split.files.values() for parts in files)
    return classes, sorted(os.path.relpath(path, folder) for path in find_images([str(folder)]))


def test_links_are_followed_alike(folder, tmp_path):
    save(tmp_path / "pool" / "fox" / "deep" / "2.png")
    (folder / "fox").symlink_to(tmp_path / "pool" / "fox")
    (folder / "cat" / "more").symlink_to(tmp_path / "pool" / "fox")
    (folder / "dog" / "0.png").symlink_to(tmp_path / "pool" / "fox" / "deep" / "2.png")
    classes, predicted = found(folder)
    assert classes == ["cat/1.png", "cat/more/deep/2.png", "dog/0.png", "dog/1.png", "fox/deep/2.png"]
    # For predict, the linked folder is read once.
    assert predicted == [path for path in classes if path != "fox/deep/2.png"]


def test_loops_end(folder):
    for place, target in (("cat/self", "."), ("cat/up", ".."), ("round", "."), ("dog/root", folder), ("above", "..")):
        (folder / place).symlink_to(target)
    assert found(folder) == (["cat/1.png", "dog/1.png"],) * 2


def test_many_links_do_not_multiply(folder):
    """2 ** 40 paths lead to the last folder."""
    for depth in range(40):
        place = folder / "cat" / str(depth)
        place.mkdir()
        for name in "ab":
            (place / name).symlink_to(folder / "cat" / str(depth + 1))
    save(folder / "cat" / "40" / "2.png")
    classes, predicted = found(folder)
    assert len(classes) == len(predicted) == 3


def test_broken_links_are_named(folder, caplog):
    (folder / "cat" / "gone.png").symlink_to("nowhere")
    (folder / "bird").symlink_to("nowhere either")
    assert found(folder) == (["cat/1.png", "cat/gone.png", "dog/1.png"],) * 2
    assert "links that lead nowhere are left out: 'bird'" in caplog.text
    with pytest.raises(ValueError, match="cat/gone.png': no such file"):
        load_images(folder)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_regular_file_is_named_and_the_others_are_read(folder, kind, tmp_path, monkeypatch):
    path = folder / "cat" / "0.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(path.parent)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    table = tmp_path / "t.csv"
    table.write_text(
        "path,label\n" + "".join(f"{folder}/{p},{p[:3]}\n" for p in ("cat/0.png", "cat/1.png", "dog/1.png"))
    )
    for source in (folder, table):
        images = load_images(source, on_error="skip")
        assert len(images) == 2 and "not a regular file" in images.skipped[0][1]
        images = load_images(source, verify=False)
        row = next(row for row, name in enumerate(images.ids) if name.endswith("0.png"))
        with pytest.raises(ValueError, match="0.png': .*not a regular file"):
            images.image(row)
    with pytest.raises(OSError, match="not a regular file"):
        load_images(path)
    assert str(path) in find_images([str(folder)])


@pytest.mark.parametrize("place", ["run", "cat/run", "runs/deep/run"])
def test_the_run_folder_is_no_class(folder, place):
    before = found(folder)
    save(folder / place / "adapters" / "x" / "plot.png")
    write_json(folder / place / "results.json", {"version": 7, "status": "running", "settings": {}})
    assert found(folder) == before
    assert [name for name, _ in walk(folder / place)][0] == str(folder / place)  # asked for by name, it is read


def test_a_run_folder_that_a_kill_left_empty_is_no_class(folder):
    (folder / "run").mkdir()
    (folder / "run" / ".tmp-results.json-0123456789ab").touch()
    assert load_images(folder).class_names == ("cat", "dog")


def test_a_class_may_hold_another_results_file(folder):
    save(folder / "results" / "1.png")
    (folder / "results" / "results.json").write_text('{"a": 1}')
    assert load_images(folder).class_names == ("cat", "dog", "results")
