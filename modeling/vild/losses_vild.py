"""ViLD's scores and losses (Gu et al. 2022, sections 3.2 to 3.4). Pure functions.

R regions, N labels, D the joint width; column 0 of logits (…, 1 + N) is the background.
"""

from typing import Literal

import torch
from torch.nn import functional as F


_TINY = 1e-8  # norms below it count as 0
_EXCLUDED = -1e11  # DetPro's logit of a novel label


def unit_or_zero(vectors: torch.Tensor) -> torch.Tensor:
    """(…, D) of length 1; a vector shorter than 1e-8 becomes 0."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    is_zero = norms <= _TINY
    return torch.where(is_zero, 0, vectors / torch.where(is_zero, 1, norms))


def cosine_logits(
    embeddings: torch.Tensor, texts: torch.Tensor, background: torch.Tensor | None = None, temperature: float = 0.01
) -> torch.Tensor:
    """Equation 2: (B, R, D) and (N, D) or (B, N, D) -> (B, R, N), with `background` (D,) (B, R, 1 + N).

    All vectors are normalised here. Computed in float32.
    """
    embeddings, texts = unit_or_zero(embeddings.float()), unit_or_zero(texts.float())
    cosines = embeddings @ texts.transpose(-1, -2)
    if background is not None:
        cosines = torch.cat([(embeddings @ unit_or_zero(background.float()))[..., None], cosines], dim=-1)
    return cosines / temperature


def mask_novel(
    logits: torch.Tensor, novel: torch.Tensor, rule: Literal["zero", "exclude", "keep"] = "zero"
) -> torch.Tensor:
    """Logits (…, 1 + N) as the loss sees them; `novel` (N,) bool.

    `"zero"`: those of novel labels are multiplied by 0 and stay in the softmax, as in the official code. `"exclude"`:
    they are -1e11, as in DetPro. `"keep"`: as they are.
    """
    if rule == "keep" or not bool(novel.any()):
        return logits
    novel = F.pad(novel.bool(), (1, 0)).to(logits.device)
    return logits.masked_fill(novel, 0.0 if rule == "zero" else _EXCLUDED)


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, novel: torch.Tensor | None = None, rule: str = "zero"
) -> torch.Tensor:
    """L_text: cross-entropy of logits (…, 1 + N), mean over regions; `targets` (…): 0 is background, c + 1 label c."""
    if novel is not None:
        logits = mask_novel(logits, novel, rule)
    if not targets.numel():
        return 0.0 * logits.sum()
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten().long())


def valid_regions(boxes: torch.Tensor) -> torch.Tensor:
    """(…,) bool: boxes (…, 4) that are none of padding (-1) and not cropped away (0): the largest coordinate is above
    0."""
    return boxes.amax(dim=-1) > 0


def distillation_loss(embeddings: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """L_image: L1 distance of embeddings (…, D) of length 1 and of the teacher's (…, D), which are normalised here;
    mean over the `valid` (…)."""
    distance = (embeddings.float() - unit_or_zero(teacher.float())).abs().sum(dim=-1)
    # `where`: what stands in padding may be anything, also NaN.
    return torch.where(valid, distance, 0.0).sum() / valid.sum().clamp_min(1)


def class_scores(logits: torch.Tensor, discard_background: bool = False) -> torch.Tensor:
    """(…, 1 + N) -> (…, N): softmax with the background, which is left out then, or before (`discard_background`)."""
    return logits[..., 1:].softmax(dim=-1) if discard_background else logits.softmax(dim=-1)[..., 1:]


def ensemble_scores(
    text_scores: torch.Tensor, image_scores: torch.Tensor, novel: torch.Tensor, weight: float = 2 / 3
) -> torch.Tensor:
    """Equation 6: the geometric mean of two heads' scores (…, N).

    The text head has exponent `weight` for base labels and 1 - `weight` for novel ones, the image head the rest.
    """
    exponent = torch.where(novel.to(text_scores.device), 1 - weight, weight)
    return text_scores**exponent * image_scores ** (1 - exponent)


__all__ = [
    "class_scores",
    "classification_loss",
    "cosine_logits",
    "distillation_loss",
    "ensemble_scores",
    "mask_novel",
]
__all__ += ["unit_or_zero", "valid_regions"]
