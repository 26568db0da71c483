"""Endless training batches of pairs in which everything random follows from the seed and the place in the run.

Order, text, template and augmentation of a sample are functions of (seed, position), not of a generator that is passed
along. So a run that goes on from a checkpoint sees what it would have seen, and nothing depends on the number of
loader workers; on indexed data, not on the number of processes either.
"""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ...modeling.dual_encoders.prompts import with_slot
from ..augmentation.batches import BatchAugmentation
from ..augmentation.views import Augmentation, view_generator
from .sources import Pairs, unreadable


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairReader:
    """Row -> sample: a square image, one of its texts, its audio.

    Attributes:
        seed (`int`): of every draw.
        source_size (`int`): side of the square that augmentation starts from, pixels. Opaque images are cut to their
            centre, images with alpha are padded.
        templates (`tuple[str, ...]`): one is drawn for each text; "{}" is its place.
        transform (*optional*): (PIL image, generator) -> views by name, instead of an image and batched augmentation.
        audio (*optional*): (file content or path, generator) -> waveform (channels, samples).
    """

    seed: int
    source_size: int
    templates: tuple[str, ...] = ("{}",)
    transform: Callable[[Any, torch.Generator], Mapping[str, torch.Tensor]] | None = None
    audio: Callable[[bytes | str, torch.Generator], torch.Tensor] | None = None

    def __post_init__(self):
        object.__setattr__(self, "templates", tuple(with_slot(template) for template in self.templates))
        if not self.templates:
            raise ValueError("templates is empty")

    def __call__(self, pairs: Pairs, row: Mapping[str, Any], key: str) -> dict[str, Any]:
        """The sample at the place `key` of the run; ValueError on what cannot be read."""
        # A column with a text, one of its texts, a template: three draws, but none where there is one choice only.
        draw = self.generator(key, "text")
        offered = _pick(pairs.texts(row), draw)
        text = _pick(self.templates, draw).replace("{}", _pick(offered, draw))
        image = pairs.image(row)
        sample = {"key": key, "text": text}
        if self.transform is None:
            sample["image"] = square(image, self.source_size)
        else:
            sample["views"] = dict(self.transform(image, self.generator(key, "transform")))
        if self.audio is not None:
            # The last word is part of the seed: another one would give other augmentation.
            sample["audio"] = self.audio(pairs.audio(row), self.generator(key, "sound"))
        return sample

    def generator(self, key: str, what: str) -> torch.Generator:
        return view_generator(self.seed, 0, f"{key}\0{what}")


def _pick(values: Sequence, generator: torch.Generator):
    return values[int(torch.randint(len(values), (1,), generator=generator))] if len(values) > 1 else values[0]


def square(image: Any, side: int) -> torch.Tensor:
    """uint8 (4, side, side), RGB and alpha: the whole image if it has transparency, else its centre square."""
    from PIL import Image

    has_alpha = "A" in image.getbands() or image.info.get("transparency") is not None
    image = image.convert("RGBA")
    width, height = image.size
    fit = max(width, height) if has_alpha else min(width, height)
    if (width, height) != (side, side):
        size = max(1, round(width * side / fit)), max(1, round(height * side / fit))
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))  # beyond the edge: transparent
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@dataclass(frozen=True)
class CropView:
    """`transform` of a [`PairReader`]: open_clip's training view, a square crop of 90 to 100 % of the image."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: Augmentation = Augmentation(scale=(0.9, 1.0), flip=0.0)

    def __call__(self, image: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        from torchvision.transforms.v2 import functional as tv

        from ...modeling.decoding.image_decoding import decode_image

        pixels = tv.pil_to_tensor(decode_image(image))
        top, left, height, width, _ = self.augmentation.draw(pixels.shape[1], pixels.shape[2], generator)
        crop = tv.resized_crop(
            pixels, top, left, height, width, [self.size, self.size], tv.InterpolationMode.BICUBIC, antialias=True
        )
        return {"pixel_values": tv.normalize(crop.float() / 255, self.mean, self.std)}


@dataclass(frozen=True)
class AudioReader:
    """`audio` of a [`PairReader`]: a file's waveform, mono, at the extractor's sampling rate and scale, (1, length).

    Attributes:
        feature_extractor ([`AudioCLIPFeatureExtractor`])
        length (`int`): samples.
        augmentation ([`AudioAugmentation`], *optional*): of this length; without it, the extractor's own cut and
            padding.
    """

    feature_extractor: Any
    length: int
    augmentation: Callable[[np.ndarray, torch.Generator], np.ndarray] | None = None

    def __call__(self, content: bytes | str, generator: torch.Generator | None = None) -> torch.Tensor:
        read = self.feature_extractor
        if self.augmentation is None:
            return read(content, max_length=self.length, resample=True, return_tensors="pt")["input_features"][0]
        audio = read(content, padding=False, truncation=False, resample=True)["input_features"][0]
        return torch.from_numpy(self.augmentation(audio, generator))


class PairDataset(Dataset):
    """`samples[position]` for every position >= 0, over data sets that can be indexed.

    Each batch takes its share of every source; each source is gone through in an order of its own, a new one each
    time.

    Args:
        parts: the sources.
        reader ([`PairReader`])
        batch_size: of all processes together.
        mix: the sources' shares of a batch, any positive numbers; default by their lengths.
        distinct: rows with the same value in this column are one thing in several images: a batch takes it once, in a
            random one of them. (Twice the same concept in a batch would be a wrong negative.) Sources without the
            column are taken row by row.
        on_error: "raise" on a row that cannot be read, or "skip" it: the next one takes its place and a warning names
            it.

    Raises:
        ValueError: a stream, nothing to read, shares that leave a source without a place in the batch.
    """

    def __init__(
        self,
        parts: Sequence[Pairs],
        reader: PairReader,
        batch_size: int,
        mix: Sequence[float] | None = None,
        distinct: str | None = None,
        on_error: str = "raise",
    ):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: got {on_error!r}; want 'raise' or 'skip'")
        for part in parts:
            if part.is_stream:
                raise ValueError(f"parts: {part.source} is a stream; want data sets with an index, or PairStream")
        if distinct and not any(distinct in part.dataset.column_names for part in parts):
            raise ValueError(f"distinct: no source has a column {distinct!r}")
        self.parts, self.reader, self.batch_size, self.on_error = list(parts), reader, batch_size, on_error
        self.groups = [_groups(part, distinct) for part in parts]
        self.sizes = [len(part.dataset) if g is None else len(g) for part, g in zip(parts, self.groups, strict=True)]
        if not self.parts or not all(self.sizes):
            raise ValueError(f"parts: got sources of {self.sizes} rows; want at least one row each")
        self.counts = shares(mix or self.sizes, batch_size)
        if len(self.counts) != len(self.parts) or not all(self.counts):
            raise ValueError(
                f"mix: a batch of {batch_size} would hold {self.counts} of the {len(self.parts)} sources; "
                "want at least 1 each"
            )
        self._starts = [0, *itertools.accumulate(self.counts)]
        self._orders: dict[tuple[int, int], torch.Tensor] = {}
        self._skipped: set[str] = set()

    @property
    def epoch_steps(self) -> float:
        """Batches until the source that lasts longest has been seen once."""
        return max(size / count for size, count in zip(self.sizes, self.counts, strict=True))

    def __getitem__(self, position: int) -> dict[str, Any]:
        part, number = self._place(position)
        # A row that cannot be read is replaced by the next of its source's order, which comes again in its own place:
        # positions, and with them all other samples, stay as they are.
        for attempt in range(min(self.sizes[part], 100)):
            row = self._row(part, number + attempt, position)
            try:
                return self.reader(self.parts[part], self.parts[part].dataset[row], str(position))
            except (ValueError, OSError) as error:
                message = f"{self.parts[part].describe(self.parts[part].dataset[row], row)}: {unreadable(error)}"
                if self.on_error == "raise":
                    raise ValueError(message) from error
                if message not in self._skipped:  # once, not each time round
                    self._skipped.add(message)
                    logger.warning("skipped %s", message)
        raise ValueError(f"{self.parts[part].source}: 100 rows in a row cannot be read, the last one: {message}")

    def _place(self, position: int) -> tuple[int, int]:
        """The source of a position, and how many of that source's rows come before it in the run."""
        # Every batch is laid out alike: counts[0] places of source 0, counts[1] of source 1, ...
        batch, place = divmod(position, self.batch_size)
        part = bisect.bisect_right(self._starts, place) - 1
        return part, batch * self.counts[part] + place - self._starts[part]

    def _row(self, part: int, number: int, position: int) -> int:
        """The row of source `part` that is its `number`-th of the run."""
        # The source is gone through in one permutation after the other. Two are kept, because a batch may end one and
        # begin the next; any of them can be made from the seed, so that a resumed run needs no state.
        epoch, index = divmod(number, self.sizes[part])
        if (part, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != part or key[1] == epoch - 1}
            generator = view_generator(self.reader.seed, epoch, f"order of source {part}")
            self._orders[part, epoch] = torch.randperm(self.sizes[part], generator=generator)
        index = int(self._orders[part, epoch][index])
        if self.groups[part] is None:
            return index
        return int(_pick(self.groups[part][index], self.reader.generator(str(position), "row")))


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` divided by `weights` into whole numbers, largest remainders first.

    >>> shares([2, 1], 10)
    [7, 3]
    """
    if any(not w > 0 for w in weights):
        raise ValueError(f"mix: got {list(weights)}; want positive numbers")
    exact = [w * total / sum(weights) for w in weights]
    counts = [int(x) for x in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _groups(part: Pairs, distinct: str | None) -> list[np.ndarray] | None:
    if not distinct or distinct not in part.dataset.column_names:
        return None
    _, inverse = np.unique(np.asarray(part.dataset[distinct][:], dtype=str), return_inverse=True)
    # Rows sorted by value, cut where the value changes.
    order = np.argsort(inverse, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)


class PositionSampler(Sampler):
    """Positions of one process's batches, without end: process r of W takes every W-th batch of `batch_size`, from the
    r-th on.

    >>> import itertools
    >>> list(itertools.islice(PositionSampler(2, rank=1, world_size=2, first_batch=1), 2))
    [[6, 7], [10, 11]]
    """

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1, first_batch: int = 0):
        self.batch_size, self.rank, self.world_size, self.first_batch = batch_size, rank, world_size, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.count(self.first_batch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))


class PairStream(IterableDataset):
    """Endless samples of one process from a stream, again from the start after its end, shuffled within a buffer.

    Every process reads its own shards if they can be divided evenly, else every W-th row of all: none ends before
    another. Rows of the batches before `first_batch` are read but not decoded and come out as None.

    Args:
        pairs, reader, on_error: as in [`PairDataset`].
        batch_size: of this process.
        shuffle_buffer: rows to draw from; 0 keeps the order.
    """

    def __init__(
        self,
        pairs: Pairs,
        reader: PairReader,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer: int = 1000,
        first_batch: int = 0,
        on_error: str = "raise",
    ):
        from datasets.distributed import split_dataset_by_node

        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: got {on_error!r}; want 'raise' or 'skip'")
        self.pairs, self.reader, self.batch_size, self.rank = pairs, reader, batch_size, rank
        self.shuffle_buffer, self.first_batch, self.on_error = shuffle_buffer, first_batch, on_error
        dataset = pairs.dataset.to_iterable_dataset(num_shards=world_size) if not pairs.is_stream else pairs.dataset
        self.dataset = split_dataset_by_node(dataset, rank, world_size) if world_size > 1 else dataset

    @property
    def max_workers(self) -> int:
        """Loader workers that have something to read: a shard each."""
        return self.dataset.num_shards

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # A worker fills its own batches, one after the other. Which of the run's they are follows from the loader,
        # which takes a batch of each worker in turn: worker w of W makes batches w, w + W, w + 2W, ...
        count = 0
        for row in self._rows():
            batch = count // self.batch_size * workers + number
            if batch < self.first_batch:  # a resumed run reads on to its place; `PairLoader` drops these batches
                count += 1
                yield None
                continue
            key = f"process {self.rank}, batch {batch}, place {count % self.batch_size}"
            try:
                sample = self.reader(self.pairs, row, key)
            except (ValueError, OSError) as error:
                message = f"{self.pairs.describe(row, f'of {key}')}: {unreadable(error)}"
                if self.on_error == "raise":
                    raise ValueError(message) from error
                logger.warning("skipped %s", message)
                continue
            count += 1
            yield sample

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        for epoch in itertools.count():
            dataset, empty = self.dataset, True
            if self.shuffle_buffer:
                dataset = dataset.shuffle(seed=self.reader.seed + epoch, buffer_size=self.shuffle_buffer)
            for row in dataset:
                empty = False
                yield row
            if empty:
                raise ValueError(f"{self.pairs.source}: no rows for process {self.rank}; want more rows or shards")


@dataclass(frozen=True)
class PairViews:
    """Images -> normalised views by name, on the images' device.

    Attributes:
        augmentations: name of the model's argument ("pixel_values", …) -> [`BatchAugmentation`].
        size: of the views, pixels.
        mean, std: of each channel.
        seed: with a sample's key, what a view's draws follow from.
    """

    augmentations: Mapping[str, BatchAugmentation]
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    seed: int

    def __call__(self, images: torch.Tensor, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std))
        views = {}
        for name, augmentation in self.augmentations.items():
            generators = [view_generator(self.seed, 0, f"{key}\0{name}") for key in keys]
            views[name] = (augmentation(images, self.size, generators) - mean) / std
        return views


@dataclass(frozen=True)
class PairCollator:
    """Samples -> what a contrastive model takes, with `return_loss=True`.

    Attributes:
        tokenizer, max_length: texts are cut there.
        views ([`PairViews`], *optional*): None leaves images and keys in the batch, for augmentation on the device.
        pad_to_max_length: one length for all batches, for `torch.compile`.
    """

    tokenizer: Any
    max_length: int
    views: PairViews | None = None
    pad_to_max_length: bool = False

    def __call__(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
        if not samples or samples[0] is None:
            return {}  # read past, not decoded
        texts = [sample["text"] for sample in samples]
        padding = "max_length" if self.pad_to_max_length else True
        tokens = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        batch = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"], "return_loss": True}
        if "views" in samples[0]:
            batch |= {name: torch.stack([s["views"][name] for s in samples]) for name in samples[0]["views"]}
        else:
            images, keys = torch.stack([s["image"] for s in samples]), [s["key"] for s in samples]
            batch |= {"images": images, "keys": keys} if self.views is None else self.views(images, keys)
        if "audio" in samples[0]:
            batch["input_features"] = torch.stack([s["audio"] for s in samples])
        return batch


class PairLoader(DataLoader):
    """A `DataLoader` that begins with batch `first_batch` of a stream and leaves torch's global generator alone."""

    def __init__(self, *args, first_batch: int = 0, **kwargs):
        # A loader draws its workers' seed when it starts: from the global generator, a resumed run would get other
        # dropout.
        super().__init__(*args, generator=torch.Generator(), **kwargs)
        self.first_batch = first_batch

    def __iter__(self):
        batches = super().__iter__()
        return itertools.islice(batches, self.first_batch, None) if self.first_batch else batches
