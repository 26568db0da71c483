"""The processor: safe text and images in one call, saved and loaded, and what transformers' pipeline makes of it."""

import json
import warnings

import pytest
import torch
from PIL import Image
from tiny import EMOJI_CLIP, tiny_clip, tiny_tokenizer
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, CLIPProcessor, pipeline

from hf_clip_variants import CLIPClassifierImageProcessor, CLIPClassifierProcessor
from hf_clip_variants.modeling.clip.text_clip import tokenize_texts


BOS, EOS = 4036, 4037
IMAGE = Image.effect_noise((50, 37), 80).convert("RGB")


@pytest.fixture(scope="module")
def processor():
    return CLIPClassifierProcessor(
        CLIPClassifierImageProcessor(size={"shortest_edge": 24}, crop_size=24), tiny_tokenizer()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("processor")
    CLIPClassifierProcessor(
        CLIPClassifierImageProcessor(size={"shortest_edge": 24}, crop_size=24, background=(9, 9, 9)),
        processor.tokenizer,
        clean_text=True,
    ).save_pretrained(folder)
    return folder


def test_images_and_text(processor):
    inputs = processor(images=[IMAGE, IMAGE], text=["cat", "red apple"], return_tensors="pt")
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "input_ids": (2, 4),
        "attention_mask": (2, 4),
        "pixel_values": (2, 3, 24, 24),
    }
    assert torch.equal(
        inputs.pixel_values, processor.image_processor([IMAGE, IMAGE], return_tensors="pt").pixel_values
    )
    assert inputs.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert inputs.to(torch.bfloat16).pixel_values.dtype == torch.bfloat16


def test_equals_clip_processor_on_ordinary_input(processor):
    theirs = CLIPProcessor.from_pretrained(EMOJI_CLIP)
    ours = CLIPClassifierProcessor.from_clip(theirs)
    arguments = {"images": [IMAGE], "text": ["cat", "a red apple!"], "return_tensors": "pt"}
    expected, actual = theirs(padding=True, **arguments), ours(**arguments)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert ours(text="cat") == theirs(text="cat")  # one text without tensors has no batch axis, as in transformers


def test_text_is_safe(processor):
    ids = processor(text=["<|endoftext|>"])["input_ids"][0]
    assert ids.count(EOS) == 1 and ids[-1] == EOS and BOS not in ids[1:]
    with pytest.warns(UserWarning, match=r"text\[1\]: .* longer than 32 tokens and was cut, keeping the end token"):
        rows = processor(text=["cat", "cat " * 50])["input_ids"]
    assert len(rows[1]) == 32 and rows[1][-1] == EOS
    with pytest.raises(ValueError, match=r"text\[0\]: '' is blank"):
        processor(text="")
    with pytest.raises(ValueError, match=r"images\[1\]: got NoneType"):
        processor(images=[IMAGE, None])
    with pytest.raises(ValueError, match="images, text: got neither"):
        processor()


def test_keyword_arguments_reach_both_parts(processor):
    inputs = processor(
        images=IMAGE,
        text=["cat"],
        padding="max_length",
        max_length=9,
        return_tensors="pt",
        size={"shortest_edge": 16},
        crop_size=16,
        resample_backend="pil",
    )
    assert inputs.input_ids.shape == (1, 9) and inputs.pixel_values.shape == (1, 3, 16, 16)
    nested = processor(
        images=IMAGE,
        text=["cat"],
        text_kwargs={"padding": "max_length", "max_length": 9},
        images_kwargs={"size": {"shortest_edge": 16}, "crop_size": 16, "resample_backend": "pil"},
        common_kwargs={"return_tensors": "pt"},
    )
    assert all(torch.equal(nested[name], inputs[name]) for name in inputs)
    assert processor(text=["cat", "red apple"], padding=False)["input_ids"] == tokenize_texts(
        processor.tokenizer, ["cat", "red apple"]
    )
    assert processor(text=["cat"], padding="max_length", return_tensors="pt").input_ids.shape == (1, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(processor(text="cat " * 50, truncation=False, verbose=False)["input_ids"]) == 52


def test_cleaning(processor):
    cleaning = CLIPClassifierProcessor(processor.image_processor, processor.tokenizer, clean_text=True)
    assert cleaning(text=["Cats &amp; dogs"]) == processor(text=["cats & dogs"])
    assert cleaning(text=["Cats &amp; dogs"]) != processor(text=["Cats &amp; dogs"])


def test_save_and_load(folder, processor):
    assert json.loads((folder / "processor_config.json").read_text())["clean_text"] is True
    for loaded in (
        CLIPClassifierProcessor.from_pretrained(folder),
        CLIPClassifierProcessor.from_pretrained(str(folder)),
    ):
        assert loaded.clean_text is True and type(loaded.image_processor) is CLIPClassifierImageProcessor
        assert loaded.image_processor.background == (9, 9, 9)
        arguments = {"images": Image.new("RGBA", (30, 20)), "text": ["A  Cat", "red apple"], "return_tensors": "pt"}
        again = CLIPClassifierProcessor(loaded.image_processor, processor.tokenizer, clean_text=True)(**arguments)
        assert all(torch.equal(value, again[name]) for name, value in loaded(**arguments).items())
    assert type(AutoProcessor.from_pretrained(folder)) is CLIPClassifierProcessor
    assert type(AutoImageProcessor.from_pretrained(folder)) is CLIPClassifierImageProcessor


def test_saving_leaves_the_tokenizer_alone(folder, processor):
    assert processor.tokenizer("<|endoftext|>")["input_ids"] == [BOS, EOS, EOS]
    assert "split_special_tokens" not in processor.tokenizer.init_kwargs


def test_saving_that_fails_leaves_the_tokenizer_alone(tmp_path, processor):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError):
        processor.save_pretrained(tmp_path / "taken")
    assert processor.tokenizer("<|endoftext|>")["input_ids"] == [BOS, EOS, EOS]


@pytest.mark.parametrize("source", [EMOJI_CLIP, str(EMOJI_CLIP), None], ids=["path", "string", "processor"])
def test_from_clip(source):
    theirs = CLIPProcessor.from_pretrained(EMOJI_CLIP)
    ours = CLIPClassifierProcessor.from_clip(source or theirs, clean_text=True, resample_backend="pil")
    settings, expected = ours.image_processor.to_dict(), theirs.image_processor.to_dict()
    assert {name: settings[name] for name in expected if name != "image_processor_type"} == {
        name: value for name, value in expected.items() if name != "image_processor_type"
    }
    assert ours.clean_text is True and settings["resample_backend"] == "pil"
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()


@pytest.fixture(scope="module")
def classify(folder):
    """transformers' own pipeline with the saved parts: it calls image processor and tokenizer, never the processor."""
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }
    return pipeline("zero-shot-image-classification", model=tiny_clip(), **parts)


def test_pipeline(classify, processor):
    labels = ["cat", "red apple", "forest"]
    result = classify(IMAGE, candidate_labels=labels, hypothesis_template="{}")
    with torch.no_grad():
        inputs = processor(images=IMAGE, text=labels, return_tensors="pt")
        expected = tiny_clip()(**inputs).logits_per_image.softmax(-1)[0]
    scores = {entry["label"]: entry["score"] for entry in result}
    assert torch.allclose(torch.tensor([scores[label] for label in labels]), expected, atol=1e-6)
    assert len(classify([IMAGE, IMAGE], candidate_labels=labels)) == 2


def test_pipeline_is_guarded_against_typed_special_tokens(classify):
    """`<|endoftext|>` at the beginning would cut every label to nothing: equal scores for all."""
    result = classify(IMAGE, candidate_labels=["cat", "forest"], hypothesis_template="<|endoftext|> {}")
    assert abs(result[0]["score"] - result[1]["score"]) > 1e-6
