"""Images with label maps, from every kind of source."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_clip_variants.data import make_scenes
from hf_clip_variants.data.images.label_maps import load_label_maps


NAMES = ["background", "cat", "taco"]


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(3, seed=1, styles="notov1", class_names=NAMES[1:], size=32)


def as_folder(scenes, root, images="images", maps="annotations", below="", palette=False):
    for number, row in enumerate(scenes):
        for folder, picture in ((images, row["image"]), (maps, row["label_map"])):
            (root / folder / below).mkdir(parents=True, exist_ok=True)
            if palette and folder == maps:
                picture = Image.fromarray(np.asarray(picture), mode="L").copy()
                picture.putpalette([7] * 768)
            picture.save(root / folder / below / f"{number}.png")
    return root


def assert_same(found, scenes):
    assert found.class_names == tuple(NAMES) and found.background == 0 and len(found) == len(scenes)
    for number, row in enumerate(scenes):
        assert np.array_equal(found.label_map(number), np.asarray(row["label_map"]))
        assert found.image(number).tobytes() == row["image"].tobytes()


def test_scenes_name_their_classes(scenes, tmp_path):
    assert_same(load_label_maps(scenes), scenes)
    scenes.to_parquet(tmp_path / "scenes.parquet")
    assert_same(load_label_maps(tmp_path / "scenes.parquet"), scenes)
    scenes.save_to_disk(tmp_path / "saved")
    assert_same(load_label_maps(tmp_path / "saved"), scenes)


@pytest.mark.parametrize("palette", [False, True])
def test_folders_pair_files_of_one_name(scenes, tmp_path, palette):
    as_folder(scenes, tmp_path, palette=palette)
    (tmp_path / "images" / "without.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    assert_same(load_label_maps(tmp_path, class_names=NAMES), scenes)
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    assert_same(load_label_maps(tmp_path), scenes)
    (tmp_path / "labels.txt").unlink()
    (tmp_path / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert_same(load_label_maps(tmp_path), scenes)


def test_splits_below_and_above_the_two_folders(scenes, tmp_path):
    for below in ("training", "validation"):
        as_folder(scenes, tmp_path / "below", "JPEGImages", "SegmentationClass", below)
        as_folder(scenes, tmp_path / "above" / below)
    for root in ("below", "above"):
        found = load_label_maps(tmp_path / root, class_names=NAMES)
        assert found.split == "validation" and set(found.available_splits) == {"train", "validation"}
        assert len(load_label_maps(tmp_path / root, "train", class_names=NAMES)) == 3


def test_parquet_splits_are_found_by_name(scenes, tmp_path):
    for split in ("train", "test"):
        scenes.to_parquet(tmp_path / f"{split}-00000.parquet")
    found = load_label_maps(tmp_path)
    assert found.split == "test"
    assert_same(found, scenes)


def test_other_columns_are_named(scenes):
    other = scenes.rename_columns({"image": "photo", "label_map": "regions"})
    found = load_label_maps(other, image_column="photo", label_column="regions", class_names=NAMES)
    assert_same(found, scenes)
    with pytest.raises(ValueError, match="label_column: none given; .* 'photo', 'regions'"):
        load_label_maps(other, class_names=NAMES)


def test_what_is_wrong_is_named(scenes, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_label_maps(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no images/ beside annotations/"):
        load_label_maps(tmp_path)
    as_folder(scenes, tmp_path)
    with pytest.raises(ValueError, match="class_names: .* has none"):
        load_label_maps(tmp_path)
    with pytest.raises(ValueError, match="not 'train'"):
        load_label_maps(tmp_path, "train", class_names=NAMES)
    with pytest.raises(ValueError, match="want different texts"):
        load_label_maps(tmp_path, class_names=["a", "a"])
    with pytest.raises(ValueError, match="class_names: values"):
        load_label_maps(tmp_path, class_names={0: "a", 2: "b"})
    with pytest.raises(ValueError, match="label map 0: value . has no name"):
        [load_label_maps(tmp_path, class_names=["one"]).label_map(n) for n in range(3)]
    (tmp_path / "annotations" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="label map 1"):
        load_label_maps(tmp_path, class_names=NAMES).label_map(1)
    Image.new("RGB", (32, 32)).save(tmp_path / "annotations" / "1.png")
    with pytest.raises(ValueError, match="mode RGB"):
        load_label_maps(tmp_path, class_names=NAMES).label_map(1)
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="image 2"):
        load_label_maps(tmp_path, class_names=NAMES).image(2)
