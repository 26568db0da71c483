"""Make the emoji data sets from npm packages: one Parquet file per style, one row per emoji.

With --mini, make the embedded mini set from such files.

    python scripts/make_emoji_data.py --out emoji                          # all seven styles
    python scripts/make_emoji_data.py --out emoji --styles fluent3d notov1
    python scripts/make_emoji_data.py --mini emoji --out hf_clip_variants/assets/emoji-mini

Needs npm, which fetches the pinned packages (`--packages FOLDER` reads tarballs that are already there) and, for the
styles that come as SVG, `pip install resvg-py`. Every row: image (64 px WebP with alpha), style, hexcode, name,
name_zh, tags, group, subgroup; names and tags are emojibase's, joined on the code point. Licences: see
assets/emoji-mini/LICENSES.md.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Style:
    package: str  # npm name@version
    licence: str
    images: str | None = None  # path of the images in the package; None: an Iconify set of SVG
    upper: bool = False  # code points in file names are upper case


NAMES = "emojibase-data@17.0.0"
STYLES = {
    "noto": Style("emoji-datasource-google@16.0.0", "Apache-2.0 / OFL", "package/img/google/64/{}.png"),
    "notov1": Style("@iconify-json/noto-v1@1.2.5", "Apache-2.0"),
    "twemoji": Style("emoji-datasource-twitter@16.0.0", "CC-BY-4.0", "package/img/twitter/64/{}.png"),
    "openmoji": Style("openmoji@17.0.0", "CC-BY-SA-4.0", "package/color/72x72/{}.png", upper=True),
    "fluent3d": Style("@lobehub/fluent-emoji-3d@1.1.0", "MIT", "package/assets/{}.webp"),
    "fluentflat": Style("@iconify-json/fluent-emoji-flat@1.2.6", "MIT"),
    "emojione": Style("@iconify-json/emojione@1.2.3", "CC-BY-4.0"),
}
MINI_STYLES = ("emojione", "fluent3d", "fluentflat", "notov1")  # permissive, and unseen by emoji-clip-tiny
MINI_GROUPS = ("animals-nature", "food-drink")
SIZE = 64


def fetch(package: str, folder: Path) -> Path:
    """The package's tarball, from `folder` or by `npm pack` into it."""
    tarball = folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not tarball.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(
                f"npm is not installed; install it, or put {tarball.name} into a folder and pass --packages"
            )
        print(f"npm pack {package}", file=sys.stderr)
        done = subprocess.run([npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
        if done.returncode or not tarball.exists():
            raise SystemExit(f"npm pack {package} failed: {done.stderr.strip()[-500:]}")
    return tarball


def read_members(tarball: Path, wanted) -> dict[str, bytes]:
    """Member name -> content for the names that `wanted` accepts. Nothing is unpacked to disk."""
    with tarfile.open(tarball) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile() and wanted(m.name)}


def concepts(packages: Path) -> list[dict]:
    """Every emoji that belongs to a group, sorted by code point: the columns but image and style."""
    files = ("package/en/data.json", "package/zh/data.json", "package/meta/groups.json")
    content = read_members(fetch(NAMES, packages), files.__contains__)
    english, chinese, meta = (json.loads(content[name]) for name in files)
    name_zh = {row["hexcode"]: row["label"] for row in chinese}
    rows = []
    for row in english:
        group = meta["groups"].get(str(row.get("group")))
        if group not in (None, "component"):
            rows.append(
                {
                    "hexcode": row["hexcode"],
                    "name": row["label"],
                    "name_zh": name_zh.get(row["hexcode"]),
                    "tags": row.get("tags", []),
                    "group": group,
                    "subgroup": row["subgroup"],
                }
            )
    return sorted(rows, key=lambda row: row["hexcode"])


def spellings(hexcode: str) -> list[str]:
    """With and without the emoji-presentation mark FE0F, which file names may leave out."""
    return [hexcode, hexcode.replace("-FE0F", ""), f"{hexcode}-FE0F"]


def slug(name: str) -> str:
    """Iconify's name of an emoji: "woman’s hat" -> "womans-hat"."""
    name = "".join(c for c in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(c))
    return re.sub("[^a-z0-9]+", "-", name.replace("’", "").replace("'", "")).strip("-")


def image_files(style: Style, packages: Path, rows: list[dict]) -> dict[str, bytes]:
    """hexcode -> an image file (PNG or WebP)."""
    tarball = fetch(style.package, packages)
    if style.images is not None:
        folder = style.images.rsplit("/", 1)[0] + "/"
        members = read_members(tarball, lambda name: name.startswith(folder))
        files = {}
        for row in rows:
            names = [code if style.upper else code.lower() for code in spellings(row["hexcode"])]
            name = next((n for n in map(style.images.format, names) if n in members), None)
            if name:
                files[row["hexcode"]] = members[name]
        return files
    try:
        import resvg_py
    except ImportError as error:
        raise SystemExit(f"{style.package} holds SVG: pip install resvg-py") from error
    content = read_members(tarball, ("package/icons.json", "package/chars.json").__contains__)
    icons, characters = json.loads(content["package/icons.json"]), json.loads(content["package/chars.json"])
    files = {}
    for row in rows:
        names = [slug(row["name"])] + [characters.get(code.lower()) for code in spellings(row["hexcode"])]
        icon = next((icons["icons"][n] for n in names if n in icons["icons"]), None)
        if icon:
            width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
            # No emoji needs a font, and searching for system fonts takes longer than drawing.
            png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE, skip_system_fonts=True)
            files[row["hexcode"]] = bytes(png)
    return files


def to_webp(content: bytes) -> bytes:
    """An image file -> 64 x 64 WebP with alpha; an image that is not square is centred on a transparent square."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    if image.width != image.height:
        side = max(image.size)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)  # Pillow weighs colours by alpha here
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85, method=4)
    return buffer.getvalue()


def write(rows: list[dict], path: Path) -> None:
    """Atomically, and with `datasets`' own schema, so that the image column is an Image without a cast."""
    from datasets import Dataset, Features, Image, List, Value

    from hf_clip_variants.files.atomic_writes import replacing

    text = Value("string")
    features = Features(
        image=Image(),
        style=text,
        hexcode=text,
        name=text,
        name_zh=text,
        tags=List(text),
        group=text,
        subgroup=Value("int64"),
    )
    with replacing(path) as aside:
        Dataset.from_list(rows, features=features).to_parquet(aside)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def make(styles: list[str], out: Path, packages: Path) -> None:
    rows = concepts(packages)
    for style in styles:
        files = image_files(STYLES[style], packages, rows)
        made = [
            {
                "image": {"bytes": to_webp(files[row["hexcode"]]), "path": f"{row['hexcode']}.webp"},
                "style": style,
                **row,
            }
            for row in rows
            if row["hexcode"] in files
        ]
        write(made, out / f"emoji-{style}.parquet")


def make_mini(source: Path, out: Path) -> None:
    """From `emoji-<style>.parquet` files: the concepts of two groups that all four permissive styles have."""
    import pyarrow.parquet

    tables = {}
    for style in MINI_STYLES:
        table = pyarrow.parquet.read_table(source / f"emoji-{style}.parquet").to_pylist()
        tables[style] = {row["hexcode"]: row for row in table if row["group"] in MINI_GROUPS}
    shared = sorted(set.intersection(*map(set, tables.values())))
    if len({tables[MINI_STYLES[0]][code]["name"] for code in shared}) != len(shared):
        raise SystemExit("two concepts have the same name")
    for style, table in tables.items():
        rows = [
            table[code] | {"image": {"bytes": table[code]["image"]["bytes"], "path": f"{code}.webp"}}
            for code in shared
        ]
        write(rows, out / f"{style}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet files")
    parser.add_argument("--styles", nargs="+", choices=sorted(STYLES), default=sorted(STYLES))
    parser.add_argument(
        "--mini", type=Path, metavar="FOLDER", help="make the mini set from emoji-<style>.parquet in FOLDER"
    )
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="keep and reuse the npm tarballs here")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.mini:
        make_mini(arguments.mini, arguments.out)
        return
    if arguments.packages:
        arguments.packages.mkdir(parents=True, exist_ok=True)
        make(arguments.styles, arguments.out, arguments.packages.absolute())
        return
    with tempfile.TemporaryDirectory() as folder:
        make(arguments.styles, arguments.out, Path(folder))


if __name__ == "__main__":
    main()
