"""make_debian_data.py on .deb files made for the test: rows, order, titles, captions, links, audio, errors."""

import importlib.util
import io
import sys
import tarfile
import types

import numpy as np
import pyarrow.parquet
import pytest
from paths import SCRIPTS
from PIL import Image

from hf_clip_variants.data.pairs.sources import open_pairs


SCRIPT = SCRIPTS / "make_debian_data.py"
OGG = b"OggS\x00 a croak"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_debian_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_debian_data"] = module  # dataclasses need their module in sys.modules
    spec.loader.exec_module(module)
    return module


def image_file(colour=(255, 0, 0, 255), size=(40, 20), mode="RGBA"):
    buffer = io.BytesIO()
    Image.new("RGBA", size, colour).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def deb(path, members, compression="xz"):
    """Name -> content; a string is the target of a link."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"./{name}")
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in (
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            (f"data.tar.{compression}", data.getvalue()),
        ):
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))


def clipart(folder, **options):
    members = {
        "animals/sheep-md-v0.1.png": image_file((0, 0, 255, 255)),
        "animals/2_dead_frogs_3d_01.png": image_file(size=(20, 40), mode="P"),
        "animals-old/bat_.png": image_file(size=(300, 300), mode="RGB"),
        "broken_01.png": image_file()[:60],
        "rest/notes.txt": b"no image",
        "rest/frog.png": "../animals/frog_link.png",
        "animals/frog_link.png": "2_dead_frogs_3d_01.png",
        "rest/lost.png": "nowhere.png",
        "rest/round.png": "round.png",
    }
    members = {f"usr/share/openclipart/png/{k}": v for k, v in members.items()}
    deb(folder / "openclipart-png_1%3a0.18_all.deb", {"usr/share/doc/x.png": image_file(), **members}, **options)


def stamps(folder):
    frog = (
        "A frog.\nfr.utf8=Une grenouille.\nja.utf8=カエル\nzh_CN.utf8= 青蛙。\nzh_TW.utf8=青蛙\nen_GB.utf8=A toad.\n"
    )
    members = {
        "animals/frog-1.png": image_file(),
        "animals/frog-1.txt": b"A frog.\n",
        "animals/frog.png": image_file((0, 255, 0, 255), mode="LA"),
        "animals/frog.txt": frog.encode(),
        "animals/frog.ogg": OGG,
        "animals/frog_desc.ogg": b"OggS spoken",
        "animals/frog_desc_fr.ogg": b"OggS spoken",
        "animals/frog_mirror.png": image_file(),  # no text
        "animals/hush.ogg": OGG,  # no image
        "animals/mute.png": image_file(),
        "animals/mute.txt": b"\nfr.utf8=Rien\n",  # no English
        "animals/odd.png": b"not an image",
        "animals/odd.txt": b"Odd.\n",
        "animals/odd.ogg": OGG,
        "animals-x/ant.svg": b"<svg/>",
        "animals-x/ant.txt": b"An ant.\nfr.utf8=Une fourmi.\n",
        "animals-x/bad.svg": b"<!ENTITY>",
        "animals-x/bad.txt": b"A bad one.\n",
    }
    members = {f"usr/share/tuxpaint/stamps/{k}": v for k, v in members.items()}
    deb(folder / "tuxpaint-stamps-default_2022_all.deb", members)


def svg2png(bytestring, output_width, output_height, **_):
    if b"ENTITY" in bytestring:
        raise ValueError("entities are forbidden")
    return image_file((9, 9, 9, 255), (output_width, output_height))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cairosvg", types.SimpleNamespace(svg2png=svg2png))
    folder = tmp_path / "packages"
    folder.mkdir()
    clipart(folder)
    stamps(folder)
    return folder


def rows(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def decoded(row):
    return Image.open(io.BytesIO(row["image"]["bytes"]))


def test_clip_art_is_sorted_has_clean_titles_and_follows_links(script, packages, tmp_path, capsys):
    script.make(["clipart"], tmp_path, packages)
    table = rows(tmp_path / "clipart.parquet")
    assert [(row["folder"], row["title"]) for row in table] == [
        ("animals-old", "bat"),  # as strings: "-" before "/"
        ("animals", "dead frogs 3d"),
        ("animals", "frog link"),
        ("animals", "sheep v0."),
        ("rest", "frog"),
    ]
    assert list(table[0]) == ["image", "title", "folder"]
    for row in table:
        image = decoded(row)
        assert image.format == "WEBP" and image.size == (64, 64)
    assert table[1]["image"] == table[2]["image"] == table[4]["image"]
    seen = capsys.readouterr()
    assert "skipped broken_01.png" in seen.err and "public domain" in seen.out
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["clipart.parquet"]


def test_images_are_centred_and_never_enlarged(script):
    small = np.asarray(Image.open(io.BytesIO(script.to_webp(image_file(size=(40, 20)), 64))))
    assert (small[..., 3] > 0).sum() == 40 * 20 and small[22:42, 12:52, 3].min() == 255
    wide = np.asarray(Image.open(io.BytesIO(script.to_webp(image_file(size=(256, 64)), 64))))
    assert (wide[..., 3].max(axis=1) > 0).nonzero()[0].tolist() == list(range(24, 40))


def test_too_large_images_are_refused_and_pillows_limit_is_restored(script, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(script, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="40 x 20 pixels; want at most 100"):
        script.to_webp(image_file(), 64)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_stamps_have_captions_in_four_languages_or_empty_strings(script, packages, tmp_path, capsys):
    script.make(["stamps"], tmp_path, packages)
    table = rows(tmp_path / "stamps.parquet")
    assert [row["path"] for row in table] == ["animals/frog-1", "animals/frog", "animals-x/ant"]  # folder by folder
    texts = [tuple(row[f"caption{s}"] for s in ("", "_zh", "_fr", "_ja")) for row in table]
    assert texts == [
        ("A frog.", "", "", ""),
        ("A frog.", "青蛙。", "Une grenouille.", "カエル"),
        ("An ant.", "", "Une fourmi.", ""),
    ]
    assert all(decoded(row).size == (128, 128) for row in table)
    error = capsys.readouterr().err
    assert "skipped animals/odd.png" in error and "skipped animals-x/bad.svg: ValueError: entities" in error
    assert not (tmp_path / "stamps_audio.parquet").exists()


def test_stamps_keep_the_bytes_of_their_audio(script, packages, tmp_path):
    script.make(["stamps_audio"], tmp_path, packages)
    (row,) = rows(tmp_path / "stamps_audio.parquet")  # not the captions, which are read aloud in other files
    assert list(row) == ["image", "caption", "caption_zh", "path", "audio"]
    assert row["path"] == "animals/frog" and row["audio"] == {"bytes": OGG, "path": "frog.ogg"}


def test_files_open_as_pairs(script, packages, tmp_path):
    script.make(list(script.TABLES), tmp_path, packages)
    pairs = open_pairs(tmp_path / "clipart.parquet")
    assert pairs.texts(pairs.dataset[0]) == [["bat"]] and pairs.image(pairs.dataset[1]).size == (64, 64)
    pairs = open_pairs(tmp_path / "stamps.parquet", text_columns=["caption", "caption_fr"])
    assert pairs.texts(pairs.dataset[0]) == [["A frog."]]
    assert pairs.texts(pairs.dataset[1]) == [["A frog."], ["Une grenouille."]]
    pairs = open_pairs(tmp_path / "stamps_audio.parquet", with_audio=True)
    assert pairs.audio(pairs.dataset[0]) == OGG and pairs.image(pairs.dataset[0]).mode == "RGBA"


def test_command_reads_existing_packages(script, packages, tmp_path, monkeypatch):
    clipart(packages, compression="gz")
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    command = ["make", "--out", str(tmp_path / "new"), "--only", "clipart", "--packages", str(packages)]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    assert len(rows(tmp_path / "new" / "clipart.parquet")) == 5


def test_missing_tools_and_packages_are_named(script, packages, tmp_path, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(
        SystemExit, match="apt-get is not installed; put openclipart-png_<version>_all.deb into a folder"
    ):
        script.fetch("openclipart-png", tmp_path)
    monkeypatch.setattr(script.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(SystemExit, match="apt-get download openclipart-png failed .no network"):
        script.fetch("openclipart-png", tmp_path)
    (packages / "openclipart-png_2_all.deb").touch()
    with pytest.raises(SystemExit, match="want one version of openclipart-png"):
        script.fetch("openclipart-png", packages)
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    with pytest.raises(SystemExit, match="animals-x/ant.svg is an SVG: pip install cairosvg"):
        script.make(["stamps"], tmp_path, packages)


def test_damaged_packages_are_named_and_keep_the_old_file(script, packages, tmp_path):
    out = tmp_path / "clipart.parquet"
    out.write_bytes(b"old")
    path = next(packages.glob("openclipart*"))
    whole = path.read_bytes()
    for content, message in (
        (b"<html>", "is not a .deb: no ar archive"),
        (whole[:100], "is not a whole .deb: no data.tar"),
        (whole[:-9], "is not a whole .deb: data.tar.xz has"),
        (whole.replace(b"\xfd7zXZ", b"zstd!"), "data.tar.xz is damaged or of an unknown kind"),
    ):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=message):
            script.make(["clipart"], tmp_path, packages)
    deb(path, {"usr/share/doc/readme": b"empty"})
    with pytest.raises(SystemExit, match="clipart: no row from openclipart-png"):
        script.make(["clipart"], tmp_path, packages)
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["clipart.parquet"]
