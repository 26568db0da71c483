"""`ImageSet`: labelled images with class names, the one thing that every reader in `sources.py` returns."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ...modeling.decoding.opening import check_regular, read_regular
from ...modeling.decoding.stored_images import DECODED_IMAGES, prepare
from .heic import WHAT_IS_NEEDED, heic_is_readable, starts_as_heic
from .video_frames import is_video_name, read_video_frames, still_video


if TYPE_CHECKING:
    import datasets
    from PIL import Image


def name_some(names: Iterable[str], limit: int = 5) -> str:
    """`'a', 'b', 'c' and 7 more`: the first `limit` names, quoted, and the count of the others."""
    names = [repr(name) for name in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images and the names of their classes. Made by `load_images` or `load_emoji`; immutable.

    Attributes:
        dataset (`datasets.Dataset`): columns `image` (decoded when read) and `label` (`ClassLabel`), N rows.
        class_names (`tuple[str, ...]`): C names; `label` counts into it.
        ids (`tuple[str, ...]`): N names for reports and for seeding augmentation: the path below the source folder,
            the path written in the CSV or Parquet file, or `split/row`.
        split (`str`, *optional*): which split this is, where the source has splits.
        available_splits (`tuple[str, ...]`): the splits of the source, under their canonical names.
        skipped (`tuple[tuple[str, str], ...]`): `(id, reason)` of each unreadable image that `on_error="skip"` left
            out.
        videos (`bool`): there are files of videos in the source. They are read as pictures of some of their frames
            (`video_frames.py`), and images among them as videos that stand still.

    Example:

    ```python
    >>> from hf_clip_variants.data import load_images
    >>> images = load_images("emoji:fluent3d")
    >>> len(images), len(images.class_names), images.image(0).size
    (190, 190, (64, 64))
    ```
    """

    dataset: datasets.Dataset
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    split: str | None = None
    available_splits: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    load_split: Callable[..., ImageSet] | None = field(default=None, repr=False)
    videos: bool = False

    def __post_init__(self):
        if len(self.ids) != len(self.dataset):
            raise ValueError(f"ids: got {len(self.ids)} for {len(self.dataset)} images; want one each")

    def __repr__(self) -> str:
        classes = f"{len(self.class_names)} classes: {name_some(self.class_names, 3)}"
        split = f", split={self.split!r}" if self.split else ""
        return f"ImageSet({len(self)} images, {classes}{split})"

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class indices, int64, shape (N,). Read-only."""
        labels = np.asarray(self.dataset["label"][:], dtype=np.int64)
        labels.setflags(write=False)
        return labels

    @cached_property
    def _encoded(self) -> datasets.Dataset:
        from datasets import Image

        return self.dataset.cast_column("image", Image(decode=False))

    def encoded_bytes(self, index: int) -> bytes:
        """The image's file as it is stored, not decoded. Raises `OSError` where the file is gone."""
        row = self._encoded[int(index)]["image"]
        if row is None:
            raise OSError("no image in this row (null)")
        return row["bytes"] if row["bytes"] is not None else read_regular(row["path"])

    def file(self, index: int) -> str | bytes:
        """The path of the file of row `index`, or its bytes where they are stored. Raises `OSError` where there is
        none."""
        row = self._encoded[int(index)]["image"]
        if row is None:
            raise OSError("no image in this row (null)")
        return row["path"] if row["bytes"] is None else row["bytes"]

    def image(self, index: int) -> Image.Image:
        """Image `index`, upright, in its own mode (alpha is kept: the image processor composites it).

        Raises `IndexError` for an index outside 0..N-1 and `ValueError` naming index and id for an unreadable image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: got {index}; this set holds {len(self)} images, 0..{len(self) - 1}")
        heic_is_readable()  # after this, by Pillow
        try:
            row = self._encoded[int(index)]["image"]
            if row is not None and row["bytes"] is None and "://" not in row["path"]:
                check_regular(row["path"])
            if self.videos and row is not None and is_video_name(row["path"] or ""):
                return read_video_frames(row["path"] if row["bytes"] is None else row["bytes"])
            image = self.dataset[int(index)]["image"]
        except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
            raise ValueError(f"images[{index}] {self.ids[index]!r}: {explain(error)}") from error
        if image is None:
            raise ValueError(f"images[{index}] {self.ids[index]!r}: no image in this row (null)")
        return still_video(image) if self.videos else image

    def select(self, indices: Sequence[int]) -> ImageSet:
        """The rows `indices`, in that order, repetitions allowed; the class list stays as it is."""
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            bad = int(rows[(rows < 0) | (rows >= len(self))][0])
            raise IndexError(f"indices: got {bad}; this set holds {len(self)} images, 0..{len(self) - 1}")
        return replace(self, dataset=self.dataset.select(rows), ids=tuple(self.ids[row] for row in rows))

    def select_classes(self, classes: Sequence[int]) -> ImageSet:
        """Only the images of `classes`, which become labels 0, 1, … in the order given (base-to-new protocols)."""
        from datasets import ClassLabel

        classes = [int(c) for c in classes]
        if len(set(classes)) != len(classes) or not all(0 <= c < len(self.class_names) for c in classes):
            raise ValueError(f"classes: got {classes[:8]}; want distinct indices in 0..{len(self.class_names) - 1}")
        new_label = np.full(len(self.class_names), -1, dtype=np.int64)
        new_label[classes] = np.arange(len(classes))
        rows = np.flatnonzero(new_label[self.labels] >= 0)
        names = tuple(self.class_names[c] for c in classes)
        kept = self.select(rows)
        dataset = kept.dataset.remove_columns("label")
        dataset = dataset.add_column("label", new_label[self.labels[rows]], feature=ClassLabel(names=list(names)))
        return replace(kept, dataset=dataset, class_names=names)

    def splits(self) -> dict[str, ImageSet]:
        """Every split of the source, by name, read the same way as this one. Empty where the source has none."""
        if self.load_split is None:
            return {}
        return {name: self if name == self.split else self.load_split(split=name) for name in self.available_splits}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over class names and, row by row, id, label and the image's file content.

        Reads every file once, then is remembered. Does not depend on where the data is stored or on Python's hash
        seed.
        """
        digest = hashlib.sha256()
        for name in self.class_names:
            digest.update(f"class {len(name)} {name}\n".encode("utf-8", "surrogatepass"))
        for index, (name, label) in enumerate(zip(self.ids, self._label_texts(), strict=True)):
            content = hashlib.sha256(self.encoded_bytes(index)).hexdigest()
            digest.update(f"{len(name)} {name} {label} {content}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _label_texts(self) -> Iterable[str]:
        return map(str, self.labels)

    def unreadable(self, progress: bool = True) -> list[tuple[int, str]]:
        """`(index, reason)` of each image that cannot be decoded to its last pixel; decodes the whole set once.

        JPEG files are decoded at one eighth of their size, which reads every byte in a fraction of the time.
        """
        encoded, count = self._encoded, len(self)  # made once, before the threads that share it start

        def check(index: int) -> str | None:
            try:
                if self.videos:
                    self.image(index)
                else:
                    decode_roughly(self.encoded_bytes(index))
            except Exception as error:  # see image()
                return explain(error)
            return None

        del encoded
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            reasons = pool.map(check, range(count))
            if progress and count >= 1000:
                from rich.progress import track

                reasons = track(reasons, description="Checking images", total=count, transient=True)
            return [(index, reason) for index, reason in enumerate(reasons) if reason is not None]


def decode_roughly(content: bytes) -> None:
    """Decode an image file to its end and discard the pixels. Raises what Pillow raises."""
    from PIL import Image

    if not content:
        raise OSError("the file is empty")
    if not heic_is_readable() and starts_as_heic(content):
        raise OSError(WHAT_IS_NEEDED)
    with Image.open(BytesIO(content)) as image:
        if 0 in image.size:
            raise OSError(f"an image of {image.size[0]}x{image.size[1]} pixels")
        with DECODED_IMAGES.reserve(prepare(image, roughly=True)):
            image.load()


def explain(error: Exception, path: str = "") -> str:
    """One line on why a file cannot be read, without memory addresses or Python's own wording, and without its `path`,
    which callers write before it."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image file that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = " ".join(str(error).split()) or type(error).__name__
    for name in (path[:200], path) if path else ():
        for named in (f" in {name!r}", f": {name!r}", f"{name!r} "):
            text = text.replace(re.sub(r"\s+", " ", named), "")  # in one line, as `text` is
        text = text.removeprefix(re.sub(r"\s+", " ", f"{name}: "))  # not in the middle: a name may be one letter
    text = re.sub(r"^\w+\[0\]: ", "", text)  # it was read as the only one of a list
    return f"truncated ({text})" if "truncated" in text.lower() and not text.startswith("truncated") else text
