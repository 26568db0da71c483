"""Large images: the same pixels from strips, little memory, and one limit for all threads."""

import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL._util import DeferredError

from hf_clip_variants import CLIPClassifierImageProcessor
from hf_clip_variants.modeling.clip_classifier import image_processing_clip_classifier
from hf_clip_variants.modeling.decoding import image_decoding, stored_images
from hf_clip_variants.modeling.decoding.image_decoding import decode_image
from hf_clip_variants.modeling.decoding.stored_images import MemoryBudget


FORMATS = {"CMYK": "TIFF", "F": "TIFF", "I": "TIFF"}  # PNG for other modes


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def made(width, height, mode, seed):
    random = np.random.default_rng(seed)
    if mode in ("I;16", "I"):
        values = random.integers(0, random.choice([200, 65536]), (height, width))
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "F":
        return Image.fromarray((random.random((height, width)) * 255).astype(np.float32))
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)))
    return image.convert(mode)


def png_of_one_bit(width, height):
    """Black, of a few kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((width // 8 + 2) * height), 9))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["RGB", "L", "P", "1", "LA", "RGBA", "CMYK", "I;16", "F", "I"]),
    st.integers(1, 8),
    st.sampled_from(["torchvision", "pil"]),
    st.sampled_from([2, 3]),
    st.sampled_from([None, {"shortest_edge": 24}, {"height": 20, "width": 30}]),
    st.booleans(),
    st.integers(0, 99),
)
def test_strips_give_the_same_pixels(width, height, mode, orientation, backend, resample, size, crop, seed):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(made(width, height, mode, seed), FORMATS.get(mode, "PNG"), exif=exif)
    processor = CLIPClassifierImageProcessor(
        do_resize=size is not None,
        size=size or {"shortest_edge": 24},
        crop_size={"height": 24, "width": 16},
        do_center_crop=crop,
        resample_backend=backend,
        resample=resample,
    )
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for large in (10**9, 0):
            patch.setattr(stored_images, "LARGE_PIXELS", large)
            patch.setattr(stored_images, "STRIP_PIXELS", 500)
            found += [processor([content], return_tensors="pt").pixel_values, decode_image(content)]
    assert torch.equal(found[0], found[2])
    assert np.array_equal(np.array(found[1]), np.array(found[3]))


@pytest.mark.parametrize("orientation", range(9))
def test_each_part_is_cut_from_where_it_is_stored(orientation):
    image = made(7, 5, "RGB", 0)
    image.getexif()[0x0112] = orientation
    stored = stored_images.StoredImage(image, lambda part: part)
    whole = np.array(ImageOps.exif_transpose(image))
    assert (stored.height, stored.width) == whole.shape[:2]
    assert np.array_equal(np.array(stored.whole()), whole)
    assert np.array_equal(np.array(stored.part(0, 1, 2, 3)), whole[1:3, 0:2])


@pytest.mark.parametrize("shape", [(3, 60_000), (60_000, 3), (1, 9000)])
def test_a_thin_image_gives_the_same_pixels(shape, monkeypatch):
    monkeypatch.setattr(image_processing_clip_classifier, "_LARGEST_RESIZED_BYTES", 2**20)
    content = encoded(made(*shape, "L", 0))
    processor = CLIPClassifierImageProcessor()
    plain = processor([content], return_tensors="pt").pixel_values
    monkeypatch.setattr(stored_images, "LARGE_PIXELS", 0)
    assert torch.equal(processor([content], return_tensors="pt").pixel_values, plain)


def test_a_picture_bomb_takes_little_memory_in_many_threads():
    content = png_of_one_bit(4000, 4000)  # as RGB in Pillow 64 MB
    taken = []
    original = stored_images.StoredImage.part

    def part(self, left, top, right, bottom):
        taken.append((right - left) * (bottom - top))
        return original(self, left, top, right, bottom)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_images.StoredImage, "part", part)
        CLIPClassifierImageProcessor()([content], return_tensors="pt")
    assert sum(taken) == 16_000_000 and max(taken) <= stored_images.STRIP_PIXELS


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("mode", ["CMYK", "RGB", "L", "RGBA"])
def test_a_very_thin_image_is_cut_before_it_is_converted(mode, backend, monkeypatch):
    """4 x 33,554,432 pixels, of which the header of a small file can lie, would be 1.5 GB as RGB."""
    content = encoded(made(4, 50_000, mode, 0), "TIFF")
    processor = CLIPClassifierImageProcessor(resample_backend=backend)
    monkeypatch.setattr(image_processing_clip_classifier, "_LARGEST_RESIZED_BYTES", 2**20)
    plain = processor([content], return_tensors="pt").pixel_values
    monkeypatch.setattr(stored_images, "LARGE_PIXELS", 0)
    monkeypatch.setattr(stored_images.StoredImage, "whole", None)
    assert torch.equal(processor([content], return_tensors="pt").pixel_values, plain)


def test_a_header_that_lies_of_very_many_rows_is_refused():
    content = bytearray(encoded(Image.new("CMYK", (4, 4)), "TIFF"))
    at = content.find(struct.pack("<HHI", 257, 4, 1) + struct.pack("<I", 4))
    at = at if at >= 0 else content.find(struct.pack("<HHI", 257, 3, 1))
    content[at : at + 12] = struct.pack("<HHII", 257, 4, 1, 2**25)  # rows
    with pytest.raises(ValueError, match=r"images\[0\]: 4 x 33554432 pixels in a form \(TIFF, mode CMYK\) that takes"):
        CLIPClassifierImageProcessor()([bytes(content)])


def test_the_whole_of_an_image_that_takes_too_much_is_refused(monkeypatch):
    image = made(50, 40, "CMYK", 0)
    stored = stored_images.StoredImage(image, lambda part: part.convert("RGB"))
    assert np.array_equal(np.array(stored.whole()), np.array(image.convert("RGB")))
    monkeypatch.setattr(stored_images, "MAX_DECODED_BYTES", 50 * 40 * (4 + 4 + 11) - 1)
    with pytest.raises(
        ValueError, match="50 x 40 pixels of mode CMYK, which as a whole take 0 MiB of memory, more than"
    ):
        stored.whole()
    assert stored_images.StoredImage(made(50, 40, "RGB", 0), None).whole().size == (50, 40), "nothing is converted"


def test_images_of_all_threads_share_one_budget():
    budget, running, most = MemoryBudget(100), [], []

    def work(wanted):
        with budget.reserve(wanted):
            running.append(wanted)
            most.append(sum(100 if one > 33 else one for one in running))
            time.sleep(0.002)
            running.remove(wanted)

    threads = [threading.Thread(target=work, args=(wanted,)) for wanted in [10, 60, 50, 500, 0, 40, 99, 1] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 32 and max(most) <= 100 and budget.free == 100


def test_large_images_are_decoded_one_after_the_other_and_freed_before_the_next(monkeypatch):
    content, lock, loaded, most = png_of_one_bit(3000, 3000), threading.Lock(), [], []
    monkeypatch.setattr(stored_images, "DECODED_IMAGES", MemoryBudget(3 * 9_000_000))
    original = image_decoding._decode_pil

    def decode(image, rules, name):
        decoded = original(image, rules, name)
        with lock:
            loaded.append(image)
            most.append(sum(not isinstance(one._im, DeferredError) for one in loaded))
        time.sleep(0.01)
        return decoded

    monkeypatch.setattr(image_decoding, "_decode_pil", decode)
    given_back = []
    monkeypatch.setattr(stored_images, "_give_back", lambda: given_back.append(1))
    processor, kept = CLIPClassifierImageProcessor(), []
    threads = [threading.Thread(target=lambda: kept.append(processor([content] * 2))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(kept) == 3 and most == [1] * 6 and len(given_back) == 6
    image = decode_image(content)  # what is handed out stays open
    assert image.size == (3000, 3000) and image.getpixel((5, 5)) == (0, 0, 0)


def test_the_budget_comes_back_after_an_error():
    budget = MemoryBudget(5)
    for _ in range(3):
        with pytest.raises(OSError), budget.reserve(5):
            raise OSError
    assert budget.free == 5


@pytest.mark.parametrize(
    "content, reason",
    [
        (encoded(Image.new("L", (64, 64)), "JPEG2000"), "JPEG2000.*takes .* MiB of memory"),
        (encoded(Image.new("RGB", (64, 64)), "WEBP"), "WEBP.*takes"),
        (encoded(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_deflate"), "TIFF.*takes"),
        (encoded(Image.new("RGB", (64, 64)), "EPS"), "an EPS file"),
    ],
)
def test_what_costs_more_than_its_pixels_say_is_refused(content, reason, monkeypatch):
    monkeypatch.setattr(stored_images, "MAX_DECODED_BYTES", 64 * 64 * (5 + 11))
    with pytest.raises(ValueError, match=reason):
        decode_image(content)
    assert decode_image(encoded(Image.new("RGB", (64, 64)))).size == (64, 64)


def test_a_jpeg_that_costs_too_much_is_decoded_at_a_fraction(monkeypatch):
    content = encoded(Image.new("RGB", (640, 480), "red"), "JPEG", progressive=True)
    assert decode_image(content).size == (640, 480)
    monkeypatch.setattr(stored_images, "MAX_DECODED_BYTES", 640 * 480 * (5 + 11))
    assert decode_image(content).size == (320, 240)


def test_a_jpeg_of_very_many_scans_is_refused(monkeypatch):
    content = encoded(Image.new("RGB", (64, 48), "red"), "JPEG", progressive=True)
    monkeypatch.setattr(stored_images, "SCAN_PIXELS", 0)
    assert decode_image(content)
    monkeypatch.setattr(stored_images, "MAX_SCANS", 3)
    with pytest.raises(ValueError, match="scans"):
        decode_image(content)
