"""Tip-Adapter's grid search for alpha and beta, without repeated computations."""

from dataclasses import dataclass

import torch

from ..image_cache import sum_by_class


# Shapes: n validation images, N cached images, C classes, D joint width, b betas, a alphas

_CHUNK_ELEMENTS = 1 << 20  # upper limit of the (N, n) affinities: 4 MB, which fit into a processor's cache
# exp(-(beta + step) d) = exp(-beta d) exp(-step d), and a product takes a tenth of the time. It is computed anew so
# often that the error stays below that of `exp` itself, which is the rounding of beta d.
_EXP_EVERY = 8


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

    Deviation: a tie between the correct class and another one counts as an error. The official code computes all
    logits at each point; here all alphas of a beta come from one pass, see `_right_alphas`.

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
    changes = torch.zeros(len(betas), len(alphas) + 1, dtype=torch.int64, device=image_embeds.device)
    grid = image_embeds.new_tensor(alphas)
    rows = max(_CHUNK_ELEMENTS // len(keys), 1)
    for embeds, truth in zip(image_embeds.split(rows), labels.split(rows), strict=True):
        # logits(beta, alpha) = zero_shot + alpha * votes(beta). The affinities depend on neither: one product for all.
        distance = (keys @ embeds.t()).sub_(1)  # (N, n), -(1 - affinity)
        zero_shot = logit_scale * embeds @ class_embeds.t()  # (n, C)
        truth = truth[:, None]
        gap = zero_shot - zero_shot.gather(1, truth)  # (n, C), of each class to the correct one
        gap.scatter_(1, truth, -torch.inf)  # the correct class does not compete with itself
        weights, step = (
            torch.empty_like(distance),
            torch.exp(distance * (betas[-1] - betas[0]) / max(len(betas) - 1, 1)),
        )
        for i, beta in enumerate(betas):
            if i % _EXP_EVERY:
                weights.mul_(step)
            else:
                torch.mul(distance, beta, out=weights).exp_()
            votes = sum_by_class(weights, key_labels, len(class_embeds)).t().contiguous()  # (n, C)
            first, end = _right_alphas(gap, votes.gather(1, truth) - votes, grid)
            one = torch.ones_like(first)
            changes[i].index_add_(0, first, one).index_add_(0, end, one, alpha=-1)
    correct = changes.cumsum(dim=1)[:, :-1]
    counts = correct.flatten().tolist()
    best = counts.index(max(counts))  # the first: only strictly better pairs replace it
    accuracies = 100 * correct.cpu().double() / len(labels)
    i, j = divmod(best, len(alphas))
    return TipSearch(alphas[j], betas[i], float(accuracies[i, j]), alphas, betas, accuracies.float())


def _right_alphas(
    gap: torch.Tensor, advantage: torch.Tensor, alphas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The alphas for which each image is right: from `alphas[first]` on, up to `alphas[end]` (excluded).

    The correct class t wins over class c where z_t + alpha v_t > z_c + alpha v_c, that is where alpha times the
    advantage v_t - v_c is more than the gap z_c - z_t: a half-line of alphas, and for all classes an interval.

    Args:
        gap: (n, C), of zero-shot logits; -inf for the correct class.
        advantage: (n, C), of votes.
        alphas: (a,), increasing.

    Returns:
        (n,) and (n,) int64, 0..a, first <= end.
    """
    bound = gap / advantage
    # No advantage: +inf (never right), -inf (always), or NaN for a tie (never), which `amax` passes on.
    above = bound.masked_fill(advantage < 0, -torch.inf).amax(dim=1).nan_to_num(torch.inf, torch.inf, -torch.inf)
    below = bound.masked_fill(~(advantage < 0), torch.inf).amin(dim=1)
    first = torch.searchsorted(alphas, above, right=True)
    return first, torch.searchsorted(alphas, below).clamp(min=first)


__all__ = ["TipSearch", "search_alpha_beta", "search_grid"]
