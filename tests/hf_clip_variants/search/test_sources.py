"""What is found in folders and tables: kinds by name and by content, splits, names of rows."""

import datasets
import pytest
from media_folders import NAMES, save_media

from hf_clip_variants import load_images
from hf_clip_variants.files.content_hashes import hash_of_bytes, hash_of_files
from hf_clip_variants.search.sources import KINDS, FolderSource, TableSource, kind_of_content, open_source


def test_kinds_by_name_are_kinds_by_content(tmp_path):
    source = FolderSource(save_media(tmp_path))
    entries, refused = source.entries(KINDS, tmp_path / "index")
    assert [entry.path for entry in entries] == sorted(entry.path for entry in entries) and not refused
    kinds = {entry.path: entry.kind for entry in entries}
    assert kinds.pop("moving.webp") == "image", "until it is read"
    for path, kind in kinds.items():
        content = source.content(path)
        assert kind_of_content(content[:16]) == kind
        assert source.hash_of(path) == hash_of_bytes(content) == hash_of_files([tmp_path / path])
    assert sum(kind == "image" for kind in kinds.values()) == len(NAMES)


def test_splits_and_parquet_files_are_parts(tmp_path):
    icons = load_images("emoji:notov1")
    rows = datasets.Dataset.from_list([{"image": icons.encoded_bytes(i)} for i in range(4)])
    parts = datasets.DatasetDict(train=rows.select([0, 1, 2]), test=rows.select([3]))
    parts.save_to_disk(str(tmp_path / "saved"))
    for name, part in parts.items():
        part.to_parquet(str(tmp_path / f"{name}.parquet"))
    expected = {"train/0", "train/1", "train/2", "test/0"}
    files = [tmp_path / "train.parquet", tmp_path / "test.parquet"]
    for source in (tmp_path / "saved", parts, files, str(tmp_path / "*.parquet")):
        found = open_source(source)
        assert isinstance(found, TableSource) and found.column == "image"
        assert {entry.path for entry in found.entries(KINDS)[0]} == expected
        assert found.content("test/0") == icons.encoded_bytes(3)
    only = open_source(tmp_path / "saved", split="test")
    assert [entry.path for entry in only.entries(KINDS)[0]] == ["test/0"]
    with pytest.raises(ValueError, match="split: got 'dev'; .* has 'train', 'test'"):
        open_source(tmp_path / "saved", split="dev")


def test_a_folder_with_nothing_but_tables_is_a_table(tmp_path):
    icons = load_images("emoji:notov1")
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list([{"image": icons.encoded_bytes(0)}]).to_parquet(str(tmp_path / "data" / "a.parquet"))
    assert isinstance(open_source(tmp_path), TableSource)
    icons.image(0).save(tmp_path / "a.png")
    assert isinstance(open_source(tmp_path), FolderSource)


def test_what_is_no_source_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    for source, error, message in (
        (tmp_path / "none", FileNotFoundError, "no such file or folder"),
        (tmp_path / "a.csv", ValueError, "is a .csv file; want a folder or .parquet"),
        (str(tmp_path / "*.parquet"), FileNotFoundError, "no file matches"),
        ([tmp_path / "b.parquet"], FileNotFoundError, "no such file: .*b.parquet"),
    ):
        with pytest.raises(error, match=message):
            open_source(source)
    for wrong in (b"x", None, 3, "", [], [3], [""]):
        with pytest.raises(ValueError, match="source: got .*; want a folder, Parquet files, a data set"):
            open_source(wrong)
    rows = datasets.Dataset.from_list([{"text": "a", "number": 1}])
    with pytest.raises(ValueError, match="column: .* has none that holds media; it has 'text', 'number'"):
        open_source(rows)
