"""Tip-Adapter's grid search for alpha and beta, without repeated computations."""

from dataclasses import dataclass

import torch

from ..image_cache import sum_by_class


# Shapes: n validation images, N cached images, C classes, D joint width, b betas, a alphas

_CHUNK_ELEMENTS = 1 << 24  # upper limit of the (N, n) affinities: 64 MB
_CACHE_ELEMENTS = 1 << 20  # upper limit of the (a, n, C) logits: 4 MB, which fit into a processor's cache


@dataclass(frozen=True)
class TipSearch:
    """Result of the search: the best pair, and the accuracy at each point of the grid."""

    alpha: float
    beta: float
    accuracy: float  # percent, of the best pair
    alphas: list[float]
    betas: list[float]
    accuracies: torch.Tensor  # (b, a) percent


def search_grid(maximum: float, steps: int) -> list[float]:
    """`steps` equally spaced values from 0.1 (included) to `maximum` (excluded), as in the official code.

    Raises:
        ValueError: fewer than 1 step, or a maximum of at most 0.1.
    """
    if steps < 1 or maximum <= 0.1:
        raise ValueError(f"search grid: {steps} steps up to {maximum}, expected at least 1 step and more than 0.1")
    return [i * (maximum - 0.1) / steps + 0.1 for i in range(steps)]


@torch.no_grad()
def search_alpha_beta(
    image_embeds: torch.Tensor,
    labels: torch.Tensor,
    class_embeds: torch.Tensor,
    keys: torch.Tensor,
    key_labels: torch.Tensor,
    *,
    logit_scale: float = 100.0,
    scale: tuple[float, float] = (7, 3),
    steps: tuple[int, int] = (200, 20),
) -> TipSearch:
    """Computes the accuracy at every (beta, alpha) of a grid, and chooses the best pair.

    As in the official code, of several best pairs the one with the smallest beta wins, and then the one with the
    smallest alpha. Use validation images: the official scripts search on the test set of ImageNet, which makes the
    result too good.

    Deviation: a tie between the correct class and another one counts as an error.

    Args:
        image_embeds: (n, D), unit norm.
        labels: (n,) int64.
        class_embeds: (C, D), unit norm.
        keys: (N, D).
        key_labels: (N,) int64.
        logit_scale: factor of the zero-shot logits.
        scale: upper ends (excluded) of beta and alpha.
        steps: numbers of grid points of beta and alpha.

    Raises:
        ValueError: no images, another number of labels, or an invalid grid.

    Example:

    >>> embeds, labels = torch.eye(2), torch.tensor([0, 1])
    >>> wrong = embeds.flip(0)  # zero-shot CLIP mixes up the two classes
    >>> found = search_alpha_beta(embeds, labels, wrong, embeds, labels, scale=(7, 300), steps=(2, 3))
    >>> round(found.alpha), round(found.beta, 2), found.accuracy
    (200, 3.55, 100.0)
    """
    if len(image_embeds) != len(labels) or not len(labels):
        raise ValueError(f"labels: {len(labels)} for {len(image_embeds)} images, expected one each and at least one")
    betas, alphas = search_grid(scale[0], steps[0]), search_grid(scale[1], steps[1])
    correct = torch.zeros(len(betas), len(alphas), dtype=torch.int64, device=image_embeds.device)
    rows = max(_CHUNK_ELEMENTS // len(keys), 1)
    # logits(beta, alpha) = zero_shot + alpha * votes(beta). The affinities depend on neither, so they are computed
    # once per chunk of images; votes are computed once per beta. For an accuracy it is enough to know whether the
    # logit of the correct class is larger than the largest of all others.
    for embeds, truth in zip(image_embeds.split(rows), labels.split(rows), strict=True):
        distance = (keys @ embeds.t()).sub_(1)  # (N, n), -(1 - affinity)
        zero_shot = logit_scale * embeds @ class_embeds.t()  # (n, C)
        truth = truth[:, None]
        true_zero_shot = zero_shot.gather(1, truth)[:, 0]
        others = zero_shot.scatter(1, truth, -torch.inf)  # the correct class is excluded from the maximum
        weights = torch.empty_like(distance)
        # As many alphas at a time as fit into the processor's cache. One at a time would be mostly overhead for small
        # problems.
        several = max(_CACHE_ELEMENTS // others.numel(), 1)
        logits = others.new_empty(min(several, len(alphas)), *others.shape)  # (a, n, C)
        for i, beta in enumerate(betas):
            torch.mul(distance, beta, out=weights).exp_()
            votes = sum_by_class(weights, key_labels, len(class_embeds)).t().contiguous()  # (n, C)
            true_votes = votes.gather(1, truth)[:, 0]
            for j in range(0, len(alphas), several):
                alpha = zero_shot.new_tensor(alphas[j : j + several])
                best_other = torch.addcmul(others, votes, alpha[:, None, None], out=logits[: len(alpha)]).amax(dim=2)
                true = torch.addcmul(true_zero_shot, true_votes, alpha[:, None])
                correct[i, j : j + several] += (true > best_other).sum(dim=1)
    counts = correct.flatten().tolist()
    best = counts.index(max(counts))  # the first: only strictly better pairs replace it
    accuracies = 100 * correct.cpu().double() / len(labels)
    i, j = divmod(best, len(alphas))
    return TipSearch(alphas[j], betas[i], float(accuracies[i, j]), alphas, betas, accuracies.float())


__all__ = ["TipSearch", "search_alpha_beta", "search_grid"]
