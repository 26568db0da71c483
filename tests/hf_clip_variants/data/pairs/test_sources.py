"""One row format, whatever the images and texts come from."""

import datetime
import io
import json
import tarfile

import pytest
from datasets import Dataset
from PIL import Image

from hf_clip_variants.data.images.emoji import FOLDER
from hf_clip_variants.data.pairs.sources import open_pairs


NAMES = ["red", "green", "blue"]


def image(name, size=(12, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", size, name).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path, rows):
    with tarfile.open(path, "w") as tar:
        for key, files in rows.items():
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def sources(tmp_path):
    """The same three images with texts in every layout."""
    import datasets

    loose = tmp_path / "loose"
    loose.mkdir()
    for name in NAMES:
        (loose / f"{name}.png").write_bytes(image(name))
    table = [{"file_name": f"{name}.png", "text": f"a {name} one"} for name in NAMES]
    (loose / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    for suffix, sep in (("csv", ","), ("tsv", "\t")):
        lines = [sep.join(("filepath", "title")), *(f"loose/{n}.png{sep}a {n} one" for n in NAMES)]
        (tmp_path / f"table.{suffix}").write_text("\n".join(lines))
    (tmp_path / "table.jsonl").write_text(
        "\n".join(json.dumps({"image": f"loose/{n}.png", "caption": f"a {n} one"}) for n in NAMES)
    )
    for name in NAMES:
        (tmp_path / "classes" / f"a {name} one").mkdir(parents=True)
        (tmp_path / "classes" / f"a {name} one" / "0.png").write_bytes(image(name))
    rows = {"image": [{"bytes": image(n), "path": None} for n in NAMES], "text": [f"a {n} one" for n in NAMES]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(tmp_path / "all.parquet")
    for index, name in enumerate(NAMES):
        write_tar(tmp_path / f"{index}.tar", {f"k{index}": {"png": image(name), "txt": f"a {name} one".encode()}})
    return tmp_path, dataset


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "layout", ["loose", "table.csv", "table.tsv", "table.jsonl", "classes", "all.parquet", "*.tar", "Dataset"]
)
def test_every_layout_gives_the_same_images_and_texts(layout, streaming, sources):
    folder, dataset = sources
    if layout == "Dataset":
        source = dataset.to_iterable_dataset() if streaming else dataset
    else:
        source = folder / layout
    pairs = open_pairs(source, streaming=streaming)
    assert pairs.is_stream == (streaming or layout == "*.tar")
    found = {pairs.texts(row)[0][0]: pairs.image(row).convert("RGB").getpixel((3, 3)) for row in pairs.dataset}
    assert found == {"a red one": (255, 0, 0), "a green one": (0, 128, 0), "a blue one": (0, 0, 255)}


def test_several_text_columns_and_lists_in_them(sources):
    pairs = open_pairs(FOLDER / "notov1.parquet", text_columns=["name", "group"])
    assert pairs.texts(pairs.dataset[0]) == [["hot dog"], ["food-drink"]]
    row = {"name": " two  words ", "group": ["x", "", None]}
    assert pairs.texts(row) == [["two words"], ["x"]]
    with pytest.raises(ValueError, match="no text in name, group"):
        pairs.texts({"name": "", "group": []})


def test_entries_of_a_json_column(tmp_path):
    row = {"png": image("red"), "json": json.dumps({"title": "a red one", "id": 3}).encode()}
    write_tar(tmp_path / "0.tar", {"k": row})
    pairs = open_pairs(tmp_path, text_columns=["json.title"])
    row = next(iter(pairs.dataset))
    assert pairs.texts(row) == [["a red one"]]
    assert "k" in pairs.describe(row, 0)


def test_files_with_commas_between_them_are_one_source(sources):
    files = [str(FOLDER / f"{style}.parquet") for style in ("notov1", "fluent3d")]
    assert len(open_pairs(",".join(files)).dataset) == 380


def test_alpha_is_kept():
    pairs = open_pairs(FOLDER / "notov1.parquet")
    assert pairs.image(pairs.dataset[0]).mode == "RGBA"


@pytest.mark.parametrize(
    "source, options, error, message",
    [
        ("nowhere/at.all", {}, FileNotFoundError, "no such file"),
        ("*.nothing", {}, FileNotFoundError, "matches no file"),
        ("all.parquet,gone.parquet", {}, FileNotFoundError, "gone.parquet"),
        ("all.parquet", {"text_columns": ["titel"]}, ValueError, "no column 'titel'; it has image, text"),
        ("all.parquet", {"image_column": "pic"}, ValueError, "no column 'pic'"),
        ("all.parquet", {"with_audio": True}, ValueError, "audio_column: cannot tell which of image, text"),
        ("numbers.parquet", {}, ValueError, "'label' of .* holds numbers without names"),
        ("numbers.parquet", {"text_columns": ["day"]}, ValueError, "'day' of .* holds timestamp.* want texts"),
        ("bad.parquet", {}, ValueError, "bad.parquet: not readable as Parquet"),
        ("bad.parquet", {"streaming": True}, ValueError, "bad.parquet: not readable as Parquet"),
        ("bare", {}, ValueError, "bare has images only; want a .txt of the same name beside each"),
        ("instances.json", {}, ValueError, "instances.json: want the layout of COCO's captions: .*missing: 'caption'"),
        ("list.json", {}, ValueError, "list.json: want the layout of COCO's captions"),
        ("broken.json", {}, ValueError, "broken.json, line 2: not JSON"),
        ("all.parquet,table.csv", {}, ValueError, "several kinds"),
        ("loose/red.png", {}, FileNotFoundError, "unknown kind '.png'"),
    ],
)
def test_what_cannot_be_opened_is_named(source, options, error, message, sources, monkeypatch):
    monkeypatch.chdir(sources[0])
    rows = {"image": ["loose/red.png"], "label": [3], "day": [datetime.datetime(2024, 1, 1)]}
    Dataset.from_dict(rows).to_parquet("numbers.parquet")
    (sources[0] / "bad.parquet").write_bytes(b"PAR1 nonsense")
    (sources[0] / "bare").mkdir()
    (sources[0] / "bare" / "red.png").write_bytes(image("red"))
    coco = {"images": [{"id": 1, "file_name": "red.png"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    (sources[0] / "instances.json").write_text(json.dumps(coco))
    (sources[0] / "list.json").write_text('[{"image": "red.png"}]')
    (sources[0] / "broken.json").write_text('{"images":\n [}')
    with pytest.raises(error, match=message):
        open_pairs(source, **options)


def test_a_broken_image_is_named(sources):
    folder, _ = sources
    (folder / "loose" / "red.png").write_bytes(b"no image")
    pairs = open_pairs(folder / "table.csv")
    with pytest.raises(ValueError, match="red.png"):
        pairs.image(pairs.dataset[0])
    assert "table.csv row 0 (loose/red.png)" in pairs.describe(pairs.dataset[0], 0)


def open_texts(source, **options):
    pairs = open_pairs(source, **options)
    return [(pairs.texts(row)[0], pairs.image(row).convert("RGB").getpixel((3, 3))) for row in pairs.dataset]


RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


# ---- captions beside images


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_file_beside_each_image_at_any_depth(streaming, tmp_path, caplog):
    (tmp_path / "10_cats" / "deep").mkdir(parents=True)
    for name, text in (
        ("red", "a red one".encode("utf-8-sig")),
        ("10_cats/green", "7\r\nhot\u2028dog\n\n".encode("utf-16")),  # each line is a text
        ("10_cats/deep/blue", b"None"),
        ("10_cats/no_text", None),
        ("blank", b" \n"),
    ):
        (tmp_path / f"{name}.PNG").write_bytes(image(name.split("/")[-1] if text and text.strip() else "white"))
        if text is not None:
            (tmp_path / f"{name}.txt").write_bytes(text)
    (tmp_path / "notes.txt").write_text("of no image")
    assert open_texts(tmp_path, streaming=streaming) == [
        (["a red one"], RED),
        (["7", "hot dog"], GREEN),
        (["None"], BLUE),
    ]
    assert "2 of 5 images are left out: no text in a .txt file of the same name" in caplog.text
    (tmp_path / "red.txt").write_bytes(b"a\ncaf\xe9")
    with pytest.raises(ValueError, match="red.txt, line 2: byte 0xE9 is not UTF-8"):
        open_pairs(tmp_path)


def test_a_split_of_a_folder_is_read_alone(tmp_path):
    for split, name in (("train", "red"), ("val", "blue")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.png").write_bytes(image(name))
        (tmp_path / split / "0.txt").write_text(name)
    assert open_texts(tmp_path) == [(["red"], RED)]
    assert open_texts(tmp_path, split="validation") == [(["blue"], BLUE)]
    with pytest.raises(ValueError, match="split: got 'test'; .* has train, val"):
        open_pairs(tmp_path, split="test")


def test_a_table_above_the_splits_tells_their_texts(tmp_path):
    for split, name in (("train", "red"), ("test", "blue")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.png").write_bytes(image(name))
        (tmp_path / split / "0.txt").write_text("of another tool")
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/0.png,a red one\ntest/0.png,a blue one\n")
    assert open_texts(tmp_path) == [(["a red one"], RED)]
    assert open_texts(tmp_path, split="test") == [(["a blue one"], BLUE)]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_captions_of_a_metadata_file_stay_text(name, tmp_path):
    texts = ["2024-01-01", "NA", "7"]
    for number, color in enumerate(NAMES):
        (tmp_path / f"{number}.png").write_bytes(image(color))
    lines = [f"{number}.png,{text}" for number, text in enumerate(texts)]
    if name.endswith("jsonl"):
        lines = [json.dumps({"file_name": f"{number}.png", "text": text}) for number, text in enumerate(texts)]
    else:
        lines = ["file_name,text", *lines]
    (tmp_path / name).write_text("\n".join(lines))
    assert open_texts(tmp_path) == [([text], color) for text, color in zip(texts, (RED, GREEN, BLUE), strict=True)]


@pytest.fixture
def coco(tmp_path):
    """annotations/captions_train2017.json and its images: two captions, one, none."""
    names = [{"id": 7 + i, "file_name": f"{name}.png", "height": 10, "width": 12} for i, name in enumerate(NAMES)]
    captions = [(8, "a green one"), (7, "a red one"), (7, "7")]
    notes = [{"image_id": key, "id": i, "caption": text} for i, (key, text) in enumerate(captions)]
    file = tmp_path / "annotations" / "captions_train2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"info": {}, "images": names, "annotations": notes, "licenses": []}))
    return file


@pytest.mark.parametrize("below", ["train2017", "images/train2017", "images", "", "annotations", "elsewhere"])
def test_captions_of_coco_and_the_folder_of_their_images(below, coco, caplog):
    folder = coco.parent.parent / below
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.png").write_bytes(image(name))
    if below == "elsewhere":
        with pytest.raises(FileNotFoundError, match="image_folder: .*captions_train2017.json names images"):
            open_pairs(coco)
    found = open_texts(coco, image_folder=folder if below == "elsewhere" else None)
    assert found == [(["a red one", "7"], RED), (["a green one"], GREEN)]
    assert "1 of 3 images are left out: no caption" in caplog.text


def test_paths_in_a_table_are_below_its_folder_or_a_given_one(sources):
    folder, _ = sources
    table = {"path": ["loose\\red.png", "loose/blue.png"], "text": ["None", "7"]}
    Dataset.from_dict(table).to_parquet(folder / "paths.parquet")
    (folder / "other").mkdir()
    (folder / "other" / "list.csv").write_text("path,text\nloose\\red.png,None\nloose/blue.png,7\n")
    wanted = [(["None"], RED), (["7"], BLUE)]
    assert open_texts(folder / "paths.parquet") == wanted
    assert open_texts(folder / "other" / "list.csv", image_folder=folder) == wanted


# ---- tar shards


def test_samples_with_a_missing_member_are_left_out_and_counted(tmp_path, caplog):
    rows = {f"s/{name}": {"png": image(name), "txt": name.encode()} for name in NAMES}
    write_tar(
        tmp_path / "0.tar",
        {"s/a": {"txt": b"a"}, **rows, "s/b": {"png": image("red"), "json": b"{}"}, "c": {"txt": b""}},
    )
    write_tar(tmp_path / "1.tar", rows)
    pairs = open_pairs(tmp_path)
    for _ in range(2):
        assert [pairs.texts(row) for row in pairs.dataset] == [[[name]] for name in NAMES] * 2
    (said,) = [record.message for record in caplog.records]
    assert said.endswith("0.tar: 3 of 6 samples are left out: 2 without image (png), 1 without text (txt)")


def test_a_shard_may_hold_images_of_several_kinds_and_large_letters(tmp_path):
    Image.new("RGB", (12, 10), "blue").save(tmp_path / "x.webp", lossless=True)
    webp = (tmp_path / "x.webp").read_bytes()
    rows = {"1": {"PNG": image("red"), "txt": b"7"}, "2": {"txt": b"None", "webp": webp}}
    write_tar(tmp_path / "0.tar", rows)
    assert open_texts(tmp_path / "0.tar") == [(["7"], RED), (["None"], BLUE)]
    assert open_texts(tmp_path / "0.tar", image_column="webp") == [(["None"], BLUE)]


def test_a_text_in_a_shard_that_is_not_utf8_is_named_when_it_is_used(tmp_path):
    write_tar(
        tmp_path / "0.tar", {"a": {"png": image("red"), "txt": b"caf\xe9"}, "b": {"png": image("red"), "txt": b"b"}}
    )
    pairs = open_pairs(tmp_path / "0.tar")
    first, second = pairs.dataset
    with pytest.raises(ValueError, match="line 1: byte 0xE9 is not UTF-8"):
        pairs.texts(first)
    assert pairs.texts(second) == [["b"]] and f"{tmp_path / '0.tar'}: b.png" in pairs.describe(second, 1)


def cut(content):
    return content[: len(content) * 2 // 3]


def damaged_header(content):
    place = content.index(b"k2.png")
    return content[:place] + b"\xff" * 100 + content[place + 100 :]


@pytest.mark.parametrize(
    "suffix, damage",
    [("w", cut), ("w:gz", cut), ("w", damaged_header), ("w", lambda content: b"no tar"), ("w", lambda content: b"")],
)
def test_a_damaged_shard_is_named(suffix, damage, tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", suffix) as tar:
            for key, color in enumerate(NAMES * 10):
                for extension, content in (("png", image(color)), ("txt", color.encode())):
                    member = tarfile.TarInfo(f"k{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    file = tmp_path / "1.tar"
    file.write_bytes(damage(file.read_bytes()))
    pairs = open_pairs(tmp_path)
    with pytest.raises(ValueError, match=r"1\.tar: not readable as a tar file"):
        list(pairs.dataset)


def test_a_shard_without_complete_samples_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "1.tar", "w") as tar:  # all images, then all texts
        for extension in ("png", "txt"):
            for n in NAMES:
                content = image(n) if extension == "png" else n.encode()
                member = tarfile.TarInfo(f"{n}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"1.tar: none of its 6 samples is complete: 3 without image"):
        list(open_pairs(tmp_path / "1.tar").dataset)
    write_tar(tmp_path / "2.tar", {".hidden": {"png": b""}})
    with pytest.raises(ValueError, match="2.tar: no samples"):
        open_pairs(tmp_path / "2.tar")


def test_audio_in_tar_shards_is_read(tmp_path):
    rows = {"k": {"png": image("red"), "txt": b"red", "ogg": b"OggS"}, "l": {"png": image("blue"), "txt": b"blue"}}
    write_tar(tmp_path / "0.tar", rows)
    assert [text for text, _ in open_texts(tmp_path)] == [["red"], ["blue"]]
    pairs = open_pairs(tmp_path / "0.tar", with_audio=True)
    assert [(pairs.texts(row), pairs.audio(row)) for row in pairs.dataset] == [([["red"]], b"OggS")]
