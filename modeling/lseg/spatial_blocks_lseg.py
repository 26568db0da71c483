"""What LSeg does with pixels and texts after its decoder: scores, and spatial regularisation of the maps of scores."""

import torch
from torch import nn
from torch.nn import functional as F

from ..dual_encoders.backbones import unit_norm


# B images, N labels, D joint width, h x w size of a map

_ACTIVATIONS = {"relu": F.relu, "lrelu": F.leaky_relu, "tanh": torch.tanh}  # leaky_relu's slope is 0.01


def pixel_text_scores(
    pixel_embeddings: torch.Tensor, class_embeddings: torch.Tensor, temperature: float
) -> torch.Tensor:
    """
    Scaled cosine similarities of pixels and texts (Li et al. 2022, section 3.3), in float32 whatever autocast says.

    The product is computed before the division by the norm of a pixel, which is equal and saves a copy of the pixels:
    for 150 labels 1.2 times as fast as `pixel_text_scores_reference`.

    Args:
        pixel_embeddings: (B, D, h, w), not normalised.
        class_embeddings: (N, D), or (B, N, D) for labels of each image; not necessarily normalised.
        temperature: the similarities are divided by it.

    Returns:
        (B, N, h, w), float32. A pixel whose embedding is zero has score 0.

    Raises:
        ValueError: other shapes, or other widths.

    Example:

        >>> import torch
        >>> pixel_text_scores(torch.ones(1, 3, 2, 2), torch.eye(3), temperature=1.0)[0, :, 0, 0]
        tensor([0.5774, 0.5774, 0.5774])
    """
    _check_shapes(pixel_embeddings, class_embeddings)
    with torch.autocast(pixel_embeddings.device.type, enabled=False):
        texts = unit_norm(class_embeddings.float())
        pixels = pixel_embeddings.float().flatten(2)  # (B, D, h w)
        # The inner `where` keeps 1 / 0 out of the gradient.
        squares = pixels.square().sum(1, keepdim=True)
        norms = torch.where(squares == 0, 1, squares).sqrt()
        scores = torch.matmul(texts, pixels) * (1 / temperature / norms)
    return scores.unflatten(2, pixel_embeddings.shape[-2:])


def pixel_text_scores_reference(
    pixel_embeddings: torch.Tensor, class_embeddings: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The same in the order of the official code: pixels are normalised first."""
    texts = unit_norm(class_embeddings.float())
    pixels = unit_norm(pixel_embeddings.float().permute(0, 2, 3, 1))
    equation = "bhwd,bnd->bnhw" if class_embeddings.dim() == 3 else "bhwd,nd->bnhw"
    return torch.einsum(equation, pixels / temperature, texts)


def _check_shapes(pixels: torch.Tensor, texts: torch.Tensor) -> None:
    if pixels.dim() != 4:
        raise ValueError(f"pixel_embeddings: shape {list(pixels.shape)}, expected [images, width, height, width]")
    if texts.dim() not in (2, 3) or texts.shape[-1] != pixels.shape[1]:
        raise ValueError(
            f"class_embeddings: shape {list(texts.shape)}, expected [labels, {pixels.shape[1]}] or "
            f"[images, labels, {pixels.shape[1]}]"
        )
    if texts.dim() == 3 and len(texts) not in (1, len(pixels)):
        raise ValueError(f"class_embeddings: those of {len(texts)} images, expected {len(pixels)}")


class LSegSpatialBlock(nn.Module):
    """
    Spatial regularisation of maps of scores, (B, N, h, w) -> (B, N, h, w) (Li et al. 2022, section 3.4).

    One 3 x 3 kernel with bias is applied to the map of each label, so that the ten parameters serve any labels in any
    order. `"bottleneck"` adds the maximum over the labels of the block's input: there, the scores of a label depend on
    which others are asked for. The block is applied `depth` times with the same weights, with an activation between
    two times; depth 0 is the same as 1.

    Example:

        >>> import torch
        >>> block = LSegSpatialBlock("depthwise", depth=2, activation="relu")
        >>> block(torch.zeros(2, 150, 8, 8)).shape, sum(p.numel() for p in block.parameters())
        (torch.Size([2, 150, 8, 8]), 10)
    """

    def __init__(self, kind: str, depth: int, activation: str):
        super().__init__()
        self.adds_maximum = kind == "bottleneck"
        self.depth = depth
        self.activation = _ACTIVATIONS[activation]
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def _apply_once(self, scores: torch.Tensor) -> torch.Tensor:
        images, labels = scores.shape[:2]
        smoothed = self.conv(scores.flatten(0, 1)[:, None]).view(images, labels, *scores.shape[-2:])
        return smoothed + scores.max(1, keepdim=True).values if self.adds_maximum else smoothed

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        for _ in range(self.depth - 1):
            scores = self.activation(self._apply_once(scores))
        return self._apply_once(scores)


__all__ = ["LSegSpatialBlock", "pixel_text_scores", "pixel_text_scores_reference"]
