"""CoOp's folders: the images, labels and names of the official readers, and messages that name errors."""

import json
import shutil

import pytest
import torch
from coop_folders import CLASSES, WORDNET, ZHOU, save_aircraft, save_image, save_imagenet, save_zhou
from tiny import EMOJI_CLIP

from hf_clip_variants.data import load_images, sample_few_shot
from hf_clip_variants.data.images.coop_layout import LAYOUTS, coop_layout
from hf_clip_variants.few_shot.recipes import DATASETS


def split_file(folder):
    return folder / ZHOU[folder.name][0]


def edit(folder, change):
    """Apply `change` to the lists of the folder's split file."""
    lists = json.loads(split_file(folder).read_text())
    change(lists)
    split_file(folder).write_text(json.dumps(lists))


def test_the_table_holds_the_eleven_sets_and_the_four_shifted_ones():
    assert len(LAYOUTS) == 15 and sorted(row.recipe for row in LAYOUTS.values() if row.recipe) == sorted(DATASETS)
    assert {row.folder: (row.split_file, row.image_folder) for row in LAYOUTS.values() if row.split_file} == ZHOU
    assert all(row.template.count("{}") == 1 for row in LAYOUTS.values())


@pytest.mark.parametrize("name", ZHOU)
def test_every_split_file_is_read_in_its_own_order(tmp_path, name):
    folder = save_zhou(tmp_path, name)
    train = load_images(f"coop:{folder}")
    assert train.available_splits == ("train", "validation", "test") and train.split == "train"
    assert train.class_names == ("abyssinian", "american bulldog", "beagle")
    assert train.labels.tolist() == [2, 1, 0] * 3
    assert train.ids[:4] == (
        "beagle/train_0.jpg",
        "american_bulldog/train_0.jpg",
        "abyssinian/train_0.jpg",
        "beagle/train_1.jpg",
    )
    assert train.encoded_bytes(1) == (folder / ZHOU[name][1] / "american_bulldog/train_0.jpg").read_bytes()
    splits = train.splits()
    assert [len(splits[s]) for s in ("validation", "test")] == [3, 6]
    assert splits["test"].class_names == train.class_names and splits["test"].labels.tolist() == [2, 1, 0] * 2


def test_class_names_are_rewritten_as_in_the_benchmark_and_underscores_removed(tmp_path):
    eurosat = save_zhou(tmp_path, "eurosat", ["AnnualCrop", "Forest", "SeaLake"])
    assert load_images(f"coop:{eurosat}").class_names == ("Annual Crop Land", "Forest", "Sea or Lake")
    written = save_zhou(
        tmp_path / "written", "eurosat", ["Annual Crop Land", "Forest", "Sea or Lake"]
    )  # as Zhou's file has them
    assert load_images(f"coop:{written}").class_names == ("Annual Crop Land", "Forest", "Sea or Lake")
    caltech = save_zhou(tmp_path, "caltech-101", ["airplanes", "Faces", "Leopards"])
    assert load_images(f"coop:{caltech}").class_names == ("airplane", "face", "leopard")
    ucf = save_zhou(tmp_path, "ucf101", ["Apply_Eye_Makeup", "Archery"])
    assert load_images(f"coop:{ucf}").class_names == ("Apply Eye Makeup", "Archery")


def test_aircrafts_own_lists_are_read(tmp_path):
    train = load_images(f"coop:{save_aircraft(tmp_path)}")
    assert train.class_names == ("707-320", "A300B4", "F/A-18 Super") and train.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert train.ids[0] == "0001001.jpg" and len(train.load_split(split="val")) == 3
    (tmp_path / "fgvc_aircraft" / "images_variant_val.txt").write_text("0001001 Concorde\n")
    with pytest.raises(ValueError, match="images_variant_val.txt, line 1: 'Concorde' is not in variants.txt"):
        load_images(f"coop:{tmp_path}/fgvc_aircraft")


def test_imagenet_tests_on_its_validation_images_and_names_may_repeat(tmp_path):
    train = load_images(f"coop:{save_imagenet(tmp_path)}")
    assert (
        train.available_splits == ("train", "test") and train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    )
    assert train.class_names == ("tench", "missile", "missile_", "sunglasses")
    test = train.load_split(split="test")
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and test.class_names == train.class_names


def test_shifted_sets_have_the_names_that_imagenet_gives_the_same_classes(tmp_path):
    save_imagenet(tmp_path)
    sets = {name: load_images(f"coop:{tmp_path}/{name}") for name in list(LAYOUTS)[-4:]}
    assert [images.split for images in sets.values()] == ["test"] * 4
    full = ("tench", "missile", "missile_", "sunglasses")
    assert sets["imagenetv2"].class_names == sets["imagenet-sketch"].class_names == full
    assert sets["imagenetv2"].labels.tolist() == sets["imagenet-sketch"].labels.tolist() == [0, 1, 2, 3]
    assert sets["imagenet-adversarial"].class_names == ("missile_", "sunglasses"), (
        "the second missile, although it is the only one"
    )
    assert sets["imagenet-rendition"].class_names == ("tench", "missile", "sunglasses")
    (tmp_path / "imagenet-rendition" / "classnames.txt").unlink()  # ImageNet's is the same
    assert load_images(f"coop:{tmp_path}/imagenet-rendition").class_names == ("tench", "missile", "sunglasses")


def test_folders_of_imagenet_v2_are_sorted_as_numbers(tmp_path):
    """Sorted as text, 10 would come before 2."""
    names = "".join(f"n{k:08} class {k}\n" for k in range(12))
    folder = tmp_path / "imagenetv2"
    for k in range(12):
        save_image(folder / "imagenetv2-matched-frequency-format-val" / str(k) / "a.jpeg", k)
    (folder / "classnames.txt").write_text(names)
    images = load_images(f"coop:{folder}")
    assert images.ids[2] == "2/a.jpeg" and images.labels[2] == 2 and images.class_names[10] == "class 10"
    shutil.rmtree(folder / "imagenetv2-matched-frequency-format-val" / "7")
    with pytest.raises(
        ValueError, match=r"format-val: misses the folders '7'; want 0\.\.11, the lines of classnames.txt"
    ):
        load_images(f"coop:{folder}")


def test_repeated_names_have_equal_embeddings(tmp_path):
    from hf_clip_variants import CLIPClassifier

    model = CLIPClassifier.from_pretrained(
        EMOJI_CLIP, class_names=["missile", "missile_", "cat"], templates="photo", dtype=torch.float32
    )
    with torch.no_grad():
        first, second, other = model.get_class_features()
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_draw_equals_the_official_one(tmp_path):
    """Dassl: samples by class in order of appearance, `random.sample` of K each."""
    import random

    folder = save_zhou(tmp_path, "dtd", counts={"train": 7, "val": 2, "test": 1})
    train = load_images(f"coop:{folder}")
    rows = json.loads(split_file(folder).read_text())["train"]
    by_class, generator, expected = {}, random.Random(3), []
    for path, label, _ in rows:
        by_class.setdefault(label, []).append(path)
    for paths in by_class.values():
        expected += generator.sample(paths, 2)
    drawn = sample_few_shot(train.labels, 2, 3, class_names=train.class_names)
    assert [train.ids[row] for row in drawn.train] == expected


def test_a_few_shot_run_and_its_report_read_the_layout(tmp_path):
    from few_shot_runs import save_tiny_clip

    from hf_clip_variants import adapt

    data = f"coop:{save_zhou(tmp_path, 'oxford_pets')}"
    few = {
        "methods": ["tip_adapter"],
        "shots": [1],
        "seeds": [1],
        "overrides": {"augmentation": "none", "search_step": [4, 4]},
    }
    results = adapt(
        save_tiny_clip(tmp_path / "clip"), data, tmp_path / "run", profile="published", progress=False, **few
    )
    assert results["data"]["test_sets"]["test"]["images"] == 6 and results["runs"][0]["validation"]["kind"] == "split"
    assert "american bulldog" in (tmp_path / "run" / "report.html").read_text()


# ---- what is wrong is named


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "beagle/../../x.jpg", "", "a\0b.jpg"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    folder = save_zhou(tmp_path, "oxford_pets")
    save_image(tmp_path / "oxford_pets" / "secret.jpg", 0)
    edit(folder, lambda lists: lists["val"].append([path, 0, CLASSES[0]]))
    with pytest.raises(
        ValueError, match=r"split_zhou_OxfordPets.json: val\[3\]: the path .* leaves the data set's folder"
    ):
        load_images(f"coop:{folder}")
    aircraft = save_aircraft(tmp_path)
    (aircraft / "images_variant_val.txt").write_text("../../x A300B4\n")
    with pytest.raises(ValueError, match="images_variant_val.txt, line 1: the path '../../x.jpg' leaves"):
        load_images(f"coop:{aircraft}")


def test_missing_files_are_named_with_their_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"OxfordPets: .*/oxford_pets is missing; want \$DATA/oxford_pets"):
        load_images(f"coop:{tmp_path}/oxford_pets")
    folder = save_zhou(tmp_path, "oxford_pets")
    (folder / "images" / "beagle" / "train_1.jpg").unlink()
    shutil.rmtree(folder / "images" / "abyssinian")
    with pytest.raises(
        FileNotFoundError,
        match=r"train: 4 of 9 listed images do not exist: .*'beagle/train_1.jpg'.*; expected below .*/images",
    ):
        load_images(f"coop:{folder}")
    split_file(folder).unlink()
    with pytest.raises(FileNotFoundError, match="split_zhou_OxfordPets.json is missing"):
        load_images(f"coop:{folder}")
    with pytest.raises(
        ValueError, match="'coop:/somewhere/pets' is no folder of CoOp's layout; want one called imagenet, caltech-101"
    ):
        coop_layout("coop:/somewhere/pets")
    renamed = save_zhou(tmp_path, "food-101").rename(tmp_path / "my-food")
    assert coop_layout(f"coop:{renamed}").title == "Food101", "known by the split file in it"
    assert coop_layout("pets/") is None


def test_bad_lists_are_refused(tmp_path):
    folder = save_zhou(tmp_path, "oxford_pets")
    good = split_file(folder).read_text()

    def refused(change, match):
        edit(folder, change)
        with pytest.raises(ValueError, match=match):
            load_images(f"coop:{folder}")
        split_file(folder).write_text(good)

    def gap(lists):
        for rows in lists.values():
            rows[:] = [[path, label + (label == 2), name] for path, label, name in rows]

    refused(gap, r"labels go up to 3, but none is 2; want 0\.\.3 without gaps")
    refused(lambda lists: lists["test"].append(["beagle/test_0.jpg", 2, "pug"]), "label 2 is named 'beagle' and 'pug'")
    for row in (
        ["a.jpg", "0", "beagle"],
        ["a.jpg", True, "beagle"],
        ["a.jpg", -1, "beagle"],
        ["a.jpg", 0],
        "a.jpg",
        [1, 0, "beagle"],
    ):
        refused(lambda lists, row=row: lists["val"].append(row), r"val\[3\]: got .*; want \[path, label, class name\]")
    refused(lambda lists: lists.pop("val"), r"got \['test', 'train'\]; want an object with the lists train, val, test")
    split_file(folder).write_text("{")
    with pytest.raises(ValueError, match="split_zhou_OxfordPets.json: not JSON"):
        load_images(f"coop:{folder}")


def test_a_class_without_training_images_is_named(tmp_path):
    folder = save_zhou(tmp_path, "oxford_pets")
    edit(folder, lambda lists: lists.update(train=[row for row in lists["train"] if row[1] != 1]))
    with pytest.raises(ValueError, match="no images for 1 of 3 classes: 'american bulldog'"):
        load_images(f"coop:{folder}")


def test_classes_outside_the_benchmark_are_refused(tmp_path):
    folder = save_zhou(tmp_path, "caltech-101", ["BACKGROUND_Google", "Faces"])
    with pytest.raises(ValueError, match="'BACKGROUND_Google' is no class of Caltech101"):
        load_images(f"coop:{folder}")


def test_an_imagenet_with_missing_classes_is_refused(tmp_path):
    folder = save_imagenet(tmp_path)
    shutil.rmtree(folder / "images" / "train" / "n03773504")
    with pytest.raises(
        ValueError, match="images/train: no folder for 'n03773504'; want the 4 WordNet ids of classnames.txt"
    ):
        load_images(f"coop:{folder}")
    shutil.rmtree(folder / "images" / "train")
    with pytest.raises(FileNotFoundError, match="ImageNet: .*images/train is missing"):
        load_images(f"coop:{folder}")
    folder = save_imagenet(tmp_path / "flat", shifted=False)
    shutil.rmtree(folder / "images" / "val")
    save_image(folder / "images" / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(ValueError, match="images/val: no class folders; want one a WordNet id, such as n01440764"):
        load_images(f"coop:{folder}")
    (tmp_path / "imagenet-adversarial" / "imagenet-a" / "n00000001").mkdir()
    with pytest.raises(ValueError, match="imagenet-a: 'n00000001' not in classnames.txt; want some of the 4"):
        load_images(f"coop:{tmp_path}/imagenet-adversarial")
    (tmp_path / "imagenet-sketch" / "classnames.txt").write_text("n01440764 tench\nn01440764 trout\n")
    with pytest.raises(ValueError, match='classnames.txt, line 2: got "n01440764 trout"; want a new WordNet id'):
        load_images(f"coop:{tmp_path}/imagenet-sketch")
    assert len(WORDNET) == 4


def test_settings_hold_absolute_paths(tmp_path, monkeypatch):
    from hf_clip_variants.data.images.labelled_sets import absolute_source
    from hf_clip_variants.few_shot.splits import parse_test_data

    monkeypatch.chdir(tmp_path)
    assert absolute_source("coop:DATA/dtd") == f"coop:{tmp_path}/DATA/dtd"
    assert parse_test_data(["coop:DATA/imagenet-sketch"]) == {"imagenet-sketch": "coop:DATA/imagenet-sketch"}
