"""Retrieval among held-out pairs in each direction between modalities; the model may still be in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.pairs.batches import PairReader, PairViews
from ..data.pairs.sources import Pairs
from ..metrics.retrieval import retrieval
from ..modeling.dual_encoders.backbones import unit_norm
from .zero_shot import image_features, text_features


@dataclass(frozen=True)
class RetrievalSet:
    """
    Held-out pairs; row i of each modality belongs to row i of the others.

    Args:
        audio: file content or path -> waveform (channels, samples).
        reader, views: use augmented images and audio, drawn by the reader; texts are not augmented.
    """

    name: str
    pairs: Pairs
    audio: Callable[[bytes | str], torch.Tensor] | None = None
    reader: PairReader | None = None
    views: PairViews | None = None

    def batch(self, start: int, size: int) -> tuple[list[str], Any, torch.Tensor | None]:
        """Texts, images (PIL images, or normalised pixels where they are augmented) and waveforms of some rows."""
        numbers = range(start, min(start + size, len(self.pairs.dataset)))
        rows = [self.pairs.dataset[i] for i in numbers]
        texts = [self.pairs.texts(row)[0][0] for row in rows]
        if self.reader is None:
            audio = None if self.audio is None else torch.stack([self.audio(self.pairs.audio(row)) for row in rows])
            return texts, [self.pairs.image(row) for row in rows], audio
        samples = [self.reader(self.pairs, row, f"{self.name} {i}") for i, row in zip(numbers, rows, strict=True)]
        audio = torch.stack([s["audio"] for s in samples]) if self.reader.audio is not None else None
        if self.views is None:
            return texts, torch.stack([s["views"]["pixel_values"] for s in samples]), audio
        views = self.views(torch.stack([s["image"] for s in samples]), [s["key"] for s in samples])
        return texts, views["pixel_values"], audio


@torch.no_grad()
def retrieval_of_pairs(
    model: nn.Module, processor: Any, held_out: RetrievalSet, batch_size: int = 64
) -> dict[str, float]:
    """Recall at 1, 5, 10 and median rank in every direction between the modalities of held-out pairs.

    All pairs with the same text count as right answers for it, since nothing tells them apart. Texts are tokenized as
    in training (`PairCollator`): long ones are cut, none is refused.

    Args:
        model: anything with `get_text_features`, `get_image_features` and, where the set has audio,
            `get_audio_features`; in eval mode.
        processor: a processor with image processor and tokenizer.
    """
    device = next(model.parameters()).device
    found, texts = {}, []
    for start in range(0, len(held_out.pairs.dataset), batch_size):
        words, images, audio = held_out.batch(start, batch_size)
        texts += words
        tokens = processor.tokenizer(words, padding=True, truncation=True, return_tensors="pt")
        features = {"text": text_features(model, tokens), "image": image_features(model, processor, images)}
        if audio is not None:
            features["audio"] = model.get_audio_features(audio.to(device)).pooler_output.float()
        for name, values in features.items():
            found.setdefault(name, []).append(unit_norm(values))
    embeddings = {name: torch.cat(values) for name, values in found.items()}
    same = torch.tensor([[a == b for b in texts] for a in texts], device=device)
    return {
        f"{query}_to_{gallery}_{name}": value
        for query in embeddings
        for gallery in embeddings
        if query != gallery
        for name, value in retrieval(
            embeddings[query] @ embeddings[gallery].T, correct=same if "text" in (query, gallery) else None
        ).items()
    }


__all__ = ["RetrievalSet", "retrieval_of_pairs"]
