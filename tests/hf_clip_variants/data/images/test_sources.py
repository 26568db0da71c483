"""`load_images`: every kind of source gives the same images; bad data gives a message that names it."""

import io
import os
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from hf_clip_variants.data import load_images
from hf_clip_variants.data.images import sources
from hf_clip_variants.data.images.class_labels import UnnamedLabels
from hf_clip_variants.data.images.names import tidy_class_name


def make_image(seed: int, size=(12, 9), mode="RGB") -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return PILImage.fromarray(pixels, "RGBA").convert(mode)


def encoded(seed: int, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    make_image(seed, **options).save(buffer, kind)
    return buffer.getvalue()


NAMES = ["golden_retriever", "sports_car", "tabby"]
CLEAN = ("golden retriever", "sports car", "tabby")


def fill(root, classes=NAMES, per_class=3, first_seed=0):
    """root/<class>/<i>.png, the last one in a sub-folder. Row r of the sorted set has seed first_seed + r."""
    for c, name in enumerate(classes):
        for i in range(per_class):
            folder = root / name / ("sub" if i == per_class - 1 else "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(encoded(first_seed + c * per_class + i))
    return root


@pytest.fixture
def folder(tmp_path):
    root = fill(tmp_path / "images")
    (root / "README.txt").write_text("not an image")
    (root / "tabby" / "Thumbs.db").write_bytes(b"x")
    (root / ".cache").mkdir()
    return root


def assert_is_the_folder_set(images):
    assert images.class_names == CLEAN
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for row in range(9):
        np.testing.assert_array_equal(np.asarray(images.image(row)), np.asarray(make_image(row)))


def rows(**columns):
    return {"image": [{"bytes": encoded(r), "path": None} for r in range(9)], **columns}


STRINGS = [name for name in NAMES for _ in range(3)]


def test_folder(folder):
    images = load_images(folder)
    assert_is_the_folder_set(images)
    assert images.ids[:3] == ("golden_retriever/0.png", "golden_retriever/1.png", "golden_retriever/sub/2.png")
    assert images.splits() == {} and images.split is None and images.skipped == ()
    assert images.dataset.features["label"].names == list(CLEAN)
    assert images.dataset[3]["label"] == 1 and images.dataset[3]["image"].size == (12, 9)
    assert "9 images" in repr(images) and len(repr(images)) < 120
    assert load_images(str(folder), clean_class_names=False).class_names == tuple(NAMES)


def test_folder_with_splits_shares_one_class_list(tmp_path, caplog):
    fill(tmp_path / "train")
    fill(tmp_path / "val", per_class=1, first_seed=50)
    fill(tmp_path / "test", classes=["tabby"], per_class=2, first_seed=70)
    train = load_images(tmp_path)
    assert train.split == "train" and len(train) == 9
    assert train.available_splits == ("test", "train", "validation")
    assert len(load_images(tmp_path, "val")) == len(load_images(tmp_path, "validation")) == 3
    test = load_images(tmp_path, "test")
    assert test.class_names == train.class_names and test.labels.tolist() == [2, 2]
    assert "no images for 2 of 3 classes: 'golden retriever', 'sports car'" in caplog.text
    splits = train.splits()
    assert {name: len(s) for name, s in splits.items()} == {"train": 9, "validation": 3, "test": 2}
    assert splits["train"] is train
    with pytest.raises(ValueError, match="no images for 2 of 3 classes"):
        load_images(tmp_path, "test", empty_classes="raise")
    with pytest.raises(ValueError, match=r"split: got 'dev2'.*'test', 'train', 'validation'"):
        load_images(tmp_path, "dev2")


def test_a_class_called_test_is_not_a_split(tmp_path):
    fill(tmp_path, classes=["test", "tram"])
    assert load_images(tmp_path).class_names == ("test", "tram")


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(folder, header, delimiter):
    lines = ["path,label"] if header else []
    lines += [f"{path}.png,{label}" for path, label in zip(paths(folder), STRINGS, strict=True)]
    file = folder.parent / "list.csv"
    file.write_text("\ufeff" + "\n".join(lines).replace(",", delimiter) + "\n\n", encoding="utf-8")
    images = load_images(file)
    assert_is_the_folder_set(images)
    assert images.ids[2] == "images/golden_retriever/sub/2.png"


def paths(folder):
    return [f"images/{name}/{'sub/' if i == 2 else ''}{i}" for name in NAMES for i in range(3)]


def test_csv_with_splits(folder):
    file = folder.parent / "list.tsv"
    lines = ["filename\tcategory\tsplit"]
    lines += [f"{p}.png\t{NAMES[r // 3]}\t{'val' if r % 3 == 2 else 'train'}" for r, p in enumerate(paths(folder))]
    file.write_text("\n".join(lines))
    assert len(load_images(file)) == 6 and len(load_images(file).splits()["validation"]) == 3
    file.write_text("\n".join([*lines, "x.png\tcat\t"]))
    with pytest.raises(ValueError, match=r"list.tsv, line 11: .*want a value for each of .*'split'"):
        load_images(file)


def test_digits_in_a_csv_are_class_names_or_numbers_of_given_ones(folder, caplog):
    file = folder.parent / "list.csv"
    file.write_text("path,label\n" + "\n".join(f"{p}.png,{r // 3}" for r, p in enumerate(paths(folder))))
    images = load_images(file)
    assert images.class_names == ("0", "1", "2") and "labels: all are digits ('0', '1', '2')" in caplog.text
    caplog.clear()
    named = load_images(file, class_names=NAMES)
    assert_is_the_folder_set(named)
    assert load_images(file, class_names={2: "a", 1: "b", 0: "c"}).class_names == ("c", "b", "a")
    digits = load_images(file, class_names=["2", "0", "1"])  # their order, not their numbers
    assert digits.labels.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0] and not caplog.records


def test_parquet_file_glob_folder_and_list(tmp_path):
    plain = Dataset.from_dict(rows(label=STRINGS))
    typed = plain.cast_column("image", Image())
    plain.to_parquet(tmp_path / "plain.parquet")
    typed.to_parquet(tmp_path / "typed.parquet")
    (tmp_path / "two").mkdir()
    typed.select(range(5)).to_parquet(tmp_path / "two" / "train-00000-of-00002.parquet")
    typed.select(range(5, 9)).to_parquet(tmp_path / "two" / "train-00001-of-00002.parquet")
    for source in (
        tmp_path / "plain.parquet",
        tmp_path / "typed.parquet",
        tmp_path / "two",
        str(tmp_path / "two" / "*.parquet"),
        sorted((tmp_path / "two").glob("*")),
    ):
        assert_is_the_folder_set(load_images(source))
    typed.select([0, 3, 6]).to_parquet(tmp_path / "two" / "validation-00000-of-00001.parquet")
    assert len(load_images(tmp_path / "two", "val")) == 3 and len(load_images(tmp_path / "two")) == 9
    raw = Dataset.from_dict({"picture": [encoded(r) for r in range(9)], "class": STRINGS, "n": list(range(9))})
    raw.to_parquet(tmp_path / "raw.parquet")
    assert_is_the_folder_set(load_images(tmp_path / "raw.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="bad.parquet'.*not readable as Parquet"):
        load_images(tmp_path / "bad.parquet")


def test_dataset_in_memory_on_disk_and_in_splits(tmp_path):
    features = Features(image=Image(), label=ClassLabel(names=NAMES), caption=Value("string"))
    dataset = Dataset.from_dict(rows(label=[r // 3 for r in range(9)], caption=["x"] * 9), features=features)
    assert_is_the_folder_set(load_images(dataset))
    assert_is_the_folder_set(load_images(dataset.select(range(9))))
    backwards = load_images(dataset.select(list(range(8, -1, -1))))
    assert backwards.labels.tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(np.asarray(backwards.image(0)), np.asarray(make_image(8)))
    dataset.save_to_disk(tmp_path / "disk")
    assert_is_the_folder_set(load_images(tmp_path / "disk"))
    splits = DatasetDict(train=dataset, test=dataset.select([0, 4, 8]))
    splits.save_to_disk(tmp_path / "dict")
    for source in (splits, tmp_path / "dict"):
        assert_is_the_folder_set(load_images(source))
        assert load_images(source, "test").labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="split: DatasetDict has 'a', 'b'; name one"):
        load_images(DatasetDict(a=dataset, b=dataset))
    with pytest.raises(TypeError, match="streaming IterableDataset"):
        load_images(dataset.to_iterable_dataset())


def test_alpha_and_orientation_are_kept_for_the_processor(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_image(0, mode="RGBA").save(tmp_path / name / "0.webp", lossless=True)
        turned = PILImage.Exif()
        turned[0x0112] = 6
        make_image(1).save(tmp_path / name / "1.jpg", exif=turned)
    images = load_images(tmp_path)
    assert images.image(0).mode == "RGBA" and images.image(1).size == (9, 12)


# ------------------------------------------------------------------------------------------------ labels and classes


def test_unrecognised_columns_are_listed():
    dataset = Dataset.from_dict(rows(fine=[0] * 9, coarse=[1] * 9))
    with pytest.raises(
        ValueError, match="label_column: cannot tell.*columns image: image, fine: integer, coarse: int"
    ):
        load_images(dataset)
    with pytest.raises(ValueError, match="label_column: got 'wrong'; columns image"):
        load_images(dataset, label_column="wrong")
    with pytest.raises(ValueError, match="image_column: got 'wrong'; columns image"):
        load_images(dataset, image_column="wrong", label_column="fine")
    with pytest.raises(ValueError, match="image_column: 'fine' holds integer; want images"):
        load_images(dataset, image_column="fine", label_column="coarse")
    with pytest.raises(ValueError, match="label_column: 'score' holds double|float64"):
        load_images(Dataset.from_dict(rows(score=[0.5] * 9)), label_column="score")


def test_class_names_may_be_text_a_file_or_a_mapping_as_json_writes_it(tmp_path):
    dataset = Dataset.from_dict(rows(label=[r // 3 for r in range(9)]))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "names.json").write_text('{"2": "tabby", "0": "golden_retriever", "1": "sports_car"}')
    for names in (", ".join(NAMES), tmp_path / "names.txt", str(tmp_path / "names.json")):
        assert_is_the_folder_set(load_images(dataset, class_names=names))
    many = Dataset.from_dict(rows(label=[2] * 3 + [10] * 3 + [11] * 3))
    names = {"10": "sports_car", "11": "tabby", "2": "golden_retriever"}
    assert_is_the_folder_set(load_images(many, class_names=names))  # 2 before 10
    with pytest.raises(FileNotFoundError, match="class_names: no such file: gone.txt"):
        load_images(dataset, class_names="gone.txt")


def test_a_mapping_renames_text_labels_and_leaves_its_own_names(folder, tmp_path):
    """ImageNet's folders are called by WordNet ids; a test set may have the names themselves."""
    ids = {"n03": "golden_retriever", "n01": "sports_car", "n02": "tabby"}
    images = load_images(Dataset.from_dict(rows(label=["n03"] * 3 + ["n01"] * 3 + ["n02"] * 3)), class_names=ids)
    assert images.class_names == ("sports car", "tabby", "golden retriever"), "in the order of the labels"
    assert images.labels.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    test = load_images(folder, class_names=ids)
    assert test.class_names == images.class_names and test.labels.tolist() == images.labels.tolist()
    assert load_images(folder, class_names=ids | {"n04": "lynx", "n00": "fox"}).class_names == test.class_names
    with pytest.raises(ValueError, match=r"class_names: label of images\[6\].*got 'tabby', which is not among"):
        load_images(folder, class_names={"n03": "golden_retriever", "n01": "sports_car"})


def test_a_mapping_renames_the_classes_of_a_typed_column():
    features = Features(image=Image(), label=ClassLabel(names=["n03", "n01", "n02"]))
    dataset = Dataset.from_dict(rows(label=[r // 3 for r in range(9)]), features=features)
    by_name = load_images(dataset, class_names={"n01": "sports_car", "n02": "tabby", "n03": "golden_retriever"})
    assert_is_the_folder_set(by_name)
    assert_is_the_folder_set(load_images(dataset, class_names={0: NAMES[0], 1: NAMES[1], 2: NAMES[2]}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"golden_retriever", "sports_car", "tabby"}, "class_names: got a set, which has no order; want a list"),
        ({0: "a", "x": "b", 2: "c"}, "class_names: got the label 'x'; the labels are integers"),
        ([], "class_names is empty"),
    ],
)
def test_class_names_without_order_or_for_other_labels_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        load_images(Dataset.from_dict(rows(label=[r // 3 for r in range(9)])), class_names=names)


def test_names_that_differ_by_case_are_warned_about(caplog):
    images = load_images(Dataset.from_dict(rows(label=["Cat"] * 3 + ["cat"] * 3 + ["dog"] * 3)))
    assert images.class_names == ("Cat", "cat", "dog")
    assert "class names 'Cat' and 'cat' differ by case only" in caplog.text


def test_integer_labels_without_names_can_be_named_by_their_numbers():
    labels = [7, 7, 7, 10, 10, 10, 2, 2, 2]
    parts = DatasetDict(train=Dataset.from_dict(rows(label=labels)), test=Dataset.from_dict(rows(label=[-1] * 9)))
    with pytest.raises(UnnamedLabels) as caught:
        load_images(parts)
    assert caught.value.labels == (2, 7, 10), "not the -1 of a split without labels"
    images = load_images(parts, class_names=caught.value.numbers)
    assert images.class_names == ("2", "7", "10") and images.labels.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0]
    with pytest.raises(UnnamedLabels, match=r"integers \(-1, 1\) without names"):
        load_images(Dataset.from_dict(rows(label=[-1, 1, 1] * 3)))


def test_bad_integer_labels_are_named():
    labels = [0, 0, 0, 2, 2, 2, 5, 5, 5]
    dataset = Dataset.from_dict(rows(label=labels))
    with pytest.raises(ValueError, match=r"label of images\[6\].*got 5.*want one of 0..2; labels with gaps"):
        load_images(dataset, class_names=NAMES)
    with pytest.raises(ValueError, match="no images for 3 of 6 classes: 'b', 'd', 'e'"):
        load_images(dataset, class_names=list("abcdef"))
    images = load_images(dataset, class_names={5: "tabby", 0: "golden_retriever", 2: "sports_car"})
    assert_is_the_folder_set(images)
    with pytest.raises(ValueError, match=r"label of images\[3\].*got 2, which has no class name; want one of 0, 5"):
        load_images(dataset, class_names={0: "a", 5: "b"})
    unlabelled = Dataset.from_dict(rows(label=[-1] * 9))
    with pytest.raises(ValueError, match=r"images\[0\].*got -1.*-1 marks a split without labels"):
        load_images(unlabelled, class_names=NAMES)


def test_text_labels_are_matched_with_a_given_class_list():
    dataset = Dataset.from_dict(rows(label=STRINGS))
    images = load_images(dataset, class_names=["tabby", "golden retriever", "sports car"])
    assert images.labels.tolist() == [1, 1, 1, 2, 2, 2, 0, 0, 0]
    with pytest.raises(ValueError, match=r"images\[6\].*got 'tabby', which is not among the class names"):
        load_images(dataset, class_names=CLEAN[:2])
    with pytest.raises(ValueError, match=r"label of images\[4\].*got None"):
        load_images(Dataset.from_dict(rows(label=[*STRINGS[:4], None, *STRINGS[5:]])))


def test_equal_and_blank_class_names_are_refused(tmp_path):
    fill(tmp_path, classes=["golden_retriever", "golden retriever"])
    with pytest.raises(ValueError, match="'golden retriever' and 'golden_retriever' are the same name"):
        load_images(tmp_path)
    assert len(load_images(tmp_path, clean_class_names=False).class_names) == 2
    with pytest.raises(ValueError, match="class_names: name 1 is ' '"):
        load_images(Dataset.from_dict(rows(label=[0] * 9)), class_names=["a", " "])
    assert tidy_class_name("cafe\u0301 ", clean=False) == "caf\u00e9 "


def test_single_classes_empty_classes_and_empty_folders_are_refused(tmp_path):
    fill(tmp_path / "one", classes=["tabby"])
    with pytest.raises(ValueError, match="one class only .'tabby'."):
        load_images(tmp_path / "one")
    fill(tmp_path / "gap")
    (tmp_path / "gap" / "lynx").mkdir()
    with pytest.raises(ValueError, match="no images for 1 of 4 classes: 'lynx'"):
        load_images(tmp_path / "gap")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images in class sub-folders; want"):
        load_images(tmp_path / "empty")
    make_image(0).save(tmp_path / "empty" / "loose.png")
    with pytest.raises(ValueError, match="its 1 images lie in no class sub-folder"):
        load_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nowhere/at/all"):
        load_images(tmp_path / "nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        load_images(str(tmp_path / "*.parquet"))
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="unknown kind '.zip'"):
        load_images(tmp_path / "x.zip")
    with pytest.raises(TypeError, match="source: got int"):
        load_images(3)


def test_an_unknown_source_is_tried_as_path_and_hub_id(monkeypatch):
    import datasets

    def refuse(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match="'someone/pets' is no file or folder here.*no route"):
        load_images("someone/pets")
    seen = []
    dataset = Dataset.from_dict(rows(label=STRINGS))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: seen.append((a, k)) or DatasetDict(train=dataset))
    assert_is_the_folder_set(load_images("someone/pets", name="small", revision="abc"))
    assert seen == [(("someone/pets", "small"), {"revision": "abc"})]


# ------------------------------------------------------------------------------------------------ unreadable images


def break_some(folder):
    whole = encoded(1, "JPEG", size=(400, 300))
    (folder / "golden_retriever" / "1.png").write_bytes(encoded(1)[:-30])
    (folder / "sports_car" / "0.png").write_bytes(b"")
    (folder / "sports_car" / "1.png").write_bytes(b"<!doctype html><title>404</title>")
    (folder / "tabby" / "0.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "tabby" / "1.gif").write_bytes(encoded(2, "GIF"))
    return ["golden_retriever/1.png", "sports_car/0.png", "sports_car/1.png", "tabby/0.jpg"]


def test_unreadable_images_raise_and_are_all_named(folder):
    bad = break_some(folder)
    with pytest.raises(ValueError, match="4 of 11 images cannot be read") as caught:
        load_images(folder)
    for name in bad:
        assert f"'{name}'" in str(caught.value)
    assert "images[1] 'golden_retriever/1.png': truncated" in str(caught.value)
    assert "'sports_car/0.png': the file is empty" in str(caught.value)
    assert "'sports_car/1.png': not an image file" in str(caught.value)
    lazy = load_images(folder, verify=False)
    with pytest.raises(ValueError, match=r"images\[1\] 'golden_retriever/1.png': truncated"):
        lazy.image(1)


def test_unreadable_images_are_skipped_and_reported(folder, caplog):
    bad = break_some(folder)
    images = load_images(folder, on_error="skip")
    assert [name for name, _ in images.skipped] == bad and len(images) == 7
    assert not set(bad) & set(images.ids) and "tabby/1.gif" in images.ids
    assert "4 of 11 images cannot be read" in caplog.text and all(name in caplog.text for name in bad)
    assert all(images.image(row) for row in range(len(images)))
    (folder / "sports_car" / "sub" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no images for 1 of 3 classes: 'sports car'"):
        load_images(folder, on_error="skip")
    with pytest.raises(ValueError, match="on_error: got 'ignore'"):
        load_images(folder, on_error="ignore")


def test_decompression_bomb_is_named_without_being_decoded(folder, monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 40)  # Pillow refuses twice that
    with pytest.raises(
        ValueError, match=r"9 of 9 images.*too large: Image size \(108 pixels\)".replace(".*", "(?s:.*)")
    ):
        load_images(folder)


def test_null_and_deleted_images_are_named(folder):
    dataset = Dataset.from_dict({"image": [*rows()["image"][:8], None], "label": STRINGS})
    with pytest.raises(ValueError, match=r"1 of 9 images(?s:.*)images\[8\] 'row/8': no image in this row"):
        load_images(dataset)
    images = load_images(folder)
    (folder / "tabby" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"images\[6\] 'tabby/0.png': no such file"):
        images.image(6)


# ------------------------------------------------------------------------------------------------------ ImageSet


def test_select_and_limit_keep_rows_and_classes_consistent(folder):
    images = load_images(folder)
    few = images.select([8, 0, 8])
    assert few.labels.tolist() == [2, 0, 2] and few.ids == (images.ids[8], images.ids[0], images.ids[8])
    assert few.class_names == CLEAN
    assert load_images(folder, limit=4).ids == tuple(images.ids[r] for r in (0, 1, 3, 6))
    assert len(load_images(folder, limit=100)) == 9
    with pytest.raises(ValueError, match="limit: got 0"):
        load_images(folder, limit=0)
    new = images.select_classes([2, 0])
    assert new.class_names == ("tabby", "golden retriever") and new.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert new.dataset.features["label"].names == ["tabby", "golden retriever"]
    for bad in ([0, 0], [3], [-1]):
        with pytest.raises(ValueError, match="classes: got"):
            images.select_classes(bad)
    for bad in (-1, 9):
        with pytest.raises(IndexError, match=f"got {bad}; this set holds 9 images"):
            images.image(bad)
        with pytest.raises(IndexError, match=f"got {bad}"):
            images.select([bad])
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 1


def test_the_fingerprint_depends_on_content_labels_and_names_only(folder, tmp_path):
    images = load_images(folder)
    elsewhere = load_images(fill(tmp_path / "copy"))
    assert images.fingerprint == elsewhere.fingerprint and len(images.fingerprint) == 64
    others = {
        images.select(range(8)).fingerprint,
        images.select([1, 0, *range(2, 9)]).fingerprint,
        load_images(folder, clean_class_names=False).fingerprint,
    }
    numbered = Dataset.from_dict(rows(label=[0, 0, 0, 1, 1, 1, 2, 2, 2]))
    relabelled = Dataset.from_dict(rows(label=[0, 0, 1, 0, 1, 1, 2, 2, 2]))
    prints = {load_images(d, class_names=NAMES).fingerprint for d in (numbered, relabelled)}
    assert len(prints) == 2
    (folder / "tabby" / "0.png").write_bytes(encoded(99))
    others.add(load_images(folder).fingerprint)
    assert len(others) == 4 and images.fingerprint not in others
    script = (
        f"from hf_clip_variants.data import load_images; print(load_images({str(tmp_path / 'copy')!r}).fingerprint)"
    )
    other_process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other_process.stdout.strip() == images.fingerprint


@pytest.mark.parametrize("in_memory", [True, False])
def test_other_bytes_under_the_same_name_size_and_time_are_other_images(in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "IN_MEMORY_PARQUET_BYTES", 1 << 30 if in_memory else 0)
    file, sizes, prints = tmp_path / "images.parquet", set(), set()
    for value in (1, 2):
        table = {"image": [{"bytes": encoded(value), "path": None}] * 2, "label": [0, 1]}
        kinds = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
        Dataset.from_dict(table, features=kinds).to_parquet(file)
        os.utime(file, (1e9, 1e9))
        sizes.add(file.stat().st_size)
        prints.add(load_images(file).fingerprint)
    assert len(sizes) == 1 and len(prints) == 2


def test_sets_can_be_pickled_for_data_loader_workers(folder):
    images = pickle.loads(pickle.dumps(load_images(folder)))
    assert_is_the_folder_set(images)
