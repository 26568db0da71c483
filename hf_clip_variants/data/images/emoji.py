"""The embedded images: 190 animals, plants, foods and drinks, each drawn in four styles by different designers.

Style is a domain and concept is a class: train on some styles, test on others, with no download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .image_set import ImageSet, name_some


if TYPE_CHECKING:
    from PIL import Image

_ASSETS = Path(__file__).parents[2] / "assets"
FOLDER = _ASSETS / "emoji-mini"


def embedded_model() -> Path:
    """The folder of emoji-clip-tiny, a real CLIP of 6.3 M parameters (64 px) in the package, for demos and tests.

    It was not trained on the styles of the embedded images. Its weights are float16: load them with
    `dtype=torch.float32` on a CPU.

    >>> (embedded_model() / "config.json").is_file()
    True
    """
    return _ASSETS / "emoji-clip-tiny"


def embedded_vqgan() -> Path:
    """The folder of vqgan-tiny, a VQGAN in the package that paints emoji and clip art, for demos and tests.

    Its weights are float16: load them with `dtype=torch.float32` on a CPU.

    >>> (embedded_vqgan() / "config.json").is_file()
    True
    """
    return _ASSETS / "vqgan-tiny"


def embedded_start() -> Path:
    """A picture to start paintings of the embedded VQGAN from: the mean of the embedded emoji of two styles, a soft
    grey shape on white. It says where things are in such pictures, and nothing of what they are.

    >>> embedded_start().name
    'start.png'
    """
    return embedded_vqgan() / "start.png"


def mean_emoji(styles: Sequence[str] = ("notov1", "fluentflat")) -> Image.Image:
    """The mean of all embedded emoji of some styles, on white: how `embedded_start` was made.

    >>> mean_emoji(["notov1"]).size
    (64, 64)
    """
    import numpy as np
    from PIL import Image

    total, count = np.zeros((64, 64, 3)), 0
    for row in load_emoji(list(styles)).dataset:
        picture = row["image"].convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        total, count = total + np.asarray(whole, float), count + 1
    return Image.fromarray((total / count).round().astype(np.uint8))


def emoji_styles() -> list[str]:
    """The styles that `load_emoji` knows, sorted.

    >>> emoji_styles()
    ['emojione', 'fluent3d', 'fluentflat', 'notov1']
    """
    return sorted(path.stem for path in FOLDER.glob("*.parquet"))


def load_emoji(
    styles: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
    concepts: Sequence[str] | None = None,
) -> ImageSet:
    """The embedded emoji as an [`ImageSet`]: one class a concept, one 64 x 64 image with alpha for each style.

    Args:
        styles: one or several of `emoji_styles()`; default all. Rows come style by style, in the order given.
        groups: "animals-nature" (102 concepts) or "food-drink" (88) or both; default both.
        concepts: names ("cherry blossom") or code points ("1F338"); default all. Their order is kept as the class
            order; without it classes are in code-point order, the same for every style.

    Raises:
        ValueError: an unknown style, group or concept, or none at all.

    Example:

    ```python
    >>> train, test = load_emoji(["fluentflat", "emojione"]), load_emoji("notov1")
    >>> len(train), len(test), train.class_names == test.class_names
    (380, 190, True)
    ```
    """
    import pyarrow.parquet
    from datasets import ClassLabel, Dataset, Features, Image

    known = emoji_styles()
    styles = known if styles is None else [styles] if isinstance(styles, str) else list(styles)
    unknown = [style for style in styles if style not in known]
    if unknown or not styles or len(set(styles)) < len(styles):
        raise ValueError(f"styles: got {styles}; want distinct names out of {known}")
    tables = {style: pyarrow.parquet.read_table(FOLDER / f"{style}.parquet").to_pylist() for style in styles}
    rows = tables[styles[0]]  # every style has the same concepts in the same order
    every_group = sorted({row["group"] for row in rows})
    groups = every_group if groups is None else [groups] if isinstance(groups, str) else list(groups)
    if not groups or not set(groups) <= set(every_group):
        raise ValueError(f"groups: got {groups}; want some of {every_group}")
    chosen = [row["hexcode"] for row in rows if row["group"] in groups]
    if concepts is not None:
        code_of = {row["name"]: row["hexcode"] for row in rows} | {row["hexcode"]: row["hexcode"] for row in rows}
        missing = [concept for concept in concepts if code_of.get(concept) not in chosen]
        if missing or not concepts:
            raise ValueError(
                f"concepts: got {name_some(missing)}; want names of the {len(chosen)} concepts in {groups}"
            )
        chosen = list(dict.fromkeys(code_of[concept] for concept in concepts))
    name_of = {row["hexcode"]: row["name"] for row in rows}
    names = [name_of[code] for code in chosen]
    images, labels, ids = [], [], []
    for style, table in tables.items():
        image_of = {row["hexcode"]: row["image"] for row in table}
        images += [image_of[code] for code in chosen]
        labels += range(len(chosen))
        ids += [f"{style}/{code}" for code in chosen]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return ImageSet(Dataset.from_dict({"image": images, "label": labels}, features=features), tuple(names), tuple(ids))
