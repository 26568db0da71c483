"""The folders that users of CoOp and its successors have on disk: eleven data sets with Zhou's splits, and ImageNet's
four shifted test sets.

`load_images("coop:DATA/oxford_pets")` reads one of them. Everything is keyed by label: names may repeat (CLIP's
ImageNet names do, twice).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...modeling.decoding.opening import check_regular
from .image_set import name_some
from .names import is_image_name, tidy_class_name


PREFIX = "coop:"  # of sources
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # in Zhou's files -> ours
CLASS_NAMES_FILE = "classnames.txt"

_CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
_CALTECH_IGNORED = ("BACKGROUND_Google", "Faces_easy")  # no classes of the benchmark
_EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


@dataclass(frozen=True)
class LabelledPaths:
    """One split: N images below `root`, labels that count into `names`."""

    root: Path
    paths: list[str]  # as they are listed, relative to `root`
    labels: list[int]
    names: list[str]  # C, of all splits together; may repeat
    marks: list[str]  # C: what tells a name from the same one before it, see `repetition_marks`


@dataclass(frozen=True)
class Layout:
    """A data set as DATASETS.md of KaiyangZhou/CoOp lays it out.

    Attributes:
        folder (`str`): its name below $DATA.
        title (`str`): as papers' tables call it.
        template (`str`): CoOp's prompt for zero-shot CLIP.
        read (`Callable`): (layout, folder) -> splits.
        split_file, image_folder (`str`): where the lists and the images are, relative to the folder.
        recipe (`str`, *optional*): its name in `recipes.DATASETS`.
        names (`Mapping[str, str]`): class names that are written otherwise on disk.
        ignored (`tuple[str, ...]`): class names that must not be there.
    """

    folder: str
    title: str
    template: str
    read: Callable[[Layout, Path], dict[str, LabelledPaths]]
    split_file: str = ""
    image_folder: str = ""
    recipe: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


# ---- Zhou's split files


def _read_split_file(layout: Layout, folder: Path) -> dict[str, LabelledPaths]:
    """split_zhou_*.json: {"train", "val", "test"} -> lists of [path, label, class name]. Rows keep their order: draws
    depend on it."""
    file = _existing(folder / layout.split_file, layout)
    try:
        lists = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(lists, dict) or not set(SPLITS) <= set(lists):
        got = sorted(lists) if isinstance(lists, dict) else type(lists).__name__
        raise ValueError(f"{file}: got {got}; want an object with the lists {', '.join(SPLITS)}")
    root = folder / layout.image_folder
    rows = {split: _checked_rows(lists[word], f"{file}: {word}") for word, split in SPLITS.items()}
    names = _names_by_label(((label, name) for part in rows.values() for _, label, name in part), file)
    bad = sorted(set(names) & set(layout.ignored))
    if bad:
        raise ValueError(
            f"{file}: {name_some(bad)} is no class of {layout.title}; take the file that CoOp's DATASETS.md links to"
        )
    names = [layout.names.get(name, name) for name in names]
    marks = repetition_marks(names)
    return {
        split: LabelledPaths(root, [path for path, _, _ in part], [label for _, label, _ in part], names, marks)
        for split, part in rows.items()
    }


def _checked_rows(rows: Any, where: str) -> list[tuple[str, int, str]]:
    if not isinstance(rows, list):
        raise ValueError(f"{where}: got {type(rows).__name__}; want a list of [path, label, class name]")
    checked = []
    for number, row in enumerate(rows):
        well_formed = isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row[::2])
        if not well_formed or isinstance(row[1], bool) or not isinstance(row[1], int) or row[1] < 0:
            raise ValueError(
                f"{where}[{number}]: got {_short(row)}; want [path, label, class name] with a label of 0 or more"
            )
        checked.append((_inside(row[0], f"{where}[{number}]"), row[1], row[2]))
    return checked


def _inside(path: str, where: str) -> str:
    """`path`, if it leads to a file below the folder that it is relative to. ValueError otherwise."""
    parts = PurePosixPath(path)
    if not path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{where}: the path {path!r} leaves the data set's folder; want one below it")
    return path


def _names_by_label(pairs: Iterable[tuple[int, str]], file: Path) -> list[str]:
    """The name of each label 0..C-1. ValueError for gaps and for a label with two names."""
    name_of: dict[int, str] = {}
    for label, name in pairs:
        if name_of.setdefault(label, name) != name:
            raise ValueError(
                f"{file}: label {label} is named {name_of[label]!r} and {name!r}; want one name per label"
            )
    if not name_of:
        raise ValueError(f"{file}: lists no images")
    missing = sorted(set(range(max(name_of) + 1)) - set(name_of))
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(
            f"{file}: labels go up to {max(name_of)}, but none is {shown}; want 0..{max(name_of)} without gaps"
        )
    return [name_of[label] for label in range(len(name_of))]


# ---- other layouts


def _read_aircraft(layout: Layout, folder: Path) -> dict[str, LabelledPaths]:
    """variants.txt: a class a line. images_variant_<split>.txt: lines of image id and variant."""
    names = [line.strip() for line in _lines(folder / "variants.txt", layout)]
    label_of = {name: label for label, name in enumerate(names)}  # the lists name their classes and know no labels
    if len(label_of) < len(names):
        raise ValueError(f"{folder / 'variants.txt'}: {len(names) - len(label_of)} variants are listed twice")
    splits = {}
    for word, split in SPLITS.items():
        file = folder / f"images_variant_{word}.txt"
        paths, labels = [], []
        for number, line in enumerate(_lines(file, layout), start=1):
            identity, _, variant = line.strip().partition(" ")
            if variant not in label_of:
                raise ValueError(f"{file}, line {number}: {variant!r} is not in variants.txt")
            paths.append(_inside(f"{identity}.jpg", f"{file}, line {number}"))
            labels.append(label_of[variant])
        splits[split] = LabelledPaths(folder / layout.image_folder, paths, labels, names, repetition_marks(names))
    return splits


def _read_imagenet(layout: Layout, folder: Path) -> dict[str, LabelledPaths]:
    """images/train and images/val by WordNet id. The validation images are the test set, as in the papers; there is no
    other set to validate on.
    """
    classes = _wordnet_classes(folder, layout)
    roots = {"train": folder / layout.image_folder / "train", "test": folder / layout.image_folder / "val"}
    return {split: _by_wordnet_id(root, classes, layout, whole=True) for split, root in roots.items()}


def _read_imagenet_sketch(layout: Layout, folder: Path) -> dict[str, LabelledPaths]:
    return {"test": _by_wordnet_id(folder / layout.image_folder, _wordnet_classes(folder, layout), layout, whole=True)}


def _read_imagenet_part(layout: Layout, folder: Path) -> dict[str, LabelledPaths]:
    """ImageNet-A and -R: 200 of the 1000 classes."""
    return {
        "test": _by_wordnet_id(folder / layout.image_folder, _wordnet_classes(folder, layout), layout, whole=False)
    }


def _read_imagenet_v2(layout: Layout, folder: Path) -> dict[str, LabelledPaths]:
    """Folders are numbers: lines of classnames.txt, from 0."""
    classes = list(_wordnet_classes(folder, layout).values())
    root = _existing(folder / layout.image_folder, layout)
    numbers = [d.name for d in _folders(root)]
    unknown = [n for n in numbers if not n.isdecimal() or int(n) >= len(classes)]
    missing = [str(n) for n in range(len(classes)) if str(n) not in numbers]
    if unknown or missing:
        fault = f"has the folders {name_some(unknown)}" if unknown else f"misses the folders {name_some(missing)}"
        raise ValueError(f"{root}: {fault}; want 0..{len(classes) - 1}, the lines of {CLASS_NAMES_FILE}")
    return {"test": _images_in(root, [str(n) for n in range(len(classes))], classes)}


def _wordnet_classes(folder: Path, layout: Layout) -> dict[str, tuple[str, str]]:
    """classnames.txt: WordNet id -> name and mark, in the file's order. Marks are of the whole file: a name means the
    same in every set."""
    file = folder / CLASS_NAMES_FILE
    if not file.is_file() and (folder.parent / "imagenet" / CLASS_NAMES_FILE).is_file():
        file = folder.parent / "imagenet" / CLASS_NAMES_FILE  # what the shifted sets' file is a copy of
    names: dict[str, str] = {}
    for number, line in enumerate(_lines(file, layout), start=1):
        identity, _, name = line.strip().partition(" ")
        if not name.strip() or identity in names:
            raise ValueError(f"{file}, line {number}: got {_short(line.strip())}; want a new WordNet id and a name")
        names[identity] = name.strip()
    marks = repetition_marks(names.values())
    return {identity: (name, mark) for (identity, name), mark in zip(names.items(), marks, strict=True)}


def _by_wordnet_id(root: Path, classes: Mapping[str, tuple[str, str]], layout: Layout, whole: bool) -> LabelledPaths:
    """Class folders in sorted order are the labels. `whole`: every class of classnames.txt must have one."""
    found = [d.name for d in _folders(_existing(root, layout))]
    if not found:
        raise ValueError(f"{root}: no class folders; want one a WordNet id, such as {next(iter(classes))}")
    unknown = [identity for identity in found if identity not in classes]
    missing = sorted(set(classes) - set(found)) if whole else []
    if unknown or missing:
        fault = f"{name_some(unknown)} not in {CLASS_NAMES_FILE}" if unknown else f"no folder for {name_some(missing)}"
        some = "" if whole else "some of "
        raise ValueError(f"{root}: {fault}; want {some}the {len(classes)} WordNet ids of {CLASS_NAMES_FILE}")
    return _images_in(root, found, [classes[identity] for identity in found])


def _images_in(root: Path, folders: list[str], classes: list[tuple[str, str]]) -> LabelledPaths:
    """Folder k holds the images of class k."""
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = sorted(  # the official order is the file system's, which differs from machine to machine
            entry.name for entry in os.scandir(root / folder) if is_image_name(entry.name)
        )
        paths += [f"{folder}/{name}" for name in images]
        labels += [label] * len(images)
    return LabelledPaths(root, paths, labels, [name for name, _ in classes], [mark for _, mark in classes])


# ---- files


def _existing(path: Path, layout: Layout) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{layout.title}: {path} is missing; want $DATA/{layout.folder} as CoOp's DATASETS.md describes it"
        )
    if not path.is_dir():
        check_regular(path)
    return path


def _lines(file: Path, layout: Layout) -> list[str]:
    return [line for line in _existing(file, layout).read_text(encoding="utf-8").splitlines() if line.strip()]


def _folders(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith((".", "__")))


def _check_images_exist(split: str, part: LabelledPaths, layout: Layout) -> None:
    """Lists each folder once: a look at every file takes minutes on a network drive."""
    present: dict[str, set[str]] = {}
    missing = []
    for path in part.paths:
        folder, _, name = path.rpartition("/")
        if folder not in present:
            place = part.root / folder
            present[folder] = set(os.listdir(place)) if place.is_dir() else set()
        if name not in present[folder]:
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{layout.title}, {split}: {len(missing)} of {len(part.paths)} listed images do not exist: "
            f"{name_some(missing, 3)}; expected below {part.root}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


def repetition_marks(names: Iterable[str]) -> list[str]:
    """What to add to each name so that all differ: nothing, or underscores, which prompts leave out.

    >>> repetition_marks(["missile", "mitten", "missile"])
    ['', '', '_']
    """
    counts: Counter[str] = Counter()
    marks = []
    for name in map(tidy_class_name, names):
        marks.append("_" * counts[name])
        counts[name] += 1
    return marks


# ---- table


def _zhou(folder: str, file: str, image_folder: str, title: str, template: str, recipe: str, **rest: Any) -> Layout:
    return Layout(folder, title, template, _read_split_file, f"split_zhou_{file}.json", image_folder, recipe, **rest)


_PHOTO = "a photo of a {}."
LAYOUTS: dict[str, Layout] = {
    layout.folder: layout
    for layout in (
        Layout("imagenet", "ImageNet", _PHOTO, _read_imagenet, image_folder="images", recipe="imagenet"),
        _zhou(
            "caltech-101",
            "Caltech101",
            "101_ObjectCategories",
            "Caltech101",
            _PHOTO,
            "caltech101",
            names=_CALTECH_NAMES,
            ignored=_CALTECH_IGNORED,
        ),
        _zhou("oxford_pets", "OxfordPets", "images", "OxfordPets", "a photo of a {}, a type of pet.", "oxford_pets"),
        _zhou("stanford_cars", "StanfordCars", "", "StanfordCars", _PHOTO, "stanford_cars"),
        _zhou(
            "oxford_flowers",
            "OxfordFlowers",
            "jpg",
            "Flowers102",
            "a photo of a {}, a type of flower.",
            "oxford_flowers",
        ),
        _zhou("food-101", "Food101", "images", "Food101", "a photo of {}, a type of food.", "food101"),
        Layout(
            "fgvc_aircraft",
            "FGVCAircraft",
            "a photo of a {}, a type of aircraft.",
            _read_aircraft,
            image_folder="images",
            recipe="fgvc_aircraft",
        ),
        _zhou("sun397", "SUN397", "SUN397", "SUN397", _PHOTO, "sun397"),
        _zhou("dtd", "DescribableTextures", "images", "DTD", "{} texture.", "dtd"),
        _zhou(
            "eurosat",
            "EuroSAT",
            "2750",
            "EuroSAT",
            "a centered satellite photo of {}.",
            "eurosat",
            names=_EUROSAT_NAMES,
        ),
        _zhou("ucf101", "UCF101", "UCF-101-midframes", "UCF101", "a photo of a person doing {}.", "ucf101"),
        Layout(
            "imagenetv2",
            "ImageNetV2",
            _PHOTO,
            _read_imagenet_v2,
            image_folder="imagenetv2-matched-frequency-format-val",
        ),
        Layout("imagenet-sketch", "ImageNet-Sketch", _PHOTO, _read_imagenet_sketch, image_folder="images"),
        Layout("imagenet-adversarial", "ImageNet-A", _PHOTO, _read_imagenet_part, image_folder="imagenet-a"),
        Layout("imagenet-rendition", "ImageNet-R", _PHOTO, _read_imagenet_part, image_folder="imagenet-r"),
    )
}


def coop_layout(source: str) -> Layout | None:
    """The layout that a source `coop:<folder>` names; None for sources of other kinds.

    Raises ValueError for a folder that is none of them: known by its name, or by the split file in it.

    >>> coop_layout("coop:DATA/dtd").template
    '{} texture.'
    """
    if not source.startswith(PREFIX):
        return None
    folder = Path(source.removeprefix(PREFIX)).expanduser()
    if folder.name in LAYOUTS:
        return LAYOUTS[folder.name]
    by_file = [row for row in LAYOUTS.values() if row.split_file and (folder / row.split_file).is_file()]
    if not by_file:
        raise ValueError(f"source: {source!r} is no folder of CoOp's layout; want one called {', '.join(LAYOUTS)}")
    return by_file[0]


def read_coop_folder(source: str) -> dict[str, LabelledPaths]:
    """The splits of `coop:<folder>`; every listed image exists.

    Raises:
        FileNotFoundError: a folder, a list or a listed image is missing; the message says where it was expected.
        ValueError: lists that are not in the layout, paths that leave the folder, labels with gaps.
    """
    layout = coop_layout(source)
    folder = _existing(Path(source.removeprefix(PREFIX)).expanduser().absolute(), layout)
    splits = layout.read(layout, folder)
    for split, part in splits.items():
        _check_images_exist(split, part, layout)
    return splits


__all__ = ["LAYOUTS", "PREFIX", "LabelledPaths", "Layout", "coop_layout", "read_coop_folder", "repetition_marks"]
