"""Which folders are splits and which are classes. The files are empty: only their names count here."""

from pathlib import Path

import pytest

from hf_clip_variants.data import load_images
from hf_clip_variants.data.images.folders import read_class_folders


CLASSES = ("cat", "dog")


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def each(*folders: str, names=CLASSES) -> list[str]:
    return [f"{folder}/{name}/0.png" for folder in folders for name in names]


def layout(folder: Path) -> dict[str, dict[str, list[str]]]:
    return {
        split: {name: ["/".join(file) for file in files] for name, files in sorted(part.files.items())}
        for split, part in read_class_folders(folder).items()
    }


def splits_and_classes(folder: Path) -> dict[str, list[str]]:
    return {split: list(classes) for split, classes in layout(folder).items()}


BOTH = list(CLASSES)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train", "test", "unlabeled"], ["test", "train"]),
        (["train2017", "val2017", "extra"], ["train", "validation"]),
        (["Train", "Valid", "Test"], ["test", "train", "validation"]),
        (["training_set", "test_set"], ["test", "train"]),
        (["train_images", "val-256", "more"], ["train", "validation"]),
        (["seg_train", "seg_test", "seg_pred"], ["test", "train"]),
        (["seg_train/seg_train", "seg_test/seg_test"], ["test", "train"]),
        (["train"], ["train"]),
        (["train", "unlabeled"], ["train"]),
    ],
)
def test_folders_named_after_splits_are_splits(tmp_path, folders, splits):
    make(tmp_path, *each(*folders))
    assert splits_and_classes(tmp_path) == dict.fromkeys(splits, BOTH)


def test_folders_of_images_beside_splits_are_named_and_others_are_not(tmp_path, caplog):
    make(tmp_path, *each("train", "test"), "unlabeled/images/0.png", "masks/0.png", "annotations/0.xml")
    assert splits_and_classes(tmp_path) == {"test": BOTH, "train": BOTH}
    assert "not read beside the splits 'test', 'train': 'masks', 'unlabeled'" in caplog.text
    assert "annotations" not in caplog.text


def test_splits_without_class_folders_are_left_out_with_a_warning(tmp_path, caplog):
    make(tmp_path, *each("train"), "test/0.png", "test/1.png")
    assert splits_and_classes(tmp_path) == {"train": BOTH}
    assert f"{tmp_path / 'test'}: the split is left out, it has no images in class sub-folders" in caplog.text
    flat = make(tmp_path / "flat", "train2017/0.png", "val2017/0.png")
    with pytest.raises(ValueError, match="flat: no images in class sub-folders.*want <folder>/<class name>/<image>"):
        read_class_folders(flat)


def test_two_folders_of_one_split_are_an_error(tmp_path):
    make(tmp_path, *each("train2014", "train2017", "val2017"))
    with pytest.raises(ValueError, match="'train2014' and 'train2017' are both the train split"):
        read_class_folders(tmp_path)


@pytest.mark.parametrize(
    "names", [["test", "tram"], ["train", "bus", "car"], ["test1", "test2"], ["test tube", "train station"]]
)
def test_classes_that_are_called_like_a_split_stay_classes(tmp_path, names, caplog):
    make(tmp_path, *(f"{name}/0.png" for name in names))
    assert splits_and_classes(tmp_path) == {"": sorted(names)} and not caplog.text


def test_a_class_that_looks_like_a_split_with_classes_is_warned_about(tmp_path, caplog):
    make(tmp_path, *each("train"), "bus/0.png")
    assert splits_and_classes(tmp_path) == {"": ["bus", "train"]}
    assert "(train/cat, …). The classes are 'bus', 'train'. If the sub-folders are the classes" in caplog.text


def test_splits_may_be_below_the_classes(tmp_path, caplog):
    make(tmp_path, *(f"{name}/{split}/a/0.png" for name in CLASSES for split in ("train", "val2017")))
    assert layout(tmp_path) == {
        "train": {"cat": ["cat/train/a/0.png"], "dog": ["dog/train/a/0.png"]},
        "validation": {"cat": ["cat/val2017/a/0.png"], "dog": ["dog/val2017/a/0.png"]},
    }
    assert not caplog.text


# ---------------------------------------------------------------------------------------------------------- classes


def test_images_at_any_depth_belong_to_the_upper_folder(tmp_path, caplog):
    make(tmp_path, "cat/z.png", "cat/2021/b.png", "cat/2021/may/a.png", "cat/.old/c.png", "dog/0.png", "dog/one/0.JPG")
    assert layout(tmp_path) == {
        "": {"cat": ["cat/2021/b.png", "cat/2021/may/a.png", "cat/z.png"], "dog": ["dog/0.png", "dog/one/0.JPG"]}
    }
    assert not caplog.text


def test_below_initials_the_classes_are_the_folders_with_images(tmp_path, caplog):
    files = ["a/abbey/0.jpg", "a/arch/outdoor/0.jpg", "b/bakery/shop/0.jpg", "b/bakery/0.jpg", "f/Field/wild/0.jpg"]
    for split in ("train", "val"):
        make(tmp_path, *(f"{split}/{file}" for file in files))
    (tmp_path / "train/f/fen").mkdir()
    expected = {
        "abbey": ["a/abbey/0.jpg"],
        "bakery": ["b/bakery/0.jpg"],
        "outdoor arch": ["a/arch/outdoor/0.jpg"],
        "shop bakery": ["b/bakery/shop/0.jpg"],
        "wild Field": ["f/Field/wild/0.jpg"],
    }
    assert layout(tmp_path) == {"train": expected | {"fen": []}, "validation": expected} and not caplog.text


@pytest.mark.parametrize("files", [["a/apple/0.jpg", "b/1/0.jpg"], ["a/0.jpg", "a/apple/0.jpg", "b/bear/0.jpg"]])
def test_classes_of_one_letter_stay_classes(tmp_path, files):
    make(tmp_path, *files)
    assert splits_and_classes(tmp_path) == {"": ["a", "b"]}


def test_two_levels_of_folders_are_warned_about(tmp_path, caplog):
    make(tmp_path, *each("animals"), *each("vehicles", names=("bus", "car")))
    assert splits_and_classes(tmp_path) == {"": ["animals", "vehicles"]}
    assert "(animals/cat, …). The classes are 'animals', 'vehicles'. If the sub-folders are the classes" in caplog.text


def test_other_files_in_class_folders_are_counted(tmp_path, caplog):
    make(tmp_path, *each("."), "cat/a.mp4", "cat/b.MP4", "dog/old/a.psd", "dog/LICENSE", "dog/Thumbs.db", "notes.txt")
    make(tmp_path, "dog/.DS_Store", ".git/config", "__MACOSX/cat/._0.png")
    assert splits_and_classes(tmp_path) == {"": BOTH}
    assert f"{tmp_path}: left out 2 .mp4, 1 .psd, 1 without suffix\n" in caplog.text


def test_a_class_of_unreadable_files_is_named_with_their_count(tmp_path, caplog):
    make(tmp_path, *each(".", names=("cat", "dog")), "hot_dog/0.cr2", "hot_dog/1.cr2", "cat/a.txt")
    with pytest.raises(ValueError, match=r"no images for 1 of 3 classes: 'hot dog'; left out of them 2 \.cr2\. Add"):
        load_images(tmp_path, verify=False)
    raw = make(tmp_path / "raw", "cat/0.nef", "dog/0.nef", "0.png")
    with pytest.raises(ValueError, match="its 1 images lie in no class sub-folder; left out 2 .nef; want <folder>"):
        load_images(raw)


def test_the_splits_of_a_folder_are_those_of_the_image_set(tmp_path, caplog):
    make(tmp_path, *each("train2017", "val2017"), "unlabeled/0.png")
    images = load_images(tmp_path, verify=False)
    assert (images.split, images.available_splits) == ("train", ("train", "validation"))
    assert images.class_names == CLASSES and images.ids == ("cat/0.png", "dog/0.png")
    assert "'unlabeled'" in caplog.text


@pytest.mark.parametrize("kind", [str, Path])
def test_messages_name_the_folder_whatever_its_type(tmp_path, kind):
    make(tmp_path, "cat/0.png")
    with pytest.raises(ValueError, match=f"^{tmp_path}: one class only"):
        load_images(kind(tmp_path), verify=False)
    with pytest.raises(ValueError, match=f"split: got 'test'; {tmp_path} has no splits"):
        load_images(kind(tmp_path), "test")
