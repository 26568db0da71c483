"""GroupViT's segmentation: each pixel has a group, each group has scores of the classes.

The official rule, as pure functions: maps of groups, classes of groups, pixels. transformers' `GroupViTModel` computes
another one (its scale is applied twice, no class is gated, maps stay soft), which gives other labels.

B images, S stages, O_s groups of stage s, G groups of the last one, L patches, N classes, H x W pixels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm


def compose_group_maps(stage_maps: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    r"""Which patch is in which group of the last stage: the product of the stages' maps.

    Args:
        stage_maps: of each stage (B, O_s, O_{s-1}), the first (B, O_0, L), as
            `GroupViTVisionModelOutput.stage_maps`. Soft maps, which sum to 1 over groups, or hard ones.
        grid: rows and columns (h, w) of patches, h w = L.

    Returns:
        (B, G, h, w), which sums to 1 over G, float32 at least.

    Raises:
        ValueError: no map, or sizes that do not fit.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.groupvit.segmentation_groupvit import compose_group_maps

    >>> maps = [torch.randn(2, 6, 35).softmax(1), torch.randn(2, 4, 6).softmax(1)]
    >>> compose_group_maps(maps, (5, 7)).shape
    torch.Size([2, 4, 5, 7])
    ```
    """
    if not stage_maps:
        raise ValueError("stage_maps: got none, expected a map of each stage that groups")
    if stage_maps[0].shape[-1] != grid[0] * grid[1]:
        raise ValueError(f"grid: {grid[0]} x {grid[1]}, but the first map has {stage_maps[0].shape[-1]} patches")
    product = None
    for stage, one in enumerate(stage_maps):
        one = one.to(torch.promote_types(one.dtype, torch.float32))
        if product is not None and product.shape[1] != one.shape[-1]:
            raise ValueError(
                f"stage_maps: the map of stage {stage} has {one.shape[-1]} columns, the stage before has "
                f"{product.shape[1]} groups"
            )
        product = one if product is None else one @ product
    return product.unflatten(-1, grid)


def resize_group_maps(group_maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, G, h, w) -> (B, G, *size), bilinear without aligned corners; sums over G stay 1."""
    if tuple(group_maps.shape[-2:]) == tuple(size):
        return group_maps
    return F.interpolate(group_maps, size=size, mode="bilinear", align_corners=False)


def gated_classes(
    image_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    num_gated_classes: int = 5,
    counts: Sequence[int] | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Which classes can be in an image: those that fit the whole of it best.

    Args:
        image_embeds: (B, D), projected image features; any length.
        class_embeds: (M, D), or (B, M, D) for texts of each image.
        num_gated_classes: at least 1; as many as there are classes, or more, gates nothing.
        counts: texts of each class, M in all: a class fits as well as its best text. None: one text each.
        valid: (B, M), texts that an image has at all.

    Returns:
        (B, M) bool, for the texts.
    """
    if image_embeds.dim() != 2 or class_embeds.dim() not in (2, 3):
        raise ValueError(
            "image_embeds, class_embeds: expected (B, D) and (M, D) or (B, M, D), got "
            f"{tuple(image_embeds.shape)} and {tuple(class_embeds.shape)}"
        )
    if num_gated_classes < 1:
        raise ValueError(f"num_gated_classes: {num_gated_classes}, expected a number of classes >= 1")
    wide = torch.promote_types(image_embeds.dtype, torch.float32)
    image, classes = unit_norm(image_embeds.to(wide)), unit_norm(class_embeds.to(wide))
    fit = image @ classes.T if classes.dim() == 2 else (classes @ image[..., None]).squeeze(-1)
    if valid is not None:
        fit = fit.masked_fill(~valid, -torch.inf)
    if counts is not None:
        fit = torch.stack([part.amax(-1) for part in fit.split(tuple(counts), dim=-1)], dim=-1)
    best = fit.topk(min(num_gated_classes, fit.shape[-1]), dim=-1).indices
    kept = torch.zeros_like(fit, dtype=torch.bool).scatter_(-1, best, True)
    if counts is not None:
        kept = kept.repeat_interleave(torch.tensor(counts, device=kept.device), dim=-1)
    return kept if valid is None else kept & valid


def group_class_scores(
    group_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    scale: torch.Tensor | float,
    kept: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Scores of the classes for each group: the softmax over all classes, times the softmax over those that the image
    can have; 0 for the others.

    Args:
        group_embeds: (B, G, D), projected group features; any length.
        class_embeds: (N, D), or (B, N, D) for classes of each image.
        scale: of the logits, not a logarithm; official: min(exp(logit_scale), 100).
        kept: (B, N) bool, of `gated_classes`; None: all.
        valid: (B, N) bool, classes that an image has at all.

    Returns:
        (B, G, N) in 0..1, float32 at least.

    Raises:
        ValueError: shapes that do not fit.

    Example:

    ```python
    >>> import torch
    >>> from hf_clip_variants.modeling.groupvit.segmentation_groupvit import gated_classes, group_class_scores

    >>> groups, classes = torch.eye(3)[None, :2], torch.eye(3)
    >>> kept = gated_classes(torch.tensor([[3.0, 2.0, 1.0]]), classes, num_gated_classes=2)
    >>> group_class_scores(groups, classes, 10.0, kept).round(decimals=3)
    tensor([[[1., 0., 0.],
             [0., 1., 0.]]])
    ```
    """
    if group_embeds.dim() != 3 or class_embeds.dim() not in (2, 3):
        raise ValueError(
            "group_embeds, class_embeds: expected (B, G, D) and (N, D) or (B, N, D), got "
            f"{tuple(group_embeds.shape)} and {tuple(class_embeds.shape)}"
        )
    wide = torch.promote_types(group_embeds.dtype, torch.float32)
    groups, classes = unit_norm(group_embeds.to(wide)), unit_norm(class_embeds.to(wide))
    logits = scale * groups @ classes.transpose(-2, -1)
    if valid is not None:
        logits = logits.masked_fill(~valid[:, None], -torch.inf)
    scores = logits.softmax(-1)
    if kept is None:
        return scores * scores
    return logits.masked_fill(~kept[:, None], -torch.inf).softmax(-1) * scores


def scores_of_pixels(
    group_maps: torch.Tensor,
    group_scores: torch.Tensor,
    size: tuple[int, int],
    *,
    background: torch.Tensor | None = None,
    background_index: int = 0,
    pixel_assignment: Literal["hard", "soft"] = "hard",
) -> torch.Tensor:
    r"""Scores of the classes for each pixel.

    Args:
        group_maps: (B, G, h, w), soft, of `compose_group_maps`.
        group_scores: (B, G, N), of `group_class_scores`.
        size: height and width (H, W) of the result.
        background: (B, G), groups that are background (`background_rule.background_groups`): the pixels of these
            groups get 1 in a further class, all other pixels 0. The other classes keep their scores.
        background_index: place of that class.
        pixel_assignment: "hard": a pixel has the scores of its best group; "soft": the mean over groups, weighted by
            the map, which has gradients for the map as well.

    Returns:
        (B, N, H, W), or (B, 1 + N, H, W) with `background`.
    """
    maps = resize_group_maps(group_maps, size)
    if background is not None:
        before, after = group_scores[..., :background_index], group_scores[..., background_index:]
        group_scores = torch.cat([before, background[..., None].to(group_scores.dtype), after], dim=-1)
    if pixel_assignment == "soft":
        return torch.einsum("bghw,bgn->bnhw", maps, group_scores)
    best = maps.argmax(1).flatten(1)  # (B, H W); of equal ones the first
    found = group_scores.transpose(1, 2).gather(2, best[:, None].expand(-1, group_scores.shape[-1], -1))
    return found.unflatten(-1, size)


__all__ = [
    "compose_group_maps",
    "gated_classes",
    "group_class_scores",
    "resize_group_maps",
    "scores_of_pixels",
]
