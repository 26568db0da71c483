"""The data of a pre-training run: sources, the reader of their rows, augmentation, and rows that are held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..data.augmentation.audio import AudioAugmentation
from ..data.augmentation.batches import AUGMENTATIONS_OF_BATCHES
from ..data.augmentation.two_views import TwoViews
from ..data.augmentation.views import output_size, view_generator
from ..data.pairs.batches import AudioReader, CropView, PairDataset, PairReader, PairStream, PairViews
from ..data.pairs.sources import Pairs, open_pairs
from ..evaluation.retrieval import RetrievalSet
from ..modeling.dual_encoders.pretraining import Pretraining
from .smoke_data import TONES, tone_pairs


# Batched augmentation of the view for the contrastive loss, and of the views besides it. "published" and "crops" are
# the papers', which depend on the number of views.
_BATCHED = {
    "one": ("clip", "clip"),
    "two": ("slip", "slip_views"),
    "icons": ("icons", "icons_views"),
    "none": ("none", "none"),
}


def open_sources(pretraining: Pretraining, sources: Sequence[str], **reading: Any) -> list[Pairs]:
    """`open_pairs` for each source, with audio where the method takes some.

    Args:
        reading: of `open_pairs`. Sources may differ in the `text_columns` that they have.

    Raises:
        ValueError: a text column that no source has.
    """
    parts = [
        open_pairs(
            tone_pairs() if source == TONES else source,
            with_audio="audio" in pretraining.modalities,
            any_text_column=True,
            **reading,
        )
        for source in sources
    ]
    unused = set(reading.get("text_columns") or ()) - {column for part in parts for column in part.text_columns}
    if unused:
        raise ValueError(f"text_columns: no source has a column {sorted(unused)[0]!r}")
    return parts


def published_transform(pretraining: Pretraining, images: Any) -> Callable[[Any, Any], Mapping[str, torch.Tensor]]:
    """(image, generator) -> views by name, as the paper's code draws them from whole images.

    Args:
        images: the image processor, which says size and normalisation.
    """
    size = output_size(images)[0]
    if pretraining.views == "two":
        return TwoViews(size, images.image_mean, images.image_std).views
    return CropView(size, tuple(images.image_mean), tuple(images.image_std))


def batched_views(pretraining: Pretraining, config: Any, images: Any, augment: str, seed: int) -> PairViews:
    """The views that a model of this configuration takes, made of whole batches."""
    first, further = _BATCHED.get(augment) or _BATCHED[pretraining.views]
    names = {"pixel_values": first, **dict.fromkeys(pretraining.extra_views(config), further)}
    augmentations = {argument: AUGMENTATIONS_OF_BATCHES[name] for argument, name in names.items()}
    return PairViews(augmentations, output_size(images)[0], images.image_mean, images.image_std, seed)


def audio_reader(pretraining: Pretraining, processor: Any, seconds: float, augmented: bool) -> AudioReader | None:
    """File -> waveform of `seconds`; None for methods without audio."""
    if "audio" not in pretraining.modalities:
        return None
    extractor = processor.feature_extractor
    length = round(seconds * extractor.sampling_rate)
    return AudioReader(extractor, length, AudioAugmentation(length) if augmented else None)


def pair_reader(
    pretraining: Pretraining,
    processor: Any,
    *,
    augment: str,
    seed: int,
    templates: Sequence[str] = ("{}",),
    source_size: int | None = None,
    seconds: float = 5.0,
) -> PairReader:
    """Row -> sample of a method.

    Args:
        augment: "published", of whole images; or batched: "crops" (the same draws), "icons" or "none".
        source_size: of the squares that batched augmentation starts from, pixels. Default: the image size, and 8/7 of
            it where augmentation crops.
    """
    size = output_size(processor.image_processor)[0]
    if source_size is None:
        source_size = size if augment in ("icons", "none") else round(size * 8 / 7)
    transform = published_transform(pretraining, processor.image_processor) if augment == "published" else None
    audio = audio_reader(pretraining, processor, seconds, augmented=True)
    return PairReader(seed, source_size, tuple(templates), transform, audio)


def hold_out(
    parts: Sequence[Pairs], share: float, reader: PairReader, views: PairViews, audio: AudioReader | None
) -> tuple[list[Pairs], list[RetrievalSet]]:
    """
    The rows that are left for training, and two sets for retrieval.

    `unseen` are the rows that were held out, as they are. `seen_augmented` are as many rows that were trained on,
    under augmentation that training never drew: what the model knows about its own data, for comparison.

    Args:
        share: of the rows, 0 to 1. Which rows does not depend on the reader's seed.
        reader, views: those of the training.
        audio: without augmentation.

    Raises:
        ValueError: several sources, a stream, another share.
    """
    if len(parts) > 1 or parts[0].is_stream:
        raise ValueError("hold_out: rows can be held out of one source with an index; want one, without --stream")
    if not 0 < share < 1:
        raise ValueError(f"hold_out: got {share}; want a share between 0 and 1")
    count = len(parts[0].dataset)
    order = torch.randperm(count, generator=view_generator(0, 0, "held out")).tolist()  # the same for every seed
    size = max(1, round(share * count))

    def part(rows: list[int]) -> Pairs:
        return replace(parts[0], dataset=parts[0].dataset.select(rows))

    unseen = RetrievalSet("unseen", part(order[:size]), audio)
    other_reader = replace(reader, seed=reader.seed + 1, templates=("{}",))
    other_views = None if reader.transform else replace(views, seed=reader.seed + 1)
    seen = RetrievalSet("seen_augmented", part(order[size : 2 * size]), None, other_reader, other_views)
    return [part(order[size:])], [unseen, seen]


def training_pairs(
    parts: Sequence[Pairs],
    reader: PairReader,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    mix: Sequence[float] | None = None,
    distinct: str | None = None,
    shuffle_buffer: int = 10_000,
    on_error: str = "skip",
) -> PairDataset | PairStream:
    """Endless samples of one process.

    Args:
        batch_size: of this process.
        mix, distinct, on_error: of `PairDataset`.
        shuffle_buffer: of `PairStream`.

    Raises:
        ValueError: a stream among several sources, or with `mix` or `distinct`.
    """
    if not any(part.is_stream for part in parts):
        return PairDataset(parts, reader, batch_size * world_size, mix, distinct, on_error)
    if len(parts) > 1 or distinct or mix:
        raise ValueError(
            "stream: a stream is one source, without --mix and --distinct; want one glob over all its shards"
        )
    place = {"rank": rank, "world_size": world_size}
    return PairStream(parts[0], reader, batch_size, **place, shuffle_buffer=shuffle_buffer, on_error=on_error)


def steps_of_epochs(data: PairDataset | PairStream, epochs: float, accumulate: int = 1) -> int:
    """Steps of the optimiser in so many passes over the source that lasts longest."""
    if not hasattr(data, "epoch_steps"):
        raise ValueError("epochs: a stream does not tell its length; want --steps")
    return max(1, math.ceil(epochs * data.epoch_steps / accumulate))


__all__ = [
    "audio_reader",
    "batched_views",
    "hold_out",
    "open_sources",
    "pair_reader",
    "published_transform",
    "steps_of_epochs",
    "training_pairs",
]
