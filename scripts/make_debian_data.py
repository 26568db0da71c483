"""Make the clip art and stamp data sets from two Debian packages: one Parquet file each, one row per image.

    python scripts/make_debian_data.py --out data                          # all three
    python scripts/make_debian_data.py --out data --only clipart
    python scripts/make_debian_data.py --out data --packages debs          # .deb files that are already there

| file | package | licence | columns |
|---|---|---|---|
| clipart | openclipart-png | public domain | image (64 px), title, folder |
| stamps | tuxpaint-stamps-default | GPL-2 | image (128 px), caption, caption_zh, caption_fr, caption_ja, path |
| stamps_audio | tuxpaint-stamps-default | GPL-2 | image (128 px), caption, caption_zh, path, audio (Ogg) |

The stamps are for tests and experiments; never ship them. Images are WebP with alpha, centred on a transparent square.
A missing text is an empty string. Needs apt-get, as any user (not with `--packages FOLDER`), 2 GB of memory for the
largest clip art and, for stamps that are SVG, `pip install cairosvg`.
"""

from __future__ import annotations

import argparse
import io
import lzma
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from hf_clip_variants.files.atomic_writes import write_atomically


@dataclass(frozen=True)
class Table:
    package: str
    licence: str
    columns: tuple[str, ...]  # beside image


STAMPS_LICENCE = "GPL-2: for tests and experiments, never shipped"
CAPTIONS = {"caption_zh": "zh_CN", "caption_fr": "fr", "caption_ja": "ja"}
TABLES = {
    "clipart": Table("openclipart-png", "public domain", ("title", "folder")),
    "stamps": Table("tuxpaint-stamps-default", STAMPS_LICENCE, ("caption", *CAPTIONS, "path")),
    "stamps_audio": Table("tuxpaint-stamps-default", STAMPS_LICENCE, ("caption", "caption_zh", "path", "audio")),
}
CLIPART_FOLDER = "usr/share/openclipart/png/"
STAMPS_FOLDER = "usr/share/tuxpaint/stamps/"
CLIPART_SIZE, STAMPS_SIZE = 64, 128
MAX_PIXELS = 2**28  # clip art has one image of 231 million pixels, and two of 623 million that would take 7 GB


def fetch(package: str, folder: Path) -> Path:
    """The package's .deb, from `folder` or by `apt-get download` into it."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        apt = shutil.which("apt-get")
        if apt is None:
            raise SystemExit(
                f"apt-get is not installed; put {package}_<version>_all.deb into a folder and pass --packages"
            )
        print(f"apt-get download {package}", file=sys.stderr)
        done = subprocess.run([apt, "download", package], cwd=folder, capture_output=True, text=True)
        found = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode or not found:
            raise SystemExit(
                f"apt-get download {package} failed (no network, or no package lists: apt-get update?): "
                f"{done.stderr.strip()[-500:]}"
            )
    if len(found) > 1:
        raise SystemExit(f"--packages: {', '.join(p.name for p in found)}; want one version of {package}")
    return found[0]


class _Part(io.RawIOBase):
    """The next `size` bytes of a file."""

    def __init__(self, file, size: int):
        self.file, self.left = file, size

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(content)
        return content


def read_members(deb: Path, folder: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    """(name, content, None) of each file below `folder` and (name, None, target) of each link, in the package's order.

    Names are relative to `folder`. Nothing is unpacked to disk.
    """
    with open(deb, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise SystemExit(f"{deb.name} is not a .deb: no ar archive")
        while True:
            header = file.read(60)
            name = header[:16].decode("ascii", "replace").strip().rstrip("/")
            if len(header) < 60 or not header[48:58].strip().isdigit():
                raise SystemExit(f"{deb.name} is not a whole .deb: no data.tar in it")
            size = int(header[48:58])
            if name.startswith("data.tar"):
                break
            file.seek(size + size % 2, io.SEEK_CUR)
        there = deb.stat().st_size - file.tell()
        if there < size:
            raise SystemExit(f"{deb.name} is not a whole .deb: {name} has {there:,} of {size:,} bytes")
        try:
            with tarfile.open(fileobj=_Part(file, size), mode="r|*") as archive:
                for member in archive:
                    path = posixpath.normpath(member.name).lstrip("/")
                    if not path.startswith(folder) or member.isdir():
                        continue
                    path = path.removeprefix(folder)
                    if member.isfile():
                        yield path, archive.extractfile(member).read(), None
                    elif member.issym() or member.islnk():
                        base = posixpath.dirname(folder + path) if member.issym() else ""
                        target = posixpath.normpath(posixpath.join("/", base, member.linkname)).lstrip("/")
                        yield path, None, target.removeprefix(folder)
        except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            raise SystemExit(
                f"{deb.name}: {name} is damaged or of an unknown kind ({error}); want .xz or .gz"
            ) from error


def draw(svg: bytes, name: str) -> bytes:
    """An SVG -> PNG, twice the wanted size. ValueError if it cannot be drawn."""
    try:
        import cairosvg
    except (ImportError, OSError) as error:  # OSError: no Cairo library
        raise SystemExit(f"{name} is an SVG: pip install cairosvg ({error})") from error
    side = 2 * STAMPS_SIZE
    try:
        # With a `url` CairoSVG loses some gradients, in about 30 stamps. It stays because the files that pre-training
        # was measured on were drawn with it.
        return cairosvg.svg2png(bytestring=svg, url=f"/{STAMPS_FOLDER}{name}", output_width=side, output_height=side)
    except Exception as error:  # it raises errors of many kinds; two stamps have XML entities, which it forbids
        raise ValueError(f"{type(error).__name__}: {error}") from error


def to_webp(content: bytes, side: int) -> bytes:
    """An image file -> side x side WebP with alpha, shrunk to fit and centred on a transparent square.

    ValueError if it cannot be read.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; want at most {MAX_PIXELS:,}")
        image = image.convert("RGBA")
    except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's error for a broken PNG
        raise ValueError(str(error)) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    buffer = io.BytesIO()
    square.save(buffer, "WEBP", quality=85, method=4)
    return buffer.getvalue()


def title(stem: str) -> str:
    """ "sheep-md_01" -> "sheep": without numbers and size suffixes."""
    return " ".join(re.sub(r"\b(md|sm|\d+)\b", "", re.sub("[_-]", " ", stem)).split())


def captions(content: bytes) -> dict[str, str]:
    """A stamp's text file: English on the first line, then `<language>.utf8=<caption>`."""
    first, *lines = content.decode("utf-8", "replace").splitlines() or [""]
    languages: dict[str, str] = {}
    for line in lines:
        language, mark, text = line.partition(".utf8=")
        if mark:
            languages.setdefault(language.strip(), text.strip())
    return {"caption": first.strip(), **{column: languages.get(code, "") for column, code in CAPTIONS.items()}}


def try_image(content: bytes, name: str, side: int) -> bytes | None:
    """The WebP, or None and a line on stderr."""
    try:
        return to_webp(draw(content, name) if name.endswith(".svg") else content, side)
    except ValueError as error:
        print(f"skipped {name}: {error}", file=sys.stderr)
        return None


def clipart_rows(deb: Path) -> list[dict]:
    images, links = {}, {}
    for name, content, target in read_members(deb, CLIPART_FOLDER):
        if name.endswith(".png"):
            if content is None:
                links[name] = target
            else:
                images[name] = try_image(content, name, CLIPART_SIZE)
    rows = []
    for name in sorted(images | links):
        source, seen = name, set()
        while source in links and source not in seen:
            seen.add(source)
            source = links[source]
        if images.get(source):
            path = PurePosixPath(name)
            image = {"bytes": images[source], "path": None}
            rows.append({"image": image, "title": title(path.stem), "folder": str(path.parent)})
    return rows


def stamp_rows(deb: Path) -> list[dict]:
    """With a column `audio`, which is None for stamps without audio."""
    images, texts, audio = {}, {}, {}
    for name, content, _ in read_members(deb, STAMPS_FOLDER):
        stem, suffix = posixpath.splitext(name)
        if content is None:
            continue
        if suffix in (".png", ".svg"):
            images[name] = try_image(content, name, STAMPS_SIZE)
        elif suffix == ".txt":
            texts[stem] = captions(content)
        elif suffix == ".ogg" and "_desc" not in name:  # those are the captions, read aloud
            audio[stem] = {"bytes": content, "path": posixpath.basename(name)}
    rows = []
    for name in sorted(images, key=PurePosixPath):
        stem = posixpath.splitext(name)[0]
        if images[name] and texts.get(stem, {}).get("caption"):  # mirror images have no text of their own
            image = {"bytes": images[name], "path": None}
            rows.append({"image": image, **texts[stem], "path": stem, "audio": audio.get(stem)})
    return rows


def write(rows: list[dict], name: str, out: Path) -> None:
    """Atomically, and with `datasets`' own schema, so that the image column is an Image without a cast.

    Audio stays a plain struct, because reading an Audio column needs torchcodec.
    """
    from datasets import Dataset, Features, Image, Value

    table = TABLES[name]
    if not rows:
        raise SystemExit(f"{name}: no row from {table.package}; is that the package?")
    kinds = {"audio": {"bytes": Value("binary"), "path": Value("string")}}
    features = Features(image=Image(), **{c: kinds.get(c, Value("string")) for c in table.columns})
    buffer = io.BytesIO()
    Dataset.from_list([{c: row[c] for c in features} for row in rows], features=features).to_parquet(buffer)
    path = write_atomically(out / f"{name}.parquet", buffer.getvalue())
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes; {table.package}, {table.licence}")


def make(names: list[str], out: Path, packages: Path) -> None:
    debs = {package: fetch(package, packages) for package in sorted({TABLES[name].package for name in names})}
    if "clipart" in names:
        write(clipart_rows(debs[TABLES["clipart"].package]), "clipart", out)
    if "stamps" in names or "stamps_audio" in names:
        rows = stamp_rows(debs[TABLES["stamps"].package])
        if "stamps" in names:
            write(rows, "stamps", out)
        if "stamps_audio" in names:
            write([row for row in rows if row["audio"]], "stamps_audio", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet files")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="keep and reuse the .deb files here")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.packages:
        arguments.packages.mkdir(parents=True, exist_ok=True)
        make(arguments.only, arguments.out, arguments.packages.absolute())
        return
    with tempfile.TemporaryDirectory() as folder:
        make(arguments.only, arguments.out, Path(folder))


if __name__ == "__main__":
    main()
