"""The embedded images, and that the licence file describes them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from hf_clip_variants.data import emoji_styles, load_emoji, load_images
from hf_clip_variants.data.images.emoji import FOLDER


STYLES = ["emojione", "fluent3d", "fluentflat", "notov1"]


def test_every_style_holds_the_same_190_concepts_with_distinct_names():
    assert emoji_styles() == STYLES  # permissive licences only
    tables = [pyarrow.parquet.read_table(FOLDER / f"{style}.parquet") for style in STYLES]
    described = [table.drop_columns(["image", "style"]).to_pylist() for table in tables]
    assert all(rows == described[0] for rows in described)
    assert len(described[0]) == len({row["name"] for row in described[0]}) == 190
    codes = [row["hexcode"] for row in described[0]]
    assert codes == sorted(codes) and {row["group"] for row in described[0]} == {"animals-nature", "food-drink"}
    assert all(row["name_zh"] and row["tags"] for row in described[0])
    for style, table in zip(STYLES, tables, strict=True):
        assert set(table["style"].to_pylist()) == {style}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4 << 20


def test_licences_name_every_file():
    text = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{style}.parquet`" in text for style in STYLES)
    assert all(
        word in text for word in ("CC BY 4.0", "Apache License 2.0", "MIT License", "Microsoft", "Emoji One", "Google")
    )
    assert {p.name for p in FOLDER.iterdir()} == {"LICENSES.md", *(f"{s}.parquet" for s in STYLES)}


def test_styles_are_domains_of_one_class_list():
    train, test = load_emoji(["notov1", "emojione"]), load_emoji("fluent3d")
    assert (len(train), len(test)) == (380, 190) and train.class_names == test.class_names
    assert train.labels.tolist() == [*range(190), *range(190)]
    assert train.ids[0].startswith("notov1/") and train.ids[190].startswith("emojione/")
    for row in range(0, 380, 37):
        assert train.image(row).size == (64, 64)
    assert len(set(train.ids)) == 380 and len(load_emoji()) == 760
    assert {test.image(row).mode for row in range(190)} <= {"RGBA", "RGB"}
    assert test.unreadable() == []


def test_groups_and_concepts_select_classes():
    assert len(load_emoji("notov1", groups="food-drink").class_names) == 88
    assert len(load_emoji("notov1", groups=["animals-nature"]).class_names) == 102
    few = load_emoji(["notov1", "fluent3d"], concepts=["lemon", "1F431", "dog"])
    assert few.class_names == ("lemon", "cat face", "dog") and few.labels.tolist() == [0, 1, 2, 0, 1, 2]
    everything = load_emoji("fluent3d")
    same = everything.image(everything.class_names.index("lemon"))
    np.testing.assert_array_equal(np.asarray(few.image(3)), np.asarray(same))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"styles": "openmoji"}, "styles: got .'openmoji'.; want distinct names out of .'emojione'"),
        ({"styles": []}, "styles: got"),
        ({"styles": ["notov1", "notov1"]}, "styles: got"),
        ({"groups": "flags"}, "groups: got .'flags'.; want some of .'animals-nature', 'food-drink'."),
        ({"concepts": ["cat", "unicorn"]}, "concepts: got 'unicorn'; want names of the 190 concepts"),
        ({"groups": "food-drink", "concepts": ["cat"]}, "concepts: got 'cat'; want names of the 88"),
    ],
)
def test_unknown_names_are_listed(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_emoji(**arguments)


def test_emoji_sources_select_styles_and_groups():
    images = load_images("emoji:fluent3d, notov1", limit=200)
    assert len(images) == 200 and len(set(images.labels)) == 190
    assert load_images("emoji").class_names == images.class_names
    with pytest.raises(ValueError, match="styles: got .'nokia'."):
        load_images("emoji:nokia")
    food = load_images("emoji:notov1,fluent3d@food-drink")
    assert food.class_names == load_emoji("notov1", "food-drink").class_names and len(food) == 2 * 88
    assert len(load_images("emoji@animals-nature")) == 4 * 102
    with pytest.raises(ValueError, match="groups: got .'flags'."):
        load_images("emoji:notov1@flags")
    # The files are ordinary Parquet data sets too.
    plain = load_images(Path(FOLDER) / "notov1.parquet", label_column="name")
    assert set(plain.class_names) == {name.replace("_", " ") for name in images.class_names}
