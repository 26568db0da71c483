"""Seeded scenes of pasted emoji: exact masks, boxes, captions. For segmentation, detection and grounding by text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..images.emoji import emoji_styles
from ..images.image_set import ImageSet, name_some
from ..images.sources import load_images
from .backgrounds import background_drawers
from .captions import Phrase, write_caption


if TYPE_CHECKING:
    import datasets

# Concepts of the embedded emoji that look different from each other and whose names are plain.
DISTINCT_CLASSES = (
    *("hot dog", "taco", "cactus", "tulip", "sunflower", "palm tree", "fallen leaf", "four leaf clover", "mushroom"),
    *("tomato", "eggplant", "grapes", "watermelon", "lemon", "banana", "pineapple", "red apple", "cherries"),
    *("strawberry", "hamburger", "pizza", "doughnut", "cookie", "lollipop", "birthday cake", "popcorn", "croissant"),
    *("avocado", "carrot", "pancakes", "wine glass", "beer mug", "cat", "dog", "horse", "cow", "elephant", "tiger"),
    *("monkey", "koala", "penguin", "rooster", "owl", "duck", "fox", "crab", "octopus", "whale", "shark", "turtle"),
    *("snail", "snake", "crocodile", "butterfly", "honeybee", "lady beetle", "spider", "bat", "rabbit", "fish"),
)
_TRIES = 20  # places that are tried for an object before it is left out
_OPAQUE = 128  # alpha from which a pixel belongs to the object


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene with K objects; all sizes in pixels.

    Attributes:
        image (`PIL.Image.Image`): RGB, H x W.
        label_map (`np.ndarray`): (H, W), uint8 (uint16 from 255 classes on): 0 is background, c + 1 is class c.
        instance_map (`np.ndarray`): (H, W) uint8: 0 is background, k + 1 is object k, as far as it is visible.
        categories (`tuple[int, ...]`): the class of each object. Later objects lie on top of earlier ones.
        boxes (`tuple`): (x, y, width, height) of the visible part of each object, whole pixels, as COCO has them.
        areas (`tuple[int, ...]`): visible pixels of each object.
        visible (`tuple[float, ...]`): the share of each object that is not covered, in 0..1.
        caption (`str`), phrases (`tuple[Phrase, ...]`): a sentence and the places of the class names in it.
        background (`str`): the kind of the background.
    """

    image: Image.Image
    label_map: np.ndarray
    instance_map: np.ndarray
    categories: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    areas: tuple[int, ...]
    visible: tuple[float, ...]
    caption: str
    phrases: tuple[Phrase, ...]
    background: str

    @property
    def masks(self) -> np.ndarray:
        """(K, H, W) bool: the visible pixels of each object."""
        return self.instance_map == np.arange(1, len(self.categories) + 1).reshape(-1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class SceneMaker:
    """Draws scenes: `maker.scene(index)` is the same for the same settings, seed and index, whatever was drawn before.

    Args:
        styles: what the objects look like: one or several of `emoji_styles()`, Parquet files with columns image and
            name (as `scripts/make_emoji_data.py` writes them), or an [`ImageSet`]. Give training and test scenes
            different styles. Default: all embedded styles.
        class_names: the classes and their order. Default: all that the styles have; `DISTINCT_CLASSES` are 60 of the
            embedded ones that look different.
        shown: the classes that are pasted; default all. Train with `shown=base` and test with `shown=novel` under the
            same `class_names`: labels mean the same in both (`base_and_novel` divides them).
        size: side, or (width, height), or a list of (width, height), of which one is drawn for each scene.
        objects: fewest and most objects in a scene. An object for which no place is left is not pasted.
        object_size: shortest and longest longer side of an object, as a share of the scene's shorter side.
        backgrounds: kinds, drawn with equal chance: "plain", "gradient", "noise", "checks", "white", and
            "cover:<file.parquet>" (one picture enlarged) or "scatter:<file.parquet>" (many small pictures) with a
            column image. Pictures whose title, caption, name or tags have a word in common with a class name are left
            out.
        repeat: chance that an object is of the same class as an earlier one.
        min_visible: no object is covered by more than 1 minus this share. 1: objects do not touch.
        rotation: most degrees by which an object is turned, either way.
        flip: whether objects may be mirrored.
        seed: any integer from 0.

    Raises:
        ValueError: a setting is out of range, a class is unknown, or a style has no image of a class.

    Example:

    ```python
    >>> maker = SceneMaker(styles="fluentflat", class_names=["cat", "taco", "whale"], seed=7)
    >>> scene = maker.scene(0)
    >>> scene.image.size, scene.label_map.shape, [maker.class_names[c] for c in scene.categories]
    ((128, 128), (128, 128), ['whale', 'cat', 'cat'])
    >>> scene.caption
    'This shows two cats and a whale.'
    ```
    """

    styles: str | os.PathLike | Sequence[str | os.PathLike] | ImageSet | None = None
    class_names: Sequence[str] | None = None
    shown: Sequence[str] | None = None
    size: int | tuple[int, int] | Sequence[tuple[int, int]] = 128
    objects: tuple[int, int] = (1, 4)
    object_size: tuple[float, float] = (0.25, 0.5)
    backgrounds: str | Sequence[str] = ("plain", "gradient", "noise", "checks")
    repeat: float = 0.2
    min_visible: float = 0.4
    rotation: float = 15.0
    flip: bool = True
    seed: int = 0
    _images: ImageSet = field(init=False, repr=False)
    _rows: dict[int, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self):
        self._check_numbers()
        images = _read_objects(self.styles)
        names = tuple(images.class_names if self.class_names is None else self.class_names)
        shown = names if self.shown is None else tuple(self.shown)
        for argument, given, known in (("class_names", names, images.class_names), ("shown", shown, names)):
            unknown = [name for name in given if name not in known]
            if not given or unknown or len(set(given)) < len(given):
                wrong = (
                    f"unknown: {name_some(unknown)}" if unknown else f"{len(given)} names, {len(set(given))} differ"
                )
                raise ValueError(f"{argument}: {wrong}; want distinct names out of {name_some(known)}")
        place = {name: index for index, name in enumerate(images.class_names)}
        rows = {names.index(name): np.flatnonzero(images.labels == place[name]) for name in shown}
        if missing := [names[c] for c, found in rows.items() if not len(found)]:
            raise ValueError(f"styles: no image of {name_some(missing)}")
        sizes = [(self.size, self.size)] if isinstance(self.size, int) else self.size
        sizes = [tuple(sizes)] if isinstance(sizes[0], int) else [tuple(size) for size in sizes]
        if any(len(size) != 2 or min(size) < 1 for size in sizes):
            raise ValueError(f"size: got {self.size}; want a side, (width, height) or a list of (width, height)")
        values = {"class_names": names, "shown": shown, "size": tuple(sizes), "_images": images, "_rows": rows}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_drawers", background_drawers(self.backgrounds, names))
        object.__setattr__(self, "_pictures", {})

    def _check_numbers(self) -> None:
        (fewest, most), (small, large) = self.objects, self.object_size
        checks = {
            "objects": (0 <= fewest <= most <= 255, "fewest and most, in 0..255"),
            "object_size": (0 < small <= large <= 1, "shortest and longest, in 0..1"),
            "repeat": (0 <= self.repeat <= 1, "0..1"),
            "min_visible": (0 <= self.min_visible <= 1, "0..1"),
            "rotation": (0 <= self.rotation <= 180, "0..180"),
            "seed": (self.seed >= 0, "an integer from 0"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ValueError(f"{name}: got {getattr(self, name)}; want {wanted}")

    def scene(self, index: int) -> Scene:
        """Scene number `index` (from 0)."""
        generator = np.random.default_rng([self.seed, index])
        width, height = self.size[int(generator.integers(len(self.size)))]
        kind, canvas = self.draw_background((width, height), generator)
        instances, full, categories = np.zeros((height, width), np.uint8), [], []
        for category in self._draw_categories(generator):
            picture = self.draw_object(category, min(width, height), generator)
            solid = np.asarray(picture.getchannel("A")) >= _OPAQUE
            place = self._find_place(solid, instances, full, generator)
            if place is None:
                continue
            left, top = place
            categories.append(category)
            full.append(int(solid.sum()))
            canvas.paste(picture, place, picture)
            instances[top : top + picture.height, left : left + picture.width][solid] = len(full)
        labels = np.array([0, *(c + 1 for c in categories)], np.uint8 if len(self.class_names) < 255 else np.uint16)
        areas = np.bincount(instances.ravel(), minlength=len(full) + 1)[1:].tolist()
        boxes = tuple(_box(instances == k + 1) for k in range(len(full)))
        caption, phrases = write_caption(categories, self.class_names, boxes, kind, generator)
        return Scene(
            image=canvas,
            label_map=labels[instances],
            instance_map=instances,
            categories=tuple(categories),
            boxes=boxes,
            areas=tuple(areas),
            visible=tuple(area / whole for area, whole in zip(areas, full, strict=True)),
            caption=caption,
            phrases=phrases,
            background=kind,
        )

    def _draw_categories(self, generator: np.random.Generator) -> list[int]:
        drawn: list[int] = []
        known = list(self._rows)
        for _ in range(int(generator.integers(self.objects[0], self.objects[1] + 1))):
            again = drawn and generator.random() < self.repeat
            pool = drawn if again else known
            drawn.append(pool[int(generator.integers(len(pool)))])
        return drawn

    def draw_background(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[str, Image.Image]:
        """The kind of a background, and an RGB image of it; `size` is (width, height)."""
        kind, draw = self._drawers[int(generator.integers(len(self._drawers)))]
        return kind, draw(size, generator)

    def draw_object(self, category: int, shorter: int, generator: np.random.Generator) -> Image.Image:
        """RGBA, cropped to what is opaque; `shorter` is the scene's shorter side."""
        rows = self._rows[category]
        row = int(rows[int(generator.integers(len(rows)))])
        if row not in self._pictures:
            picture = self._images.image(row).convert("RGBA")
            self._pictures[row] = picture.crop(picture.getchannel("A").getbbox())
        picture = self._pictures[row]
        if self.flip and generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        degrees = float(generator.uniform(-self.rotation, self.rotation))
        side = max(1, round(shorter * float(generator.uniform(*self.object_size))))
        if self.rotation:
            picture = picture.convert("RGBa").rotate(degrees, Image.Resampling.BICUBIC, expand=True).convert("RGBA")
            picture = picture.crop(picture.getchannel("A").getbbox())
        factor = side / max(picture.size)
        return picture.resize([max(1, round(extent * factor)) for extent in picture.size], Image.Resampling.LANCZOS)

    def _find_place(self, solid, instances, full, generator) -> tuple[int, int] | None:
        """Left and top, inside the scene; None if every place that was tried covers too much of another object."""
        if not solid.any():
            return None
        (height, width), count = solid.shape, len(full)
        areas = np.bincount(instances.ravel(), minlength=count + 1)
        least = np.concatenate([[0], np.array(full) * self.min_visible]) if count else np.zeros(1)
        for _ in range(_TRIES):
            left = int(generator.integers(instances.shape[1] - width + 1))
            top = int(generator.integers(instances.shape[0] - height + 1))
            under = instances[top : top + height, left : left + width][solid]
            left_over = areas - np.bincount(under, minlength=count + 1)
            if (left_over[1:] >= np.maximum(least[1:], 1)).all():
                return left, top
        return None

    def dataset(self, count: int) -> datasets.Dataset:
        """The scenes 0..count-1 as a data set; see `make_scenes`."""
        from datasets import ClassLabel, Dataset, Features, List, Value
        from datasets import Image as ImageFeature

        if count < 0:
            raise ValueError(f"count: got {count}; want 0 or more")
        category = ClassLabel(names=list(self.class_names))
        objects = {"id": List(Value("int64")), "bbox": List(List(Value("float32"), length=4))}
        objects |= {"category": List(category), "area": List(Value("int64")), "visible": List(Value("float32"))}
        phrases = {"start": List(Value("int64")), "end": List(Value("int64")), "category": List(category)}
        features = Features(
            {
                "image_id": Value("int64"),
                "image": ImageFeature(),
                "label_map": ImageFeature(),
                "instance_map": ImageFeature(),
                "objects": objects,
                "caption": Value("string"),
                "phrases": phrases | {"objects": List(List(Value("int64")))},
                "background": Value("string"),
            }
        )
        columns: dict[str, list] = {name: [] for name in features}
        for row in self._rows_of_dataset(count):
            for name, value in row.items():
                columns[name].append(value)
        return Dataset.from_dict(columns, features=features)

    def _rows_of_dataset(self, count: int) -> Iterator[dict[str, Any]]:
        ids = 0
        for index in range(count):
            scene = self.scene(index)
            number = len(scene.categories)
            starts, ends, named, spoken = zip(*scene.phrases, strict=True) if scene.phrases else ((), (), (), ())
            yield {
                "image_id": index,
                "image": {"bytes": _png(scene.image), "path": None},
                "label_map": {"bytes": _png(scene.label_map), "path": None},
                "instance_map": {"bytes": _png(scene.instance_map), "path": None},
                "objects": {
                    "id": list(range(ids, ids + number)),
                    "bbox": [list(box) for box in scene.boxes],
                    "category": list(scene.categories),
                    "area": list(scene.areas),
                    "visible": list(scene.visible),
                },
                "caption": scene.caption,
                "phrases": {
                    "start": list(starts),
                    "end": list(ends),
                    "category": list(named),
                    "objects": [list(objects) for objects in spoken],
                },
                "background": scene.background,
            }
            ids += number


def make_scenes(count: int, seed: int = 0, **settings: Any) -> datasets.Dataset:
    """`count` scenes as a data set: images, label maps, boxes, masks, captions.

    The same settings and seed give the same bytes; the first scenes of a longer set are those of a shorter one.

    Args:
        count: how many.
        seed: any integer from 0.
        settings: of [`SceneMaker`]: styles, class_names, shown, size, objects, backgrounds, …

    Returns:
        `datasets.Dataset` with the columns

        - image_id, image (RGB);
        - label_map: image whose pixels are 0 (background) or class + 1: with `do_reduce_labels=True` the background is
          ignored and pixels are classes, else `label_map_names` gives the N + 1 names;
        - instance_map: image whose pixels are 0 or number of the object + 1 (`instance_masks` gives (K, H, W));
        - objects: lists id, bbox (x, y, width, height in pixels of what is visible), category (`ClassLabel`), area,
          visible (share that is not covered), as transformers' detection scripts read them;
        - caption; phrases: lists start, end (`caption[start:end]` names the class), category, objects (which ones);
        - background.

    Example:

    ```python
    >>> scenes = make_scenes(2, seed=7, styles="fluentflat", class_names=["cat", "taco", "whale"])
    >>> scenes[0]["objects"]["category"], scenes[0]["image"].size
    ([2, 0, 0], (128, 128))
    >>> start, end = scenes[0]["phrases"]["start"][0], scenes[0]["phrases"]["end"][0]
    >>> scenes[0]["caption"], scenes[0]["caption"][start:end]
    ('This shows two cats and a whale.', 'cats')
    >>> instance_masks(scenes[0]).shape
    (3, 128, 128)
    ```
    """
    return SceneMaker(seed=seed, **settings).dataset(count)


def base_and_novel(
    class_names: Sequence[str], novel: float = 0.5, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divides classes at random into base classes (to train on) and novel ones, each in the order of `class_names`.

    `split_base_new` takes the first and the second half instead; emoji are sorted by kind, so all animals would be
    novel.

    Args:
        class_names: at least two.
        novel: share of novel classes, in 0..1; both sides get at least one.
        seed: any integer from 0.

    >>> base_and_novel(["cat", "dog", "taco", "tulip"], novel=0.25)
    (('cat', 'dog', 'tulip'), ('taco',))
    """
    names = list(class_names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"class_names: got {name_some(names)}; want at least two different names")
    if not 0 <= novel <= 1:
        raise ValueError(f"novel: got {novel}; want a share in 0..1")
    count = min(max(1, round(novel * len(names))), len(names) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(names))[:count].tolist())
    return (
        tuple(name for i, name in enumerate(names) if i not in chosen),
        tuple(name for i, name in enumerate(names) if i in chosen),
    )


def label_map_names(scenes: datasets.Dataset) -> list[str]:
    """The names of the values of the column label_map: "background", then the classes.

    >>> label_map_names(make_scenes(1, class_names=["cat", "taco"]))
    ['background', 'cat', 'taco']
    """
    return ["background", *scenes.features["objects"]["category"].feature.names]


def instance_masks(row: Mapping[str, Any]) -> np.ndarray:
    """(K, H, W) bool: the visible pixels of each object of a row of `make_scenes`."""
    numbers = np.arange(1, len(row["objects"]["category"]) + 1)
    return np.asarray(row["instance_map"]) == numbers.reshape(-1, 1, 1)


def _read_objects(styles: Any) -> ImageSet:
    if isinstance(styles, ImageSet):
        return styles
    known = emoji_styles()
    styles = known if styles is None else [styles] if isinstance(styles, str | os.PathLike) else list(styles)
    if not styles:
        raise ValueError(f"styles is empty; want some of {', '.join(known)}, or Parquet files")
    embedded = [style for style in styles if style in known]
    files = [os.fspath(style) for style in styles if style not in known]
    if lost := [path for path in files if not os.path.isfile(path)]:
        raise ValueError(f"styles: {lost[0]!r} is neither an embedded style ({', '.join(known)}) nor a file")
    sources = ([f"emoji:{','.join(embedded)}"] if embedded else []) + files
    return load_images(sources, label_column="name" if files else None, verify=False, empty_classes="warn")


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _png(image: Image.Image | np.ndarray) -> bytes:
    content = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(content, format="PNG", compress_level=3)
    return content.getvalue()


__all__ = [
    "DISTINCT_CLASSES",
    "Scene",
    "SceneMaker",
    "base_and_novel",
    "instance_masks",
    "label_map_names",
    "make_scenes",
]
