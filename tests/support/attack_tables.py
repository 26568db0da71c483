"""Tables to attack with: any text in cells, damaged quotes and encodings, columns that are missing or repeated."""

import csv
import functools
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attack_cases import WRONG, Case
from PIL import Image

from hf_clip_variants.data import load_images, open_pairs
from hf_clip_variants.data.csv_cells import csv_line
from hf_clip_variants.data.images.names import tidy_class_name


_PIECES = [
    *(
        "cat",
        "dog",
        "hot dog",
        "7",
        "None",
        "nan",
        "-",
        "=1+1",
        "@x",
        "+1",
        "'",
        "'=a",
        '"',
        '""',
        ",",
        ";",
        "\t",
        "|",
    ),
    *("\n", "\r", "\r\n", "\u2028", "\u0085", "\x0b", "\x0c", "\x1c", "\x1b[31m", "\u202e", "\ufeff", "é", "e\u0301"),
    *("日本", "👩‍👧", "$x$", "[/b]", "</script>", "`", "\\", "\\n", "{}", "#", "a" * 300, "\0"),
]
_NAMES = [f"{number}.png" for number in range(6)]


def _text(draw: random.Random, pieces: list[str] = _PIECES) -> str:
    text = "".join(draw.choices(pieces, k=draw.randint(1, 5)))
    return text if text.strip() else text + "x"


def _rows(draw: random.Random, pieces: list[str] = _PIECES) -> list[tuple[str, str]]:
    """Paths and labels of at least two classes that are different also when they are tidied."""
    labels: list[str] = []
    while len(labels) < 3:
        text = _text(draw, pieces)
        if tidy_class_name(text.strip(), False) not in [tidy_class_name(label.strip(), False) for label in labels]:
            labels.append(text)
    return [(name, labels[number % 3]) for number, name in enumerate(_NAMES)]


def _folder(folder: Path, seed: int) -> Path:
    place = folder / f"tables-{seed}"
    place.mkdir(exist_ok=True)
    for number, name in enumerate(_NAMES):
        if not (place / name).exists():
            Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(place / name)
    return place


def _written(place: Path, name: str, content: bytes) -> Path:
    file = place / name
    file.write_bytes(content)
    return file


def _labels(file: Path) -> list[str]:
    images = load_images(file, clean_class_names=False, progress=False)
    return [images.class_names[label] for label in images.labels]


def _same(file: Path, wanted: list[str]) -> object:
    """The labels that were written, read for both purposes."""
    wanted = [tidy_class_name(label.strip(), False) for label in wanted]
    found = _labels(file)
    if found != wanted:
        return f"{WRONG}labels {found!r} instead of {wanted!r}"
    pairs = open_pairs(file)
    texts = [" ".join(tidy_class_name(pairs.texts(row)[0][0], False).split()) for row in pairs.dataset]
    spaced = [" ".join(label.split()) for label in wanted]
    return len(found) if texts == spaced else f"{WRONG}texts {texts!r} instead of {spaced!r}"


def _either(file: Path, allowed: list[str]) -> object:
    """Whatever is read holds labels that were written, and each image once."""
    found = _labels(file)
    allowed = [tidy_class_name(label.strip(), False) for label in allowed]
    strange = [label for label in found if label not in allowed]
    return f"{WRONG}labels {strange[:3]!r} that nobody wrote" if strange else len(found)


def _refused(file: Path) -> object:
    return f"{WRONG}read as {_labels(file)!r:.200}"


def _csv(rows: list[tuple], separator: str = ",", quoting: int = csv.QUOTE_ALL, end: str = "\n", header=True) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerows([("path", "label"), *rows] if header else rows)
    return text.getvalue()


def _unless_nul(draw: random.Random) -> list[tuple[str, str]]:
    return _rows(draw, [piece for piece in _PIECES if piece != "\0"])


def _damaged(draw: random.Random, rows: list[tuple[str, str]]) -> bytes:
    """A table of which a right reader may say that something is wrong, or read rows that were written."""
    content = bytearray(_csv(rows).encode())
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content))
        kind = draw.choice(["cut", "NUL", "quote", "latin-1", "line"])
        if kind == "cut":
            del content[place:]
            content += b"x"
        elif kind == "line":
            content[place:place] = draw.choice([b"\n", b"\r", b",,,\n"])
        else:
            content[place:place] = {"NUL": b"\0", "quote": b'"', "latin-1": b"\xe9"}[kind]
    return bytes(content)


def _wrong_tables(draw: random.Random) -> dict[str, bytes]:
    """Tables that have no right answer."""
    (a, x), (b, y), *_ = _NAMES[0:2], _NAMES[2:4]
    plain = f"{a},red\n{b},blue\n"
    huge = "x" * draw.choice([1001, 5000, 200_000])
    half = json.dumps({"path": a, "label": "\ud800"}) + "\n"
    return {
        "header only": b"path,label\n",
        "empty": draw.choice([b"", b"\n\n", b"\xef\xbb\xbf", b",,\n,,\n"]),
        "repeated column": f"path,label,label\n{a},red,dark\n{b},blue,light\n".encode(),
        "repeated column but for case": f"path,Label,label\n{a},red,dark\n{b},blue,light\n".encode(),
        "unquoted comma": f"path,label\n{a},red{draw.choice([', dark', ',', ',,'])}\n{b},blue\n".encode(),
        "a value missing": f"path,label\n{a}\n{b},blue\n".encode(),
        "NUL": f"path,label\n{plain}".encode().replace(b"red", b"r\0d"),
        "latin-1": f"path,label\n{plain}".replace("red", "caf\xe9").encode("latin-1"),
        "UTF-16 without a mark": f"path,label\n{plain}".encode("utf-16-le"),
        "huge label": f"path,label\n{a},{huge}\n{b},blue\n".encode(),
        "quote without end": f'path,label\n{a},"red\n{b},blue\n{x},red\n{y},blue\n'.encode(),
        "no image column": f"thing,label\nx{a[:-4]},red\ny,blue\n".encode(),
        "no files": b"path,label\nnowhere.png,red\ngone.png,blue\n",
        "one class": f"path,label\n{a},red\n{b},red\n".encode(),
        "jsonl: half of a pair": half.encode(),
        "jsonl: deep": b'{"path": ' + b"[" * 100_000 + b"\n",
        "jsonl: a key twice": f'{{"path": "{a}", "text": "x", "text": "y"}}\n'.encode(),
        "jsonl: a huge number": f'{{"path": "{a}", "text": {"9" * 5000}}}\n'.encode(),
        "jsonl: no object": draw.choice([b"[1]\n", b"1\n", b'"a"\n', b"null\n", b"{\n", b"\xff\n"]),
    }


def _refused_lines(file: Path) -> object:
    pairs = open_pairs(file)
    return f"{WRONG}read as {list(pairs.dataset)!r:.200}"


def _round_trip(place: Path, name: str, rows: list[tuple[str, str]]) -> object:
    """What `predict` writes, which `evaluate` reads."""
    header = ["path", "label", "score", "probability", "error"]
    lines = [csv_line(header), *(csv_line([path, label, -0.5, None, ""]) for path, label in rows)]
    for line in lines:
        cells = next(csv.reader(io.StringIO(line, newline="")))
        if any(cell.startswith(("=", "+", "@", "\t", "\r")) or (cell[:1] == "-" and cell != "-0.5") for cell in cells):
            return f"{WRONG}a formula in {line!r}"
    file = _written(place, name, "".join(lines).encode())
    found, wanted = _labels(file), [tidy_class_name(label.strip(), False) for _, label in rows]
    return len(found) if found == wanted else f"{WRONG}labels {found!r} instead of {wanted!r}"


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """About 60 cases; another seed gives others."""
    draw = random.Random(f"tables {seed}")
    place = _folder(folder, seed)

    def case(kind: str, name: str, run: Any, file: Path | str, *more: Any) -> Case:
        # The file, or the image or the argument that is wrong in it.
        named = (
            str(folder),
            "images[",
            "class_names",
            "labels:",
            "image_column",
            "label_column",
            "text_columns",
            "split:",
        )
        return Case(f"table: {kind}", name, functools.partial(run, file, *more), named)

    for number in range(12):
        rows = _unless_nul(draw)
        separator, end = draw.choice(",;\t|"), draw.choice(["\n", "\r\n", "\r"])
        encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
        text = _csv(rows, separator, end=end, header=draw.random() < 0.8)
        file = _written(place, f"any-{number}{draw.choice(['.csv', '.tsv', '.CSV'])}", text.encode(encoding))
        yield case(
            "any text in quotes", f"{number} {separator!r} {encoding}", _same, file, [label for _, label in rows]
        )
    for number in range(6):
        plain = [p for p in _PIECES if p.isalnum() and p != "nan"]
        rows = _rows(draw, plain)
        lines = [f"{path},{label}" for path, label in rows]
        text = "path,label\n" + "".join(line + draw.choice(["\n", "\r\n", "\r", "\n\n"]) for line in lines)
        file = _written(place, f"ends-{number}.csv", text.encode())
        yield case("mixed line ends", str(number), _same, file, [label for _, label in rows])
    for number in range(12):
        rows = _rows(draw, ["red", "blue", "green", "dark ", "light ", "'", "7"])
        file = _written(place, f"damaged-{number}.csv", _damaged(draw, rows))
        yield case("damaged", str(number), _answered, file)
    for number, (name, content) in enumerate(_wrong_tables(draw).items()):
        lines = name.startswith("jsonl")
        file = _written(place, f"wrong-{number}.{'jsonl' if lines else 'csv'}", content)
        yield case("no right answer", name, _refused_lines if lines else _refused, file)
    for number in range(8):
        yield case("written and read again", str(number), _round_trip, place, f"ours-{number}.csv", _unless_nul(draw))
    for number in range(4):
        rows = [{"path": path, "text": label} for path, label in _unless_nul(draw)]
        text = "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in rows)
        file = _written(place, f"lines-{number}.jsonl", text.encode())
        yield case("JSON lines", str(number), _json_lines, file, [row["text"] for row in rows])


def _answered(file: Path) -> object:
    """Labels of one line each, where something is read: a lost quote takes no rows into a label."""
    for label in _labels(file):
        if any(name in label for name in _NAMES):
            return f"{WRONG}a row within the label {label!r}"
    return True


def _json_lines(file: Path, wanted: list[str]) -> object:
    pairs = open_pairs(file)
    found = [pairs.texts(row)[0] for row in pairs.dataset]
    wanted = [[" ".join(text.split())] for text in wanted]
    return len(found) if found == wanted else f"{WRONG}texts {found!r} instead of {wanted!r}"


__all__ = ["cases"]
