"""The image processor: equal to its two references, the same for every form of an image, and safe on all of them."""

import base64
import functools
import http.server
import io
import random
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision import transforms
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPImageProcessorPil

from hf_clip_variants import CLIPClassifierImageProcessor
from hf_clip_variants.modeling.clip_classifier import image_processing_clip_classifier as module


SIZE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
OURS = CLIPClassifierImageProcessor(**SIZE)
PIL = CLIPClassifierImageProcessor(resample_backend="pil", **SIZE)
RAW = CLIPClassifierImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
THEIRS = CLIPImageProcessor(**SIZE)
WHITE = (255, 255, 255)


def official(n_px, interpolation=transforms.InterpolationMode.BICUBIC):
    """The steps of `clip._transform`."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return transforms.Compose(
        [
            transforms.Resize(n_px, interpolation=interpolation),
            transforms.CenterCrop(n_px),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def noise(height, width, channels=3, seed=0, dtype=np.uint8):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def make_image(height=37, width=50, mode="RGB", seed=0):
    return Image.fromarray(noise(height, width, seed=seed)).convert(mode)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(processor, *images, **options):
    return processor(list(images), return_tensors="pt", **options).pixel_values


# ---- equal to the references ----

pil_images = st.builds(
    make_image,
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBA", "LA"]),
    st.integers(0, 99),
)


@settings(deadline=None, max_examples=60)
@given(pil_images, st.sampled_from([2, 3]), st.integers(8, 40), st.integers(8, 40))
def test_default_equals_transformers(image, resample, edge, crop):
    if image.mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise(image.height, image.width, 0, seed=1)))
    options = {"size": {"shortest_edge": edge}, "crop_size": {"height": crop, "width": edge}, "resample": resample}
    assert torch.equal(pixels(OURS, image, **options), pixels(THEIRS, image, **options))


@settings(deadline=None, max_examples=40)
@given(pil_images.filter(lambda image: image.mode in ("RGB", "L")), st.integers(5, 40))
def test_pil_equals_openai(image, n_px):
    ours = pixels(PIL, image, size={"shortest_edge": n_px}, crop_size=n_px)
    assert torch.equal(ours[0], official(n_px)(image))


@settings(deadline=None, max_examples=30)
@given(pil_images.filter(lambda image: image.mode != "LA"), st.integers(5, 40))
def test_converting_last_equals_openai_in_every_mode(image, n_px):
    if image.mode == "RGBA":
        image.putalpha(Image.fromarray(noise(image.height, image.width, 0, seed=1)))
    ours = pixels(PIL, image, size={"shortest_edge": n_px}, crop_size=n_px, convert_rgb_last=True)
    assert torch.equal(ours[0], official(n_px)(image))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_converting_first_or_last_differs_with_transparency_only(mode):
    image = make_image(40, 50, mode, 0)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(noise(40, 50, 0, seed=1)))
    first, last = (
        pixels(PIL, image, size={"shortest_edge": 24}, crop_size=24, convert_rgb_last=last) for last in (False, True)
    )
    assert torch.equal(first, last) == (mode == "RGB")


@pytest.mark.parametrize("size", [(375, 500), (1200, 1600), (2100, 2400), (224, 224), (100, 333)])
def test_default_equals_transformers_at_224(size):
    image = make_image(*size)
    assert torch.equal(
        pixels(CLIPClassifierImageProcessor(), image, image), pixels(CLIPImageProcessor(), image, image)
    )


@pytest.mark.parametrize(
    "array",
    [
        noise(40, 50),
        noise(40, 50).transpose(2, 0, 1),
        np.ascontiguousarray(noise(40, 50).transpose(2, 0, 1)),
        noise(40, 50, 1),
        noise(40, 50, 4),
        noise(40, 50).astype(np.float32),
        noise(40, 50).astype(np.float64),
        torch.from_numpy(noise(40, 50, 4)).permute(2, 0, 1),
    ],
    ids=["hwc", "chw view", "chw", "hw1", "hwc4", "float32", "float64", "tensor chw4"],
)
def test_arrays_equal_transformers(array):
    assert torch.equal(pixels(OURS, array), pixels(THEIRS, array))


def test_grey_arrays_need_no_channel_axis():
    array = noise(40, 50, 0)
    for same in (array[None], array[..., None], Image.fromarray(array)):
        assert torch.equal(pixels(OURS, array), pixels(OURS, same))


@pytest.mark.parametrize(
    "options",
    [
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
        {"do_resize": False, "do_center_crop": False},
        {"size": {"height": 20, "width": 30}, "do_center_crop": False},
        {"size": {"shortest_edge": 20, "longest_edge": 24}},
        {"size": {"max_height": 20, "max_width": 30}},
        {"crop_size": {"height": 45, "width": 61}},
        {"do_center_crop": False, "do_pad": True, "pad_size": {"height": 64, "width": 64}},
        {"resample": 0},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "rescale_factor": 1 / 127.5},
    ],
    ids=str,
)
def test_options_equal_transformers(options):
    images = [make_image(37, 50), make_image(37, 50, seed=1)]
    ours, theirs = pixels(OURS, *images, **options), pixels(THEIRS, *images, **options)
    assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_outputs_without_tensors_are_a_list():
    ours = OURS([make_image(), make_image(50, 30)]).pixel_values
    assert isinstance(ours, list) and [tuple(image.shape) for image in ours] == [(3, 32, 32)] * 2
    sizes = OURS([make_image(), make_image(50, 30)], do_center_crop=False).pixel_values
    assert [tuple(image.shape) for image in sizes] == [(3, 32, 43), (3, 53, 32)]
    assert isinstance(OURS(make_image(), return_tensors="np").pixel_values, np.ndarray)


def test_result_does_not_share_the_images_memory():
    array = noise(1, 1, 4)[..., :3]
    for image in (Image.fromarray(array), array):
        ours = RAW(image, input_data_format="channels_last").pixel_values[0]
        ours += 1
        assert np.array_equal(np.asarray(image), array)


# ---- one image, many forms ----


def test_mixed_list_equals_one_by_one(tmp_path):
    image = make_image(45, 33)
    (tmp_path / "a.png").write_bytes(encoded(image))
    forms = [
        image,
        noise(20, 80, seed=3),
        torch.from_numpy(noise(64, 41)).permute(2, 0, 1),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        encoded(image),
        bytearray(encoded(image)),
        io.BytesIO(encoded(image)),
        base64.b64encode(encoded(image)).decode(),
        "data:image/png;base64," + base64.b64encode(encoded(image)).decode(),
        noise(30, 30, 4).astype(np.float32),
        make_image(300, 7, "L"),
    ]
    for processor in (OURS, PIL):
        forms[7].seek(0)
        together = pixels(processor, *forms)
        forms[7].seek(0)
        assert torch.equal(together, torch.cat([pixels(processor, form) for form in forms]))
        assert all(torch.equal(together[0], together[same]) for same in range(3, 10))


def test_nested_lists_and_batch_arrays_are_accepted():
    batch = noise(40, 50)[None].repeat(2, 0)
    expected = pixels(OURS, *batch)
    assert torch.equal(OURS(batch, return_tensors="pt").pixel_values, expected)
    assert torch.equal(pixels(OURS, torch.from_numpy(batch)), expected)
    assert torch.equal(pixels(OURS, [batch[0]], (batch[1],)), expected)


def test_url(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CLIP_VARIANTS_ALLOW_LOCAL_URLS", "1")
    (tmp_path / "cat.png").write_bytes(encoded(make_image()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert torch.equal(pixels(OURS, f"{url}/cat.png"), pixels(OURS, make_image()))
        with pytest.raises(ValueError, match=rf"images\[1\]: cannot fetch {url}/dog.png .*404"):
            pixels(OURS, make_image(), f"{url}/dog.png")
        server.shutdown()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_to_every_form(orientation, format, tmp_path):
    upright = make_image(24, 40)
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    )
    data = encoded(image, format, exif=exif, **options)
    (tmp_path / "image").write_bytes(data)
    together = pixels(RAW, data, tmp_path / "image", Image.open(io.BytesIO(data)))
    assert torch.equal(together[0], together[1]) and torch.equal(together[0], together[2])
    error = (together[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(upright)).int()).abs()
    assert error.float().mean() < (3 if format == "JPEG" else 1e-9)


def test_damaged_exif_is_ignored():
    image = make_image()
    image.info["exif"] = b"Exif\x00\x00not a tiff file"
    assert torch.equal(pixels(OURS, image), pixels(OURS, make_image()))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "La", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
)
@pytest.mark.parametrize("processor", [OURS, PIL], ids=["torchvision", "pil"])
def test_every_mode_gives_rgb(mode, processor):
    image = Image.new(mode, (40, 30))
    for options in ({}, {"convert_rgb_last": True}) if processor is PIL else ({},):
        result = pixels(processor, image, **options)
        assert result.shape == (1, 3, 32, 32) and result.isfinite().all()


def test_sixteen_bit_is_scaled():
    values = noise(30, 40, 0, dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    grey = pixels(RAW, Image.fromarray(expected))
    big_endian = Image.frombytes("I;16B", (40, 30), values.astype(">u2").tobytes())
    pgm = b"P5 40 30 65535\n" + values.astype(">u2").tobytes()
    forms = [values, torch.from_numpy(values), values.astype(">u2"), Image.fromarray(values), big_endian, pgm]
    forms += [encoded(Image.fromarray(values)), encoded(Image.fromarray(values), "TIFF")]
    for form in forms:
        assert torch.equal(pixels(RAW, form), grey)
    assert {int(pixels(RAW, np.full((2, 5), v, np.uint16)).unique()) for v in (0, 65535)} == {0, 255}


def test_other_dtypes():
    array = noise(20, 30)
    expected = pixels(OURS, array)
    for dtype in (np.int16, np.int32, np.int64, np.uint32, np.uint64):
        assert torch.equal(pixels(OURS, array.astype(dtype)), expected)
    assert torch.equal(pixels(OURS, array[::-1, ::-1][::-1, ::-1]), expected)  # negative strides
    mask = noise(20, 30, 0) > 100
    assert torch.equal(pixels(OURS, mask), pixels(OURS, mask.astype(np.uint8) * 255))
    half = torch.from_numpy(array).to(torch.bfloat16)
    assert torch.equal(pixels(OURS, half), pixels(OURS, half.float()))
    assert torch.equal(pixels(OURS, Image.fromarray(array[..., 0].astype(np.int32))), pixels(OURS, array[..., 0]))


def test_transparency_is_blended_on_the_background():
    rgba = np.zeros((5, 6, 4), np.uint8)
    rgba[..., 0], rgba[:2, :, 3] = 200, 255  # red above, transparent below
    palette = Image.fromarray(rgba).convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 3))  # the whole image
    for background in (WHITE, (0, 128, 7)):
        for form in (Image.fromarray(rgba), rgba, encoded(Image.fromarray(rgba))):
            result = pixels(RAW, form, background=background)[0]
            assert result[:, 0, 0].tolist() == [200, 0, 0] and result[:, 3, 0].tolist() == list(background)
        assert pixels(RAW, palette, background=background)[0, :, 0, 0].tolist() == list(background)
        grey = Image.fromarray(noise(4, 6, 0, dtype=np.uint16))
        grey.info["transparency"] = int(np.asarray(grey)[1, 2])
        assert pixels(RAW, grey, background=background)[0, :, 1, 2].tolist() == list(background)
        floats = torch.from_numpy(rgba / 255.0)
        blended = pixels(RAW, floats, background=background)[0, :, 3, 0] * 255
        assert torch.allclose(blended, torch.tensor(background, dtype=torch.float64))


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_first_frame(format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert torch.equal(pixels(OURS, data), pixels(OURS, frames[0]))


def test_float_images():
    array = noise(20, 30).astype(np.float32)
    scaled = pixels(OURS, array / 255, do_rescale=False)
    assert torch.allclose(scaled, pixels(OURS, array), atol=1e-5)
    plane = Image.fromarray(array[..., 0])
    assert torch.equal(pixels(OURS, plane), pixels(OURS, array[..., 0].astype(np.uint8)))
    # in [0, 1] but whole numbers: black images and masks are as valid as before
    assert torch.equal(pixels(OURS, np.zeros((9, 9), np.float32)), pixels(OURS, np.zeros((9, 9), np.uint8)))
    for processor in (OURS, PIL):
        assert pixels(processor, Image.fromarray(array[..., 0] / 255), do_rescale=False).abs().max() < 4


# ---- refusals ----

FULL = encoded(make_image(60, 80), "JPEG")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (FULL[: len(FULL) // 2], "truncated"),
        (FULL[:15], "truncated"),
        (encoded(make_image(60, 80))[:200], "truncated"),
        (encoded(make_image(60, 80))[:12], "truncated"),
        (encoded(make_image(60, 80), "GIF")[:300], "truncated"),
        (b"", "empty file"),
        (b"<!DOCTYPE html><html></html>", "not an image.*DOCTYPE"),
        (None, "got NoneType, expected a PIL image"),
        (7, "got int, expected"),
        ("no/such/cat.jpg", "no such file: 'no/such/cat.jpg'"),
        (Path("no/such/cat.jpg"), "no such file"),
        ("x\0y", "cannot read file"),
        (".", "cannot read file"),
        ("data:image/png;base64,???", "invalid base64"),
        (Image.new("RGB", (0, 5)), "empty image: 0 x 5"),
        (np.zeros((0, 5, 3), np.uint8), "empty image: 5 x 0"),
        (np.float32([[0.0, 0.5], [1.0, 0.25]]), "pass do_rescale=False"),
        (Image.fromarray(np.float32([[0.0, 0.5], [1.0, 0.25]])), "pass do_rescale=False"),
        (np.float32([[0.0, np.nan]]), "NaN or infinite"),
        (np.float32([[np.inf, 2.0]]), "NaN or infinite"),
        (torch.tensor([[float("-inf"), 2.0]]), "NaN or infinite"),
        (Image.fromarray(np.float32([[3.0, np.nan]])), "NaN or infinite"),
        (noise(3, 20), r"\(3, 20, 3\).*input_data_format"),
        (noise(3, 3), r"\(3, 3, 3\).*input_data_format"),
        (noise(1, 9, 4), r"\(1, 9, 4\).*input_data_format"),
        (noise(9, 9, 5), r"\(9, 9, 5\).*1, 3 or 4 channels"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.full((5, 5), -1, np.int16), "-1..-1, expected 0..255"),
        (np.full((5, 5), 256), "256..256, expected 0..255"),
        (Image.fromarray(np.full((5, 5), 70000, np.int32)), "70000..70000"),
        (np.zeros((5, 5), complex), "complex"),
        (np.full((5, 5), "a"), "expected numbers"),
        (np.full((5, 5, 4), 300.0), "alpha"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_image_is_named(bad, message, recwarn):
    for processor in (OURS, PIL):
        with pytest.raises(ValueError, match=rf"^images\[7\]: .*{message}"):
            pixels(processor, *[make_image()] * 7, bad, make_image())


def test_bad_file_is_named(tmp_path):
    (tmp_path / "half.jpg").write_bytes(FULL[: len(FULL) // 2])
    with pytest.raises(ValueError, match=r"images\[0\]: truncated or corrupt image in '.*half\.jpg'"):
        OURS(tmp_path / "half.jpg")


def test_channel_axis_can_be_given():
    array = noise(3, 20)
    last = pixels(OURS, array, input_data_format="channels_last")
    assert torch.equal(last, pixels(OURS, Image.fromarray(array)))
    first = pixels(OURS, array.transpose(2, 0, 1), input_data_format="channels_first")
    assert torch.equal(first, last)
    with pytest.raises(ValueError, match=r"images\[0\]: input_data_format: 'none'"):
        pixels(OURS, array, input_data_format="none")


@pytest.mark.parametrize("empty", [[], (), [[], []], np.zeros((0, 5, 5, 3), np.uint8)], ids=str)
def test_empty_batch(empty):
    with pytest.raises(ValueError, match="images: no images"):
        OURS(empty)


def test_max_pixels():
    huge = encoded(Image.new("1", (14_000, 14_000)))
    assert len(huge) < 50_000
    header_only = encoded(Image.new("L", (8, 8)), "JPEG")
    header_only = header_only.replace(b"\x08\x00\x08\x00\x08", b"\x08" + (30_000).to_bytes(2, "big") * 2)
    for bomb, count in ((huge, 196_000_000), (header_only, 900_000_000)):
        with pytest.raises(ValueError, match=rf"images\[0\]: .*{count} pixels"):
            OURS(bomb)
    for form in (make_image(30, 40), encoded(make_image(30, 40)), noise(30, 40)):
        assert pixels(OURS, form, max_pixels=1200).shape == (1, 3, 32, 32)
        with pytest.raises(ValueError, match=r"images\[0\]: 40 x 30 = 1200 pixels, more than max_pixels=1199"):
            pixels(OURS, form, max_pixels=1199)


def test_only_rgb_without_conversion():
    assert torch.equal(pixels(OURS, make_image(), do_convert_rgb=False), pixels(OURS, make_image()))
    for image in (make_image(mode="L"), make_image(mode="RGBA"), noise(20, 30, 4)):
        with pytest.raises(ValueError, match=r"images\[0\]: .*do_convert_rgb=False"):
            pixels(OURS, image, do_convert_rgb=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample_backend": "cv2"}, "resample_backend: 'cv2'"),
        ({"convert_rgb_last": True}, "convert_rgb_last=True needs resample_backend='pil'"),
        ({"background": (1, 2)}, "background"),
        ({"background": (1, 2, 256)}, "background"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"max_pixels": None}, "max_pixels: None"),
        ({"crop_size": {"height": 24, "width": None}}, "crop_size"),
        ({"crop_size": {"shortest_edge": 24}}, "crop_size"),
        ({"size": {"width": 24}}, "size"),
        ({"size": [24]}, "size"),
        ({"pad_size": {"height": True, "width": 24}}, "pad_size"),
        ({"image_mean": "grey"}, "image_mean"),
        ({"do_resize": "yes"}, "do_resize"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CLIPClassifierImageProcessor(**options)
    with pytest.raises(ValueError, match=message):
        CLIPClassifierImageProcessor()(make_image(), **options)
    with pytest.raises(ValueError, match="data_format"):
        OURS(make_image(), data_format="channels_last")


def test_types_that_only_transformers_checks_are_value_errors_too():
    for name in ("resample_backend", "convert_rgb_last", "input_data_format", "return_tensors"):
        with pytest.raises(ValueError, match=name):
            OURS(make_image(), **{name: 1.5})


# ---- extreme shapes ----


def test_a_size_without_a_crop_that_asks_for_gigabytes_is_named():
    with pytest.raises(ValueError, match=r"images\[0\]: size: .* makes 4096 x 8192000 pixels of 2 x 4000"):
        OURS(Image.new("RGB", (2, 4000)), size={"shortest_edge": 4096}, do_center_crop=False)


@pytest.mark.parametrize("size", [{"shortest_edge": 9, "longest_edge": 40}, {"max_height": 40, "max_width": 40}])
def test_thin_images_keep_a_pixel_of_their_short_edge(size):
    found = OURS(Image.new("RGB", (3, 900)), size=size, do_center_crop=False, return_tensors="pt").pixel_values
    assert found.shape == (1, 3, 40, 1)


@pytest.mark.parametrize("processor", [OURS, PIL], ids=["torchvision", "pil"])
@pytest.mark.parametrize("size", [(7, 60), (60, 7), (1, 90), (3, 200), (50, 301), (32, 67), (67, 32)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_band_is_what_the_whole_would_give(processor, size, dtype, monkeypatch):
    image = np.array(make_image(*size).filter(ImageFilter.BoxBlur(1)), dtype)
    options = {"input_data_format": "channels_last", "do_normalize": False, "do_rescale": False}
    whole = pixels(processor, image, **options).float()
    monkeypatch.setattr(module, "_LARGEST_RESIZED_BYTES", 0)
    band = pixels(processor, image, **options).float()
    error = (whole - band).abs().max()
    assert error <= (1 if dtype == np.uint8 else 0.01)


@pytest.mark.parametrize("size", [(1, 6000), (6000, 1), (1, 65_000), (65_000, 1), (3, 40_001)], ids=str)
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_extreme_aspect_needs_little_memory(size, backend):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")

    def kilobytes(field):
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    processor = CLIPClassifierImageProcessor(resample_backend=backend)
    image = Image.new("RGB", size, "red")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS:")
    result = pixels(processor, image)
    assert kilobytes("VmHWM:") - before < 200_000
    assert torch.equal(result, pixels(processor, Image.new("RGB", (9, 9), "red")))


# ---- a transformers image processor ----


def test_save_and_load(tmp_path):
    ours = CLIPClassifierImageProcessor(
        resample_backend="pil",
        convert_rgb_last=True,
        background=(1, 2, 3),
        max_pixels=10**6,
        image_mean=[0.1, 0.2, 0.3],
        **SIZE,
    )
    ours.save_pretrained(tmp_path)
    for loaded in (
        CLIPClassifierImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is CLIPClassifierImageProcessor and loaded.to_dict() == ours.to_dict()
        assert torch.equal(pixels(loaded, make_image(mode="RGBA")), pixels(ours, make_image(mode="RGBA")))
    changed = CLIPClassifierImageProcessor.from_pretrained(
        tmp_path, convert_rgb_last=False, resample_backend="torchvision"
    )
    assert changed.resample_backend == "torchvision" and changed.background == (1, 2, 3)


def test_defaults_are_clips():
    ours, theirs = CLIPClassifierImageProcessor().to_dict(), CLIPImageProcessor().to_dict()
    own = {"resample_backend", "convert_rgb_last", "background", "max_pixels", "image_processor_type"}
    assert {k: v for k, v in ours.items() if k not in own} == {k: v for k, v in theirs.items() if k not in own}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "target"), [((375, 500), 1.7), ((1200, 1600), 3.0)], ids=["500x375", "1600x1200"])
def test_faster_than_transformers(size, target):
    images = [make_image(*size, seed=seed).filter(ImageFilter.GaussianBlur(2)) for seed in range(8)]
    processors = {
        "ours": CLIPClassifierImageProcessor(),
        "theirs": CLIPImageProcessor(),
        "theirs, Pillow": CLIPImageProcessorPil(),
    }
    seconds = {name: [] for name in processors}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for processor in processors.values():
            pixels(processor, *images)
        for _ in range(7):
            for name in random.sample(list(processors), len(processors)):
                start = time.process_time()
                pixels(processors[name], *images)
                seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    pillow = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs, Pillow"], strict=True)]
    assert statistics.median(ratios) > 0.8 * target, ratios
    assert statistics.median(pillow) > 0.8 * 3, pillow


def test_images_that_end_in_several_sizes_are_said_to():
    processor = CLIPClassifierImageProcessor(size={"shortest_edge": 20}, do_center_crop=False)
    images = [Image.new("RGB", size) for size in ((40, 30), (30, 40))]
    with pytest.raises(ValueError, match="images: 2 sizes after resizing.*do_center_crop=True"):
        processor(images, return_tensors="pt")
    assert len(processor(images)["pixel_values"]) == 2
