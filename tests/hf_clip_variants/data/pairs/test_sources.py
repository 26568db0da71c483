"""One row format, whatever the images and texts come from."""

import io
import json
import tarfile

import pytest
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
        ("numbers.csv", {}, ValueError, "'label' of .* holds numbers without names"),
        ("all.parquet,table.csv", {}, ValueError, "several kinds"),
        ("loose/red.png", {}, FileNotFoundError, "unknown kind '.png'"),
    ],
)
def test_what_cannot_be_opened_is_named(source, options, error, message, sources, monkeypatch):
    monkeypatch.chdir(sources[0])
    (sources[0] / "numbers.csv").write_text("filepath,label\nloose/red.png,3\n")
    with pytest.raises(error, match=message):
        open_pairs(source, **options)


def test_a_broken_image_is_named(sources):
    folder, _ = sources
    (folder / "loose" / "red.png").write_bytes(b"no image")
    pairs = open_pairs(folder / "table.csv")
    with pytest.raises(ValueError, match="red.png"):
        pairs.image(pairs.dataset[0])
    assert "table.csv row 0 (loose/red.png)" in pairs.describe(pairs.dataset[0], 0)


def test_audio_in_tar_shards_are_refused_with_the_way_out(tmp_path):
    write_tar(tmp_path / "0.tar", {"k": {"png": image("red"), "txt": b"red", "ogg": b"OggS"}})
    with pytest.raises(ValueError, match="want it in Parquet"):
        open_pairs(tmp_path / "0.tar")
