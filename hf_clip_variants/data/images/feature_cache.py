"""Features of a frozen image encoder, computed once and kept for every method that does not train the encoder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...files.atomic_writes import replacing
from ..augmentation.views import Augmentation, AugmentedViews
from .image_set import ImageSet


logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # part of every key: another layout means other files
SHARD_IMAGES = 512  # a run that is stopped loses the work on at most this many images


@dataclass(frozen=True, eq=False)
class Features:
    """Projected image features, not normalised.

    Attributes:
        features (`torch.Tensor`): (V, N, D): view, image, width. On the CPU, maybe mapped from a file: do not write
            to it.
        labels (`torch.Tensor`): (N,) int64.
        class_names (`tuple[str, ...]`): C names.
        ids (`tuple[str, ...]`): N ids of images.
        key (`str`, *optional*): SHA-256 of what the features depend on; `None` if no key was given.
    """

    features: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    key: str | None = None

    def __post_init__(self):
        if self.features.ndim != 3 or self.labels.shape != self.features.shape[1:2]:
            raise ValueError(
                f"features: got {tuple(self.features.shape)} with labels {tuple(self.labels.shape)}; "
                "want (V, N, D) and (N,)"
            )

    @property
    def num_views(self) -> int:
        return self.features.shape[0]

    def __len__(self) -> int:
        return self.features.shape[1]

    def select(self, indices: Sequence[int]) -> Features:
        """The images `indices`, in that order."""
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        ids = tuple(self.ids[row] for row in rows.tolist()) if self.ids else ()
        return replace(self, features=self.features[:, rows], labels=self.labels[rows], ids=ids, key=None)


class FeatureStore:
    """A folder of feature files, `features-<key>.safetensors`, that several processes may use at once.

    A file is written under a temporary name and renamed, so it is whole or absent. Its name is a hash of the
    description, its header holds the full description, which must be equal. A file that is damaged, of another format
    version or with another description is ignored, and the next `save` replaces it. If the folder cannot be written,
    there is one warning, and the features are not kept.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._warned = False

    @staticmethod
    def key(description: dict[str, Any]) -> str:
        """SHA-256 of a JSON-able description."""
        text = json.dumps(description, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, description: dict[str, Any], part: str = "") -> Path:
        return self.folder / f"features-{self.key(description)[:40]}{part}.safetensors"

    def load(
        self, description: dict[str, Any], part: str = "", shape: Sequence[int | None] = ()
    ) -> torch.Tensor | None:
        """The features kept for `description`, memory-mapped, or `None`. `shape` (V, N, None) is checked as far as
        given."""
        path = self.path(description, part)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("description") != json.dumps(description, sort_keys=True):
                    raise ValueError("made for something else")
                # A view of the mapped file: pages are read when they are used, and processes share them.
                features = file.get_tensor("features")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s: ignored (%s)", path, " ".join(str(error).split()))
            return None
        if features.ndim != 3 or any(
            want not in (None, got) for want, got in zip(shape, features.shape, strict=False)
        ):
            logger.warning("%s: ignored (shape %s, want %s)", path, tuple(features.shape), tuple(shape))
            return None
        return features

    def save(self, description: dict[str, Any], features: torch.Tensor, part: str = "") -> bool:
        """Keep `features` (V, N, D) for `description`; `False` where the folder cannot be written."""
        path = self.path(description, part)
        header = {"description": json.dumps(description, sort_keys=True)}
        try:
            self._remove_strays()
            with replacing(path, features.nbytes) as aside:
                save_file({"features": features.contiguous()}, aside, header)
        except (OSError, SafetensorError) as error:  # no right to write, disk full
            if not self._warned:
                logger.warning("features are not kept: cannot write %s (%s)", path, error)
                self._warned = True
            return False
        return True

    def _remove_strays(self) -> None:
        """Temporary files of runs that were killed: a day old, so no other process is still writing them."""
        for stray in self.folder.glob(".tmp-features-*"):
            with contextlib.suppress(OSError):
                if time.time() - stray.stat().st_mtime > 86_400:
                    stray.unlink()

    def remove(self, description: dict[str, Any], part: str) -> None:
        with contextlib.suppress(OSError):
            self.path(description, part).unlink(missing_ok=True)


def compute_features(
    encode: Callable[[torch.Tensor], torch.Tensor],
    image_set: ImageSet,
    processor: Any,
    *,
    views: int = 1,
    augmentation: str | Augmentation | None = "none",
    seed: int = 0,
    drawn: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
    cache_dir: str | os.PathLike | None = None,
    key: str | None = None,
    progress: bool | Callable[[int, int], None] = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    num_workers: int = 0,
) -> Features:
    """Run a frozen image encoder once over V views of each image.

    With `cache_dir` the result is kept in one memory-mapped file whose name is the hash of `key`, the processor's
    configuration, the images' fingerprint, augmentation, V, seed and dtype; the next call with the same reads the
    file and does not call `encode`. While it runs, every 512 images are saved as a shard, so an interrupted run goes
    on from there. Two processes may do this at once.

    Args:
        encode: `pixel_values` (B, 3, H, W) float32 on `device` -> projected features (B, D), not normalised. Called
            without gradient. Put the model in eval mode; autocast inside if wanted.
        image_set ([`ImageSet`]): N images.
        processor: see [`AugmentedViews`], as for `augmentation` and `seed`.
        views (`int`): V. One view per epoch is exact for V = epochs; Tip-Adapter's cache uses 10.
        drawn (*optional*): of each image, the views that are encoded, in ascending order, and no others: N lists of
            numbers from 0 to V-1. The result then has one view of P samples, each a view of an image, image by image.
        batch_size (`int`): images x views in one call of `encode`, about.
        cache_dir (path, *optional*): keep the features in this folder. It may be read-only.
        key (`str`, *optional*): says which weights `encode` stands for (a fingerprint of the encoder); required with
            `cache_dir`.
        progress: `True` shows a bar, a function is called with (images done, N), or with `drawn` (views done, P).
        dtype: of the result. `torch.float16` halves the file.
        device: where `pixel_values` go; default: they stay on the CPU.
        num_workers (`int`): processes that decode and augment, or 0 for threads of this one; the result is the same
            for any number.

    Returns:
        [`Features`] with `features` (V, N, D), or with `drawn` (1, P, D), on the CPU.

    Raises:
        ValueError: `cache_dir` without `key`, no images, features that are not (B, D) or not finite (the image is
            named), and what [`AugmentedViews`] raises.

    Example:

    ```python
    >>> from hf_clip_variants.data import compute_features, load_emoji
    >>> from transformers import CLIPImageProcessor
    >>> processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    >>> images = load_emoji("notov1", concepts=["cat", "dog"])
    >>> compute_features(lambda pixels: pixels.mean((2, 3)), images, processor, progress=False).features.shape
    torch.Size([1, 2, 3])
    ```
    """
    if not len(image_set):
        raise ValueError("image_set: no images")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; want at least 1")
    source = AugmentedViews(image_set, processor, views, augmentation, seed)
    plan = _Plan(source, drawn)
    description = store = digest = None
    if key is not None:
        description = {
            "format": FORMAT_VERSION,
            "encoder": key,
            "processor": _configuration(source.processor),
            "pictures": image_set.fingerprint,  # the name is part of the key of existing files
            **source.describe(),
            "dtype": str(dtype),
            **({} if drawn is None else {"drawn": FeatureStore.key({"drawn": list(map(list, drawn))})}),
        }
        digest = FeatureStore.key(description)
    elif cache_dir is not None:
        raise ValueError("key: got None with a cache_dir; want a string that says which weights `encode` stands for")
    if cache_dir is not None:
        store = FeatureStore(cache_dir)

    count = len(image_set)
    features = store.load(description, shape=plan.shape(range(count))) if store else None
    if features is None:
        features = _run(encode, plan, store, description, batch_size, progress, dtype, device, num_workers)
        if store:
            saved = store.save(description, features)
            for start in range(0, count, SHARD_IMAGES) if saved else ():
                store.remove(description, f"-{start:08d}")
    labels, ids = torch.from_numpy(image_set.labels.copy()), tuple(image_set.ids)
    if drawn is not None:
        rows = [row for row, numbers in enumerate(drawn) for _ in numbers]
        labels, ids = labels[rows], tuple(ids[row] for row in rows)
    return Features(features, labels, tuple(image_set.class_names), ids, digest)


class _Plan(torch.utils.data.Dataset):
    """Which views of which images are encoded; as a data set: pixels (v, 3, H, W) of the v views of one image."""

    def __init__(self, source: AugmentedViews, drawn: Sequence[Sequence[int]] | None):
        self.source, self.drawn = source, drawn
        if drawn is None:
            return
        known = set(range(source.num_views))
        fits = len(drawn) == len(source) and all(list(one) == sorted(known.intersection(one)) for one in drawn)
        if not fits or not any(drawn):
            raise ValueError(
                f"drawn: want a list of views for each of {len(source)} images, numbers from 0 to "
                f"{source.num_views - 1} in ascending order, and at least one of them"
            )

    def numbers(self, row: int) -> Sequence[int]:
        return range(self.source.num_views) if self.drawn is None else self.drawn[row]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.source.views(row, self.numbers(row))

    def shape(self, rows: Sequence[int]) -> tuple[int, int, None]:
        if self.drawn is None:
            return self.source.num_views, len(rows), None
        return 1, sum(len(self.numbers(row)) for row in rows), None

    def as_result(self, encoded: torch.Tensor) -> torch.Tensor:
        """(views, D), image by image, all views of an image together -> (V, images, D) or (1, views, D)."""
        if self.drawn is not None:
            return encoded[None]
        return encoded.unflatten(0, (-1, self.source.num_views)).transpose(0, 1).contiguous()

    def batches(self, rows: Sequence[int], batch_size: int) -> list[list[int]]:
        """Images that are read together: about `batch_size` views, at least one image."""
        found, views = [], batch_size
        for row in rows:
            count = len(self.numbers(row))
            if not count:
                continue
            if views + count > batch_size:
                found.append([])
                views = 0
            found[-1].append(row)
            views += count
        return found


def _run(encode, plan, store, description, batch_size, progress, dtype, device, num_workers) -> torch.Tensor:
    """(V, N, D) or (1, P, D), shard by shard."""
    count, shards = len(plan), []
    with _Progress(progress, plan.shape(range(count))[1]) as report:
        for start in range(0, count, SHARD_IMAGES):
            rows, part = range(start, min(start + SHARD_IMAGES, count)), f"-{start:08d}"
            if not any(len(plan.numbers(row)) for row in rows):
                continue
            # Shards exist so that an interrupted run can go on. A set that fits into one shard needs none: its final
            # file follows at once.
            keep = store is not None and count > SHARD_IMAGES
            shard = store.load(description, part, plan.shape(rows)) if keep else None
            if shard is None:
                shard = _encode(encode, plan, rows, batch_size, report, dtype, device, num_workers)
                if keep:
                    store.save(description, shard, part)
            else:
                report(shard.shape[1])
            shards.append(shard)
    widths = {shard.shape[2] for shard in shards}
    if len(widths) > 1:
        raise ValueError(f"encode: gave features of widths {sorted(widths)}; want one width")
    return torch.cat(shards, dim=1)


@torch.no_grad()
def _encode(encode, plan, rows, batch_size, report, dtype, device, num_workers) -> torch.Tensor:
    """(V, len(rows), D), or (1, their views, D)"""
    parts, batches = [], plan.batches(rows, batch_size)
    if num_workers:
        # The loader draws a seed for its workers. It gets its own generator, so that a training that follows does not
        # depend on whether the features were computed or read.
        loader = torch.utils.data.DataLoader(
            plan, batch_sampler=batches, num_workers=num_workers, generator=torch.Generator(), collate_fn=torch.cat
        )
    else:
        loader = _read_ahead(plan, batches)
    for batch, pixel_values in zip(batches, loader, strict=True):
        pieces = pixel_values.split(max(batch_size, 1))  # one image may have more views than fit into a batch
        encoded = [encode(piece if device is None else piece.to(device, non_blocking=True)) for piece in pieces]
        for piece, output in zip(pieces, encoded, strict=True):
            if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != len(piece):
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
                raise ValueError(
                    f"encode: gave {got} for pixel_values {tuple(piece.shape)}; want a tensor ({len(piece)}, D)"
                )
        output = torch.cat([piece.to(device="cpu", dtype=dtype) for piece in encoded])
        finite = output.isfinite().all(dim=1)
        if not finite.all():
            row = [row for row in batch for _ in plan.numbers(row)][int((~finite).nonzero()[0])]
            name = plan.source.image_set.ids[row]
            raise ValueError(f"encode: features of images[{row}] {name!r} are not finite in {dtype}")
        parts.append(output)
        report(len(batch) if plan.drawn is None else len(output))
    return plan.as_result(torch.cat(parts))


def _read_ahead(plan: _Plan, batches: Sequence[list[int]]) -> Iterator[torch.Tensor]:
    """Pixels of each batch, which threads read while the encoder runs on the one before."""
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[list[Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for batch in batches:
                waiting.append([pool.submit(plan.__getitem__, row) for row in batch])
                if len(waiting) == 2:
                    yield torch.cat([future.result() for future in waiting.popleft()])
            for left in waiting:
                yield torch.cat([future.result() for future in left])
        finally:
            pool.shutdown(cancel_futures=True)


def _configuration(processor: Any) -> dict[str, Any]:
    """The processor's settings, less what does not touch pixels."""
    configuration = json.loads(processor.to_json_string())
    return {k: v for k, v in configuration.items() if k not in ("processor_class", "transformers_version")}


class _Progress:
    """A rich bar, a callback, or nothing; called with the number of images just done."""

    def __init__(self, progress: bool | Callable[[int, int], None], total: int):
        self.total, self.done, self.bar = total, 0, None
        self.callback = progress if callable(progress) else None
        if progress is True:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("Image features", total=total)

    def __enter__(self) -> Callable[[int], None]:
        if self.bar:
            self.bar.start()
        return self.advance

    def __exit__(self, *exception) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, images: int) -> None:
        self.done += images
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        if self.callback:
            self.callback(self.done, self.total)


class FeatureDataset(torch.utils.data.Dataset):
    """Features as training rows `{"image_features": (D,), "labels": int}`, one view an image and epoch.

    Which view is a function of (seed, epoch, index) alone, so a resumed run sees what an uninterrupted one would.
    `Trainer` tells the epoch by itself in one process; with several, add `EpochCallback`; in a loop of your own, call
    `set_epoch`.

    Args:
        features ([`Features`])
        views: "cycle": image i starts at a view of its own and goes to the next every epoch, so V epochs show each
            view once; "random": drawn anew for each epoch and image; an `int`: always that view (evaluation: 0).
        seed (`int`)

    Example:

    ```python
    >>> data = FeatureDataset(Features(torch.randn(8, 100, 4), torch.zeros(100, dtype=torch.long)))
    >>> data.set_epoch(1)
    >>> data[3]["image_features"].shape
    torch.Size([4])
    ```
    """

    def __init__(self, features: Features, views: Literal["cycle", "random"] | int = "cycle", seed: int = 0):
        if isinstance(views, str) and views not in ("cycle", "random"):
            raise ValueError(f"views: got {views!r}; want 'cycle', 'random' or a number")
        if not isinstance(views, str) and not 0 <= views < features.num_views:
            raise ValueError(f"views: got {views}; these features have views 0..{features.num_views - 1}")
        self.features = features
        self.views = views
        self.seed = int(seed)
        # In shared memory: persistent DataLoader workers hold a copy of this object and must see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._choice: tuple[int, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(int(epoch))

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def chosen_views(self, epoch: int) -> np.ndarray:
        """The view of each image in `epoch`, int64 (N,)."""
        count, views = len(self.features), self.features.num_views
        if isinstance(self.views, int):
            return np.full(count, self.views, dtype=np.int64)
        if self.views == "cycle":
            return (np.random.default_rng(self.seed).integers(0, views, count) + epoch) % views
        return np.random.default_rng([self.seed, epoch]).integers(0, views, count)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = self.epoch
        if self._choice is None or self._choice[0] != epoch:
            self._choice = (epoch, self.chosen_views(epoch))
        view = int(self._choice[1][index])
        return {"image_features": self.features.features[view, index], "labels": int(self.features.labels[index])}
