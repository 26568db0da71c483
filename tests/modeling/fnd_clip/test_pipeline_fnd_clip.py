"""The pipeline for posts and the processor: forms of input, several images, none, and what is refused."""

import pytest
import torch
from fnd_clip_runs import fnd_clip_model, news_processor
from PIL import Image
from transformers import AutoProcessor, pipeline

from hf_clip_variants.modeling.posts.text_and_image_classification import TASK


RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 30), "blue")
TEXTS = ["A big fire in the town .", "the dog", "a cat , a dog"]


@pytest.fixture(scope="module")
def classify():
    return pipeline(TASK, model=fnd_clip_model(), processor=news_processor())


def test_answers_are_the_models_with_the_reasons(classify):
    model, processor = fnd_clip_model(), news_processor()
    with torch.no_grad():
        outputs = model(**processor(images=[RED, BLUE, RED], text=TEXTS, return_tensors="pt"))
    found = classify(TEXTS, [RED, BLUE, RED], batch_size=2)
    scores = outputs.logits.softmax(-1)
    for number, one in enumerate(found):
        assert list(one["scores"].values()) == pytest.approx(scores[number].tolist(), abs=1e-5)
        assert one["score"] == max(one["scores"].values()) == one["scores"][one["label"]]
        assert one["similarity"] == pytest.approx(float(outputs.similarity[number]), abs=1e-5)
        assert list(one["weights"].values()) == pytest.approx(outputs.modality_weights[number].tolist(), abs=1e-5)
        assert one["layers"] == pytest.approx(outputs.layer_attention[number].tolist(), abs=1e-5)
    alone = classify(TEXTS[0], RED)
    assert alone["score"] == pytest.approx(found[0]["score"], abs=1e-5)
    posts = [{"text": text, "image": image} for text, image in zip(TEXTS, [RED, BLUE, RED], strict=True)]
    assert [one["score"] for one in classify(posts)] == pytest.approx([one["score"] for one in found], abs=1e-5)
    assert classify(TEXTS[0], RED, clip_text="a cat")["similarity"] != alone["similarity"]


def test_several_images_of_a_post(classify):
    first, red, blue = classify(TEXTS[0], [RED, BLUE]), classify(TEXTS[0], RED), classify(TEXTS[0], BLUE)
    assert first["score"] == pytest.approx(red["score"], abs=1e-5) and "images" not in first
    mean, plain = classify([TEXTS[0], "a cat"], [[RED, BLUE], RED], several_images="mean", batch_size=2)
    assert [one["similarity"] for one in mean["images"]] == pytest.approx(
        [red["similarity"], blue["similarity"]], abs=1e-5
    )
    expected = (red["scores"]["rumor"] + blue["scores"]["rumor"]) / 2
    assert mean["scores"]["rumor"] == pytest.approx(expected, abs=1e-5) and "images" not in plain


def test_a_post_without_an_image(classify):
    with pytest.raises(ValueError, match="posts\\[1\\]: no image; want one, or without_image='text'"):
        classify(TEXTS, [RED, None, BLUE])
    found = classify(TEXTS, [RED, None, []], without_image="text", batch_size=3)
    assert found[1]["similarity"] is None and found[1]["weights"]["image"] == found[2]["weights"]["cross"] == 0
    assert found[0]["similarity"] is not None


def test_the_published_layer_attention_answers_posts_one_by_one():
    classify = pipeline(TASK, model=fnd_clip_model(batch_layer_attention=True), processor=news_processor())
    together = classify(TEXTS, [RED, BLUE, RED], batch_size=3)
    assert [one["score"] for one in together] == [classify(text, image)["score"] for text, image in POSTS]


POSTS = list(zip(TEXTS, [RED, BLUE, RED], strict=True))


def test_from_a_saved_folder(classify, tmp_path):
    fnd_clip_model().save_pretrained(tmp_path)
    news_processor(clean_text=False).save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    assert loaded(TEXTS[0], RED)["score"] == pytest.approx(classify(TEXTS[0], RED)["score"], abs=1e-5)
    assert (tmp_path / "clip_tokenizer" / "tokenizer.json").is_file()
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.max_text_length == 16 and processor.to_dict() == news_processor().to_dict()
    (tmp_path / "clip_tokenizer" / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (("", RED), {}, "posts\\[0\\]: text: got '', expected a text"),
        ((["a", "  "], [RED, RED]), {}, "posts\\[1\\]: text: got '  '"),
        ((["a"], [RED, RED]), {}, "image: 2 for 1 texts"),
        ((["a"], [RED], ["b", "c"]), {}, "clip_text: 2 for 1 texts"),
        (("a", "nowhere.png"), {}, "posts\\[0\\]: images\\[0\\]: no such file"),
        ((None, RED), {}, "text: got NoneType"),
        (({"text": "a"}, RED), {}, "got them beside posts with their own"),
        (("a", RED), {"several_images": "all"}, "several_images: 'all', expected 'first' or 'mean'"),
        (("a", RED), {"without_image": "skip"}, "without_image: 'skip', expected 'error' or 'text'"),
    ],
)
def test_wrong_posts_are_named(classify, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        classify(*arguments, **options)
    with pytest.raises(TypeError, match="threshold: unknown, expected several_images"):
        classify("a", RED, threshold=0.5)


def test_the_processor_cuts_and_refuses():
    processor = news_processor()
    texts, clip_texts = ["a cat " * 30, "a dog"], ["x", "y"]
    with pytest.warns(UserWarning, match="longer than 16 tokens and was cut"):
        inputs = processor(images=[RED, [BLUE, RED]], text=texts, clip_text=clip_texts, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 16) and inputs["clip_input_ids"].shape[1] < 8
    assert inputs["pixel_values"].shape == (2, 3, 24, 24) and inputs["image_mask"].tolist() == [1, 1]
    assert set(inputs) <= set(processor.model_input_names)
    for arguments, message in (
        ({}, "images, text: got neither"),
        ({"text": 3.5}, "text: got float, expected a text or a list"),
        ({"text": ["a"], "clip_text": 7}, "clip_text: got int, expected a text or a list"),
        ({"text": ["a", " "]}, "text\\[1\\]"),
        ({"text": ["a"], "clip_text": [""]}, "clip_text\\[0\\]"),
        ({"text": ["a"], "clip_text": ["b", "c"]}, "clip_text: 2 for 1 texts"),
        ({"text": ["a"], "images": [RED, RED]}, "images: 2 for 1 texts, expected one for each, or None"),
        ({"text": ["a", "b"], "images": RED}, "images: 1 for 2 texts, expected one for each, or None"),
        ({"text": ["a", "b"], "images": [None, None]}, "images: none in any of 2 posts"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(**arguments)
    with pytest.raises(ValueError, match="max_text_length: 2"):
        type(processor)(processor.image_processor, processor.tokenizer, processor.clip_tokenizer, 2)
