"""`explain`: why a file cannot be read, in one line, without its path."""

import pytest
from PIL import Image

from hf_clip_variants.data.images.image_set import explain
from hf_clip_variants.modeling.decoding.image_decoding import decode_image
from hf_clip_variants.modeling.video.video_decoding import read_video


# Runs of white space become one space in a message of one line; other characters are escaped in it.
NAMES = ["a  b", "a\tb", "a\n b", "a 　 b", "it's", "a\\b", "x" * 250]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("read", [decode_image, read_video])
def test_the_path_is_left_out_however_it_is_written(tmp_path, read, name):
    path = str(tmp_path / name)
    for content in (None, b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(20), b"\0\0\0\x20ftypisom" + bytes(300)):
        if content is not None:
            with open(path, "wb") as file:
                file.write(content)
        with pytest.raises((OSError, ValueError)) as caught:
            read(path)
        text = explain(caught.value, path)
        assert text and text == " ".join(text.split()) and str(tmp_path) not in text, text
        assert "x" * 100 not in text and not text.startswith(("images[", "videos[")), text


def test_a_truncated_image_is_said_to_be_truncated_once(tmp_path):
    path = tmp_path / "cut  it.png"
    Image.effect_noise((90, 90), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises((OSError, ValueError)) as caught:
        decode_image(str(path))
    assert explain(caught.value, str(path)) == "truncated or corrupt image (image file is truncated)"
    assert explain(ValueError(f"images[0]: {caught.value}"), str(path)).startswith("truncated or corrupt image (")
    assert explain(OSError("broken stream, truncated")) == "truncated (broken stream, truncated)"


def test_a_short_name_takes_no_letters_out_of_words():
    assert explain(ValueError("cannot read: it is text"), "d") == "cannot read: it is text"
    assert explain(ValueError("d: cannot read: it is text"), "d") == "cannot read: it is text"
