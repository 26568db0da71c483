"""Search: exact against brute force, ties, one hit of each file, kinds, bounded memory, FAISS."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from few_shot_runs import save_tiny_clip

from hf_clip_variants import open_index
from hf_clip_variants.files.json_files import write_json
from hf_clip_variants.search import index as index_module
from hf_clip_variants.search.building import features, save_rows
from hf_clip_variants.search.encoder import load_encoder
from hf_clip_variants.search.manifest import content_of, wrong_columns


WIDTH = 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(save_tiny_clip(tmp_path_factory.mktemp("clip")), "cpu")


def write_index(folder, encoder, vectors: np.ndarray, paths: list[str], kinds: list[str]):
    """An index of given vectors; the rows of a video are seconds."""
    count = len(vectors)
    times = [None if kind == "image" else float(row) for row, kind in enumerate(kinds)]
    columns = {"path": paths, "kind": kinds, "start": times, "end": times, "size": [1] * count}
    columns |= {"modified": [0] * count, "content": [str(path) for path in paths]}
    columns["features"] = list(vectors.astype(np.float16))
    schema = features(WIDTH).arrow_schema.remove_metadata()
    save_rows(pa.table({name: columns[name] for name in schema.names}, schema=schema), np.arange(count), "", folder)
    about = {"version": 1, "source": "/nowhere", "column": None, "split": None, "model": encoder.about()}
    about |= {"width": WIDTH, "videos": {"mode": "frames", "fps": None, "clip_seconds": 10.0}, "unreadable": []}
    about["content"] = content_of(folder)
    write_json(folder / "index.json", about)
    return open_index(folder, encoder)


def unit(rows: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, WIDTH))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, encoder):
    """400 files: pictures, and videos of 1 to 12 frames; some rows equal."""
    counts = np.random.default_rng(1).integers(1, 13, 400)
    counts[::2] = 1
    vectors = unit(counts.sum())
    vectors[50:60], vectors[900:905] = vectors[3], vectors[3]
    paths = [f"{number:04d}" for number, count in enumerate(counts) for _ in range(count)]
    kinds = [("image", "video")[number % 2] for number, count in enumerate(counts) for _ in range(count)]
    return write_index(tmp_path_factory.mktemp("index"), encoder, vectors, paths, kinds)


def brute_force(index, query: np.ndarray, top: int, kinds=None, every_moment=False) -> list[tuple[str, int]]:
    """The plain way: all scores in float64, one sort; (path, row)."""
    rows = index.dataset.to_pandas()
    vectors = np.stack(rows["features"]).astype(np.float64)
    scores = np.array([np.dot(vector, query.astype(np.float64)) for vector in vectors])
    found, seen = [], set()
    for row in np.lexsort((np.arange(len(scores)), -scores)):
        path = rows["path"][row]
        if (kinds and rows["kind"][row] not in kinds) or (path in seen and not every_moment):
            continue
        seen.add(path)
        found.append((path, int(row)))
    return found[:top]


@pytest.mark.parametrize(
    ("kinds", "every_moment"), [(None, False), (None, True), (["video"], False), (["image", "audio"], True)]
)
def test_search_is_brute_force(mixed, monkeypatch, kinds, every_moment):
    queries = np.concatenate([unit(2, seed=9), mixed.dataset[3:4]["features"]]).astype(np.float32)
    expected = [brute_force(mixed, query, 5000, kinds, every_moment) for query in queries]
    for rows, scores in ((2048, 1 << 20), (7, 30), (64, 100)):
        monkeypatch.setattr(index_module, "_ROWS", rows)
        monkeypatch.setattr(index_module, "_SCORES", scores)
        for top in (1, 20, 5000):
            for hits, right in zip(
                mixed.nearest(torch.from_numpy(queries), top, kinds, every_moment), expected, strict=True
            ):
                assert [(hit.path, hit.row) for hit in hits] == right[:top]
                assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_hits_say_when(mixed):
    rows = mixed.dataset.to_pandas()
    for hit in mixed.nearest(torch.from_numpy(unit(1, seed=3)), 50)[0]:
        row = rows.iloc[hit.row]
        assert (hit.path, hit.kind) == (row["path"], row["kind"])
        assert (hit.start, hit.end) == ((None, None) if hit.kind == "image" else (hit.row, hit.row))


def test_memory_does_not_grow_with_the_index(mixed, monkeypatch):
    monkeypatch.setattr(index_module, "_SCORES", 128)
    monkeypatch.setattr(index_module, "_ROWS", 32)
    sizes, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **more: sizes.append(np.prod(shape)) or empty(*shape, **more))
    mixed.nearest(torch.from_numpy(unit(2)), 3)
    assert max(sizes) <= 2 * 128 + 32 * WIDTH


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_faiss_finds_the_same_and_can_be_told_not_to_be_asked(mixed, factory):
    faiss = pytest.importorskip("faiss")
    queries = torch.from_numpy(unit(8, seed=5))
    exact = mixed.nearest(queries, 10, exact=True)
    mixed.add_faiss(factory, probed=8)
    again = open_index(mixed.folder, mixed.encoder)
    assert again.faiss == factory and faiss.read_index(str(mixed.folder / "faiss.index")).ntotal == len(mixed)
    found = again.nearest(queries, 10)
    for ours, theirs in zip(exact, found, strict=True):
        assert len(theirs) == 10 and len({hit.path for hit in theirs}) == 10
        assert len({hit.path for hit in ours} & {hit.path for hit in theirs}) >= 8
    assert again.nearest(queries, 10, exact=True) == exact
    videos = again.nearest(queries, 10, ["video"])
    assert all(len(hits) == 10 and {hit.kind for hit in hits} == {"video"} for hits in videos)
    assert len(again.nearest(queries, 5000)[0]) == 400
    path = mixed.folder / "faiss.index"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{path}: it is not as it was written"):
        open_index(mixed.folder, mixed.encoder).nearest(queries, 10)


def test_wrong_faiss_recipes_are_named(mixed):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="faiss: 'nonsense' is no recipe"):
        mixed.add_faiss("nonsense")
    with pytest.raises(ValueError, match="IVF100000,Flat wants at least 100000 vectors, there are"):
        mixed.add_faiss("IVF100000,Flat")


@pytest.mark.parametrize(
    "recipe", ["IVF999999999999,Flat", "IMI2x30,Flat", "HNSW999999999", "PCA999999999,Flat", "IVF4_HNSW9999999,Flat"]
)
def test_recipes_that_would_take_all_memory_are_refused_before_they_do(mixed, recipe):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=f"faiss: {recipe}"):
        mixed.add_faiss(recipe)


def test_wrong_queries_are_named(mixed, tmp_path):
    for wrong, message in (
        ({"top": 0}, "top: got 0"),
        ({"top": 2.5}, "top: got 2.5; want a whole number"),
        ({"kinds": 3}, "kinds: got int, expected some of image"),
        ({"every_moment": "no"}, "every_moment: got 'no'; want True or False"),
        ({"kinds": ["picture"]}, r"kinds: got \['picture'\]; want some of image, video, audio"),
        ({"kinds": []}, "kinds is empty"),
        ({"kinds": torch.tensor(0)}, "kinds: got Tensor, expected some of"),
    ):
        with pytest.raises(ValueError, match=message):
            mixed.nearest(torch.zeros(1, WIDTH), **wrong)
    with pytest.raises(ValueError, match=r"queries: got \(1, 3\); want \(Q, 24\)"):
        mixed.nearest(torch.zeros(1, 3))
    for wrong in ({}, "a cat", torch.zeros(1, WIDTH, dtype=torch.bool)):
        with pytest.raises(ValueError, match="queries: got "):
            mixed.nearest(wrong)
    assert mixed.nearest(torch.zeros(0, WIDTH)) == []
    with pytest.raises(ValueError, match="queries: NaN"):
        mixed.nearest(torch.full((1, WIDTH), float("nan")))
    with pytest.raises(ValueError, match="got no text, image or sound"):
        mixed.search()
    with pytest.raises(ValueError, match="blank"):
        mixed.search("  ")
    with pytest.raises(ValueError, match="sound: .* encodes image and video only"):
        mixed.search(sound="a.wav")
    with pytest.raises(ValueError, match="image: no such file"):
        mixed.search(image="nowhere.png")


def test_what_is_no_index_is_named(mixed, tmp_path):
    with pytest.raises(FileNotFoundError, match="no index in"):
        open_index(tmp_path)
    (tmp_path / ".building").mkdir()
    with pytest.raises(FileNotFoundError, match="no index that is finished; repeat"):
        open_index(tmp_path)
    for name in ("index.json", "state.json", "dataset_info.json"):
        (tmp_path / name).write_bytes((mixed.folder / name).read_bytes())
    for content in (b"", b"cut", next(mixed.folder.glob("*.arrow")).read_bytes()[:700]):
        (tmp_path / "data-00000-of-00001.arrow").write_bytes(content)
        with pytest.raises(OSError, match=f"{tmp_path}: its vectors cannot be read"):
            open_index(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 9}')
    with pytest.raises(OSError, match="an index of version 9; want 1"):
        open_index(tmp_path)


def _changed(about: dict, path: tuple[str, ...], value: object) -> dict:
    copied = json.loads(json.dumps(about))
    holder = copied
    for name in path[:-1]:
        holder = holder[name]
    if value is _changed:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model",), _changed, "model: got None"),
        (("model", "name"), 3, "model: name: got 3"),
        (("model", "key"), "x", "model: got"),
        (("model", "processor"), {"image_processor": 1}, "model: got"),
        (("source",), None, "source: got None"),
        (("source",), "files", "source: got 'files', no absolute path"),
        (("width",), "24", "width: got '24'"),
        (("width",), 12, "features of .*want 12 of float16"),
        (("videos", "mode"), "x", "videos: videos: got 'x'"),
        (("videos",), {"frames": 1}, "videos: "),
        (("unreadable",), [["a"]], "unreadable: got something else"),
        (("unreadable",), _changed, "unreadable: got None"),
        (("content",), 3, "content: got 3"),
        (("content",), "0", "its vectors cannot be read"),
    ],
)
def test_a_damaged_description_is_said(mixed, tmp_path, path, value, message):
    about = json.loads((mixed.folder / "index.json").read_text())
    copied = shutil.copytree(mixed.folder, tmp_path / "copy")
    (copied / "index.json").write_text(json.dumps(_changed(about, path, value)))
    with pytest.raises(OSError, match=f"{copied}.*{message}"):
        open_index(copied)


def test_damaged_rows_are_said(mixed, tmp_path):
    copied = shutil.copytree(mixed.folder, tmp_path / "copy")
    state = json.loads((copied / "state.json").read_text())
    for wrong in (state | {"_data_files": 3}, [1], state | {"_data_files": [{"filename": "none.arrow"}]}):
        (copied / "state.json").write_text(json.dumps(wrong))
        with pytest.raises(OSError, match=f"{copied}: its vectors cannot be read"):
            open_index(copied)
    table = mixed.table
    kinds = pa.array(["picture"] * len(table))
    for changed, message in (
        (table.set_column(table.schema.get_field_index("kind"), "kind", kinds), "column kind: got"),
        (table.drop_columns(["start"]), "column start: missing"),
        (table.slice(0, 0), "no rows"),
    ):
        assert message in wrong_columns(changed)
    array = table.column("path").combine_chunks()
    offsets = np.frombuffer(array.buffers()[1], np.int32).copy()
    offsets[1] = 2**30  # texts that end before they begin: Arrow would die of them
    broken = pa.StringArray.from_buffers(len(array), pa.py_buffer(offsets), array.buffers()[2])
    with pytest.raises(pa.ArrowInvalid):
        wrong_columns(table.set_column(table.schema.get_field_index("path"), "path", broken))


def test_a_changed_bit_of_a_vector_is_said(mixed, tmp_path):
    copied = shutil.copytree(mixed.folder, tmp_path / "copy")
    (path,) = copied.glob("*.arrow")
    content = bytearray(path.read_bytes())
    at = content.find(np.array(mixed.dataset["features"][0], np.float16).tobytes())
    content[at + 3] ^= 1 << 6  # of an exponent: the number is 2 ** 16 times as large
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{copied}: its vectors cannot be read .*not as they were written"):
        open_index(copied)
    about = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps(_changed(about, ("content",), _changed)))
    assert len(open_index(copied)) == len(mixed), "an index of a version that did not write the hash"


def test_a_model_that_has_moved_is_asked_for(mixed):
    moved = open_index(mixed.folder)
    moved.manifest["model"]["name"] = "/nowhere/clip"
    with pytest.raises(FileNotFoundError, match="model: /nowhere/clip, which made the index, is not there any more"):
        moved.search("a cat")
