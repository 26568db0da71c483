"""Indexes: what is in one, what an update does, kills, ranks, files that cannot be read."""

import json
import logging
import os
import random
import shutil
import signal

import datasets
import numpy as np
import pytest
import torch
from few_shot_runs import save_tiny_clip
from killing import file_size_limit, run_and_kill
from media_folders import NAMES, folder_content, save_media, save_pictures
from paths import PROGRAMS
from processes import run_on_ranks

from hf_clip_variants import build_index, load_images, open_index
from hf_clip_variants.search import building
from hf_clip_variants.search.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(model):
    return load_encoder(model, "cpu")


@pytest.fixture
def folder(tmp_path):
    return save_pictures(tmp_path / "files")


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of pictures that went through the model."""
    counts, encode = [], Encoder.encode_pixels

    def counted(self, pixel_values):
        counts.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(Encoder, "encode_pixels", counted)
    return counts


# ---- what is in it


def test_an_index_is_a_datasets_folder_of_the_models_own_features(folder, encoder, tmp_path):
    index = build_index(folder, encoder, tmp_path / "index")
    rows = datasets.load_from_disk(str(tmp_path / "index"))
    assert tuple(rows["path"]) == NAMES and set(rows["kind"]) == {"image"} and set(rows["start"]) == {None}
    assert rows.features["features"] == datasets.List(datasets.Value("float16"), length=24)
    pixels = encoder.images([str(folder / name) for name in NAMES], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = encoder.model.get_image_features(pixels).pooler_output
    expected = torch.nn.functional.normalize(features)
    torch.testing.assert_close(torch.tensor(rows["features"][:]), expected, rtol=0, atol=1e-3)
    assert index.counts() == {"image": len(NAMES)} and len(index) == len(NAMES) and index.unreadable == []


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_change_nothing_but_the_last_bit(folder, encoder, tmp_path, batch_size):
    rows = build_index(folder, encoder, tmp_path / "a", batch_size=batch_size, workers=2).dataset
    others = build_index(folder, encoder, tmp_path / "b", batch_size=2, workers=1).dataset
    assert rows["path"][:] == others["path"][:]
    np.testing.assert_allclose(rows["features"][:], others["features"][:], rtol=0, atol=1e-3)


# ---- updates


def test_an_update_encodes_what_is_new_and_drops_what_is_gone(folder, encoder, tmp_path, encoded):
    out = tmp_path / "index"
    before = build_index(folder, encoder, out).dataset.to_pandas().set_index("path")
    first, second, third = (folder / name for name in NAMES[:3])
    first.unlink()
    shutil.copy(folder / NAMES[-1], second)  # another content
    (folder / "new.png").write_bytes((folder / NAMES[0].replace("banana", "cat")).read_bytes()[:-1] + b"!")
    third.rename(folder / "moved.png")
    os.utime(folder / NAMES[4])  # the same content at another time
    encoded.clear()
    after = build_index(folder, encoder, out).dataset.to_pandas().set_index("path")
    assert sum(encoded) == 1, "contents that are known are not encoded again"
    assert list(after.index) == sorted([*NAMES[3:], NAMES[1], "new.png", "moved.png"])
    for new, old in ((NAMES[1], NAMES[-1]), ("moved.png", NAMES[2]), (NAMES[4], NAMES[4]), (NAMES[3], NAMES[3])):
        assert np.array_equal(after["features"][new], before["features"][old])
    encoded.clear()
    content = folder_content(out)
    build_index(folder, encoder, out)
    assert not encoded and folder_content(out) == content
    shutil.rmtree(out)
    fresh = build_index(folder, encoder, out).dataset.to_pandas().set_index("path")
    assert list(fresh.index) == list(after.index) and list(fresh["modified"]) == list(after["modified"])
    np.testing.assert_allclose(np.stack(fresh["features"]), np.stack(after["features"]), rtol=0, atol=1e-3)


def test_an_index_of_another_model_or_of_other_settings_is_refused_by_name(folder, encoder, model, tmp_path):
    out = tmp_path / "index"
    build_index(folder, encoder, out, fps=2)
    content = folder_content(out)
    other = load_encoder(shutil.copytree(model, tmp_path / "another-clip"), "cpu")
    other.model.visual_projection.weight[0, 0] += 0.01
    other = Encoder(other.name, other.model, other.processor)
    for refused in (lambda: build_index(folder, other, out), lambda: open_index(out, other).search("a cat")):
        with pytest.raises(ValueError, match=f"was made with {model}.*got .*another-clip.*its weights"):
            refused()
    other = load_encoder(model, "cpu")
    other.settings = json.loads(json.dumps(other.settings).replace('"image_mean": [0.48', '"image_mean": [0.49'))
    with pytest.raises(ValueError, match="another one by image_processor: image_mean"):
        open_index(out, other).search("a cat")
    with pytest.raises(ValueError, match="videos: .* was made with .*'fps': 2.0.* got {'fps': 3.0}"):
        build_index(folder, encoder, out, fps=3.0)
    with pytest.raises(ValueError, match=f"source: .* is an index of {folder}; got {tmp_path}"):
        build_index(tmp_path, encoder, out)
    assert folder_content(out) == content


def test_the_same_weights_in_another_folder_or_version_are_the_same_model(folder, encoder, model, tmp_path):
    out = tmp_path / "index"
    build_index(folder, encoder, out)
    manifest = json.loads((out / "index.json").read_text())
    manifest["model"]["processor"]["image_processor"]["of_an_older_version"] = 1
    start, weights, _ = manifest["model"]["key"].split(":")
    manifest["model"]["key"] = f"{start}:{weights}:{'0' * 32}"  # a configuration with another set of fields
    (out / "index.json").write_text(json.dumps(manifest))
    moved = shutil.copytree(model, tmp_path / "moved")
    assert open_index(out, moved).search("a cat", top=1)
    assert open_index(out).search("a cat", top=1)


# ---- what cannot be read


def test_files_that_cannot_be_read_are_named_and_left_out(folder, encoder, tmp_path, caplog):
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"x" * 300)
    (folder / "notes.txt").touch()
    (folder / "sound.wav").touch()
    os.mkfifo(folder / "pipe.png")
    os.symlink("nowhere", folder / "link.png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        index = build_index(folder, encoder, tmp_path / "index")
    why = dict(index.unreadable)
    assert index.counts() == {"image": len(NAMES)}
    assert set(why) == {"text.jpg", "empty.png", "empty.mp4", "cut.mp4", "pipe.png", "link.png", "caf\udce9.png"}
    assert why["empty.png"] == why["empty.mp4"] == "the file is empty" and why["link.png"] == "no such file"
    assert "not an image" in why["text.jpg"] and "not a video" in why["cut.mp4"] and "a FIFO" in why["pipe.png"]
    assert "not valid UTF-8" in why["caf\udce9.png"]
    assert not any(str(folder) in text for text in why.values())
    assert "left out 1 .txt" in caplog.text and "1 audio files, the model takes image and video" in caplog.text
    (folder / "text.jpg").write_bytes((folder / NAMES[0]).read_bytes())  # repaired
    (folder / NAMES[1]).write_bytes(b"broken since")
    index = build_index(folder, encoder, tmp_path / "index")
    assert "text.jpg" in index.dataset["path"][:] and NAMES[1] not in index.dataset["path"][:]
    assert "text.jpg" not in dict(index.unreadable) and NAMES[1] in dict(index.unreadable)


def test_nothing_to_index_is_an_error_that_leaves_the_index_as_it_was(folder, encoder, tmp_path):
    out = tmp_path / "index"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=f"source: no image, video files in {empty}"):
        build_index(empty, encoder, out)
    assert not out.exists()
    build_index(folder, encoder, out)
    content = folder_content(out)
    for name in NAMES:
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"none of {len(NAMES)} files .* can be read: {NAMES[0]}: the file is empty"):
        build_index(folder, encoder, out)
    assert {name: data for name, data in folder_content(out).items() if ".building" not in name} == content
    assert open_index(out, encoder).search("a cat")
    with pytest.raises(ValueError, match="holds other files and is no index"):
        build_index(folder, encoder, folder)
    with pytest.raises(NotADirectoryError, match="is a file; want a folder"):
        build_index(folder, encoder, folder / NAMES[0])
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere"):
        build_index(tmp_path / "nowhere", encoder, out)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": 3}, "model: got int; want a folder, a Hub id or an Encoder"),
        ({"out": ["a"]}, r"out: got \['a'\]; want the path of a folder"),
        ({"faiss": 3}, "faiss: got 3; want a recipe"),
        ({"batch_size": 2.5}, "batch_size: got 2.5; want a whole number"),
        ({"workers": -1}, "workers: got -1; want a whole number"),
    ],
)
def test_wrong_arguments_are_named(folder, encoder, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        build_index(**{"source": folder, "model": encoder, "out": tmp_path / "index"} | wrong)


def test_an_index_within_its_own_folder_is_not_indexed(folder, encoder, monkeypatch):
    monkeypatch.chdir(folder)
    index = build_index(".", encoder, "pictures/index")
    assert tuple(index.dataset["path"]) == NAMES
    assert build_index(".", encoder, "pictures/index").counts() == {"image": len(NAMES)}


# ---- tables


def test_tables_and_data_sets_are_indexed_by_row(encoder, tmp_path, encoded):
    icons = load_images("emoji:notov1").select(range(5)).dataset
    icons = icons.add_column("bytes", [b"\x89PNG", *[None] * 4])
    file = tmp_path / "icons.parquet"
    icons.to_parquet(str(file))
    with pytest.raises(ValueError, match="column: .* has several that hold media: image, bytes"):
        build_index(file, encoder, tmp_path / "none")
    with pytest.raises(ValueError, match="column: got 'label'; want one that holds media: image, bytes"):
        build_index(file, encoder, tmp_path / "none", column="label")
    index = build_index(file, encoder, tmp_path / "index", column="image")
    of_rows = build_index(icons.select_columns(["image"]), encoder, tmp_path / "rows")
    assert len(index) == len(of_rows) == 5
    hits = index.search(image=icons[3]["image"], top=2)
    assert hits[0].score > 0.999 and hits[0].score > hits[1].score and index.location(hits[0]) == hits[0].path
    broken = build_index(file, encoder, tmp_path / "none", column="image", videos="frames")
    assert broken.unreadable == []
    # Rows that move keep their vectors.
    icons.select([4, 3, 2, 1]).to_parquet(str(file))
    encoded.clear()
    assert len(build_index(file, encoder, tmp_path / "index", column="image")) == 4 and not encoded


def test_a_data_set_of_the_hub_with_a_column_of_videos_is_indexed(encoder, tmp_path, monkeypatch, encoded):
    """Frames of each video, as of the same files in a folder; the same again encodes nothing."""
    save_media(tmp_path / "files")
    paths = [tmp_path / "files" / name for name in ("long.mp4", "single.mp4")]
    rows = datasets.Dataset.from_dict({"video": [str(path) for path in paths]})
    rows = rows.cast_column("video", datasets.Video(decode=False))
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or {"train": rows}
    )
    index = build_index("somebody/clips", encoder, tmp_path / "index", revision="abc")
    assert asked == [(("somebody/clips",), {"revision": "abc"})] and index.manifest["source"] == "somebody/clips"
    assert index.counts() == {"video": 2} and index.unreadable == []
    alone = build_index(tmp_path / "files", encoder, tmp_path / "folder").dataset.to_pandas()
    for path, name in zip(sorted({*index.dataset["path"]}), ("long.mp4", "single.mp4"), strict=True):
        ours = [row["features"] for row in index.dataset if row["path"] == path]
        np.testing.assert_array_equal(ours, alone[alone["path"] == name]["features"].tolist())
    rows.to_parquet(str(tmp_path / "clips.parquet"))
    of_table = build_index(tmp_path / "clips.parquet", encoder, tmp_path / "table")
    assert of_table.dataset["features"][:] == index.dataset["features"][:]
    encoded.clear()
    build_index("somebody/clips", encoder, tmp_path / "index")
    assert not encoded

    def refuse(*names, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match="'somebody/clips' is no file or folder here.*could not be.*no route"):
        build_index("somebody/clips", encoder, tmp_path / "index")


def test_rows_without_a_picture_are_named(encoder, tmp_path):
    icons = load_images("emoji:notov1").select(range(2))
    rows = [{"image": icons.encoded_bytes(0)}, {"image": None}, {"image": b"no"}, {"image": icons.encoded_bytes(1)}]
    index = build_index(datasets.Dataset.from_list(rows), encoder, tmp_path / "index")
    assert dict(index.unreadable).keys() == {"row/1", "row/2"} and index.dataset["path"][:] == ["row/0", "row/3"]
    assert dict(index.unreadable)["row/1"] == "nothing in this row (null)"


# ---- kills, a full disk, another process, ranks


@pytest.mark.slow
def test_killed_at_any_write_and_run_again_the_index_is_the_same(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART_SIZE", 2)
    folder, out = save_media(tmp_path / "files"), tmp_path / "place" / "index"

    def build():
        build_index(folder, encoder, out, batch_size=2)

    writes = run_and_kill(build, tmp_path / "place")
    expected = folder_content(out)
    assert writes > 20 and not any(".building" in name for name in expected)
    kept = 0
    for nth in random.Random(0).sample(range(2, writes + 1), 9):
        shutil.rmtree(tmp_path / "place")
        assert run_and_kill(build, tmp_path / "place", nth) == -signal.SIGKILL
        kept += len(list(out.glob(".building/part-*.arrow")))
        assert run_and_kill(build, tmp_path / "place") >= 0
        assert folder_content(out) == expected, f"killed at write {nth} of {writes}"
        assert [path.name for path in (tmp_path / "place").iterdir()] == ["index"]
    assert kept, "parts are kept"


def test_an_update_that_is_killed_leaves_the_old_index_or_the_new_one(folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART_SIZE", 2)
    out = tmp_path / "place" / "index"
    build_index(folder, encoder, out)
    old = shutil.copytree(tmp_path / "place", tmp_path / "old")
    before = folder_content(out)
    (folder / NAMES[0]).unlink()
    shutil.copy(folder / NAMES[1], folder / "new.png")

    def build():
        build_index(folder, encoder, out)

    writes = run_and_kill(build, tmp_path / "place")
    after = folder_content(out)
    for nth in range(1, writes + 1, 4):
        shutil.rmtree(tmp_path / "place")
        shutil.copytree(old, tmp_path / "place")
        assert run_and_kill(build, tmp_path / "place", nth) == -signal.SIGKILL
        if out.exists():
            found = {name: data for name, data in folder_content(out).items() if ".building" not in name}
            assert found in (before, after), f"killed at write {nth}"
        build()
        assert folder_content(out) == after


def test_parts_of_a_killed_build_are_used_when_files_were_added_since(folder, encoder, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(building, "PART_SIZE", 2)
    out = tmp_path / "place" / "index"
    build = lambda: build_index(folder, encoder, out)  # noqa: E731
    writes = run_and_kill(build, tmp_path / "place")
    nth = 2
    while nth < writes:
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        run_and_kill(build, tmp_path / "place", nth)
        if len(list(out.glob(".building/part-*.arrow"))) == 2:
            break
        nth += 1
    shutil.copy(folder / NAMES[-1], folder / "a.png")
    with open(folder / "a.png", "ab") as file:
        file.write(b"more")
    encoded.clear()
    index = build()
    assert len(index) == len(NAMES) + 1 and sum(encoded) == len(NAMES) + 1 - 4


def test_a_full_disk_leaves_the_index_as_it_was(folder, encoder, tmp_path):
    out = tmp_path / "index"
    build_index(folder, encoder, out)
    content = folder_content(out)
    for number in range(30):
        shutil.copy(folder / NAMES[0], folder / f"{number}.png")
    with file_size_limit(3000), pytest.raises(OSError, match="part-.*bytes|No space|space|large"):
        build_index(folder, encoder, out)
    assert {name: data for name, data in folder_content(out).items() if ".building" not in name} == content
    assert len(build_index(folder, encoder, out)) == len(NAMES) + 30


def test_a_second_process_that_builds_the_same_index_is_refused(folder, encoder, tmp_path):
    from filelock import FileLock

    (tmp_path / "index" / building.WORK).mkdir(parents=True)
    with FileLock(tmp_path / "index" / building.WORK / ".lock"):
        with pytest.raises(OSError, match="another process is building"):
            build_index(folder, encoder, tmp_path / "index")


@pytest.mark.slow
def test_two_processes_make_the_index_that_one_makes(folder, model, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "PART_SIZE", 2)
    build_index(folder, encoder, tmp_path / "one")
    run_on_ranks(PROGRAMS / "index_on_ranks.py", folder, model, tmp_path / "two", world_size=2, folder=tmp_path)
    assert folder_content(tmp_path / "two") == folder_content(tmp_path / "one")
    last = tmp_path / "failed"
    run_on_ranks(PROGRAMS / "index_on_ranks.py", folder, model, last, "fail", world_size=2, folder=tmp_path)
    assert not (last / "index.json").exists()
