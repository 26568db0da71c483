"""Several sources read as one, and the classes that sources share."""

import pytest
from datasets import Dataset, Image
from few_shot_runs import CONCEPTS, save_images

from hf_clip_variants import load_images
from hf_clip_variants.data.images.labelled_sets import shared_classes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    save_images(root / "plain", {"": ["fluentflat"]})
    save_images(root / "split", {"train": ["emojione"], "test": ["notov1"]})
    save_images(root / "fewer" / "plain", {"": ["fluent3d"]}, ("dog", "taco"))
    return root


def test_images_follow_each_other_and_classes_are_matched_by_name(folders):
    images = load_images([folders / "plain", folders / "fewer" / "plain"])
    assert images.class_names == tuple(sorted({*CONCEPTS, "taco"}))
    assert [images.class_names[label] for label in images.labels][-2:] == ["dog", "taco"]
    assert images.ids[0] == "1-plain/banana/fluentflat.png" and images.ids[-1] == "2-plain/taco/fluent3d.png"
    alone = load_images(folders / "plain")
    assert images.encoded_bytes(3) == alone.encoded_bytes(3) and len(images) == len(alone) + 2


def test_a_source_without_splits_is_for_training_where_another_has_splits(folders):
    images = load_images([str(folders / "plain"), str(folders / "split")])
    assert images.split == "train" and len(images) == 12 and images.available_splits == ("train", "test")
    test = images.load_split(split="test")
    assert len(test) == 6 and test.ids[0] == "split/banana/notov1.png" and test.class_names == images.class_names


def test_named_labels_are_joined_with_text(folders):
    images = load_images(["emoji:notov1@food-drink", str(folders / "plain")])
    assert {"pizza", "taco", "owl"} <= set(images.class_names) and len(images) == 88 + 6
    pizza = [one for one, label in zip(images.ids, images.labels, strict=True) if images.class_names[label] == "pizza"]
    assert len(pizza) == 2
    same = load_images(["emoji:notov1", "emoji:fluent3d"])
    assert same.class_names == load_images("emoji").class_names, "the order of the source's own list is kept"


def test_integers_without_names_are_refused(folders, tmp_path):
    table = Dataset.from_dict({"image": [str(folders / "plain/cat/fluentflat.png")], "label": [3]})
    table.cast_column("image", Image()).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="table.parquet has integer labels without names"):
        load_images([folders / "plain", tmp_path / "table.parquet"])


def test_a_list_of_one_is_that_source(folders):
    assert load_images([folders / "split"]).fingerprint == load_images(folders / "split").fingerprint


def test_only_classes_leaves_out_the_others(folders):
    images = load_images(folders / "split", only_classes=["dog", "cat", "unheard of"])
    assert images.class_names == ("cat", "dog") and set(images.labels) == {0, 1}
    assert images.load_split(split="test").class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="only_classes: .* has none of 'yak'"):
        load_images(folders / "split", only_classes=["yak"])


def test_shared_classes_have_images_on_every_side(folders):
    kept, others = shared_classes(str(folders / "split"), [str(folders / "plain")])
    assert kept == sorted(CONCEPTS) and others == []
    (folders / "split/test/cat/notov1.png").unlink()
    kept, others = shared_classes(str(folders / "split"))  # its own test split
    assert "cat" not in kept and others == ["cat"] and len(kept) == 5
    with pytest.raises(ValueError, match="common classes: 1 are in all of training and test data"):
        shared_classes(str(folders / "plain"), [str(folders / "fewer" / "plain")])
