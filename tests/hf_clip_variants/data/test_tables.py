"""One reader of tables for labelled images and for pairs: the right values, or an error with file and line."""

import csv
import io
import os
import re

import pytest
from PIL import Image

from hf_clip_variants.data import load_images, open_pairs
from hf_clip_variants.data.tables import open_table, read_json_lines


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png", "d, e.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    return tmp_path


def write(values, name="t.csv", separator=",", encoding="utf-8"):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows([["path", "label"], *values])
    with open(name, "wb") as file:
        file.write(text.getvalue().encode(encoding))
    return name


def read(file):
    """The texts that both readers give; they must be the same."""
    images = load_images(file, clean_class_names=False)
    labels = [images.class_names[label] for label in images.labels]
    for streaming in (False, True):
        pairs = open_pairs(file, streaming=streaming)
        rows = list(pairs.dataset)
        assert [pairs.texts(row) for row in rows] == [[[" ".join(label.split())]] for label in labels]
        assert all(pairs.image(row).size == (4, 4) for row in rows)
    return labels


@pytest.mark.parametrize(
    "text",
    [
        *("hot\ndog", "hot\r\ndog", "hot\u2028dog", "hot\u0085dog", "hot\x0bdog", "hot\x0cdog"),
        *("7", "2024", "2024-01-01", "1e5", "None", "NA", "null", "nan", "N/A", "True", "-", "0x1"),
        *('a "hot" dog', "hot, dog", "hot; dog", "hot\tdog", "hot | dog", "a 5' dog", "#dog", "=dog", "\\n", "ö日🌭"),
        "long " * 190,
    ],
)
def test_every_value_of_a_table_stays_the_text_that_it_is(text, folder):
    assert read(write([["a.png", text], ["b.png", "taco"]])) == [text.strip(), "taco"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_separator_and_encoding_are_found_whatever_the_suffix(name, separator, encoding, folder):
    values = [["a.png", "Bär, groß"], ["b.png", "taco; red"], ["sub/c.png", "a | b"]]
    assert read(write(values, name, separator, encoding)) == [label for _, label in values]


@pytest.mark.parametrize(
    "content, labels",
    [
        ("a.png,x\nb.png,y\n", ["x", "y"]),  # no header
        ("a.png;x, or y\nb.png;y, or x\n", ["x, or y", "y, or x"]),
        ("a.png\tx, or y\nb.png\ty, or x", ["x, or y", "y, or x"]),
        ("path,label\ra.png,x\rb.png,y\r", ["x", "y"]),  # an old Mac's lines
        ("\n\npath,label\n\na.png,x\n,\n \nb.png,y\n\n", ["x", "y"]),  # blank lines
        (' path , label \n a.png , x \nb.png, "y, z"\n', ["x", "y, z"]),
        (",path,label\n0,a.png,x\n1,b.png,y\n", ["x", "y"]),  # pandas' index
        ('path,label\n"d, e.png",x\nsub\\c.png,y\n', ["x", "y"]),  # a path of Windows
        ("label,path\nx,./a.png\ny,sub/../b.png\n", ["x", "y"]),
    ],
)
def test_usual_ways_to_write_a_table_are_read(content, labels, folder):
    (folder / "t.csv").write_text(content, newline="")
    assert read("t.csv") == labels


@pytest.mark.skipif(os.sep != "/", reason="on Windows a backslash separates folders")
def test_a_backslash_in_the_name_of_a_file_is_one(folder):
    Image.new("RGB", (7, 7)).save(folder / "sub\\c.png")
    pairs = open_pairs(write([["sub\\c.png", "x"]]))
    assert pairs.image(pairs.dataset[0]).size == (7, 7)


@pytest.mark.parametrize(
    "content, message",
    [
        ("path,label\na.png,x\nb.png,y, or z\n", r"line 3: got 3 values, .*'y'.*stands in quotes"),
        ("path,label\na.png,x\nb.png\n", "line 3: got 1 values"),
        ("a.png,x\nb.png,y, or z\n", "line 2: got 3 values"),
        ('path,label\na.png,x\nb.png,"y" or z\n', "line 3: quotes do not match"),
        ('path,label\na.png,x\nb.png,"y\nc.png,z\n', "line 3: quotes do not match"),
        ('path,label\na.png,"x\ny"\nb.png\n', "line 4: got 1 values"),
        ("path,label\na.png,x\nb.png,y\0z\n", "line 3: a NUL byte"),
        ("path,label,label\na.png,x,y\n", "line 1: there are several columns 'label'"),
        ("path\na.png\n", "line 1: got one value only"),
        ("path,label\n", "only a line of column names"),
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (
            "path,label\na.png,x\nb.png,caf\u00e9\n".encode("cp1252"),
            r"line 3: byte 0xE9 is not UTF-8; save it as UTF-8",
        ),
        ("path,label\na.png,x\n".encode("utf-16-le"), "line 1: a NUL byte; want text .UTF-16 needs a byte order mark"),
        ("path,label\na.png,x\n".encode("utf-16") + b"b", "line 3: byte 0x62 is not UTF-16"),
        ("path,label\n" + "a.png,x\n" * 5000 + "b.png,y,z\n", "line 5002: got 3 values"),
        (b"path,label\n" + b"a.png,x\r\n" * 5000 + b"b.png,\xff\n", "line 5002: byte 0xFF"),
        (
            "image,path;photo\nx.png,y.png;z.png\n",
            "line 1: cannot tell what separates the values, a semicolon and a comma would",
        ),
    ],
)
def test_what_is_not_clear_is_an_error_with_file_and_line(content, message, folder):
    (folder / "t.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    for reader in (load_images, open_pairs, lambda file: open_pairs(file, streaming=True)):
        with pytest.raises(ValueError, match=rf"t\.csv(, |: ){message}"):
            reader("t.csv")


def test_a_row_without_image_or_label_is_named(folder):
    for row in ("a.png,", ",x"):
        (folder / "t.csv").write_text(f"path,label\nb.png,y\n{row}\n")
        with pytest.raises(ValueError, match=r"t.csv, line 3: got .*; want a value for each of \['path', 'label'\]"):
            load_images("t.csv")


def test_a_table_without_header_has_no_more_columns_than_are_known(folder):
    (folder / "t.csv").write_text("a.png,x,y,z\n")
    with pytest.raises(
        ValueError, match="line 1: got 4 values, .*; want path, label, split, or a line of column names"
    ):
        open_table("t.csv", None, ("path", "label", "split"))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"image": "a.png", "text": "x}', "not JSON: Invalid control|not JSON: Unterminated string"),
        ('["a.png", "x"]', r"got \[\"a.png\", \"x\"\]; want an object"),
        ("{'image': 1}", "not JSON: Expecting property name"),
    ],
)
def test_wrong_json_lines_are_named(line, message, folder):
    (folder / "t.jsonl").write_text(f'{{"image": "a.png", "text": "2024-01-01\u2028"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=f"t.jsonl, line 3: ({message})"):
        open_pairs("t.jsonl")


def test_json_lines_keep_their_texts(folder):
    (folder / "t.jsonl").write_text('{"image": "a.png", "text": "2024-01-01"}\n{"text": ["7", "a\u2028b"], "n": 1}\n')
    assert read_json_lines("t.jsonl") == [
        {"image": "a.png", "text": "2024-01-01", "n": None},
        {"image": None, "text": ["7", "a\u2028b"], "n": 1},
    ]
    pairs = open_pairs("t.jsonl")
    assert [pairs.texts(row) for row in pairs.dataset] == [[["2024-01-01"]], [["7", "a b"]]]
    assert re.search(r"t.jsonl row 0 .a.png", pairs.describe(pairs.dataset[0], 0))
