"""CLIPasso's loss: a sketch and a photograph are compared in layers of an image encoder, and in its embedding."""

from collections.abc import Callable, Sequence

import torch


# n pairs, V views of each


def layer_distance(sketch: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """(n, V, …) features of one layer -> (n,), the mean over views and elements. `"Cos"`: 1 minus the cosine along the
    first axis of features (channels of a ResNet; tokens of a transformer, as in the authors' code)."""
    if kind == "L2":
        values = (sketch - target).square()
    elif kind == "L1":
        values = (sketch - target).abs()
    else:
        values = 1 - torch.cosine_similarity(sketch, target, dim=2)
    return values.flatten(1).mean(1)


def perceptual_losses(
    sketch_layers: Sequence[torch.Tensor],
    target_layers: Sequence[torch.Tensor],
    sketch_features: torch.Tensor,
    target_features: torch.Tensor,
    layer_weights: Sequence[float],
    feature_weight: float,
    kind: str = "L2",
) -> dict[str, torch.Tensor]:
    """
    Terms of the loss, (n,) each: `layer{l}` for the layers with a weight, and `features`. Their sum is the loss.

    Args:
        sketch_layers, target_layers: (n, V, …) for each layer, the first one first.
        sketch_features, target_features: (n, V, D), embeddings.
        layer_weights: w_l of w_l * mean((f_l(sketch) - f_l(target))^2), the paper's geometric loss (eq. 3).
        feature_weight: of the semantic one, the mean of 1 - cos.
    """
    terms = {
        f"layer{number}": weight * layer_distance(sketch, target, kind)
        for number, (weight, sketch, target) in enumerate(
            zip(layer_weights, sketch_layers, target_layers, strict=True)
        )
        if weight
    }
    cosines = torch.cosine_similarity(sketch_features, target_features, dim=-1)
    return terms | {"features": feature_weight * (1 - cosines).mean(1)}


def text_loss(sketch_features: torch.Tensor, text_features: torch.Tensor, weight: float) -> torch.Tensor:
    """(n, V, D) embeddings of sketches' views, (n, D) of their texts -> (n,), `weight` times the mean of 1 - cos."""
    return weight * (1 - torch.cosine_similarity(sketch_features, text_features[:, None], dim=-1)).mean(1)


def perceptual_loss(
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    sketch_views: torch.Tensor,
    target_views: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """(n, V, 3, S, S) of both, in 0..1 -> (n,), `weight` times the mean over views of `distance`.

    Raises:
        ValueError: the distance is not one number for each pair.
    """
    pairs = sketch_views.shape[:2]
    found = distance(sketch_views.flatten(0, 1), target_views.flatten(0, 1))
    if not isinstance(found, torch.Tensor) or found.numel() != pairs.numel() or found.shape[:1] != (pairs.numel(),):
        got = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"perceptual: returned {got}, expected one number for each of {pairs.numel()} pairs")
    return weight * found.float().view(pairs).mean(1)


def strokes_begun(count: int, stages: int, step: int, num_steps: int) -> int:
    """How many of `count` strokes are there in a step, of `num_steps`, if they are added in `stages`."""
    begun = sum(stage * num_steps // stages <= step for stage in range(stages))
    return -(-count * begun // stages)


__all__ = ["layer_distance", "perceptual_loss", "perceptual_losses", "strokes_begun", "text_loss"]
