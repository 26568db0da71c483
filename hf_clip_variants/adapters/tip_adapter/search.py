"""Tip-Adapter's grid search for alpha and beta, each quantity computed as rarely as it changes."""

from dataclasses import dataclass

import torch

from .layer import sum_by_class


# n validation images, N cached images, C classes, D joint width, b betas, a alphas

_CHUNK_ELEMENTS = 1 << 24  # of the (N, n) affinities: 64 MB
_CACHE_ELEMENTS = 1 << 20  # of the (a, n, C) logits: 4 MB


@dataclass(frozen=True)
class TipSearch:
    """The best pair of the grid, and the grid."""

    alpha: float
    beta: float
    accuracy: float  # percent, of that pair
    alphas: list[float]
    betas: list[float]
    accuracies: torch.Tensor  # (b, a) percent


def search_grid(maximum: float, steps: int) -> list[float]:
    """`steps` values from 0.1 in equal steps towards `maximum`, which is not reached (as in the official code)."""
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
    """Accuracy at every (beta, alpha) of a grid, and the first best pair, betas outermost (Zhang et al. 2022, section 3.3 and code).

    Use validation images: the official scripts search on the test set of ImageNet, which flatters the result. A tie between classes
    counts as an error.

    Args:
        image_embeds: (n, D) of length 1.
        labels: (n,).
        class_embeds: (C, D) of length 1.
        keys: (N, D).
        key_labels: (N,).
        logit_scale: factor of the zero-shot logits.
        scale: upper ends (excluded) of beta and alpha.
        steps: grid points of beta and alpha.
    """
    if len(image_embeds) != len(labels) or not len(labels):
        raise ValueError(f"labels: {len(labels)} for {len(image_embeds)} images, expected one each and at least one")
    betas, alphas = search_grid(scale[0], steps[0]), search_grid(scale[1], steps[1])
    correct = torch.zeros(len(betas), len(alphas), dtype=torch.int64, device=image_embeds.device)
    rows = max(_CHUNK_ELEMENTS // len(keys), 1)
    for embeds, truth in zip(image_embeds.split(rows), labels.split(rows), strict=True):
        distance = (keys @ embeds.t()).sub_(1)  # (N, n), -(1 - affinity)
        zero_shot = logit_scale * embeds @ class_embeds.t()  # (n, C)
        truth = truth[:, None]
        true_zero_shot = zero_shot.gather(1, truth)[:, 0]
        others = zero_shot.scatter(1, truth, -torch.inf)
        weights = torch.empty_like(distance)
        # Several alphas at once while they stay in the processor's cache: one by one, a small problem would be all overhead.
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
