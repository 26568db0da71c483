"""Images with several labels each: every way to write them gives the same matrix; wrong ones are named."""

import csv
import logging

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from hf_clip_variants.data import ImageClassificationCollator, load_images, load_multi_label_images
from hf_clip_variants.data.images.sources import SeveralLabels
from hf_clip_variants.modeling.clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor


NAMES = ("cat", "dog", "hot dog")
LABELS = [[0], [0, 1], [], [2, 1]]
MATRIX = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]]
WORDS = [[NAMES[label] for label in row] for row in LABELS]


@pytest.fixture(scope="module")
def pictures():
    emoji = load_images("emoji:notov1")
    return [emoji.image(row) for row in range(len(LABELS))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    """A folder with the images 0.png, 1.png, …"""
    path = tmp_path_factory.mktemp("pictures")
    for row, picture in enumerate(pictures):
        picture.save(path / f"{row}.png")
    return path


def dataset_of(pictures, values, feature, column="labels"):
    features = Features({"image": Image(), column: feature})
    return Dataset.from_dict({"image": pictures, column: values}, features=features)


def write_csv(path, header, rows, **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def assert_expected(images):
    assert images.class_names == NAMES
    assert images.labels.dtype == np.float32 and images.labels.tolist() == MATRIX
    assert len(images) == 4 and images.image(3).size == (64, 64)


@pytest.mark.parametrize(
    ("values", "feature", "options"),
    [
        (LABELS, List(ClassLabel(names=list(NAMES))), {}),
        (LABELS, List(Value("int64")), {"class_names": NAMES}),
        ([*LABELS[:2], None, LABELS[3]], List(Value("int32")), {"class_names": {0: "cat", 1: "dog", 2: "hot_dog"}}),
        (WORDS, List(Value("string")), {}),
        (["|".join(row) for row in WORDS], Value("string"), {}),
        (["; ".join(row) for row in WORDS], Value("string"), {}),
        (["/".join(row) for row in WORDS], Value("string"), {"separator": "/"}),
    ],
)
def test_lists_and_text_of_labels_in_parquet_and_datasets(values, feature, options, pictures, tmp_path):
    dataset = dataset_of(pictures, values, feature)
    assert_expected(load_multi_label_images(dataset, **options))
    dataset.to_parquet(tmp_path / "photos.parquet")
    assert_expected(load_multi_label_images(tmp_path / "photos.parquet", **options))


@pytest.mark.parametrize("separator", ["|", ";", ","])
def test_a_csv_cell_with_several_labels(folder, separator):
    rows = [[f"{row}.png", separator.join(words)] for row, words in enumerate(WORDS)]
    images = load_multi_label_images(write_csv(folder / "cells.csv", ["path", "tags"], rows), label_columns="tags")
    assert_expected(images)
    assert images.ids == ("0.png", "1.png", "2.png", "3.png")


def test_a_column_of_0_and_1_for_each_class(folder, pictures, caplog):
    rows = [[f"{row}.png", 480, *values] for row, values in enumerate(MATRIX)]
    file = write_csv(folder / "columns.csv", ["image", "height", *NAMES], rows)
    with caplog.at_level(logging.WARNING):
        assert_expected(load_multi_label_images(file))
    assert "3 columns of 0 and 1 are the classes; not read: 'height'" in caplog.text
    some = load_multi_label_images(file, label_columns=["hot dog", "cat"])
    assert some.class_names == ("hot dog", "cat") and some.labels.tolist() == [[0, 1], [0, 1], [0, 0], [1, 0]]
    columns = {name: [bool(row[index]) for row in MATRIX] for index, name in enumerate(NAMES)}
    assert_expected(load_multi_label_images(Dataset.from_dict({"image": pictures} | columns)))
    with pytest.raises(ValueError, match="label_columns: row 0 of 'height' holds '480'; want 0 or 1"):
        load_multi_label_images(file, label_columns=["cat", "height"])


def test_splits_have_the_same_classes(folder, pictures):
    splits = ["train", "train", "val", "test"]
    rows = [[f"{row}.png", "|".join(words), splits[row]] for row, words in enumerate(WORDS)]
    images = load_multi_label_images(write_csv(folder / "split.csv", ["image", "labels", "split"], rows))
    assert images.split == "train" and images.labels.tolist() == MATRIX[:2]
    assert {name: part.labels.tolist() for name, part in images.splits().items()} == {
        "train": MATRIX[:2],
        "validation": MATRIX[2:3],
        "test": MATRIX[3:],
    }
    dataset = dataset_of(pictures, LABELS, List(ClassLabel(names=list(NAMES))))
    both = DatasetDict({"train": dataset, "test": dataset.select([3])})
    assert load_multi_label_images(both, "test").labels.tolist() == MATRIX[3:]


def test_selections_keep_images_and_labels_together(pictures):
    images = load_multi_label_images(dataset_of(pictures, WORDS, List(Value("string"))))
    assert images.select([3, 0]).labels.tolist() == [MATRIX[3], MATRIX[0]]
    some = images.select_classes([2, 0])
    assert some.class_names == ("hot dog", "cat") and some.labels.tolist() == [[0, 1], [0, 1], [0, 0], [1, 0]]
    more = images.align_classes(["dog", "fox", "hot dog", "cat"])
    assert more.labels.tolist() == [[0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    with pytest.raises(ValueError, match="photos: 1 of 3 classes are not among the 2 of the model: 'hot dog'"):
        images.align_classes(["cat", "dog"], "photos")
    assert images.fingerprint != images.select([1, 0, 2, 3]).fingerprint
    others = load_multi_label_images(dataset_of(pictures, WORDS[::-1], List(Value("string"))))
    assert others.class_names == images.class_names and others.fingerprint != images.fingerprint, "other labels"


def test_unreadable_images_are_left_out_with_their_labels(folder):
    (folder / "broken.png").write_bytes(b"not an image")
    rows = [["0.png", "cat"], ["broken.png", "dog"], ["3.png", "hot dog|dog"]]
    file = write_csv(folder / "broken.csv", ["image", "labels"], rows)
    with pytest.raises(ValueError, match="broken.png"):
        load_multi_label_images(file)
    images = load_multi_label_images(file, on_error="skip")
    assert images.labels.tolist() == [[1, 0, 0], [0, 1, 1]] and images.skipped[0][0] == "broken.png"


def test_one_label_an_image_is_a_list_of_one(pictures, tmp_path):
    emoji = load_multi_label_images("emoji:notov1@food-drink")
    assert np.array_equal(emoji.labels, np.eye(len(emoji)))
    for name, picture in zip(("cat", "dog"), pictures, strict=False):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
    assert load_multi_label_images(tmp_path).labels.tolist() == [[1, 0], [0, 1]]


def test_batches_for_trainer_have_floats_for_each_class(pictures):
    images = load_multi_label_images(dataset_of(pictures, WORDS, List(Value("string"))))
    batch = ImageClassificationCollator(CLIPClassifierImageProcessor())(
        [images.dataset[row] for row in range(len(images))]
    )
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == MATRIX


def test_what_is_wrong_is_named(pictures, folder):
    lists = dataset_of(pictures, WORDS, List(Value("string")))
    with pytest.raises(SeveralLabels, match="label_column: 'labels' holds lists of text, several labels an image"):
        load_images(lists)
    with pytest.raises(
        ValueError, match=r"label of images\[1\] .*: got 'dog', which is not among the class names 'cat'"
    ):
        load_multi_label_images(lists, class_names=["cat", "hot dog"])
    with pytest.raises(ValueError, match="label_columns: got 'tags'; columns image: image, labels: lists of text"):
        load_multi_label_images(lists, label_columns="tags")
    with pytest.raises(ValueError, match="label_columns: cannot tell where the labels are"):
        load_multi_label_images(dataset_of(pictures, ["a", "b", "c", "d"], Value("string"), "caption"))
    with pytest.raises(ValueError, match="label_columns: 'labels' holds lists of float32; want lists of class labels"):
        load_multi_label_images(dataset_of(pictures, [[0.5]] * 4, List(Value("float32"))))
    with pytest.raises(ValueError, match="no image has a label"):
        load_multi_label_images(dataset_of(pictures, [[]] * 4, List(Value("string"))))
    with pytest.raises(ValueError, match="class_names: the labels are integers"):
        load_multi_label_images(dataset_of(pictures, LABELS, List(Value("int64"))))
    with pytest.raises(ValueError, match="source: got 2 sources"):
        load_multi_label_images(["a.csv", "b.csv"])
