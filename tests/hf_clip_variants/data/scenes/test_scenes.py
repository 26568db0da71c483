"""Scenes: same seed, same bytes; masks, boxes and captions agree with the pixels; other styles, other classes."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_clip_variants.data import (
    DISTINCT_CLASSES,
    SceneMaker,
    base_and_novel,
    instance_masks,
    label_map_names,
    load_emoji,
    make_scenes,
)


NAMES = ["cat", "taco", "whale", "cherries", "octopus"]


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(40, seed=5, styles="fluentflat", class_names=NAMES, size=96, objects=(0, 5))


def digest(scenes: Dataset) -> str:
    content = hashlib.sha256()
    for row in scenes.cast_column("image", ImageFeature(decode=False)):
        content.update(row["image"]["bytes"] + np.asarray(row["instance_map"]).tobytes())
        content.update(repr((row["objects"], row["caption"], row["phrases"])).encode())
    return content.hexdigest()


def test_the_same_seed_gives_the_same_bytes_also_in_another_process(scenes):
    again = make_scenes(40, seed=5, styles="fluentflat", class_names=NAMES, size=96, objects=(0, 5))
    assert digest(again) == digest(scenes)
    code = (
        "from hf_clip_variants.data import SceneMaker; import hashlib\n"
        f"maker = SceneMaker(seed=5, styles='fluentflat', class_names={NAMES}, size=96, objects=(0, 5))\n"
        "scene = maker.scene(7); print(hashlib.sha256(scene.image.tobytes()).hexdigest(), scene.caption)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pixels = scenes[7]["image"].tobytes()
    assert done.stdout.strip() == f"{hashlib.sha256(pixels).hexdigest()} {scenes[7]['caption']}", done.stderr
    assert digest(make_scenes(40, seed=6, styles="fluentflat", class_names=NAMES, size=96)) != digest(scenes)


def test_a_shorter_set_is_the_beginning_of_a_longer_one(scenes):
    shorter = make_scenes(4, seed=5, styles="fluentflat", class_names=NAMES, size=96, objects=(0, 5))
    assert shorter.to_list() == scenes.select(range(4)).to_list()


def test_masks_boxes_areas_and_labels_say_the_same(scenes):
    assert label_map_names(scenes) == ["background", *NAMES]
    counts = set()
    for row in scenes:
        masks, labels, objects = instance_masks(row), np.asarray(row["label_map"]), row["objects"]
        counts.add(len(masks))
        assert masks.shape == (len(objects["id"]), 96, 96) and labels.dtype == np.uint8
        expected = np.zeros((96, 96), np.uint8)
        for mask, (x, y, w, h), category, area, visible in zip(
            masks, objects["bbox"], objects["category"], objects["area"], objects["visible"], strict=True
        ):
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)
            assert mask.sum() == area and 0.4 <= visible <= 1
            expected[mask] = category + 1
        assert (labels == expected).all() and (masks.sum(0) <= 1).all()  # what is visible overlaps nothing
    assert counts >= {0, 1, 2, 3, 4}
    ids = [number for row in scenes for number in row["objects"]["id"]]
    assert ids == list(range(len(ids)))


def test_masks_are_where_the_emoji_are():
    """On one colour, what differs from the background is the objects, less the rim where alpha is below one half."""
    maker = SceneMaker(styles="notov1", class_names=NAMES, backgrounds="plain", size=96, seed=3)
    for index in range(10):
        scene = maker.scene(index)
        pixels = np.asarray(scene.image).astype(int)
        background = pixels[scene.instance_map == 0]
        values, times = np.unique(background, axis=0, return_counts=True)
        assert times.max() > 0.9 * len(background)  # nearly all background pixels have its colour
        differs = (pixels != values[times.argmax()]).any(-1)
        assert differs[scene.instance_map > 0].mean() > 0.98


def test_later_objects_lie_on_top_and_nothing_is_hidden_more_than_allowed():
    crowded = SceneMaker(styles="fluent3d", class_names=NAMES, objects=(6, 6), object_size=(0.4, 0.6), seed=1)
    scenes = [crowded.scene(index) for index in range(20)]
    shares = [share for scene in scenes for share in scene.visible]
    assert min(shares) >= 0.4 and min(shares) < 0.8 and all(scene.visible[-1] == 1 for scene in scenes)
    apart = SceneMaker(styles="fluent3d", class_names=NAMES, objects=(3, 3), object_size=(0.2, 0.3), min_visible=1)
    assert {share for index in range(10) for share in apart.scene(index).visible} == {1.0}


def test_captions_name_what_is_there_with_spans(scenes):
    sentences = set()
    for row in scenes:
        caption, phrases, objects = row["caption"], row["phrases"], row["objects"]
        assert sorted(phrases["category"]) == sorted(set(objects["category"]))
        spoken = [number for numbers in phrases["objects"] for number in numbers]
        assert sorted(spoken) == list(range(len(objects["id"])))
        for start, end, category, numbers in zip(*phrases.values(), strict=True):
            word, name = caption[start:end].lower(), NAMES[category]
            assert word in (name, name + "s", name + "es") and (word == name) == (
                len(numbers) == 1 or name[-2:] == "es"
            )
            assert {objects["category"][number] for number in numbers} == {category}
        assert caption[0].isupper() and caption.endswith(".")
        sentences.add(caption.split()[0])
    assert len(sentences) > 4  # varied


def test_training_classes_keep_their_numbers_when_novel_ones_are_held_out():
    base, novel = base_and_novel(DISTINCT_CLASSES, novel=0.25, seed=1)
    assert len(novel) == 15 and sorted(base + novel) == sorted(DISTINCT_CLASSES)
    assert (base, novel) == base_and_novel(DISTINCT_CLASSES, novel=0.25, seed=1)
    options = {"class_names": DISTINCT_CLASSES, "styles": "emojione", "size": 64}
    train, test = make_scenes(30, shown=base, **options), make_scenes(30, shown=novel, **options)
    for part, shown in ((train, base), (test, novel)):
        there = {label_map_names(part)[value] for row in part for value in np.unique(row["label_map"])}
        assert there <= {"background", *shown} and len(there) > 8
    assert train.features == test.features


def test_styles_differ_and_may_be_files_or_an_image_set(tmp_path):
    cats = {"class_names": ["cat", "taco"], "size": 64, "backgrounds": "plain", "seed": 2}
    first, second = (SceneMaker(styles=style, **cats).scene(0) for style in ("notov1", "fluent3d"))
    assert (np.asarray(first.image) != np.asarray(second.image)).any()
    given = SceneMaker(styles=load_emoji("notov1"), **cats).scene(0)
    assert (np.asarray(first.image) == np.asarray(given.image)).all()
    drawn = [Image.new("RGBA", (20, 10), colour) for colour in ("red", "blue")]
    features = Features({"image": ImageFeature(), "name": Value("string")})
    Dataset.from_dict({"image": drawn, "name": ["brick", "pool"]}, features=features).to_parquet(
        tmp_path / "own.parquet"
    )
    own = SceneMaker(styles=tmp_path / "own.parquet", backgrounds="plain", rotation=0, seed=1)
    assert own.class_names == ("brick", "pool")
    mixed = SceneMaker(styles=["notov1", tmp_path / "own.parquet"], class_names=["cat", "pool"], seed=1)
    assert {c for index in range(8) for c in mixed.scene(index).categories} == {0, 1}


def test_pictures_serve_as_backgrounds_unless_they_name_a_class(tmp_path):
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    features = Features({"image": ImageFeature(), "title": Value("string")})
    titles = ["Two cats", "a tree", "cherry pie"]
    file = tmp_path / "art.parquet"
    Dataset.from_dict({"image": pictures, "title": titles}, features=features).to_parquet(file)
    maker = SceneMaker(class_names=["cat", "taco"], backgrounds=f"cover:{file}", objects=(0, 0), size=32)
    seen = {scene.image.getpixel((5, 5)) for scene in map(maker.scene, range(12))}
    assert seen == {(0, 255, 0), (0, 0, 255)} and maker.scene(0).background == "cover"
    scattered = SceneMaker(class_names=["cat", "taco"], backgrounds=f"scatter:{file}", objects=(0, 0), size=64)
    assert len(np.unique(np.asarray(scattered.scene(0).image).reshape(-1, 3), axis=0)) > 2
    Dataset.from_dict({"image": pictures[:1], "title": ["cat"]}, features=features).to_parquet(
        tmp_path / "cat.parquet"
    )
    with pytest.raises(ValueError, match="names a class"):
        SceneMaker(class_names=["cat", "taco"], backgrounds=f"cover:{tmp_path / 'cat.parquet'}")


@pytest.mark.parametrize("size", [1, (1, 40), (300, 7), [(33, 47), (64, 48)]])
def test_scenes_of_any_size(size):
    maker = SceneMaker(class_names=["cat", "taco"], size=size, objects=(2, 3), seed=4)
    found = [maker.scene(index) for index in range(8)]
    wanted = size if isinstance(size, list) else [(size, size) if isinstance(size, int) else size]
    assert {scene.image.size for scene in found} == set(wanted)
    for scene in found:
        assert scene.label_map.shape == scene.image.size[::-1] and scene.masks.shape[0] == len(scene.boxes)


def test_three_hundred_classes_have_labels_of_sixteen_bits(tmp_path):
    drawn = [Image.new("RGBA", (8, 8), (i % 256, 0, 0, 255)) for i in range(300)]
    features = Features({"image": ImageFeature(), "name": Value("string")})
    names = [f"thing {i:03}" for i in range(300)]
    Dataset.from_dict({"image": drawn, "name": names}, features=features).to_parquet(tmp_path / "many.parquet")
    scenes = make_scenes(3, styles=tmp_path / "many.parquet", shown=names[290:], size=32)
    values = {int(value) for row in scenes for value in np.unique(np.asarray(row["label_map"]))}
    assert max(values) > 290 and values - {0} <= set(range(291, 301))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"styles": "crayon"}, "styles: 'crayon' is neither an embedded style"),
        ({"class_names": ["cat", "unicorn"]}, "class_names: unknown: 'unicorn'"),
        ({"class_names": ["cat", "cat"]}, "class_names: 2 names, 1 differ"),
        ({"class_names": []}, "class_names: 0 names"),
        ({"class_names": ["cat"], "shown": ["dog"]}, "shown: unknown: 'dog'"),
        ({"backgrounds": "sky"}, "backgrounds: got 'sky'; want plain"),
        ({"backgrounds": "cover:nowhere.parquet"}, "no such file: nowhere.parquet"),
        ({"backgrounds": ()}, "backgrounds is empty"),
        ({"objects": (3, 1)}, "objects: got"),
        ({"object_size": (0, 2)}, "object_size: got"),
        ({"min_visible": 2}, "min_visible: got 2"),
        ({"size": (0, 4)}, "size: got"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SceneMaker(**settings)
