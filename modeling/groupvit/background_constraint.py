"""Background as a constraint in training from captions: learned background vectors compete with nouns for the groups.

Shapes: B images, G groups, M nouns of an image, K background vectors, D width; group and noun embeddings have unit
length. For image i, P are its own nouns, N the nouns of the other images of the batch that are none of its own, B the
background vectors, and p(. | g) is the softmax of scale * cosine over P, N and B for its group g.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


BACKGROUND_WORDS = ("background", "sky", "wall", "floor", "grass", "ground")
PARTS = ("positive", "negative", "area", "separation")


@dataclass(frozen=True)
class BackgroundLosses:
    """Parts of the constraint, each (), and the share of each image that is background, (B,)."""

    positive: torch.Tensor
    negative: torch.Tensor
    area: torch.Tensor
    separation: torch.Tensor
    background_area: torch.Tensor

    def total(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> torch.Tensor:
        """The parts, in the order of `PARTS`, weighted and added up."""
        return sum(weight * getattr(self, name) for weight, name in zip(weights, PARTS, strict=True))


def background_losses(
    group_embeddings: torch.Tensor,
    areas: torch.Tensor,
    noun_embeddings: torch.Tensor,
    noun_ids: torch.Tensor,
    background_embeddings: torch.Tensor,
    scale: torch.Tensor | float,
    min_area: float = 0.05,
    max_area: float = 0.95,
    margin: float = 0.5,
    over_groups: Literal["max", "mean"] = "max",
) -> BackgroundLosses:
    """The parts of the constraint.

    positive: -mean over an image's nouns n of log max_g p(n | g): each noun finds a group;
    negative: -mean over groups of log(1 - sum of p(n | g) over n in N): no group is a noun of another image;
    area: max(0, min_area - a) + max(0, a - max_area) for a = sum_g area_g * (sum of p(b | g) over b in B), mean over
    images: neither is all background, nor nothing; areas carry no gradient;
    separation: max(0, cosine - margin) of each noun's nearest background vector, mean over nouns.

    Args:
        group_embeddings: (B, G, D), unit length.
        areas: (B, G), share of the image of each group, from the soft maps; adding up to 1.
        noun_embeddings: (B, M, D), unit length.
        noun_ids: (B, M) int; nouns with the same id are the same word, so no negatives of each other; -1 is no noun
            (padding), and counts nowhere.
        background_embeddings: (K, D), any length.
        scale: factor of the cosines, the model's clamped `exp(logit_scale)`.
        over_groups: "max", or "mean" for log of the mean over groups of p(n | g), which reaches all groups.

    Raises:
        ValueError: shapes that do not fit, or areas that are out of order.

    Images without a noun count in the area alone; without any noun in the batch positive is 0. Computed in float32.

    Ours; the loss is not in the paper.

    Example:
        >>> eye = torch.eye(3)
        >>> parts = background_losses(
        ...     eye[None, :2], torch.tensor([[0.7, 0.3]]), eye[None, 1:2], torch.tensor([[5]]), eye[:1], 100.0)
        >>> [abs(round(getattr(parts, name).item(), 3)) for name in PARTS], round(parts.background_area.item(), 3)
        ([0.0, 0.0, 0.0, 0.0], 0.7)
    """
    _check(group_embeddings, areas, noun_embeddings, noun_ids, background_embeddings, min_area, max_area)
    if over_groups not in ("max", "mean"):
        raise ValueError(f"over_groups: got {over_groups!r}; want 'max' or 'mean'")
    with torch.autocast(group_embeddings.device.type, enabled=False):
        groups, nouns = group_embeddings.float(), noun_embeddings.float()
        background = F.normalize(background_embeddings.float(), dim=-1)
        scale = scale.float() if isinstance(scale, torch.Tensor) else scale
        images, per_image = noun_ids.shape
        all_nouns, all_ids = nouns.flatten(0, 1), noun_ids.flatten()
        own = torch.arange(images, device=groups.device).repeat_interleave(per_image) == torch.arange(
            images, device=groups.device
        ).unsqueeze(1)  # (B, B * M)
        same_word = (noun_ids[:, :, None] == all_ids).any(1)
        is_noun = all_ids >= 0
        positive, negative = own & is_noun, ~same_word & is_noun
        # One distribution a group: own nouns, negatives, background; other words are left out (-inf). The same own
        # noun twice stands there twice, so an image's own repetitions are counted once.
        first = _first_of_each(noun_ids).flatten()
        positive = positive & first
        logits = torch.cat([scale * (groups @ all_nouns.T), scale * (groups @ background.T)], dim=-1)  # (B, G, BM + K)
        is_background = torch.zeros(logits.shape[-1], dtype=torch.bool, device=groups.device)
        is_background[len(all_ids) :] = True
        shown = F.pad(positive | negative, (0, len(background)), value=True)[:, None]
        log_p = logits.masked_fill(~shown, -torch.inf).log_softmax(-1)
        noun_log_p = log_p[..., : len(all_ids)]
        found = noun_log_p.amax(1) if over_groups == "max" else noun_log_p.exp().mean(1).clamp_min(1e-12).log()
        loss_positive = -found[positive].sum() / positive.sum().clamp_min(1)
        not_negative = F.pad(positive, (0, len(background)), value=True)[:, None]
        loss_negative = -log_p.masked_fill(~not_negative, -torch.inf).logsumexp(-1).mean()
        area = (areas.detach().float() * log_p[..., is_background].exp().sum(-1)).sum(-1)
        loss_area = (F.relu(min_area - area) + F.relu(area - max_area)).mean()
        near = (all_nouns @ background.T).amax(-1)
        loss_separation = (F.relu(near - margin) * is_noun).sum() / is_noun.sum().clamp_min(1)
    return BackgroundLosses(loss_positive, loss_negative, loss_area, loss_separation, area.detach())


def _first_of_each(ids: torch.Tensor) -> torch.Tensor:
    """(B, M) bool: not a repetition of an earlier id of its row."""
    same = ids[:, :, None] == ids[:, None, :]
    return ~same.tril(-1).any(-1)


def _check(groups, areas, nouns, ids, background, min_area, max_area):
    want = {
        "areas": (areas, groups.shape[:2]),
        "noun_embeddings": (nouns, (*groups.shape[:1], *ids.shape[1:], groups.shape[-1])),
        "noun_ids": (ids, nouns.shape[:2]),
        "background_embeddings": (background, (background.shape[0], groups.shape[-1])),
    }
    for name, (tensor, shape) in want.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{name}: shape {tuple(tensor.shape)}; want {tuple(shape)} for groups {tuple(groups.shape)}"
            )
    if not len(background):
        raise ValueError("background_embeddings: none; want at least one vector")
    if not 0 <= min_area <= max_area <= 1:
        raise ValueError(f"min_area, max_area: got {min_area} and {max_area}; want 0 <= min_area <= max_area <= 1")


class BackgroundConstraint(nn.Module):
    """`background_losses` with its trained background vectors (K, D) in the space of texts.

    Args:
        num_vectors: K.
        embedding_dim: D.
        init_std: of the random start; `start_from` takes text embeddings instead.
        options: arguments of `background_losses` by name.
    """

    def __init__(self, num_vectors: int, embedding_dim: int, init_std: float = 0.02, **options):
        super().__init__()
        if num_vectors < 1:
            raise ValueError(f"num_vectors: got {num_vectors}; want at least one")
        self.init_std, self.options = init_std, options
        self.vectors = nn.Parameter(torch.empty(num_vectors, embedding_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.normal_(self.vectors, std=self.init_std)

    @torch.no_grad()
    def start_from(self, text_embeddings: torch.Tensor) -> None:
        """Take (K, D) embeddings, such as those of `BACKGROUND_WORDS`."""
        if text_embeddings.shape != self.vectors.shape:
            raise ValueError(
                f"text_embeddings: shape {tuple(text_embeddings.shape)}; want {tuple(self.vectors.shape)}"
            )
        self.vectors.copy_(text_embeddings)

    def forward(self, group_embeddings, areas, noun_embeddings, noun_ids, scale) -> BackgroundLosses:
        arguments = (group_embeddings, areas, noun_embeddings, noun_ids, self.vectors, scale)
        return background_losses(*arguments, **self.options)


__all__ = ["BACKGROUND_WORDS", "PARTS", "BackgroundConstraint", "BackgroundLosses", "background_losses"]
