"""Images and label maps of any size to one batch, and back."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_tokenizer
from toy_segmentation import registered_toy, toy_processor
from transformers import AutoImageProcessor, AutoProcessor, SegformerImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_clip_variants import CLIPClassifierImageProcessor, GLIPImageProcessor, ViLDImageProcessor
from hf_clip_variants.modeling.dense.image_processing_dense import DenseImageProcessor
from hf_clip_variants.modeling.dense.processing_dense import DenseProcessor


SIZES = [(33, 47), (224, 224), (500, 333), (1, 1), (2, 900), (900, 2)]
LABELS = [0, 7, 200, 255]


def image(height, width, mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return PIL.Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return PIL.Image.fromarray(values, "RGBA").convert(mode)


def label_map(height, width, seed=0):
    return np.random.default_rng(seed).choice(LABELS, (height, width)).astype(np.uint8)


def processor(**options):
    return DenseImageProcessor(**{"size": {"shortest_edge": 32, "longest_edge": 96}} | options)


# ---- images


def test_pixels_equal_transformers():
    """Segformer's: the same backend, always to a fixed size."""
    images = [image(40, 60), image(33, 200, "L"), image(50, 50)]
    size = {"height": 32, "width": 48}
    expected = SegformerImageProcessor(size=size, do_convert_rgb=True)(images, return_tensors="pt").pixel_values
    found = processor(size=size)(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("size", SIZES)
def test_images_of_any_size_and_mode(size, mode):
    found = processor()(image(*size, mode), return_tensors="pt").pixel_values
    assert found.shape[:2] == (1, 3) and max(found.shape[-2:]) <= 96 and found.isfinite().all()
    as_it_is = processor(do_resize=False)(image(*size, mode), return_tensors="pt").pixel_values
    assert tuple(as_it_is.shape[-2:]) == size
    grey = mode in ("L", "LA", "1", "I;16")
    if grey:
        raw = processor(do_resize=False, do_normalize=False)(image(*size, mode), return_tensors="pt").pixel_values
        assert torch.equal(raw[:, 0], raw[:, 1]) and 0 <= raw.min() <= raw.max() <= 1


def test_files_arrays_and_tensors_give_the_same():
    original, buffer = image(40, 60), io.BytesIO()
    original.save(buffer, "PNG")
    expected = processor()(original, return_tensors="pt").pixel_values
    array = np.array(original)
    for given in (buffer.getvalue(), array, array.transpose(2, 0, 1), torch.from_numpy(array).permute(2, 0, 1)):
        torch.testing.assert_close(processor()(given, return_tensors="pt").pixel_values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "size, original, expected",
    [
        ({"shortest_edge": 30, "longest_edge": 90}, (60, 120), (30, 60)),
        ({"shortest_edge": 30, "longest_edge": 90}, (20, 400), (4, 90)),
        ({"shortest_edge": 30}, (60, 120), (30, 60)),
        ({"longest_edge": 30}, (60, 120), (15, 30)),
        ({"height": 21, "width": 13}, (60, 120), (21, 13)),
        ({"max_height": 30, "max_width": 30}, (60, 120), (15, 30)),
        ({"longest_edge": 30}, (1, 4000), (1, 30)),
    ],
)
def test_each_rule_of_size(size, original, expected):
    found = processor(size=size)(image(*original), return_tensors="pt").pixel_values
    assert tuple(found.shape[-2:]) == expected
    multiple = processor(size=size, size_multiple=8)(image(*original), return_tensors="pt").pixel_values
    assert tuple(multiple.shape[-2:]) == tuple(max(round(edge / 8) * 8, 8) for edge in expected)


def test_a_size_that_would_fill_the_memory_is_refused():
    with pytest.raises(ValueError, match=r"images\[0\]: 9000 x 1 pixels become.*longest_edge"):
        processor(size={"shortest_edge": 480})(PIL.Image.new("RGB", (9000, 1)))


@pytest.mark.parametrize("pad_mode, value", [("mean", 0.0), ("black", "black"), ("edge", "edge")])
def test_images_of_a_batch_are_padded_to_one_size(pad_mode, value):
    images = [image(32, 64), image(64, 32), image(40, 40)]
    found = processor(pad_mode=pad_mode)(images, return_tensors="pt").pixel_values
    assert found.shape == (3, 3, 64, 64)
    for row, (one, (height, width)) in enumerate(zip(images, [(32, 64), (64, 32), (32, 32)], strict=True)):
        alone = processor()(one, return_tensors="pt").pixel_values[0]
        assert torch.equal(found[row, :, :height, :width], alone)
    corner = found[2, :, 50, 50]
    black = processor()(PIL.Image.new("RGB", (32, 32)), return_tensors="pt").pixel_values[0, :, 0, 0]
    expected = {"mean": torch.zeros(3), "black": black, "edge": found[2, :, 31, 31]}[pad_mode]
    torch.testing.assert_close(corner, expected)


def test_padding_to_a_multiple_to_a_size_and_not_at_all():
    images = [image(32, 50), image(40, 40)]
    assert processor(size_divisor=32)(images[:1], return_tensors="pt").pixel_values.shape[-2:] == (32, 64)
    padded = processor(pad_size={"height": 70, "width": 90})(images, return_tensors="pt").pixel_values
    assert padded.shape[-2:] == (70, 90)
    with pytest.raises(ValueError, match="pad_size"):
        processor(pad_size={"height": 8, "width": 8})(images, return_tensors="pt")
    with pytest.raises(ValueError, match="images: 2 sizes after resizing"):
        processor(do_pad=False)(images, return_tensors="pt")
    assert [tuple(x.shape[-2:]) for x in processor(do_pad=False)(images).pixel_values] == [(32, 50), (32, 32)]


def test_original_sizes_are_kept_if_asked_for():
    images = [image(33, 47), image(40, 20)]
    assert "original_sizes" not in processor()(images, return_tensors="pt")
    found = processor()(images, return_tensors="pt", return_original_sizes=True).original_sizes
    assert found.tolist() == [[33, 47], [40, 20]]


# ---- label maps


@pytest.mark.parametrize("size", SIZES)
def test_no_label_comes_out_that_did_not_go_in(size):
    found = processor(size={"shortest_edge": 45, "longest_edge": 96})(
        image(*size), label_map(*size), return_tensors="pt", resample=3
    )
    assert found.labels.dtype == torch.int64 and found.labels.shape[-2:] == found.pixel_values.shape[-2:]
    assert set(found.labels.unique().tolist()) <= set(np.unique(label_map(*size)).tolist())


def test_label_maps_are_resized_as_transformers_does():
    given, size = label_map(40, 61), {"height": 32, "width": 50}
    expected = SegformerImageProcessor(size=size)(image(40, 61), given, return_tensors="pt").labels
    assert torch.equal(processor(size=size)(image(40, 61), given, return_tensors="pt").labels, expected)
    as_float = torch.from_numpy(given)[None, None].float()
    nearest = F.interpolate(as_float, size=(32, 50), mode="nearest-exact")[0].long()
    assert torch.equal(processor(size=size)(image(40, 61), given, return_tensors="pt").labels, nearest)


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_padding_of_label_maps_is_ignored(ignore_index):
    maps = [np.zeros((32, 64), dtype=np.uint8), np.ones((64, 32), dtype=np.uint8)]
    found = processor(ignore_index=ignore_index)([image(32, 64), image(64, 32)], maps, return_tensors="pt").labels
    assert (found[0, :32] == 0).all() and (found[0, 32:] == ignore_index).all()
    assert (found[1, :, :32] == 1).all() and (found[1, :, 32:] == ignore_index).all()


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_reduced_labels(ignore_index):
    given = np.array([[0, 1], [7, ignore_index % 256 if ignore_index > 0 else 9]], dtype=np.uint8)
    found = processor(do_resize=False, do_reduce_labels=True, ignore_index=ignore_index)(
        image(2, 2), given, return_tensors="pt"
    ).labels[0]
    expected = {0: ignore_index, 1: 0, 7: 6, 9: 8, 255: 255}
    assert found.tolist() == [[expected[value] for value in row] for row in given.tolist()]


def test_label_maps_of_each_kind(tmp_path):
    values = label_map(40, 60)
    palette = PIL.Image.fromarray(values)
    palette.putpalette([c for i in range(256) for c in (i, 255 - i, i // 2)])
    palette.save(tmp_path / "map.png")
    many = values.astype(np.uint16) * 257  # more labels than 8 bits hold
    expected = torch.from_numpy(values).long()[None]
    for given in (values, palette, str(tmp_path / "map.png"), torch.from_numpy(values), values[None], values.tolist()):
        given = np.array(given) if isinstance(given, list) else given
        found = processor(do_resize=False)(image(40, 60), given, return_tensors="pt").labels
        assert torch.equal(found, expected)
    for given in (many, PIL.Image.fromarray(many), many.astype(np.int32)):
        found = processor(do_resize=False)(image(40, 60), given, return_tensors="pt").labels
        assert torch.equal(found, 257 * expected)
    pair = processor(do_resize=False)([image(40, 60)] * 2, np.stack([values, values]), return_tensors="pt").labels
    assert torch.equal(pair, torch.cat([expected, expected]))


@pytest.mark.parametrize(
    "maps, message",
    [
        ([label_map(40, 60)] * 2, "segmentation_maps: 2 for 1 images"),
        ([label_map(60, 40)], r"segmentation_maps\[0\]: 40 x 60 pixels, its image has 60 x 40"),
        ([np.zeros((40, 60))], r"segmentation_maps\[0\]: numbers of type float64"),
        ([image(40, 60)], r"segmentation_maps\[0\]: mode RGB"),
        ([np.zeros((40, 60, 3), dtype=np.uint8)], r"segmentation_maps\[0\]: shape \[40, 60, 3\]"),
        (["missing.png"], r"segmentation_maps\[0\]"),
        ([b"no image"], r"segmentation_maps\[0\]"),
        ([None], r"segmentation_maps\[0\]"),
    ],
)
def test_bad_label_maps_are_named(maps, message):
    with pytest.raises(ValueError, match=message):
        processor()([image(40, 60)], maps, return_tensors="pt")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pad_mode": "zero"}, "pad_mode: 'zero'"),
        ({"size_divisor": 0}, "size_divisor: 0"),
        ({"max_pixels": 0}, "max_pixels: 0"),
        ({"max_pixels": None}, "max_pixels: None"),
        ({"size_multiple": 2.5}, "size_multiple"),
        ({"ignore_index": "255"}, "ignore_index"),
        ({"do_center_crop": True, "crop_size": 8}, "do_center_crop"),
        ({"size": {"shortest_edge": -4}}, "size: .*-4"),
        ({"image_std": [0, 1, 1]}, "image_std"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        processor(**options)
    with pytest.raises((ValueError, TypeError), match=message):
        processor()(image(40, 60), return_tensors="pt", **options)


def test_bad_images_are_named():
    with pytest.raises(ValueError, match=r"images\[1\]: no such file"):
        processor()([image(4, 4), "missing.png"])
    with pytest.raises(ValueError, match="images: no images"):
        processor()([])


# ---- back


@pytest.mark.parametrize("options", [{}, {"size_divisor": 32}, {"pad_size": {"height": 100, "width": 100}}])
def test_maps_come_back_at_the_size_of_each_image(options):
    """A "model" whose logits are its labels: what comes back is what went in, at the size of the image."""
    sizes = [(64, 192), (96, 64), (33, 47), (1, 1)]
    maps = [np.indices(size).sum(0) * 3 // sum(size) for size in sizes]
    batch = processor(**options)([image(*size) for size in sizes], maps, return_tensors="pt")
    logits = F.one_hot(torch.where(batch.labels == 255, 3, batch.labels), 4).permute(0, 3, 1, 2).float()
    found = processor(**options).post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), sizes)
    for one, size, given in zip(found, sizes, maps, strict=True):
        assert tuple(one.shape) == size and 3 not in one  # no padding
        assert (one == torch.from_numpy(given)).float().mean() > 0.85
    with_scores = processor(**options).post_process_semantic_segmentation(
        SemanticSegmenterOutput(logits=logits), sizes, return_segmentation_scores=True
    )
    assert all(torch.equal(a.segmentation, b) for a, b in zip(with_scores, found, strict=True))
    whole = processor(**options).post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits))
    assert torch.equal(torch.stack(whole), logits.argmax(1))


def test_logits_of_another_size_are_resized_as_a_whole():
    logits = torch.randn(1, 3, 10, 10)
    found = processor().post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), [(40, 80)])[0]
    assert torch.equal(found, F.interpolate(logits, size=(40, 80), mode="bilinear").argmax(1)[0])


# ---- saved


def test_settings_survive_a_file(tmp_path):
    given = processor(
        size_multiple=16,
        size_divisor=32,
        pad_mode="black",
        do_reduce_labels=True,
        ignore_index=-1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=3,
    )
    given.save_pretrained(tmp_path)
    again = DenseImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == given.to_dict() and again.to_json_string() == given.to_json_string()
    pair = image(40, 60), label_map(40, 60)
    for key, expected in given(*pair, return_tensors="pt").items():
        assert torch.equal(again(*pair, return_tensors="pt")[key], expected)


def test_auto_classes_load_what_is_saved(tmp_path):
    with registered_toy():
        check_auto_classes(tmp_path)


def check_auto_classes(tmp_path):
    given = toy_processor("a photo of a {}.", pad_mode="edge")
    given.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is DenseProcessor and again.templates == ["a photo of a {}."]
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is DenseImageProcessor
    expected = given(image(40, 60), ["cat", "dog"], label_map(40, 60), return_tensors="pt")
    found = again(image(40, 60), ["cat", "dog"], label_map(40, 60), return_tensors="pt")
    assert set(found) == {"pixel_values", "labels", "input_ids", "attention_mask"}
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# ---- the processor


def test_labels_as_texts():
    tokenizer = tiny_tokenizer()
    expected = tokenizer(["a cat!", "a red_apple!"], padding=True, return_tensors="pt")
    found = toy_processor("a {}!")(text=["cat", "red_apple"], return_tensors="pt")
    assert torch.equal(found.input_ids, expected.input_ids)
    both = toy_processor(["a {}!", "{}"])(text=["cat", "red_apple"], return_tensors="pt")
    assert both.input_ids.shape[:2] == (2, 2) and both.attention_mask.shape == both.input_ids.shape
    length = expected.input_ids.shape[1]
    assert torch.equal(both.input_ids[:, 0, :length], expected.input_ids)
    of_each = toy_processor()(text=[["cat"], ["red apple", "dog"]], return_tensors="pt")
    assert of_each.input_ids.shape[:3] == (2, 2, 1) and not of_each.attention_mask[0, 1].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "images, text: got neither"),
        ({"text": "cat"}, "text: got the single string 'cat'"),
        ({"text": []}, "text is empty"),
        ({"text": ["cat", ""]}, r"text\[1\].*blank"),
        ({"text": [["cat"], []]}, r"text\[1\] is empty"),
        ({"text": [["cat"], "dog"]}, r"text\[0\]"),
        ({"text": ["building;edifice"]}, "synonyms, which only model.set_labels takes"),
        ({"text": [["cat"]], "return_tensors": None}, "return_tensors"),
    ],
)
def test_bad_texts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_processor()(**{"return_tensors": "pt"} | arguments)


def test_post_processing_of_the_processor_is_that_of_the_image_processor():
    outputs = SemanticSegmenterOutput(logits=torch.randn(1, 3, 32, 48))
    processor = toy_processor()
    (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])
    (expected,) = processor.image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "make", [CLIPClassifierImageProcessor, DenseImageProcessor, GLIPImageProcessor, ViLDImageProcessor]
)
def test_a_setting_of_none_is_used_or_refused_by_name(make):
    whole = make()
    for name in sorted(set(whole.to_dict()) - {"image_processor_type"}):
        for attempt in (
            lambda name=name: make(**{name: None})(image(40, 60), return_tensors="pt"),
            lambda name=name: whole(image(40, 60), **{"return_tensors": "pt", name: None}),
        ):
            try:
                assert attempt()["pixel_values"].isfinite().all()
            except ValueError as error:
                assert name in str(error)


@pytest.mark.parametrize(
    "make", [DenseImageProcessor, GLIPImageProcessor, ViLDImageProcessor, CLIPClassifierImageProcessor]
)
@pytest.mark.parametrize("kind", ["PIL", "tensor", "float tensor"])
def test_an_image_may_become_one_pixel(make, kind):
    size = {"height": 1, "width": 1}
    processor = make(size=size, crop_size=size) if make is CLIPClassifierImageProcessor else make(size=size)
    array = np.full((50, 40, 3), 90, np.uint8)
    image = PIL.Image.fromarray(array) if kind == "PIL" else torch.from_numpy(array).permute(2, 0, 1).contiguous()
    image = image.float() if kind == "float tensor" else image
    options = {"do_normalize": False} | ({"do_pad": False} if hasattr(processor, "do_pad") else {})
    pixels = processor(image, return_tensors="pt", **options).pixel_values
    assert pixels.shape[-2:] == (1, 1)
    assert pixels.flatten() * 255 == pytest.approx([90] * 3, abs=1)
