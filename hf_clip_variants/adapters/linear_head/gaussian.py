"""Gaussian discriminant analysis of image embeddings, and its exact leave-one-out logits. Imports torch only."""

import torch


# N images, C classes, D joint width


def gaussian_classifier(
    embeds: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of the classes' Gaussians with one covariance (Wang et al. 2024).

    w_c = P μ_c and b_c = log(1 / C) - ½ μ_cᵀ P μ_c, with P = D [(N - 1) Σ + tr(Σ) I]⁻¹: the covariance Σ of images
    around the mean μ_c of their class, shrunk for data with fewer images than dimensions. All classes are equally
    likely, whatever their numbers of images.

    Deviation: with one image of each class, where Σ is 0, it is the covariance around the mean of all images.

    Args:
        embeds: (N, D), unit norm.
        labels: (N,) int64, every class at least once.
        num_classes: C.

    Returns:
        (C, D) and (C,), of the dtype of `embeds`; computed in float64.

    Example:

    >>> embeds, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> weight, bias = gaussian_classifier(embeds, labels, 2)
    >>> (embeds @ weight.t() + bias).argmax(1).tolist()
    [0, 0, 1, 1]
    """
    x = embeds.double()
    means, residuals = _means_and_residuals(x, labels, num_classes)
    scatter = residuals.t() @ residuals  # (N - 1) Σ
    ridge = scatter.trace() / max(len(x) - 1, 1)  # tr(Σ)
    width = x.shape[1]
    precision_means = width * torch.linalg.solve(
        scatter + ridge.clamp(min=1e-12) * torch.eye(width, dtype=x.dtype, device=x.device), means.t()
    )
    weight = precision_means.t()
    bias = -torch.log(x.new_tensor(float(num_classes))) - 0.5 * (means * weight).sum(1)
    return weight.to(embeds.dtype), bias.to(embeds.dtype)


def leave_one_out_logits(embeds: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The logits f w + b of each image under the classifier fitted to all the others, in closed form.

    Taking image i out changes the mean of its class, and the scatter by a matrix of rank one and a multiple of the
    identity. In the scatter's eigenvectors the identity is a shift of the eigenvalues, and the matrix of rank one is
    removed by the Sherman-Morrison formula. The result is exact; it costs one eigendecomposition and O(N C D).

    Args:
        embeds: (N, D), unit norm.
        labels: (N,) int64, every class at least once; some class at least twice.
        num_classes: C.

    Returns:
        (N, C). The only image of a class has -inf for it, since the others know nothing of that class.

    Raises:
        ValueError: no class has two images.
    """
    x = embeds.double()
    count = torch.bincount(labels, minlength=num_classes)
    if count.max() < 2:
        raise ValueError("labels: one image of each class; want two or more of some class to leave one out")
    means, residuals = _means_and_residuals(x, labels, num_classes)
    eigenvalues, vectors = torch.linalg.eigh(residuals.t() @ residuals)
    eigenvalues = eigenvalues.clamp(min=0)
    x, means, residuals = x @ vectors, means @ vectors, residuals @ vectors
    n = count[labels].double()
    # Σ over the others of (x - mean)² is the scatter without n / (n - 1) r rᵀ.
    factor = torch.where(n > 1, n / (n - 1).clamp(min=1), torch.zeros_like(n))
    ridge = (eigenvalues.sum() - factor * residuals.square().sum(1)) / max(len(x) - 2, 1)
    width = x.shape[1]
    inverse = width / (eigenvalues + ridge.clamp(min=1e-12)[:, None])  # (N, D): D times the shifted inverse
    scaled = inverse * residuals
    # (A - k r rᵀ)⁻¹ = A⁻¹ + A⁻¹ r rᵀ A⁻¹ k / (1 - k rᵀ A⁻¹ r); `inverse` holds D A⁻¹, so the fraction is over D.
    fraction = factor / (width - factor * (residuals * scaled).sum(1)).clamp(min=1e-9)
    along, means_along = (x * scaled).sum(1), scaled @ means.t()  # (N,), (N, C)
    linear = (inverse * x) @ means.t() + (fraction * along)[:, None] * means_along
    quadratic = inverse @ means.square().t() + fraction[:, None] * means_along.square()
    logits = linear - 0.5 * quadratic
    # Its own class: the mean without the image.
    own = means[labels] - residuals / (n - 1).clamp(min=1)[:, None]
    own_along = (own * scaled).sum(1)
    own_logit = (inverse * x * own).sum(1) + fraction * along * own_along
    own_logit = own_logit - 0.5 * ((inverse * own.square()).sum(1) + fraction * own_along.square())
    own_logit = torch.where(n > 1, own_logit, torch.full_like(own_logit, -torch.inf))
    logits[torch.arange(len(x), device=x.device), labels] = own_logit
    logits = logits - torch.log(x.new_tensor(float(num_classes)))
    if len(x) == num_classes + 1:  # without one of the only pair there is one image of each class: another covariance
        for row in (n > 1).nonzero()[:, 0].tolist():
            others = torch.arange(len(x), device=x.device) != row
            weight, bias = gaussian_classifier(embeds[others].double(), labels[others], num_classes)
            logits[row] = weight @ embeds[row].double() + bias
    return logits.to(embeds.dtype)


def _means_and_residuals(x: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.bincount(labels, minlength=num_classes).clamp(min=1)[:, None]
    means = x.new_zeros(num_classes, x.shape[1]).index_add(0, labels, x) / count
    single = count.max() < 2
    return means, x - (x.mean(0) if single else means[labels])


__all__ = ["gaussian_classifier", "leave_one_out_logits"]
