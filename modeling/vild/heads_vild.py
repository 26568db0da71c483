"""The parts of ViLD's Mask R-CNN: feature pyramid, region proposals, the head of regions, the head of masks."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from .configuration_vild import STRIDES, ViLDConfig


# B images, K regions, C the pyramid's width, D the joint width

ROI_RESOLUTION = 7  # of the features of a region; twice that for masks
MASK_SIZE = 28


class ViLDConvolution(nn.Module):
    """3 x 3 convolution, batch norm if wanted, ReLU. Officially, the convolution has a bias in spite of the norm."""

    def __init__(self, in_channels: int, out_channels: int, config: ViLDConfig, norm: bool):
        super().__init__()
        official = config.convention == "tensorflow"
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=official or not norm)
        self.normalization = nn.BatchNorm2d(out_channels) if norm else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.convolution(hidden_states)
        if self.normalization is not None:
            hidden_states = self.normalization(hidden_states)
        return F.relu(hidden_states)


class ViLDPyramid(nn.Module):
    """Maps of stride 4, 8, 16, 32 -> five maps (B, C, h, w) of stride 4 to 64: torchvision's pyramid, with a coarser
    level, and officially batch norm after each."""

    def __init__(self, config: ViLDConfig):
        super().__init__()
        width, official = config.hidden_size, config.convention == "tensorflow"
        self.pyramid = FeaturePyramidNetwork(list(config.backbone_config.hidden_sizes), width)
        self.coarsest = nn.Conv2d(width, width, 3, stride=2, padding=1) if official else None
        self.normalizations = nn.ModuleList(nn.BatchNorm2d(width) for _ in STRIDES) if official else None

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        levels = list(self.pyramid({str(i): one for i, one in enumerate(maps)}).values())
        last = levels[-1]
        levels.append(last[..., ::2, ::2] if self.coarsest is None else self.coarsest(last))
        if self.normalizations is None:
            return levels
        return [norm(level) for norm, level in zip(self.normalizations, levels, strict=True)]


class ViLDRegionProposalHead(nn.Module):
    """Objectness (B, h * w * A) and box codes (B, h * w * A, 4) of the anchors of each level. Convolutions are shared
    by the levels, batch norms are not."""

    def __init__(self, config: ViLDConfig):
        super().__init__()
        width, count = config.hidden_size, len(config.anchor_ratios)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.rpn_num_convs))
        self.normalizations = None
        if config.convention == "tensorflow":
            self.normalizations = nn.ModuleList(
                nn.ModuleList(nn.BatchNorm2d(width) for _ in STRIDES) for _ in self.convolutions
            )
        self.objectness = nn.Conv2d(width, count, 1)
        self.codes = nn.Conv2d(width, 4 * count, 1)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        objectness, codes = [], []
        for level, hidden_states in enumerate(features):
            for i, convolution in enumerate(self.convolutions):
                hidden_states = convolution(hidden_states)
                if self.normalizations is not None:
                    hidden_states = self.normalizations[i][level](hidden_states)
                hidden_states = F.relu(hidden_states)
            # (B, A, h, w) -> position by position
            objectness.append(self.objectness(hidden_states).permute(0, 2, 3, 1).flatten(1))
            code = self.codes(hidden_states).permute(0, 2, 3, 1)
            codes.append(code.reshape(len(code), -1, 4))
        return objectness, codes


class ViLDBranch(nn.Module):
    """Features of regions (K, C, 7, 7) -> (K, head_hidden_size), by convolutions and linear layers.

    The official code flattens (height, width, channel); here it is (channel, height, width), and the converter sorts
    the weights.
    """

    def __init__(self, config: ViLDConfig):
        super().__init__()
        width, inner, official = config.hidden_size, config.head_hidden_size, config.convention == "tensorflow"
        self.convolutions = nn.ModuleList(
            ViLDConvolution(width, width, config, norm=True) for _ in range(config.head_num_convs)
        )
        sizes = [width * ROI_RESOLUTION**2] + [inner] * config.head_num_layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.normalizations = nn.ModuleList(nn.BatchNorm1d(inner) for _ in self.layers) if official else None

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            regions = convolution(regions)
        hidden_states = regions.flatten(1)
        for i, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states)
            if self.normalizations is not None:
                hidden_states = self.normalizations[i](hidden_states)
            hidden_states = F.relu(hidden_states)
        return hidden_states


class ViLDRegionHead(nn.Module):
    """
    Features of regions (K, C, 7, 7) -> their embeddings (K, D) and box codes (K, 4).

    With `variant="ensemble"` a second branch gives the embeddings that are compared with the teacher's; else there is
    one branch for both. Boxes come from the first, before its projection. The background is a learned vector.
    """

    def __init__(self, config: ViLDConfig):
        super().__init__()
        inner, width = config.head_hidden_size, config.projection_dim
        two = config.variant == "ensemble"
        self.branch = ViLDBranch(config)
        self.projection = nn.Linear(inner, width)
        self.image_branch = ViLDBranch(config) if two else None
        self.image_projection = nn.Linear(inner, width) if two else None
        self.box_codes = nn.Linear(inner, 4)
        self.background = nn.Parameter(torch.empty(width)) if config.variant != "image" else None

    def forward(
        self, regions: torch.Tensor, distilled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Regions (K, C, 7, 7), and those (M, C, 7, 7) that the teacher has seen -> embeddings (K, D), box codes
        (K, 4), and embeddings (M, D) of `distilled`.

        Without `distilled` the last are the second branch's of all regions, or None where there is no second branch.
        Embeddings are not normalised.
        """
        count = len(regions)
        if self.image_branch is None and distilled is not None:
            regions = torch.cat([regions, distilled])  # the same batch norm statistics for both
        hidden_states = self.branch(regions)
        embeddings = self.projection(hidden_states)
        image_embeddings = None
        if self.image_branch is not None:
            image_embeddings = self.image_projection(self.image_branch(regions if distilled is None else distilled))
        elif distilled is not None:
            embeddings, image_embeddings = embeddings[:count], embeddings[count:]
        return embeddings, self.box_codes(hidden_states[:count]), image_embeddings


class ViLDMaskHead(nn.Module):
    """Features of regions (K, C, 14, 14) -> logits of masks (K, 28, 28), one for all classes."""

    def __init__(self, config: ViLDConfig):
        super().__init__()
        width, official = config.hidden_size, config.convention == "tensorflow"
        self.convolutions = nn.ModuleList(
            ViLDConvolution(width, width, config, norm=official) for _ in range(config.mask_num_convs)
        )
        self.upsampling = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.normalization = nn.BatchNorm2d(width) if official else None
        self.logits = nn.Conv2d(width, 1, 1)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            regions = convolution(regions)
        regions = self.upsampling(regions)
        if self.normalization is not None:
            regions = self.normalization(regions)
        return self.logits(F.relu(regions))[:, 0]


__all__ = ["MASK_SIZE", "ROI_RESOLUTION", "ViLDBranch", "ViLDConvolution", "ViLDMaskHead", "ViLDPyramid"]
__all__ += ["ViLDRegionHead", "ViLDRegionProposalHead"]
