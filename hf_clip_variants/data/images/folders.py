"""Folders of images in class sub-folders: which folders are splits, which are classes, and what is left out."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...modeling.decoding.opening import open_regular
from ..videos import is_video_name
from .image_set import name_some
from .names import SPLIT_ALIASES, count_left_out, is_image_name, left_out_suffix


logger = logging.getLogger(__name__)

# Folders that data sets have beside `train`, where they hold no class.
NOT_A_CLASS = frozenset("unlabeled unlabelled extra extras mask masks annotation annotations label labels".split())
_SPLIT_NAME = re.compile(rf"({'|'.join(SPLIT_ALIASES)})[-_ ]?(\d*|set|data|images|imgs)", re.IGNORECASE)

_BEGINNING = re.compile(rb'\s*\{\s*"version": *\d+,\s*"status": ')  # of the results.json of a run folder

Parts = tuple[str, ...]  # a path below a split's folder


@dataclass
class FolderSplit:
    """The images of one split.

    Attributes:
        root (`Path`): the paths below are relative to it.
        files (`dict`): class -> its images, in order; a class without images is there, too.
        left_out (`dict`): class -> suffix -> number of its files that are not read.
    """

    root: Path
    files: dict[str, list[Parts]] = field(default_factory=dict)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))


@dataclass
class _Place:
    """What lies directly in one folder."""

    images: list[str]
    left_out: Counter[str]


_Tree = dict[Parts, _Place]


def read_class_folders(folder: Path, videos: bool = False) -> dict[str, FolderSplit]:
    """The images of a folder by split and class; without splits the only key is "". With `videos`, files of videos
    are read as images are.

    - Folders named after two splits or more (`train`, `test`; `train2017`, `val2017`; `seg_train`, `seg_test` with the
      same sub-folders) are splits; a warning names other folders of images beside them. So is `train` alone, or beside
      `unlabeled` and the like. Splits may also be the only folders below each class (`cat/train`).
    - Classes are the sub-folders, with images at any depth. Below an index of initials (`a/abbey`, `b/bakery/shop`, as
      in SUN and Places) they are the folders that hold images, read from the inside out: "abbey", "shop bakery".
    - Elsewhere, where all images lie two levels deep, a warning says that the upper folders are taken for the classes.
    - Other files in class folders are counted in a warning.
    - Links to folders are followed, each folder is read once within a class; run folders of `adapt` are no classes.

    Raises:
        ValueError: two folders of one split, or no image at all.
    """
    broken = sorted(place.name for place in folder.iterdir() if place.is_symlink() and not place.exists())
    if broken := [name for name in broken if not is_image_name(name)]:
        logger.warning("%s: links that lead nowhere are left out: %s", folder, name_some(broken))
    roots = _split_folders(folder)
    trees = {split: _tree(root, videos) for split, root in (roots or {"": folder}).items()}
    if not any(place.images for tree in trees.values() for place in tree.values()):
        raise ValueError(f"{folder}: no images in class sub-folders{_why(folder, trees)}")
    for split, tree in list(trees.items()):
        if not any(place.images for place in tree.values()):
            logger.warning("%s: the split is left out, it has no images in class sub-folders", roots[split])
            del trees[split]
    if not roots and (found := _splits_below_classes(folder, trees[""])):
        splits = found
    else:
        class_of = _inside_out if all(map(_is_index, trees.values())) else _first
        if class_of is _first:
            _warn_of_levels(folder, trees)
        splits = {split: _by_class((roots or {"": folder})[split], tree, class_of) for split, tree in trees.items()}
    left_out = sum((counter for part in splits.values() for counter in part.left_out.values()), Counter())
    if left_out:
        logger.warning("%s: left out %s", folder, count_left_out(left_out))
    return splits


def class_folders(root: Path) -> list[Path]:
    """The folders in `root` and links to folders, sorted, without hidden ones, `__MACOSX`, run folders of `adapt` and
    links to `root` itself or a folder above it."""
    return [
        place
        for place in sorted(root.iterdir())
        if place.is_dir() and not _is_hidden(place.name) and not _is_run_folder(place) and not _leads_up(place, root)
    ]


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of what is no folder in it) for a folder and all below it, in order; hidden ones are left out.

    Links to folders are followed, but each folder is read once, and none that `folder` lies in: loops end. Names are
    those of regular files, of links that lead nowhere, and of FIFOs and the like.
    """
    seen = {_identity(above) for above in folder.resolve().parents}
    waiting = [os.fspath(folder)]
    while waiting:
        place = waiting.pop()
        if (identity := _identity(place)) in seen:
            continue
        seen.add(identity)
        folders, names = [], []
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                (folders if entry.is_dir() else names).append(entry.name)
        yield place, names
        inner = [os.path.join(place, name) for name in folders if not _is_hidden(name)]
        waiting += [path for path in reversed(inner) if not _is_run_folder(path)]


def _identity(path: str | os.PathLike) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_run_folder(place: str | os.PathLike) -> bool:
    """Whether `adapt` wrote this folder, or began to: `--out` may lie in the data, and is not one of its classes."""
    try:
        with open_regular(os.path.join(place, "results.json")) as file:
            return _BEGINNING.match(file.read(1000)) is not None
    except FileNotFoundError:  # killed before it was there?
        found = os.listdir(place)
        return bool(found) and all(name.startswith(".tmp-results.json-") for name in found)
    except OSError:
        return False


def _leads_up(place: Path, root: Path) -> bool:
    return place.is_symlink() and root.resolve().is_relative_to(place.resolve())


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _tree(root: Path, videos: bool = False) -> _Tree:
    """Every folder below `root`, as its path below it."""
    tree = {}
    for top_folder in class_folders(root):
        for place, names in walk(top_folder):
            images = [name for name in names if is_image_name(name) or (videos and is_video_name(name))]
            left_out = Counter(filter(None, map(left_out_suffix, set(names).difference(images))))
            tree[top_folder.name, *Path(place).relative_to(top_folder).parts] = _Place(images, left_out)
    return tree


def _by_class(root: Path, tree: _Tree, class_of: Callable[[Parts], str]) -> FolderSplit:
    split = FolderSplit(root)
    inner = {parts[:-1] for parts in tree}  # folders that have sub-folders
    for parts, place in tree.items():
        if class_of is _inside_out and not place.images and parts in inner:
            continue  # on the way to classes
        name = class_of(parts)
        split.files.setdefault(name, []).extend((*parts, image) for image in place.images)
        split.left_out.setdefault(name, Counter()).update(place.left_out)
    for files in split.files.values():
        files.sort()
    return split


def _first(parts: Parts) -> str:
    return parts[0]


def _inside_out(parts: Parts) -> str:
    """`b/bakery/shop` -> "shop bakery": as CoOp and CLIP_benchmark name SUN397's classes."""
    return " ".join(reversed(parts[1:]))


def _is_index(tree: _Tree) -> bool:
    """Whether the upper folders are initials of what is in them, and hold no images themselves."""
    below = [parts for parts, place in tree.items() if place.images]
    return all(len(p) > 1 and len(p[0]) == 1 and p[1].casefold().startswith(p[0].casefold()) for p in below)


# ----------------------------------------------------------------------------------------------------------- splits


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder; empty where the folders are classes."""
    below = class_folders(folder)
    named = {place: SPLIT_ALIASES[found[1].lower()] for place in below if (found := _SPLIT_NAME.fullmatch(place.name))}
    others = {place.name.lower() for place in below if place not in named}
    if len(set(named.values())) < 2 and not (len(named) == 1 and others <= NOT_A_CLASS):
        named = {place: word for place in below if (word := _split_word(place.name))}
        held = [{inner.name for inner in class_folders(_unwrapped(place))} for place in named]
        if len(set(named.values())) < 2 or not set.intersection(*held):
            return {}
    splits: dict[str, Path] = {}
    for place, split in named.items():
        if split in splits:
            raise ValueError(
                f"{folder}: {splits[split].name!r} and {place.name!r} are both the {split} split; want one folder each"
            )
        splits[split] = place
    unread = [place.name for place in below if place not in named and any(_images_below(place))]
    if unread:
        logger.warning("%s: not read beside the splits %s: %s", folder, name_some(sorted(splits)), name_some(unread))
    return {split: _unwrapped(place) for split, place in splits.items()}


def _split_word(name: str) -> str | None:
    """`seg_train` -> "train": the one split that is a word of the name."""
    found = {SPLIT_ALIASES[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in SPLIT_ALIASES}
    return found.pop() if len(found) == 1 else None


def _unwrapped(place: Path) -> Path:
    """`seg_train/seg_train`, as archives unpack, instead of `seg_train`."""
    inner = class_folders(place)
    return inner[0] if len(inner) == 1 and inner[0].name == place.name else place


def _images_below(place: Path) -> Iterator[str]:
    return (name for _, names in walk(place) for name in names if is_image_name(name))


def _splits_below_classes(folder: Path, tree: _Tree) -> dict[str, FolderSplit]:
    """`cat/train`, `cat/test`, `dog/train`, …; empty where the images lie otherwise."""
    held = [parts for parts, place in tree.items() if place.images]
    words = {parts[1]: _SPLIT_NAME.fullmatch(parts[1]) for parts in held if len(parts) > 1}
    if any(len(parts) < 2 for parts in held) or not all(words.values()):
        return {}
    split_of = {name: SPLIT_ALIASES[found[1].lower()] for name, found in words.items()}
    if len(set(split_of.values())) < 2:
        return {}
    splits = {}
    for split in sorted(set(split_of.values())):
        own = {parts: place for parts, place in tree.items() if len(parts) > 1 and split_of.get(parts[1]) == split}
        splits[split] = _by_class(folder, own, _first)
    return splits


# --------------------------------------------------------------------------------------------------------- messages


def _warn_of_levels(folder: Path, trees: Mapping[str, _Tree]) -> None:
    """Where sub-folders may be meant as classes: all class folders have only those, or one is named as a split."""
    for tree in trees.values():
        below: dict[str, set[Parts]] = {}
        for parts, place in tree.items():
            if place.images:
                below.setdefault(parts[0], set()).add(parts[:2])
        deep = {top for top, inner in below.items() if len(inner) > 1 and (top,) not in inner}
        if deep == set(below) or any(_split_word(top) for top in deep):
            example = "/".join(min(below[min(deep)]))
            logger.warning(
                "%s: the images lie in sub-folders of the class folders (%s, …). The classes are %s. If the "
                "sub-folders are the classes, move them up, or list images and labels in a CSV file.",
                folder,
                example,
                name_some(sorted(below)),
            )
            return


def _why(folder: Path, trees: Mapping[str, _Tree]) -> str:
    """What is there instead of images in class sub-folders."""
    loose = sum(is_image_name(place.name) for place in folder.iterdir())
    left_out = sum((place.left_out for tree in trees.values() for place in tree.values()), Counter())
    text = f"; its {loose} images lie in no class sub-folder" if loose else ""
    text += f"; left out {count_left_out(left_out)}" if left_out else ""
    return f"{text}; want <folder>/<class name>/<image>"


__all__ = ["FolderSplit", "class_folders", "read_class_folders", "walk"]
