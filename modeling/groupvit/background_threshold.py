"""Background thresholds that are trained: a number for each label, or a function of the label's text embedding.

Nothing else is trained: scores and maps of groups come from a frozen model. After training the thresholds are used by
the hard rule, `background_rule.background_groups`. Shapes: B images, G groups, N labels, D width of embeddings.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


_EDGE = 1e-4  # a start at 0 or 1 has no finite logit


class BackgroundThreshold(nn.Module):
    """Thresholds t_c = threshold + sigmoid(z_c) - sigmoid(z0), z0 = logit(threshold): `threshold` at first, exactly.

    With `num_labels`, z_c is a parameter of each label. With `embedding_dim`, z_c = w . T_c + b for the unit text
    embedding T_c of the label, w = 0 at the start: it also has a threshold for labels that it was not trained on.

    Args:
        num_labels: N; of a fixed set of labels.
        embedding_dim: D; of an open vocabulary. One of the two is given.
        threshold: of all labels at the start, 0..1.
        temperature: width of the soft decision in training, in units of scores.

    Raises:
        ValueError: both or neither of `num_labels` and `embedding_dim`, a threshold outside 0..1, a temperature of 0.

    Example:
        >>> module = BackgroundThreshold(num_labels=2, threshold=0.95)
        >>> module.thresholds().tolist() == torch.full((2,), 0.95).tolist()
        True
    """

    def __init__(
        self,
        num_labels: int | None = None,
        embedding_dim: int | None = None,
        threshold: float = 0.95,
        temperature: float = 0.05,
    ):
        super().__init__()
        if (num_labels is None) == (embedding_dim is None):
            raise ValueError(f"num_labels, embedding_dim: got {num_labels} and {embedding_dim}; want one of them")
        if not 0 <= threshold <= 1 or temperature <= 0:
            raise ValueError(f"threshold, temperature: got {threshold} and {temperature}; want 0..1 and above 0")
        self.start, self.temperature = float(threshold), float(temperature)
        self.raw = None if num_labels is None else nn.Parameter(torch.empty(num_labels))
        self.weight = None if embedding_dim is None else nn.Parameter(torch.empty(embedding_dim))
        self.bias = None if embedding_dim is None else nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @property
    def start_logit(self) -> float:
        inside = min(max(self.start, _EDGE), 1 - _EDGE)
        return math.log(inside / (1 - inside))

    def reset_parameters(self) -> None:
        for parameter, value in ((self.raw, self.start_logit), (self.weight, 0.0), (self.bias, self.start_logit)):
            if parameter is not None:
                init.constant_(parameter, value)

    def distance(self) -> torch.Tensor:
        """Mean square of how far the parameters are from the start, (): a penalty for training on few images."""
        if self.raw is not None:
            return (self.raw - self.start_logit).square().mean()
        return self.weight.square().mean() + (self.bias - self.start_logit).square()

    def thresholds(self, class_embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """(N,) float32.

        Args:
            class_embeddings: (N, D), unit length; for an open vocabulary, and needed there.
        """
        if self.raw is not None:
            z = self.raw.float()
        elif class_embeddings is None:
            raise ValueError("class_embeddings: None; thresholds of an open vocabulary are computed from them")
        else:
            z = (class_embeddings.float() * self.weight.float()).sum(-1) + self.bias.float()
        # The same operation on both, so that their difference is exactly 0 at the start.
        z0 = torch.full_like(z, self.start_logit)
        return self.start + (z.sigmoid() - z0.sigmoid())

    def forward(self, scores: torch.Tensor, class_embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Probability that a group is background, (B, G): sigmoid((t - s) / temperature), with threshold and score
        averaged over labels by softmax(scores / temperature); differentiable in the thresholds.

        Args:
            scores: (B, G, N), in 0..1.
        """
        scores = scores.float()
        share = torch.softmax(scores / self.temperature, dim=-1)
        margin = (share * (self.thresholds(class_embeddings) - scores)).sum(-1)
        return torch.sigmoid(margin / self.temperature)


def background_pixel_loss(
    background: torch.Tensor,
    scores: torch.Tensor,
    group_maps: torch.Tensor,
    label_maps: torch.Tensor,
    ignore_index: int = 255,
) -> torch.Tensor:
    """Mean negative log-probability of the pixels' classes, ().

    A pixel belongs to group g by its soft map; a group is background by `background`, else it has label c by its share
    of the scores: p(0 | x) = sum_g S_g(x) b_g, p(c + 1 | x) = sum_g S_g(x) (1 - b_g) A_gc / sum_c A_gc.

    Args:
        background: (B, G), from `BackgroundThreshold`.
        scores: (B, G, N).
        group_maps: (B, G, H, W), adding up to 1 over the groups; at the size of the label maps.
        label_maps: (B, H, W) int, 0 background, i + 1 label i.

    Raises:
        ValueError: maps of another size.

    Without a labelled pixel it is 0, with gradient 0.
    """
    if label_maps.shape != group_maps.shape[:1] + group_maps.shape[2:]:
        raise ValueError(f"label_maps: shape {tuple(label_maps.shape)} for group maps {tuple(group_maps.shape)}")
    scores = scores.float()
    share = scores / scores.sum(-1, keepdim=True).clamp_min(1e-12)
    of_group = torch.cat([background[..., None], (1 - background)[..., None] * share], dim=-1)  # (B, G, 1 + N)
    pixels = torch.einsum("bghw,bgc->bchw", group_maps.float(), of_group)
    if not (label_maps != ignore_index).any():
        return 0 * background.sum()
    return F.nll_loss(pixels.clamp_min(1e-6).log(), label_maps.long(), ignore_index=ignore_index)


def background_tag_loss(
    background: torch.Tensor, scores: torch.Tensor, tags: torch.Tensor, areas: torch.Tensor
) -> torch.Tensor:
    """The same from image tags alone, (): a group whose best label is not among its image's tags should be
    background, any other should not. Binary cross-entropy, weighted by the groups' areas.

    Args:
        background: (B, G), from `BackgroundThreshold`.
        scores: (B, G, N).
        tags: (B, N) bool, which labels the image has.
        areas: (B, G), share of the image; groups without pixels count nothing.
    """
    target = 1 - tags.float().gather(1, scores.argmax(-1))
    each = F.binary_cross_entropy(background.float().clamp(1e-6, 1 - 1e-6), target, reduction="none")
    return (each * areas).sum() / areas.sum().clamp_min(1e-12)


def fit_background_threshold(
    module: BackgroundThreshold,
    images: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    class_embeddings: torch.Tensor | None = None,
    steps: int = 200,
    lr: float = 0.05,
    last_temperature: float = 0.01,
    pull: float = 0.0,
) -> list[float]:
    """Train a `BackgroundThreshold` on what a frozen model says about some images; returns the loss of each step.

    All images are one batch, and images of equal shapes are computed together. The temperature falls from the module's
    to `last_temperature` geometrically, and is put back at the end; so the losses of two steps are not of one scale.

    Args:
        images: for each, scores (G, N), soft group maps (G, H, W), and a label map (H, W) int or tags (N,) bool.
        pull: weight of `BackgroundThreshold.distance`.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("images: none; want at least one")
    first, losses = module.temperature, []
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    alike = {}
    for image in images:
        alike.setdefault(tuple((tensor.shape, tensor.dtype) for tensor in image), []).append(image)
    batches = [tuple(map(torch.stack, zip(*several, strict=True))) for several in alike.values()]
    with torch.enable_grad():
        for step in range(steps):
            module.temperature = first * (last_temperature / first) ** (step / max(steps - 1, 1))
            loss = pull * module.distance()
            for scores, maps, truth in batches:
                background = module(scores, class_embeddings)
                if truth.dtype == torch.bool:
                    part = background_tag_loss(background, scores, truth, maps.mean((-2, -1)))
                else:
                    part = background_pixel_loss(background, scores, maps, truth)
                loss = loss + part * (len(scores) / len(images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    module.temperature = first
    return losses


__all__ = ["BackgroundThreshold", "background_pixel_loss", "background_tag_loss", "fit_background_threshold"]
