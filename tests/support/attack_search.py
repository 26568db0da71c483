"""Attacks on search: folders and tables that are indexed, queries, indexes that are damaged or of another model, and
what is printed, written as CSV and shown as a page.

What is right: readable files have the vectors that the model gives each alone, the others are listed; an update is
what a new index would be; hits are those of brute force; a page has the structure that harmless names give it. Or
ValueError or OSError names the argument, the file or the index.
"""

import copy
import csv
import functools
import io
import itertools
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from attack_cases import WRONG, Case
from attack_images import _CHANGES as CHANGES
from attack_images import _image as image_file
from attack_markup import _text as markup
from attack_prompts import ODD
from attack_texts import _text
from attack_videos import STRANGE, Attack, _damaged, _files, _quiet, _shown
from few_shot_runs import save_tiny_clip
from media_folders import folder_content, save_sound

from hf_clip_variants import build_index, open_index
from hf_clip_variants.data.csv_cells import unescape_cell
from hf_clip_variants.search.encoder import Encoder, load_encoder
from hf_clip_variants.search.index import Hit, Index
from hf_clip_variants.search.results import COLUMNS, as_csv, as_page, moment, rows


KIND = "search"


@functools.cache
def _model() -> Path:
    return save_tiny_clip(Path(tempfile.mkdtemp(prefix="attack-search-model-")))


@functools.cache
def _encoder() -> Encoder:
    return load_encoder(_model(), "cpu")


def _picture(rng: random.Random) -> bytes:
    noise = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (rng.randint(4, 30), 24, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, rng.choice(["PNG", "JPEG", "WEBP", "BMP"]))
    return file.getvalue()


def _name(rng: random.Random, suffix: str) -> str:
    text = (markup(rng) if rng.random() < 0.5 else _text(rng)).replace("/", "∕").replace("\0", "")
    text = (
        text.encode(
            "utf-8",
            "surrogateescape",
        ).decode("utf-8", "ignore")
        if text.isprintable()
        else text
    )
    stem = text.encode("utf-8", "ignore")[:60].decode("utf-8", "ignore").lstrip(".") or "x"
    return f"{stem}{rng.randrange(10**6)}{suffix}"


def _fill(rng: random.Random, place: Path, count: int) -> None:
    """Files of which most can be read."""
    for _ in range(count):
        kind = rng.choice(
            ["picture", "picture", "picture", "odd", "video", "damaged", "text", "empty", "link", "sound"]
        )
        folder = place / rng.choice([".", ".", "sub", "a b", "sub/é"])
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "picture":
            (folder / _name(rng, rng.choice([".png", ".PNG", ".jpg", ".webp"]))).write_bytes(_picture(rng))
        elif kind == "odd":
            content, form, _ = image_file(rng)
            change = rng.choice(sorted(CHANGES))
            (folder / _name(rng, ".png")).write_bytes(CHANGES[change](rng, content, form))
        elif kind in ("video", "damaged"):
            suffix, content = rng.choice(_files())
            content = _damaged(rng, content)[1] if kind == "damaged" else content
            (folder / _name(rng, suffix)).write_bytes(content)
        elif kind == "text":
            (folder / _name(rng, rng.choice([".png", ".txt", ".mp4"]))).write_text("no picture")
        elif kind == "empty":
            (folder / _name(rng, ".jpg")).write_bytes(b"")
        elif kind == "link":
            target = rng.choice([*place.rglob("*.png"), Path("/nowhere.png"), place])
            os.symlink(target, folder / _name(rng, ".png"))
        else:
            save_sound(folder / _name(rng, ".wav"), 0.1)


@functools.cache
def _made(seed: int) -> Index:
    """An index that is not changed: pictures and videos."""
    rng, place = random.Random(f"index {seed}"), Path(tempfile.mkdtemp(prefix="attack-search-index-"))
    (place / "files").mkdir()
    for number in range(9):
        (place / "files" / f"{number}.png").write_bytes(_picture(rng))
    for number, (suffix, content) in enumerate(_files()[:3]):
        (place / "files" / f"{number}{suffix}").write_bytes(content)
    return build_index(place / "files", _encoder(), place / "index", fps=4)


# ---- what is indexed


def _checked(index: Index, source: Path) -> object:
    vectors = np.array(index.dataset["features"][:], np.float64)
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=5e-3):
        return f"{WRONG}vectors that are not of unit norm"
    paths = index.dataset["path"][:]
    if paths != sorted(paths):
        return f"{WRONG}not in the order of paths"
    both = {*paths} & {path for path, _ in index.unreadable}
    if both:
        return f"{WRONG}read and not readable: {both}"
    for path, why in index.unreadable:
        if not why.strip() or str(source) in why:
            return f"{WRONG}{path}: {why!r}"
    return True


def folders(rng: random.Random, folder: Path) -> Attack:
    """An index, the same again, and an update after files came, changed and went."""
    source, out = folder / "files", folder / "index"
    count, options = rng.randint(1, 7), {"fps": rng.choice([None, 2, 8]), "videos": rng.choice([None, "clips"])}
    options["clip_seconds"] = rng.choice([None, 0.3, 10])

    def run():
        for place in (source, out, folder / "anew"):
            shutil.rmtree(place, ignore_errors=True)
        source.mkdir()
        _fill(rng, source, count)
        index = build_index(source, _encoder(), out, **options, batch_size=rng.choice([1, 32]))
        if (found := _checked(index, source)) is not True:
            return found
        before = folder_content(out)
        if (index := build_index(source, _encoder(), out)) and folder_content(out) != before:
            return f"{WRONG}the same files give another index"
        for path in index.dataset["path"][:2]:
            if rng.random() < 0.5:
                (source / path).unlink()
        _fill(rng, source, rng.randint(0, 3))
        index = build_index(source, _encoder(), out)
        anew = build_index(source, _encoder(), folder / "anew", **options)
        ours, expected = index.dataset.to_dict(), anew.dataset.to_dict()
        both = [np.array(one.pop("features")) for one in (ours, expected)]  # in other batches, last bits differ
        if ours != expected or index.unreadable != anew.unreadable or not np.allclose(*both, atol=1e-3):
            return f"{WRONG}an update is not what a new index is"
        return _checked(index, source)

    return f"{count} files, {options}", _quiet(run), ("source", str(folder))


def options(rng: random.Random, folder: Path) -> Attack:
    """One argument of `build_index`."""
    names = ["source", "model", "out", "videos", "fps", "clip_seconds", "column", "split", "batch_size", "device"]
    name = rng.choice([*names, "workers", "faiss", "dtype"])
    value = rng.choice([*STRANGE, *ODD, "/nowhere/at/all", "", "clips", "IVF9999999,Flat", "Flat"])
    source = Path(_made(0).manifest["source"])

    def run():
        shutil.rmtree(folder / "index", ignore_errors=True)
        given = {"source": source, "model": _encoder(), "out": folder / "index"} | {name: value}
        found = build_index(**given)
        return True if len(found) and found.unreadable == [] else f"{WRONG}{found!r}"

    named = (name, "source", "column", "split", "faiss", "CUDA", "device", "/nowhere/at/all")
    return f"{name} = {_shown(value)}", _quiet(run), named


def tables(rng: random.Random, folder: Path) -> Attack:
    """A column of a table."""
    import datasets

    count = rng.randint(1, 5)
    cells = [_picture(rng) for _ in range(count)]
    good = [True] * count
    place = rng.randrange(count)
    which = rng.choice(["good", "null", "text", "empty", "cut", "name", "names twice", "video", "no bytes", "numbers"])
    paths: list[object] = [f"{number}.png" for number in range(count)]
    if which in ("null", "text", "empty", "cut", "video"):
        video = rng.choice(_files())[1]
        cells[place] = {"null": None, "text": b"no picture", "empty": b"", "cut": cells[place][:20], "video": video}[
            which
        ]
        good[place] = which == "video"
    elif which == "name":
        paths[place] = rng.choice([markup(rng).replace("\0", ""), "", None, "../../x.png", "/etc/passwd", "a/b.png"])
    elif which == "names twice":
        paths = ["same.png"] * count
    file = folder / "table.parquet"

    def run():
        shutil.rmtree(folder / "index", ignore_errors=True)
        table = datasets.Dataset.from_dict(
            {"image": [None if c is None else {"bytes": c, "path": p} for c, p in zip(cells, paths, strict=True)]},
            features=datasets.Features(
                {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
            ),
        )
        if which == "no bytes":
            table = datasets.Dataset.from_dict({"image": ["x"] * count})
        elif which == "numbers":
            table = datasets.Dataset.from_dict({"image": list(range(count))})
        table.to_parquet(str(file))
        index = build_index(file, _encoder(), folder / "index")
        read = len(index.stamps())
        if read != sum(good) or len(index.unreadable) != count - sum(good):
            return f"{WRONG}{read} rows and {index.unreadable} of {count}"
        for number, cell in enumerate(cells):
            if good[number] and which != "video":
                (best,) = index.search(image=cell, top=1)
                if best.score < 0.999:
                    return f"{WRONG}row {number} finds {best}"
        return _checked(index, folder)

    return f"{which}, {count} rows, {_shown(paths[place])}", _quiet(run), ("source", "column", str(folder))


# ---- queries


def _brute_force(index: Index, query: torch.Tensor, top: int, kinds, every: bool) -> list[tuple[str, int]]:
    vectors = np.array(index.dataset["features"][:], np.float64)
    scores = vectors @ query.numpy().astype(np.float64)[0]
    found, seen = [], set()
    of_kind, paths = index.dataset["kind"][:], index.dataset["path"][:]
    for row in np.lexsort((np.arange(len(scores)), -scores)):
        if (kinds is None or of_kind[row] in kinds) and (every or paths[row] not in seen):
            seen.add(paths[row])
            found.append((paths[row], int(row)))
    return found[:top]


def queries(rng: random.Random, folder: Path) -> Attack:
    index = _made(rng.randrange(3))
    given: dict[str, object] = {"text": _text(rng)}
    which = rng.choice(["text", "text", "image", "image", "sound", "both", "odd", "odd", "options", "options"])
    if which in ("image", "both"):
        content, form, _ = image_file(rng)
        change = rng.choice(["none", *CHANGES])
        given["image"] = content if change == "none" else CHANGES[change](rng, content, form)
        if which == "image":
            del given["text"]
    elif which == "sound":
        given["sound"] = b"RIFF"
    elif which == "odd":
        given[rng.choice(["text", "image", "sound"])] = rng.choice([*ODD, "", " ", "/nowhere", [], None, "\ud800"])
    elif which == "options":
        names = ["top", "kinds", "every_moment", "templates", "exact"]
        name = rng.choice(names)
        values = {
            "kinds": [["video"], "image", [], ["x"], ("image", "video"), ["audio"], {"image"}],
            "templates": ["a {}", ["{}", "a {}."], "none", [], "{0}", 3, ["{} {}"]], "top": [1, 3, 10**9],
            "exact": [True, False], "every_moment": [True],
        }  # fmt: skip
        given[name] = rng.choice([*values[name], *values[name], *STRANGE])

    def run():
        hits = index.search(**given)
        scores = [hit.score for hit in hits]
        if scores != sorted(scores, reverse=True) or not all(-1.01 <= score <= 1.01 for score in scores):
            return f"{WRONG}scores {scores}"
        query = index.query(*(given.get(name) for name in ("text", "image", "sound", "templates")))
        kinds = given.get("kinds")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        expected = _brute_force(index, query, given.get("top", 20), kinds, bool(given.get("every_moment")))
        found = [(hit.path, hit.row) for hit in hits]
        return True if found == expected else f"{WRONG}{found} instead of {expected}"

    shown = ", ".join(f"{name}={_shown(value)}" for name, value in given.items())
    return f"{which}, {shown}", _quiet(run), ("query", *given, "template", "audio", "images")


def vectors(rng: random.Random, folder: Path) -> Attack:
    index = _made(rng.randrange(3))
    right = torch.randn(2, 24, generator=torch.Generator().manual_seed(rng.randrange(99)))
    value = rng.choice(
        [
            right,
            right[:0],
            right[0],
            right[:, :5],
            right * math.nan,
            right * 1e30,
            right * 0,
            right.double(),
            right.half(),
        ]
        + [
            right.numpy(),
            right.tolist(),
            right.long(),
            right.to(torch.complex64),
            right.bool(),
            right[None],
            *ODD,
            None,
        ]
    )

    def run():
        found = index.nearest(value, top=3)
        if len(found) != len(value):
            return f"{WRONG}{len(found)} answers"
        return True if all(math.isfinite(hit.score) for one in found for hit in one) else f"{WRONG}scores not finite"

    return f"{_shown(value)}", _quiet(run), ("queries",)


# ---- damaged indexes, other models


def _copied(index: Index, folder: Path) -> Path:
    shutil.rmtree(folder / "copy", ignore_errors=True)
    return Path(shutil.copytree(index.folder, folder / "copy"))


def damaged(rng: random.Random, folder: Path) -> Attack:
    index, seed = _made(0), rng.random()
    files = sorted(path.name for path in index.folder.iterdir() if path.is_file())
    name, how = rng.choice(files), rng.choice(["cut", "flip", "gone", "empty", "folder", "field", "field", "text"])
    draw = random.Random(seed)

    def run():
        copied = _copied(index, folder)
        path = copied / name
        content = path.read_bytes()
        if how == "field" and name.endswith(".json"):
            about = json.loads(content)
            holder, key = about, draw.choice(sorted(about))
            if isinstance(about[key], dict) and about[key] and draw.random() < 0.5:
                holder = about[key]
                key = draw.choice(sorted(holder))
            if draw.random() < 0.3:
                del holder[key]
            else:
                holder[key] = draw.choice([None, 0, -1, "x", "../..", [], {}, True, 10**30, [["a"]], "\ud800", 1.5])
            path.write_text(json.dumps(about))
        elif how == "gone":
            path.unlink()
        elif how == "folder":
            path.unlink()
            path.mkdir()
        elif how == "flip":
            data = bytearray(content)
            for _ in range(draw.choice([1, 20])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(data))
        else:
            path.write_bytes({"cut": content[: draw.randrange(len(content))], "empty": b""}.get(how, b"[1]"))
        opened = open_index(copied, _encoder())
        hits = opened.search("a cat")
        opened.counts(), opened.stamps(), opened.unreadable, repr(opened)
        rows(opened, hits), as_csv(opened, hits), as_page(opened, hits, "a cat")
        if not hits or not all(math.isfinite(hit.score) and -1.1 <= hit.score <= 1.1 for hit in hits):
            return f"{WRONG}hits {hits[:2]}"
        return True

    return f"{name}, {how}, {seed:.4f}", _quiet(run), (str(folder), "index", "model")


def other_models(rng: random.Random, folder: Path) -> Attack:
    """Another model is refused; the same one in another place is not."""
    index = _made(0)
    which = rng.choice(["same", "weight", "weight", "settings", "other width", "no texts"])
    seed = rng.random()

    def run():
        draw, model, processor = random.Random(seed), copy.deepcopy(_encoder().model), _encoder().processor
        if which == "weight":
            name, tensor = draw.choice([p for p in model.named_parameters() if p[1].numel() > 1])
            tensor.data.view(-1)[draw.randrange(tensor.numel())] += 0.5
        elif which == "settings":
            processor = copy.deepcopy(processor)
            processor.image_processor.image_mean = [0.1, 0.2, 0.3]
        elif which == "other width":
            model.config.projection_dim = 12
            model.text_projection = torch.nn.Linear(32, 12, bias=False)
            model.visual_projection = torch.nn.Linear(40, 12, bias=False)
        elif which == "no texts":
            model = model.vision_model
        other = Encoder("other", model, processor)
        hits = open_index(index.folder, other).search("a cat")
        if which != "same":
            return f"{WRONG}accepted another model ({which})"
        expected = index.search("a cat")
        same = [hit.row for hit in hits] == [hit.row for hit in expected]
        return True if same and abs(hits[0].score - expected[0].score) < 1e-5 else f"{WRONG}other hits"

    return f"{which}, {seed:.3f}", _quiet(run), ("model", "other")


# ---- what is shown


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(sorted(name for name, _ in attributes))))
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "action", "srcset")]


def _structure(page: str) -> tuple[list, list[str]]:
    parser = _Tags()
    parser.feed(page)
    return parser.found, parser.links


def shown(rng: random.Random, folder: Path) -> Attack:
    """Names with markup, formulas, control characters: in rows, CSV and the page."""
    made, names = _made(0), [markup(rng).replace("\0", "") for _ in range(3)]
    numbers = [rng.choice([0.0, 59.96, 3599.99, 36000.25, 1e-3]) for _ in range(2)]
    text = rng.choice([markup(rng), None])

    def run():
        def hits(some):
            return [
                Hit(some[0], "image", 0.5, None, None, 0), Hit(some[1], "video", -0.25, numbers[0], numbers[0], 1),
                Hit(some[2], "audio", 1.0, min(numbers), max(numbers), 2),
            ]  # fmt: skip

        ours, plain = hits(names), hits(["a.png", "b.mp4", "c.wav"])
        lines = list(csv.DictReader(io.StringIO(as_csv(made, ours), newline="")))
        if [unescape_cell(line["path"]) for line in lines] != [made.location(hit) for hit in ours]:
            return f"{WRONG}paths in CSV: {[line['path'] for line in lines]}"
        if any(line["path"].lstrip("'").lstrip()[:1] in "=+-@" and line["path"][0] != "'" for line in lines):
            return f"{WRONG}a formula"
        if tuple(lines[0]) != COLUMNS or json.loads(json.dumps(rows(made, ours)))[0]["path"] != made.location(ours[0]):
            return f"{WRONG}columns {tuple(lines[0])}"
        if any(":60" in moment(hit) for hit in ours):
            return f"{WRONG}times {[moment(hit) for hit in ours]}"
        page, expected = as_page(made, ours, text), as_page(made, plain, None if text is None else "a cat")
        (tags, links), (plain_tags, _) = _structure(page), _structure(expected)
        if tags != plain_tags:
            return f"{WRONG}other tags: {[tag for tag in tags if tag not in plain_tags][:3]}"
        if bad := [link for link in links if not link.startswith(("file:///", "data:image/"))]:
            return f"{WRONG}links {bad[:2]}"
        if any(ord(c) < 32 and c != "\n" and c != "\t" for c in page):
            return f"{WRONG}control characters in the page"
        return True

    return f"{[ascii(name) for name in names]}, {_shown(text)}", _quiet(run), ("path", "query")


ATTACKS = (
    queries, damaged, shown, folders, tables, vectors, damaged, options, queries, other_models, shown, damaged,
)  # fmt: skip


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """For ever, every attack in turn."""
    rng = random.Random(f"{KIND} {seed}")
    for count in itertools.count():
        attack = ATTACKS[count % len(ATTACKS)]
        name, run, named = attack(random.Random(rng.random()), folder)
        yield Case(KIND, f"{count} {attack.__name__}, {name}", run, named)


__all__ = ["KIND", "cases"]
