"""HEIC images: read where pillow-heif is installed, named with the remedy where it is not."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from hf_clip_variants.data import load_images
from hf_clip_variants.data.images import heic
from hf_clip_variants.data.images.image_set import decode_roughly
from hf_clip_variants.evaluation.prediction import find_images


REMEDY = r'A HEIC image needs pillow_heif: pip install "hf-clip-variants\[heic\]"'
WITHOUT_PIXELS = bytes.fromhex("0000001c66747970") + b"heic" + bytes(40)


@pytest.fixture
def without_pillow_heif(monkeypatch):
    PIL.Image.init()  # now, as it registers every format in the list below once
    monkeypatch.setattr(PIL.Image, "ID", [kind for kind in PIL.Image.ID if kind != "HEIF"])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic.heic_is_readable.cache_clear()
    yield
    heic.heic_is_readable.cache_clear()


def photo(shade: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (32, 24), (shade, 90, 40))


def encoded(shade: int) -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo(shade)).save(buffer, quality=95)
    return buffer.getvalue()


def fill(folder, content: bytes):
    for name in ("cat/1.HEIC", "dog/1.HEIC", "dog/renamed.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_folders_of_heic_images_are_read(tmp_path):
    images = load_images(fill(tmp_path, encoded(200)))
    assert images.ids == ("cat/1.HEIC", "dog/1.HEIC", "dog/renamed.jpg") and images.labels.tolist() == [0, 1, 1]
    for row in range(3):
        np.testing.assert_allclose(np.asarray(images.image(row)), np.asarray(photo(200)), atol=6)


def test_predict_reads_heic_images(run, clip, tmp_path):
    fill(tmp_path, encoded(100))
    code, out, err = run("predict", tmp_path, "--model", clip, "--classes", "cat,dog")
    assert (code, len(out.splitlines())) == (0, 4), err


def test_without_pillow_heif_folders_count_them_and_name_the_remedy(tmp_path, without_pillow_heif, caplog):
    fill(tmp_path, WITHOUT_PIXELS)
    assert list(find_images([str(tmp_path)])) == [str(tmp_path / "dog/renamed.jpg")]
    assert "left out 2 .heic (A HEIC image needs" in caplog.text
    with pytest.raises(ValueError, match=rf"(?s)1 of 1 images cannot be read.*renamed.jpg': {REMEDY}"):
        load_images(tmp_path)
    (tmp_path / "dog/renamed.jpg").unlink()
    with pytest.raises(ValueError, match=rf"no images in class sub-folders; left out 2 \.heic \({REMEDY}\)"):
        load_images(tmp_path)
    (tmp_path / "cat/0.png").touch()
    with pytest.raises(
        ValueError, match=rf"no images for 1 of 2 classes: 'dog'; left out of them 1 \.heic \({REMEDY}\)"
    ):
        load_images(tmp_path, verify=False)


def test_without_pillow_heif_one_image_is_named(run, clip, tmp_path, without_pillow_heif):
    (tmp_path / "1.heic").write_bytes(WITHOUT_PIXELS)
    with pytest.raises(OSError, match=REMEDY):
        decode_roughly(WITHOUT_PIXELS)
    code, _, err = run("predict", tmp_path / "1.heic", "--model", clip, "--classes", "cat,dog")
    assert code == 1 and "a HEIC image, which" in err and "with the package pillow-heif only" in err
