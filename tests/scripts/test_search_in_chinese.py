"""Chinese names find the right clips with a Chinese-CLIP that learned these names from still pictures alone."""

import io
import sys

import datasets
import pytest
from paths import SCRIPTS
from PIL import Image

from hf_clip_variants.data import load_emoji


NAMES = {
    "cat": "猫",
    "dog": "狗",
    "pizza": "披萨",
    "banana": "香蕉",
    "rose": "玫瑰",
    "owl": "猫头鹰",
    "octopus": "章鱼",
}
NAMES |= {"taco": "墨西哥卷饼", "hot dog": "热狗", "lemon": "柠檬", "cherries": "樱桃", "tulip": "郁金香"}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    import search_in_chinese

    yield search_in_chinese
    sys.path.remove(str(SCRIPTS))
    sys.modules.pop("search_in_chinese", None)


def write_stills(path, style: str):
    images = load_emoji(style, concepts=list(NAMES))
    cells = [{"bytes": images.encoded_bytes(i), "path": None} for i in range(len(NAMES))]
    datasets.Dataset.from_dict({"image": cells, "name_zh": list(NAMES.values())}).to_parquet(str(path))
    return path


def write_clips(path, style: str):
    images, rows = load_emoji(style, concepts=list(NAMES)), []
    for number, (name, chinese) in enumerate(NAMES.items()):
        frames = []
        for side in (40, 52, 64):
            frame = Image.new("RGB", (64, 64), "white")
            icon = images.image(number).convert("RGBA").resize((side, side))
            frame.paste(icon, ((64 - side) // 2, (64 - side) // 2), icon)
            frames.append(frame)
        buffer = io.BytesIO()
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=400, lossless=True)
        rows.append({"clip": buffer.getvalue(), "name": name, "name_zh": chinese, "split": "test"})
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.mark.slow
def test_chinese_names_find_clips_of_what_stills_showed(script, tmp_path, capsys):
    stills = [write_stills(tmp_path / f"{style}.parquet", style) for style in ("fluentflat", "emojione")]
    clips = write_clips(tmp_path / "clips.parquet", "notov1")
    options = ["--clips", clips, "--emoji", *stills, "--steps", 60, "--seeds", 1, "--out", tmp_path / "table.md"]
    assert script.main([*map(str, options), "--show", "香蕉"]) == 0
    table = (tmp_path / "table.md").read_text()
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    first = {row[0].strip(): float(row[1]) for row in rows[1:]}
    known = first["small Chinese-CLIP, Chinese names, names known"]
    assert known >= 60 and known >= 3 * first["chance"], first
    assert known >= first["embedded CLIP, Chinese names, which it never learned"] + 30, first
    assert "香蕉: " in capsys.readouterr().out
