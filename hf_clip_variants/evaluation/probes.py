"""Measures frozen features: a linear classifier, and k nearest neighbours. Pure functions, no model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.held_out import hold_out
from ..modeling.dual_encoders.backbones import unit_norm
from ..optional_dependencies import require


# N training images, M test images, D feature width, C classes

STEPS_PER_DECADE = 8
LOWEST, HIGHEST = -6, 6  # powers of ten between which the strength is searched
CHUNK_SIMILARITIES = 1 << 24  # about as many similarities are in memory at once


@dataclass(frozen=True)
class LinearProbe:
    """The result of `linear_probe`.

    Attributes:
        predicted (`torch.Tensor`): (M,) int64, values of the training labels.
        strength (`float`): λ of the final classifier.
        converged (`bool`), iterations (`int`): of that classifier's L-BFGS.
        validation (`dict[float, float]`): λ -> accuracy on the held-out part, increasing λ; empty if λ was given.
        validation_size (`int`): images in the held-out part.
    """

    predicted: torch.Tensor
    strength: float
    converged: bool
    iterations: int
    validation: dict[float, float] = field(default_factory=dict)
    validation_size: int = 0


def linear_probe(
    train_features: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | Sequence[int],
    test_features: torch.Tensor | np.ndarray,
    *,
    strength: float | None = None,
    held_out: float = 0.2,
    seed: int = 0,
    max_iterations: int = 1000,
) -> LinearProbe:
    """Multinomial logistic regression on frozen features, as in CLIP's paper (Radford et al. 2021, appendix A.3).

    Minimises  - Σ_i log softmax(W x_i + b)[y_i] + λ/2 ‖W‖²  by scikit-learn's L-BFGS (its `C` is 1/λ; with two classes
    it keeps one weight vector, the difference of both). Features are used as they are, neither normalised nor
    standardised, in float64.

    Without `strength` λ is searched as in the paper, on a held-out part of every class: 10^-6, 10^-4, …, 10^6 first,
    then on both sides of the best at half the distance, down to 8 steps per decade (15 fits). The best has the highest
    accuracy and, among equals, the lower cross-entropy. The final classifier is fitted with it on all training images.

    Args:
        train_features: (N, D), un-normalised.
        train_labels: (N,) integers, not necessarily 0..C-1.
        test_features: (M, D).
        strength (`float`, *optional*): λ > 0.
        held_out (`float`): share of each class's images on which λ is chosen, rounded, at least one; none of a class
            of one image.
        seed (`int`): of the draw of that part.
        max_iterations (`int`): of L-BFGS; the paper's is 1000.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: shapes that do not fit, features that are not finite (the row is named), one class only, no class
            of two images to hold one out of, a value out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.evaluation.probes import linear_probe

    >>> features = torch.tensor([[-2.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    >>> probe = linear_probe(features, [3, 3, 7, 7], torch.tensor([[-1.5, 1.0], [0.5, 1.0]]), strength=1.0)
    >>> probe.predicted.tolist(), probe.converged
    ([3, 7], True)
    ```
    """
    train, labels, test = _checked(train_features, train_labels, test_features)
    check_linear_probe(labels, strength, held_out, max_iterations)
    train, labels, test = train.double().cpu().numpy(), labels.cpu().numpy(), test.double().cpu().numpy()
    found: dict[float, float] = {}
    size = 0
    if strength is None:
        learned, validation = hold_out(labels, [str(row) for row in range(len(labels))], held_out, seed)
        size = len(validation)

        def score(candidate: float) -> tuple[float, float]:
            model, _ = _fit(train[learned], labels[learned], candidate, max_iterations)
            logits = torch.from_numpy(model.decision_function(train[validation]))
            if logits.ndim == 1:  # two classes: the logit of the second, against 0
                logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
            # At least one image of each class stays in the fit, so every held-out label is among model.classes_.
            right = torch.from_numpy(np.searchsorted(model.classes_, labels[validation]))
            share = float((logits.argmax(dim=1) == right).double().mean())
            return share, -float(torch.nn.functional.cross_entropy(logits, right))

        strength, found = _sweep(score)
    model, converged = _fit(train, labels, strength, max_iterations)
    predicted = torch.from_numpy(model.predict(test).astype(np.int64))
    return LinearProbe(predicted, strength, converged, int(model.n_iter_.max()), found, size)


def knn_classify(
    train_features: torch.Tensor | np.ndarray,
    train_labels: torch.Tensor | Sequence[int],
    test_features: torch.Tensor | np.ndarray,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The class that the k nearest training images vote for (Wu et al. 2018, InstDisc; k and temperature as in DINO,
    Caron et al. 2021).

    s_ij = cos(q_i, x_j);  votes_i[c] = Σ_{j among the k largest s_ij, y_j = c} exp(s_ij / T);  predicted_i = argmax_c
    votes_i[c]

    Of equal similarities the earlier training image is the nearer one; of equal votes the lower label wins. Queries
    come in chunks: no N x M matrix exists. A feature of norm 0 has similarity 0 to everything.

    Args:
        train_features: (N, D); normalised here.
        train_labels: (N,) integers, not necessarily 0..C-1.
        test_features: (M, D).
        k (`int`): neighbours, 1..N.
        temperature (`float`): T > 0; small: the nearest decides, large: all k count the same.
        chunk_size (`int`, *optional*): queries at once. Default: so many that a chunk has about 16 million
            similarities.
        device (*optional*): where to compute; default: where `train_features` are.

    Returns:
        `torch.Tensor`: (M,) int64 labels, on the CPU.

    Raises:
        ValueError: shapes that do not fit, features that are not finite (the row is named), one class only, a value
            out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.evaluation.probes import knn_classify

    >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_classify(features, [3, 3, 7], torch.tensor([[2.0, 0.1], [0.0, 5.0]]), k=2)
    tensor([3, 7])
    ```
    """
    train, labels, test = _checked(train_features, train_labels, test_features)
    check_knn(labels, k, temperature)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}; want at least 1")
    device = train.device if device is None else torch.device(device)
    keys = unit_norm(train.to(device, torch.float32))
    classes, members = labels.to(device).unique(return_inverse=True)
    predicted = []
    for queries in test.split(chunk_size or max(1, CHUNK_SIMILARITIES // len(train))):
        similarities = unit_norm(queries.to(device, torch.float32)) @ keys.T
        nearest, rows = _nearest(similarities, k)
        # Relative to the nearest: exp does not overflow at any temperature, and the winner is the same.
        weights = ((nearest - nearest.amax(dim=1, keepdim=True)).double() / temperature).exp()
        votes = weights.new_zeros(len(queries), len(classes)).scatter_add_(1, members[rows], weights)
        # argmax does not promise the first of equals.
        winners = (votes == votes.amax(dim=1, keepdim=True)).byte().cumsum(dim=1).eq(0).sum(dim=1)
        predicted.append(classes[winners].cpu())
    return torch.cat(predicted)


def check_linear_probe(
    labels: torch.Tensor | Sequence[int],
    strength: float | None = None,
    held_out: float = 0.2,
    max_iterations: int = 1000,
) -> None:
    """Raises the errors of `linear_probe` that the training labels alone show, before features are computed."""
    require("sklearn", "linear_probe")
    labels = _two_classes(labels)
    if strength is not None and not (math.isfinite(strength) and strength > 0):
        raise ValueError(f"strength: got {strength}; want more than 0, or None to search for it")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: got {held_out}; want a share between 0 and 1")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations}; want at least 1")
    if strength is None and len(labels.unique()) == len(labels):
        raise ValueError(
            "strength: no class has two training images, so none can be held out to search on; give a strength"
        )


def check_knn(labels: torch.Tensor | Sequence[int], k: int = 20, temperature: float = 0.07) -> None:
    """Raises the errors of `knn_classify` that the training labels alone show, before features are computed."""
    count = len(_two_classes(labels))
    if not 1 <= k <= count:
        raise ValueError(f"k: got {k}; want 1..{count}, as there are {count} training images")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: got {temperature}; want more than 0")


def _two_classes(labels) -> torch.Tensor:
    labels = torch.as_tensor(labels)
    if len(labels.unique()) < 2:
        raise ValueError(f"train_labels: one class only ({int(labels[0])}); want at least two")
    return labels


def _nearest(similarities: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of (B, N) and where they are, (B, k) each, in order of column; of equals the first
    ones.

    scikit-learn's neighbours are no substitute: which of equals they return is not defined, and they know no GPU.
    """
    values, columns = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    columns = columns[:, :k].sort(dim=1).values
    # `topk` takes any of equals: right unless the first that is left out equals the last that is in.
    tied = (values[:, k - 1 : k] == values[:, k:]).any(dim=1)
    if tied.any():
        rows, limit = similarities[tied], values[tied, k - 1 : k]
        above, equal = rows > limit, rows == limit
        wanted = k - above.sum(dim=1, keepdim=True)
        chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
        columns[tied] = chosen.nonzero()[:, 1].view(-1, k)
    return similarities.gather(1, columns), columns


def _fit(features: np.ndarray, labels: np.ndarray, strength: float, max_iterations: int):
    """A fitted LogisticRegression and whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=1 / strength, max_iter=max_iterations).fit(features, labels)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _sweep(score: Callable[[float], tuple[float, float]]) -> tuple[float, dict[float, float]]:
    """The strength with the highest score (the strongest among equals), and strength -> accuracy of all that were
    tried.

    A coarse grid first, then the two neighbours of the best at half the distance, until they are one step away.
    """
    low, high = LOWEST * STEPS_PER_DECADE, HIGHEST * STEPS_PER_DECADE
    step = 2 * STEPS_PER_DECADE
    tried: dict[int, tuple[float, float]] = {}  # key: steps from 10^0
    candidates = range(low, high + 1, step)
    while True:
        for place in candidates:
            if low <= place <= high and place not in tried:
                tried[place] = score(_strength(place))
        best = max(tried, key=lambda place: (tried[place], place))
        if step == 1:
            return _strength(best), {_strength(place): tried[place][0] for place in sorted(tried)}
        step //= 2
        candidates = (best - step, best + step)


def _strength(place: int) -> float:
    return 10.0 ** (place / STEPS_PER_DECADE)


def _checked(train_features, train_labels, test_features) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    train = _features("train_features", train_features)
    test = _features("test_features", test_features)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test_features: got width {test.shape[1]}; want that of train_features, {train.shape[1]}")
    labels = torch.as_tensor(train_labels)
    if labels.shape != train.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"train_labels: got {labels.dtype} of shape {tuple(labels.shape)}; want integers of shape ({len(train)},)"
        )
    return train, labels.long(), test


def _features(argument: str, features) -> torch.Tensor:
    features = torch.as_tensor(features)
    if features.ndim != 2 or not features.numel() or not features.is_floating_point():
        raise ValueError(
            f"{argument}: got {features.dtype} of shape {tuple(features.shape)}; want floats of shape (images, width)"
        )
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{argument}[{int((~finite).nonzero()[0])}]: not finite; want numbers without NaN or infinity"
        )
    return features.detach()


__all__ = ["LinearProbe", "check_knn", "check_linear_probe", "knn_classify", "linear_probe"]
