"""Collators: rows to batches."""

import pytest
import torch
from tiny import EMOJI_CLIP, tiny_tokenizer
from transformers import AutoProcessor, CLIPModel

from hf_clip_variants.data import FeatureCollator, ImageClassificationCollator, ImageTextCollator, load_emoji


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(EMOJI_CLIP)


@pytest.fixture(scope="module")
def images():
    return load_emoji("notov1", concepts=["cat", "dog", "lemon"])


def test_image_rows_become_a_batch(processor, images):
    rows = [images.dataset[i] for i in (2, 0)]
    batch = ImageClassificationCollator(processor)(rows)
    expected = processor.image_processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    assert set(batch) == {"pixel_values", "labels"} and torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [2, 0] and batch["labels"].dtype == torch.int64
    with pytest.raises(ValueError, match=r"rows have \['label'\]; want 'image'.*remove_unused_columns=False"):
        ImageClassificationCollator(processor)([{"label": 0}])
    with pytest.raises(ValueError, match="want 'labels' or 'label'"):
        ImageClassificationCollator(processor)([{"image": rows[0]["image"]}])
    with pytest.raises(ValueError, match="ImageClassificationCollator: got an empty batch"):
        ImageClassificationCollator(processor)([])


def test_feature_rows_become_a_batch():
    rows = [{"image_features": torch.full((3,), float(i)), "labels": i} for i in range(2)]
    batch = FeatureCollator()(rows)
    assert batch["image_features"].tolist() == [[0.0] * 3, [1.0] * 3] and batch["labels"].tolist() == [0, 1]


def test_image_text_gives_a_clip_model_its_loss(processor, images):
    rows = [
        {"image": images.image(i), "caption": name}
        for i, name in enumerate(["cat", "a very " * 60 + "good dog", "lemon"])
    ]
    batch = ImageTextCollator(processor, text_column="caption")(rows)
    assert batch["return_loss"] is True and batch["pixel_values"].shape == (3, 3, 64, 64)
    assert (
        batch["input_ids"].shape == (3, tiny_tokenizer().model_max_length) and batch["attention_mask"].sum() < 3 * 32
    )
    loss = CLIPModel.from_pretrained(EMOJI_CLIP).eval()(**batch).loss
    assert loss.isfinite() and loss.ndim == 0
    short = ImageTextCollator(processor, text_column="caption")([rows[0], rows[2]])
    assert short["input_ids"].shape[1] < 8
