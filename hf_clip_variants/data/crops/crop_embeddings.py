"""What a dual encoder's image encoder gives for the crops of proposals, computed once and stored: ViLD's teacher."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...modeling.dual_encoders.backbones import family_of, unit_norm
from ...modeling.dual_encoders.fingerprint import fingerprint
from ..images.feature_cache import FeatureStore, _configuration, _Progress
from .proposals import Proposals


FORMAT_VERSION = 1
SCALES = (1.0, 1.5)  # of Gu et al. 2022, section 3.3
_OUTWARD = 1e-3  # boxes are snapped outward to whole pixels, from this distance on


def crop_box(box: Sequence[float], size: tuple[int, int], scale: float = 1.0) -> tuple[int, int, int, int]:
    """Whole pixels (left, top, right, bottom) of a box, with width and height times `scale` around its centre, snapped
    outward and clipped to an image of (width, height). At least one pixel.

    >>> crop_box((10.2, 20.0, 30.0, 40.0), (100, 45), 1.5)
    (5, 14, 35, 45)
    """
    left, top, right, bottom = map(float, box)
    grow = (scale - 1) / 2
    left, right = left - grow * (right - left), right + grow * (right - left)
    top, bottom = top - grow * (bottom - top), bottom + grow * (bottom - top)
    width, height = size
    x1 = min(max(math.floor(left - _OUTWARD), 0), width - 1)
    y1 = min(max(math.floor(top - _OUTWARD), 0), height - 1)
    x2 = max(min(math.ceil(right + _OUTWARD), width), x1 + 1)
    y2 = max(min(math.ceil(bottom + _OUTWARD), height), y1 + 1)
    return x1, y1, x2, y2


@dataclass(frozen=True, eq=False)
class CropEmbeddings:
    """
    Embeddings (P, D) of length 1 of the crops of `proposals`, in shards that are mapped from files if there are any.

    `embeddings[i]` gives (R, D), float32, of image i.
    """

    proposals: Proposals
    shards: tuple[torch.Tensor, ...]  # (1, rows, D), image after image
    shard_images: int

    def __len__(self) -> int:
        return len(self.proposals)

    def __getitem__(self, index: int) -> torch.Tensor:
        index = range(len(self))[index]
        shard, rows = index // self.shard_images, self.proposals.rows(index)
        start = self.proposals.rows(shard * self.shard_images).start
        return self.shards[shard][0, rows.start - start : rows.stop - start].float()


def embed_crops(
    teacher: torch.nn.Module,
    image_processor: Any,
    images: Sequence[Any],
    proposals: Proposals,
    folder: str | os.PathLike | None = None,
    *,
    scales: Sequence[float] = SCALES,
    batch_size: int = 256,
    shard_images: int = 64,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float32,
    progress: bool | Callable[[int, int], None] = True,
    key: str | None = None,
) -> CropEmbeddings | None:
    """Embeds the crops of all proposals with the image encoder of any dual encoder (Gu et al. 2022, section 3.3).

    Each box is cropped from the ORIGINAL image at each scale, the crops go through the teacher's own preprocessing,
    and the un-normalised features of a box are added up and normalised. (Features pooled from a normalised, resized
    image instead cost half of the precision on novel classes, as users of a re-implementation found.)

    With `folder`, every `shard_images` images are one file, written in one step, whose name is a hash of the teacher's
    weights, the processor's settings, the proposals, scales and dtype. A run that was killed goes on with the shards
    that are missing and ends with the same bytes. With `world_size` processes each computes every `world_size`-th
    shard: the files are the same ones, whatever their number.

    Args:
        teacher: `CLIPModel`, `ChineseCLIPModel`, `SiglipModel` or another dual encoder of `modeling/dual_encoders`.
        image_processor: the teacher's, or a processor that has one.
        images: N PIL images by number, as they were when the proposals were made.
        batch_size: crops at once, of one or several images, and of all scales.
        rank, world_size: of this process, see above. They need a folder.
        dtype: of the stored embeddings; float16 halves the files.
        progress: `True` shows a bar, a function is called with (images done, N).
        key: what else the embeddings depend on: the images' fingerprint. Files are not told apart by pixels.

    Returns:
        All embeddings; None if other processes have not written their shards yet: call it again after they have.

    Raises:
        ValueError: another number of images than of proposals, or features that are not finite.
    """
    if len(images) != len(proposals):
        raise ValueError(f"images: {len(images)}, proposals are of {len(proposals)} images")
    if not 0 <= rank < world_size or (world_size > 1 and folder is None):
        raise ValueError(f"rank, world_size: {rank} of {world_size}, expected 0..{world_size - 1}, and a folder")
    if not scales or not all(scale > 0 for scale in scales):
        raise ValueError(f"scales: {list(scales)}, expected at least one number above 0")
    image_processor = getattr(image_processor, "image_processor", image_processor)
    store = None if folder is None else FeatureStore(folder)
    description = {
        "version": FORMAT_VERSION,
        "teacher": fingerprint(teacher),
        "processor": _configuration(image_processor),
        "proposals": proposals.digest,
        "images": key,
        "scales": list(map(float, scales)),
        "shard_images": shard_images,
        "dtype": str(dtype).removeprefix("torch."),
    }
    training = teacher.training
    teacher.eval()
    shards, total = [], len(images)
    try:
        with _Progress(progress, total) as report:
            for number, start in enumerate(range(0, total, shard_images)):
                rows = range(start, min(start + shard_images, total))
                count = proposals.rows(rows[-1]).stop - proposals.rows(rows[0]).start
                part = f"-{start:08d}"
                shard = None if store is None else store.load(description, part, (1, count, None))
                if shard is None and number % world_size == rank:
                    shard = _embed_shard(teacher, image_processor, images, proposals, rows, scales, batch_size, dtype)
                    if store is not None:
                        store.save(description, shard, part)
                        shard = store.load(description, part, (1, count, None))  # mapped, not in memory
                shards.append(shard)
                report(len(rows))
    finally:
        teacher.train(training)
    if any(shard is None for shard in shards):
        return None
    return CropEmbeddings(proposals, tuple(shards), shard_images)


def _crops(images, proposals: Proposals, rows: Sequence[int], scales: Sequence[float]) -> Iterator[np.ndarray]:
    """Crops (h, w, 3), uint8: of each box all scales, one after the other."""
    for index in rows:
        image = images[index]
        image = image if isinstance(image, Image.Image) else Image.open(image)
        pixels = np.asarray(image.convert("RGB"))
        for box in proposals[index][0].tolist():
            for scale in scales:
                left, top, right, bottom = crop_box(box, image.size, scale)
                yield pixels[top:bottom, left:right].copy()


@torch.inference_mode()
def _embed_shard(teacher, image_processor, images, proposals, rows, scales, batch_size, dtype) -> torch.Tensor:
    """(1, P, D) of the images `rows`. Batches do not reach over the shard's end: its bytes depend on nothing else."""
    family = family_of(teacher.config.model_type)
    place = next(teacher.parameters())
    features, batch = [], []

    def encode() -> None:
        # Said, because a crop may be one or three pixels high.
        inputs = image_processor(batch, input_data_format="channels_last", return_tensors="pt")
        pixels = inputs["pixel_values"].to(place.device, place.dtype)
        features.append(family.pooled_image_features(teacher, pixels).float().cpu())
        batch.clear()

    for crop in _crops(images, proposals, rows, scales):
        batch.append(crop)
        if len(batch) == max(batch_size, 1):
            encode()
    if batch:
        encode()
    if not features:
        return torch.zeros(1, 0, family.joint_width(teacher.config), dtype=dtype)
    joined = torch.cat(features).unflatten(0, (-1, len(scales)))
    embeddings = unit_norm(joined.sum(dim=1)).to(dtype)
    if not embeddings.isfinite().all():
        raise ValueError(f"teacher: embeddings of images {rows[0]}..{rows[-1]} are not finite")
    return embeddings[None].clone()


__all__ = ["SCALES", "CropEmbeddings", "crop_box", "embed_crops"]
