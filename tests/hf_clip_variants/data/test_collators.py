"""Collators: rows to batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import EMOJI_CLIP, tiny_tokenizer
from transformers import AutoProcessor, CLIPModel

from hf_clip_variants import DenseImageProcessor
from hf_clip_variants.data import (
    FeatureCollator,
    ImageClassificationCollator,
    ImageTextCollator,
    SegmentationCollator,
    load_emoji,
)


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


def segmentation_rows():
    """Two scenes of different sizes, with labels 0 (background), 3 and 5 of six."""
    maps = [np.zeros((8, 12), np.uint8), np.zeros((10, 6), np.uint8)]
    maps[0][:3], maps[1][4:] = 3, 5
    return [{"image": Image.new("RGB", one.shape[::-1], "red"), "label_map": one} for one in maps]


def test_segmentation_rows_become_a_batch_of_one_size():
    collate = SegmentationCollator(DenseImageProcessor(do_resize=False, ignore_index=7))
    batch = collate(segmentation_rows())
    assert set(batch) == {"pixel_values", "labels"} and batch["pixel_values"].shape == (2, 3, 10, 12)
    assert (batch["labels"][0, 8:] == 7).all() and (batch["labels"][1, :, 6:] == 7).all()  # padding
    assert batch["labels"][0, :3].unique().tolist() == [3]


def test_a_batch_has_its_own_labels_and_some_others():
    table = torch.arange(6.0)[:, None].repeat(1, 2)
    collate = SegmentationCollator(DenseImageProcessor(do_resize=False), table, labels_at_once=4, always=[1])
    plain = SegmentationCollator(DenseImageProcessor(do_resize=False))(segmentation_rows())["labels"]
    seen = set()
    for _ in range(20):
        batch = collate(segmentation_rows())
        labels, embeddings = batch["labels"], batch["class_embeddings"]
        assert len(embeddings) == 4 and {0.0, 1.0, 3.0, 5.0} <= set(embeddings[:, 0].tolist())
        counted = plain != 255
        assert torch.equal(labels == 255, ~counted)
        assert torch.equal(embeddings[labels[counted], 0].long(), plain[counted])  # the same label by its new number
    for _ in range(20):
        batch = SegmentationCollator(DenseImageProcessor(do_resize=False), table, 4)(segmentation_rows()[:1])
        assert len(batch["class_embeddings"]) == 4
        seen |= set(batch["class_embeddings"][:, 0].tolist())
    assert seen == set(range(6))
    few = SegmentationCollator(DenseImageProcessor(do_resize=False), table, labels_at_once=1)(segmentation_rows())
    assert few["class_embeddings"][:, 0].tolist() == [0, 3, 5]  # all that are there
    all_of_them = SegmentationCollator(DenseImageProcessor(do_resize=False), table)(segmentation_rows())
    assert torch.equal(all_of_them["labels"], plain) and torch.equal(all_of_them["class_embeddings"], table)


def test_bad_labels_of_segmentation_rows_are_named():
    processor = DenseImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"label_map: label 5; want 0\.\.4, as class_embeddings has"):
        SegmentationCollator(processor, torch.zeros(5, 2), labels_at_once=2)(segmentation_rows())
    with pytest.raises(ValueError, match="labels_at_once: got 3; want class_embeddings with it"):
        SegmentationCollator(processor, labels_at_once=3)
    with pytest.raises(ValueError, match="labels_at_once: got 0; want at least 1"):
        SegmentationCollator(processor, torch.zeros(5, 2), labels_at_once=0)
    with pytest.raises(ValueError, match=r"rows have \['image'\]; want 'label_map'"):
        SegmentationCollator(processor)([{"image": Image.new("RGB", (4, 4))}])
