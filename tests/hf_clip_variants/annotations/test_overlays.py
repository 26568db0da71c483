"""Overlays, legends, palettes and label maps: right colours in the right places, for any size and number of labels."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hf_clip_variants.annotations.label_maps import label_map_png, save_label_map
from hf_clip_variants.annotations.legend import Entry, with_legend, writable
from hf_clip_variants.annotations.overlays import LARGEST_SIDE, SMALLEST_SIDE, draw_overlay
from hf_clip_variants.annotations.palette import BACKGROUND, _lab, palette, text_colour


PLAIN = {"legend": False, "region_names": False}


def halves(height: int = 400, width: int = 400, left: int = 0, right: int = 1) -> np.ndarray:
    label_map = np.full((height, width), left, dtype=np.uint8)
    label_map[:, width // 2 :] = right
    return label_map


def test_colours_lie_on_their_regions():
    image = Image.new("RGB", (400, 400), "white")
    picture = np.asarray(draw_overlay(image, halves(), ["sky", "cat"], opacity=0.5, **PLAIN)).astype(int)
    for x, label in ((100, 0), (300, 1)):
        assert abs(picture[200, x] - (palette(2)[label].astype(int) + 255) / 2).max() <= 1
    assert (picture[200, 200] < picture[200, 300]).all()  # a darker line between them
    unchanged = np.asarray(draw_overlay(image, halves(), ["sky", "cat"], opacity=0, **PLAIN))
    assert (unchanged == 255).all()


def test_hidden_and_unnamed_labels_stay_uncoloured():
    image = Image.new("RGB", (400, 400), (10, 200, 30))
    picture = np.asarray(draw_overlay(image, halves(right=255), {0: "background"}, hidden=[0], **PLAIN))
    assert (picture == (10, 200, 30)).all()
    assert palette(3, background=1)[1].tolist() == list(BACKGROUND)


def test_small_images_grow_and_large_ones_shrink():
    for size, wanted in (((1, 1), (SMALLEST_SIDE,) * 2), ((64, 32), (320, 160)), ((5000, 50), (LARGEST_SIDE, 16))):
        label_map = np.zeros(size[::-1], np.uint8)
        assert draw_overlay(Image.new("RGB", size), label_map, ["a"], **PLAIN).size == wanted
        assert draw_overlay(Image.new("RGB", size), label_map, ["a"]).size > wanted  # with its legend


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode(mode):
    picture = draw_overlay(Image.new(mode, (50, 40)), halves(40, 50), ["sky", "cat"])
    assert picture.mode == "RGB" and picture.width > SMALLEST_SIDE


def test_two_hundred_labels_have_distinct_colours_and_all_fit_into_the_legend():
    label_map = np.arange(200).reshape(10, 20).repeat(20, 0).repeat(20, 1)
    names = [f"a label with number {number}" for number in range(200)]
    picture = np.asarray(draw_overlay(Image.new("RGB", (400, 200)), label_map, names, opacity=1))
    inside = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette(200).tolist()} <= inside
    legend = picture[205:] if picture.shape[1] == 400 else picture[:, 405:]
    assert {tuple(colour) for colour in palette(200).tolist()} <= {tuple(c) for c in legend.reshape(-1, 3).tolist()}


def test_first_colours_differ_most_and_longer_palettes_begin_with_shorter_ones():
    assert (palette(200)[:12] == palette(12)).all() and (palette(300)[256:] == palette(44)).all()
    for count, least in ((8, 45), (20, 30), (200, 6)):
        lab = _lab(palette(count))
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e9 * np.eye(count)
        assert distances.min() > least
    assert text_colour((255, 255, 0)) == (0, 0, 0) and text_colour((0, 0, 128)) == (255, 255, 255)


def test_legends_stand_beside_or_below_and_grow_with_their_lines():
    entries = [Entry((255, 0, 0), f"name {number}", "1 %", number) for number in range(30)]
    beside, below = (with_legend(Image.new("RGB", size), entries) for size in ((300, 300), (900, 200)))
    assert beside.width > 300 and below.width == 900 and below.height > 200
    assert with_legend(Image.new("RGB", (300, 300)), entries * 10).height > 300
    assert with_legend(Image.new("RGB", (300, 300)), [], "a title").width > 300


def test_names_of_any_origin_are_written_in_one_line():
    assert writable("cat\x1b[31m\n") == "cat\\x1b[31m" and len(writable("x" * 300)) == 32
    assert writable("", 4) == writable("\U0010fffd", 4) == "label 4"
    assert writable("кошка") == "кошка" and writable("chat noir é") == "chat noir é"
    draw_overlay(Image.new("RGB", (9, 9)), np.zeros((9, 9), int), ["\U0010fffd‮x"])


def test_label_map_files_are_read_back_equal(tmp_path):
    for high, dtype in ((4, np.int64), (255, np.uint8), (40000, np.int32)):
        label_map = np.random.default_rng(0).integers(0, high + 1, (7, 5)).astype(dtype)
        label_map[0, 0] = high
        read = np.asarray(Image.open(save_label_map(label_map, tmp_path / f"{high}.png", ["background", "cat"])))
        assert (read == label_map).all() and read.dtype == (np.uint8 if high < 256 else np.uint16)
    shown = Image.open(BytesIO(label_map_png(np.array([[0, 1]]), ["background", "cat"]))).convert("RGB")
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [BACKGROUND, tuple(palette(2)[1].tolist())]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_overlay(Image.new("RGB", (2, 2)), np.zeros((2, 2)), ["a"]), "label_map: got float64"),
        (lambda: draw_overlay(Image.new("RGB", (2, 2)), np.zeros((0, 2), int), ["a"]), r"shape \(0, 2\)"),
        (lambda: draw_overlay(Image.new("RGB", (2, 2)), np.zeros((2, 2), int), ["a"], opacity=2), "opacity: got 2"),
        (lambda: draw_overlay(Image.new("RGB", (2, 2)), np.zeros((2, 2), int), {-1: "a"}), "names: got the label -1"),
        (lambda: label_map_png(np.array([[-1]])), "got the label -1; want 0..65535"),
        (lambda: label_map_png(np.array([[70000]])), "got the label 70000"),
        (lambda: label_map_png(np.zeros((1, 1, 1), int)), "want integers of shape"),
        (lambda: palette(-1), "count: got -1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
