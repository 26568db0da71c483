"""make_emoji_data.py on packages made for the test: names, PNG, WebP and SVG styles, the mini set."""

import importlib.util
import io
import json
import sys
import tarfile
import types

import numpy as np
import pytest
from datasets import Dataset
from paths import SCRIPTS
from PIL import Image

from hf_clip_variants.data import load_images


SCRIPT = SCRIPTS / "make_emoji_data.py"
EMOJI = [  # code point, label, emojibase group
    ("1F408-200D-2B1B", "black cat", 3),
    ("1F34B", "lemon", 4),
    ("2615", "hot beverage", 4),
    ("1F1E6", "regional indicator A", None),
    ("1F3FB", "light skin tone", 2),
    ("260E-FE0F", "telephone", 7),
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_emoji_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_emoji_data"] = module  # dataclasses need their module in sys.modules
    spec.loader.exec_module(module)
    return module


def image_file(seed, size=(64, 64), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").resize(size).save(buffer, kind)
    return buffer.getvalue()


def pack(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    english = [
        {"hexcode": code, "label": label, "tags": [label.split()[0]], "subgroup": 1}
        | ({} if group is None else {"group": group})
        for code, label, group in EMOJI
    ]
    chinese = [{"hexcode": code, "label": f"zh {label}"} for code, label, _ in EMOJI]
    groups = {"groups": {"2": "component", "3": "animals-nature", "4": "food-drink", "7": "objects"}}
    contents = {"en/data.json": english, "zh/data.json": chinese, "meta/groups.json": groups}
    pack(folder / "emojibase-data-17.0.0.tgz", {k: json.dumps(v).encode() for k, v in contents.items()})
    lobehub = {
        "assets/1f408-200d-2b1b.webp": image_file(1, (90, 60), "WEBP"),
        "assets/1f34b.webp": image_file(2),
        "assets/260e.webp": image_file(3),
    }
    pack(folder / "lobehub-fluent-emoji-3d-1.1.0.tgz", lobehub)
    icons = {
        "width": 32,
        "height": 32,
        "icons": {"black-cat": {"body": "<g/>"}, "citrus": {"body": "<i/>", "width": 64}},
    }
    iconify = {"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps({"1f34b": "citrus"}).encode()}
    pack(folder / "iconify-json-noto-v1-1.2.5.tgz", iconify)
    return folder


def test_images_and_names_are_joined_on_the_code_point(script, packages, tmp_path, monkeypatch):
    drawn = []

    def svg_to_bytes(svg_string, **options):
        drawn.append(svg_string)
        return list(image_file(7, (options["width"], options["height"])))

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))
    script.make(["fluent3d", "notov1"], tmp_path, packages)
    rows = Dataset.from_parquet(str(tmp_path / "emoji-fluent3d.parquet"))
    assert rows["hexcode"][:] == [
        "1F34B",
        "1F408-200D-2B1B",
        "260E-FE0F",
    ]  # sorted; no components, none without an image
    assert rows[0]["name"] == "lemon" and rows[0]["name_zh"] == "zh lemon" and rows[0]["tags"] == ["lemon"]
    assert rows[0]["group"] == "food-drink" and rows[0]["style"] == "fluent3d"
    for row in rows:
        assert row["image"].size == (64, 64) and row["image"].mode == "RGBA"
    wide = np.asarray(rows[1]["image"])
    assert wide[:8, :, 3].max() < 20  # a 90 x 60 image has transparent bands above and below
    svg = Dataset.from_parquet(str(tmp_path / "emoji-notov1.parquet"))
    assert svg["hexcode"][:] == ["1F34B", "1F408-200D-2B1B"]  # one found by character, one by name
    assert 'viewBox="0 0 64 32"' in drawn[0] and 'viewBox="0 0 32 32"' in drawn[1]
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    assert load_images(tmp_path / "emoji-fluent3d.parquet", label_column="name").class_names == (
        "black cat",
        "lemon",
        "telephone",
    )


def test_mini_set_has_the_concepts_of_all_permissive_styles(script, packages, tmp_path):
    script.make(["fluent3d"], tmp_path, packages)
    table = Dataset.from_parquet(str(tmp_path / "emoji-fluent3d.parquet")).to_list()
    for style in script.MINI_STYLES:
        rows = [row | {"style": style} for row in table if style != "emojione" or row["name"] != "black cat"]
        script.write(rows, tmp_path / f"emoji-{style}.parquet")
    out = tmp_path / "mini"
    out.mkdir()
    script.make_mini(tmp_path, out)
    assert sorted(p.name for p in out.iterdir()) == [f"{s}.parquet" for s in script.MINI_STYLES]
    for style in script.MINI_STYLES:
        (row,) = Dataset.from_parquet(str(out / f"{style}.parquet"))  # the telephone is in another group
        assert row["name"] == "lemon" and row["style"] == style


def test_missing_npm_and_failing_packages_are_named(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="npm is not installed; install it, or put emojibase-data-17.0.0.tgz"):
        script.fetch(script.NAMES, tmp_path)
    monkeypatch.setattr(script.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(SystemExit, match="npm pack emojibase-data@17.0.0 failed"):
        script.fetch(script.NAMES, tmp_path)


def test_icon_names_follow_from_emoji_names(script):
    assert (
        script.slug("woman’s hat") == "womans-hat"
        and script.slug("piñata") == "pinata"
        and script.slug("keycap: 1") == "keycap-1"
    )
