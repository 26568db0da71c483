"""Images and texts: the official resize and padding, orientations, texts that are blank, the pipeline."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvF
from clip_vil_runs import ANSWERS, CLS, clip_vil_model, clip_vil_processor, noise
from PIL import Image
from transformers import AutoModelForVisualQuestionAnswering, pipeline

from hf_clip_variants import ClipViLImageProcessor


def official(image: Image.Image, shortest: int = 384, longest: int = 640) -> torch.Tensor:
    """Written plainly from the description of the official transform."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    edge = shortest if long / short * shortest <= longest else int(round(longest * short / long))
    if short != edge:
        size = (int(edge * height / width), edge) if width < height else (edge, int(edge * width / height))
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    wide, high = (shortest, longest) if width <= height else (longest, shortest)
    left, top = (wide - image.width) / 2, (high - image.height) / 2
    margins = [math.ceil(left), math.ceil(top), math.floor(left), math.floor(top)]
    return tvF.to_tensor(tvF.pad(image, margins))


SIZES = [(640, 480), (480, 640), (500, 500), (1000, 300), (300, 1001), (384, 384), (77, 51), (641, 385), (20, 400)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_the_official_transform(size):
    image = noise(*size)
    exact = ClipViLImageProcessor(resample_backend="pil", do_normalize=False)(image, return_tensors="pt")
    expected = official(image)
    assert exact.pixel_values.shape[1:] == expected.shape
    torch.testing.assert_close(exact.pixel_values[0], expected, rtol=0, atol=1e-6)
    default = ClipViLImageProcessor(do_normalize=False)(image, return_tensors="pt")
    assert (default.pixel_values[0] - expected).abs().max() < 2.1 / 255
    inside = exact.pixel_mask[0].bool()
    assert (expected[:, ~inside] == 0).all() and inside.any()
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    assert int(inside.sum()) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


def test_padding_is_black_before_the_mean_is_subtracted():
    found = ClipViLImageProcessor()(Image.new("RGB", (640, 100), "white"), return_tensors="pt").pixel_values
    mean, std = (torch.tensor(x) for x in (ClipViLImageProcessor.image_mean, ClipViLImageProcessor.image_std))
    torch.testing.assert_close(found[0, :, 0, 0], -mean / std)
    torch.testing.assert_close(found[0, :, 192, 320], (1 - mean) / std)


def test_batches_of_both_orientations_are_filled_up_with_zeros():
    processor = clip_vil_processor().image_processor
    images = [noise(96, 64), noise(64, 96)]
    found = processor(images, return_tensors="pt")
    assert found.pixel_values.shape == (2, 3, 96, 96)
    for number, image in enumerate(images):
        alone = processor(image, return_tensors="pt").pixel_values[0]
        high, wide = alone.shape[1:]
        assert torch.equal(found.pixel_values[number, :, :high, :wide], alone)
        rest = found.pixel_values[number].clone()
        rest[:, :high, :wide] = 0
        assert not rest.any() and int(found.pixel_mask[number].sum()) == 64 * 96
    assert [processor.orientation(64, 96), processor.orientation(96, 64), processor.orientation(5, 5)] == [0, 1, 1]
    lists = processor(images)
    assert [tuple(one.shape) for one in lists["pixel_values"]] == [(3, 64, 96), (3, 96, 64)]


def test_captions_are_squashed_and_settings_are_saved(tmp_path):
    squares = ClipViLImageProcessor(size={"height": 48, "width": 48}, resample=3, return_pixel_mask=False)
    squares.save_pretrained(tmp_path)
    found = ClipViLImageProcessor.from_pretrained(tmp_path)([noise(90, 40), noise(30, 40)], return_tensors="pt")
    assert found.pixel_values.shape == (2, 3, 48, 48) and "pixel_mask" not in found
    kept = ClipViLImageProcessor(do_pad=False, size={"shortest_edge": 32, "longest_edge": 64})
    assert kept(noise(90, 60), return_tensors="pt").pixel_values.shape == (1, 3, 32, 48)
    with pytest.raises(ValueError, match="2 sizes after resizing"):
        kept([noise(90, 60), noise(60, 60)], return_tensors="pt")
    for settings, message in (
        ({"size": {"shortest_edge": 64, "longest_edge": 32}}, "expected a longest_edge not below shortest_edge"),
        ({"return_pixel_mask": "yes"}, "return_pixel_mask: 'yes'"),
        ({"size": {"shortest_edge": 10**9, "longest_edge": 10**9}}, "size"),
    ):
        with pytest.raises(ValueError, match=message):
            ClipViLImageProcessor(**settings)(noise(9, 9), return_tensors="pt")


def test_images_of_every_kind_and_broken_ones(tmp_path):
    processor = clip_vil_processor().image_processor
    (tmp_path / "broken.png").write_bytes(b"no")
    kinds = [Image.new("L", (1, 1)), Image.new("RGBA", (30, 3000)), np.zeros((9, 7, 3), np.uint8), noise(3000, 2)]
    for image in kinds:
        found = processor(image, return_tensors="pt")
        assert found.pixel_values.shape[2:] in ((64, 96), (96, 64)) and found.pixel_values.isfinite().all()
    with pytest.raises(ValueError, match=r"images\[1\]"):
        processor([noise(9, 9), tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="no images"):
        processor([])


# ---- texts


def test_texts_belong_to_images_and_may_not_be_blank():
    processor, images = clip_vil_processor(), [noise(96, 64, i) for i in range(2)]
    found = processor(images, ["the cat", "is there a red dog ?"], return_tensors="pt")
    assert found.input_ids.shape == found.attention_mask.shape and set(found) == set(processor.model_input_names)
    assert torch.equal(
        processor(images, questions=["the cat"] * 2, return_tensors="pt").input_ids[0], found.input_ids[0, :4]
    )
    assert processor(images, "the cat", return_tensors="pt").input_ids.shape == (2, 4)
    assert processor(text=["a"] * 3, return_tensors="pt").input_ids.shape[0] == 3
    long = processor(images[:1], "cat " * 50, return_tensors="pt")
    assert long.input_ids.shape[1] == 12
    begun = processor(images, beginning="the cat")
    assert begun.input_ids.tolist() == [[CLS, *processor.tokenizer("the cat").input_ids[1:-1]]] * 2
    for arguments, message in (
        ({}, "images, text: got neither"),
        ({"images": images, "text": ["a", " "]}, r"text\[1\]"),
        ({"images": images, "text": ["a"] * 3, "return_tensors": "pt"}, "text: 3 for 2 images, expected one for each"),
        ({"questions": ["a"]}, "images: missing, expected an image of each question"),
        ({"images": images, "text": "a", "questions": "b"}, "text, questions: got 2 of them"),
        ({"beginning": "a"}, "images: missing, expected an image that is described"),
        ({"images": images, "beginning": "cat " * 20}, "beginning: 20 tokens, expected at most 10"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(**arguments)


# ---- the pipeline


def test_the_pipeline_answers_from_a_saved_folder(tmp_path):
    for part in (clip_vil_model("vqa"), clip_vil_processor()):
        part.save_pretrained(tmp_path)
    assert type(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)) is type(clip_vil_model("vqa"))
    answer = pipeline("image-question-answering", str(tmp_path))
    images, questions = [noise(90, 50), noise(33, 47)], ["what colour is the cat ?", "is there a dog ?"]
    found = answer(images, questions, batch_size=2)
    for image, question, answers in zip(images, questions, found, strict=True):
        with torch.no_grad():
            logits = answer.model(**answer.processor(image, question, return_tensors="pt")).logits[0]
        assert [one["answer"] for one in answers] == [ANSWERS[i] for i in logits.argsort(descending=True)]
        expected = logits.sigmoid().sort(descending=True).values.tolist()
        assert [one["score"] for one in answers] == pytest.approx(expected, abs=1e-4)
    assert answer({"image": images[0], "question": questions[0]}, top_k=1) == found[0][:1]
    answer.model.config.problem_type = "single_label_classification"
    assert sum(one["score"] for one in answer(images[0], questions[0])) == pytest.approx(1, abs=1e-5)
    for arguments, message in (
        ((images[0], "  "), "question: got '  ', expected a text"),
        ((None, "a ?"), "image: missing for the question 'a"),
        ((images, ["a"]), "question: 1 for 2 images"),
        ((images, 3), "question: got int, expected a text or a list"),
        (({"image": 7, "question": "a ?"},), "image: got int for 'a"),
    ):
        with pytest.raises(ValueError, match=message):
            answer(*arguments)
    for wrong in (0, -1, 1.5, "x", True):
        with pytest.raises(ValueError, match=f"top_k: {wrong!r}, expected a whole number"):
            answer(images[0], "a ?", top_k=wrong)
    assert len(answer(images[0], "a ?", top_k=None)) == len(ANSWERS)
    with pytest.raises(TypeError, match="boxes: unknown, expected question, timeout, top_k"):
        answer(images[0], "a ?", boxes=True)
    with pytest.raises(ValueError, match="ClipViLModel answers no questions"):
        pipeline("image-question-answering", clip_vil_model("model"), processor=clip_vil_processor())
