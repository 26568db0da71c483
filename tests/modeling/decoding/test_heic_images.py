"""HEIC images: read where pillow-heif is installed, named with the remedy where it is not."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from hf_clip_variants.data import load_images
from hf_clip_variants.data.images.image_set import decode_roughly
from hf_clip_variants.evaluation.prediction import find_images
from hf_clip_variants.modeling.decoding import heic_images
from hf_clip_variants.modeling.decoding.image_decoding import decode_image


@pytest.fixture
def without_pillow_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    PIL.Image.init()  # now, as it registers every format in the list below once
    monkeypatch.setattr(PIL.Image, "ID", [kind for kind in PIL.Image.ID if kind not in ("HEIF", "AVIF")])
    heic_images.heic_is_readable.cache_clear()
    yield
    heic_images.heic_is_readable.cache_clear()


def photo(shade: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (32, 24), (shade, 90, 40))


def heic(shade: int) -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo(shade)).save(buffer, quality=95)
    return buffer.getvalue()


def fill(folder, content: bytes):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.HEIC").write_bytes(content)
    return folder


def test_folders_of_heic_images_are_read(tmp_path):
    images = load_images(fill(tmp_path, heic(200)))
    assert images.ids == ("cat/1.HEIC", "dog/1.HEIC") and images.labels.tolist() == [0, 1]
    np.testing.assert_allclose(np.asarray(images.image(1)), np.asarray(photo(200)), atol=6)
    assert list(find_images([str(tmp_path)])) == [str(tmp_path / name / "1.HEIC") for name in ("cat", "dog")]


@pytest.mark.parametrize("name", ["1.heic", "renamed.jpg"])
def test_one_heic_image_is_decoded_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(heic(100))
    for image in (tmp_path / name, heic(100)):
        np.testing.assert_allclose(np.asarray(decode_image(image)), np.asarray(photo(100)), atol=6)


def test_without_pillow_heif_the_remedy_is_named(tmp_path, without_pillow_heif, caplog):
    content = bytes.fromhex("0000001c66747970") + b"heic" + bytes(40)
    fill(tmp_path, content)
    remedy = r'HEIC images need pillow-heif: pip install "hf-clip-variants\[heic\]"'
    with pytest.raises(ValueError, match=rf"no images in class sub-folders.*left out 2 \.heic \({remedy}\)"):
        load_images(tmp_path)
    assert list(find_images([str(tmp_path)])) == [] and "left out 2 .heic (HEIC images need" in caplog.text
    with pytest.raises(OSError, match=remedy):
        decode_roughly(content)
    with pytest.raises(ValueError, match=rf"a HEIC image in '.*1.HEIC'; {remedy}"):
        decode_image(tmp_path / "cat" / "1.HEIC")
