"""The grid of an image: CLIP's image encoder without its pooling, positions, and which cells hold an image."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionModel
from transformers import initialization as init

from ..clip_resnet.modeling_clip_resnet import CLIPResNetBackbone
from ..dual_encoders.forward_checks import check_pixels
from .configuration_clip_vil import ClipViLConfig


# B images, R x S cells of the grid, N tokens (R S, and one more with a class token), C width of the grid


class ClipViLGridPosition(nn.Module):
    """Adds learned positions: (B, R, S, C) -> (B, R S, C), rows one after the other."""

    def __init__(self, config: ClipViLConfig):
        super().__init__()
        # Officially called x and width, but it is the rows' (dimension 2 of the map).
        self.row_embedding = nn.Embedding(config.grid_position_size, config.visual_width)
        self.column_embedding = nn.Embedding(config.grid_position_size, config.visual_width)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        rows, columns = grid.shape[1:3]
        most = self.row_embedding.num_embeddings
        if max(rows, columns) > most:
            raise ValueError(
                f"pixel_values: a grid of {rows} x {columns} cells, there are positions for {most} x {most} "
                "(grid_position_size); want smaller images"
            )
        positions = self.row_embedding.weight[:rows, None] + self.column_embedding.weight[None, :columns]
        return (grid + positions.to(grid.dtype)).flatten(1, 2)  # officially in place, which autograd refuses


class ClipViLFlatPositions(nn.Module):
    """A table of positions (1 + N, C) in the order of tokens, whatever the grid's shape; it starts at zero.

    The official code for a Vision Transformer: CLIP's resized table becomes an attribute of the new one, and is lost.
    """

    def __init__(self, config: ClipViLConfig):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1 + config.num_flat_positions, config.visual_width))

    def forward(self, rows: int, columns: int) -> torch.Tensor:
        if rows * columns + 1 != len(self.table):
            raise ValueError(
                f"pixel_values: a grid of {rows} x {columns} cells, there are {len(self.table) - 1} positions "
                "(num_flat_positions); want images of as many cells"
            )
        return self.table


class ClipViLGrid(nn.Module):
    """CLIP's image encoder as a grid: of a ResNet the last map (B, R, S, C), of a Vision Transformer all tokens
    (B, 1 + R S, C) behind its last normalisation, the class token first."""

    def __init__(self, config: ClipViLConfig):
        super().__init__()
        self.config = config
        vision = CLIPResNetBackbone if config.is_resnet else CLIPVisionModel
        self.vision_model = vision._from_config(config.vision_config)
        if not config.is_resnet and config.vit_positions == "flat":
            self.flat_positions = ClipViLFlatPositions(config)
        if config.freeze_vision:
            self.freeze()

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "ClipViLGrid":
        """As in PyTorch; a frozen encoder stays in eval mode, so that its statistics stay as they are."""
        return super().train(mode and not self.config.freeze_vision)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> the grid.

        Raises:
            ValueError: another shape, no pixels, whole numbers, images that are smaller than a cell.
        """
        check_pixels(pixel_values, self.config.vision_config.num_channels)
        stride = self.config.grid_stride
        if min(pixel_values.shape[2:]) < stride:
            height, width = pixel_values.shape[2:]
            raise ValueError(f"pixel_values: images of {height} x {width}, expected at least {stride} x {stride}")
        frozen = self.config.freeze_vision
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if self.config.is_resnet:
                return self.vision_model._maps(pixel_values)[-1].permute(0, 2, 3, 1)
            return self._vit(pixel_values)

    def _vit(self, pixel_values: torch.Tensor) -> torch.Tensor:
        vision = self.vision_model
        patches = vision.embeddings.patch_embedding(pixel_values.to(vision.dtype))
        rows, columns = patches.shape[-2:]
        start = vision.embeddings.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([start.to(patches.dtype), patches.flatten(2).transpose(1, 2)], dim=1)
        own = self.config.vit_positions == "flat"
        positions = self.flat_positions(rows, columns) if own else self.resized_positions(rows, columns)
        hidden = vision.pre_layrnorm(tokens + positions.to(tokens.dtype))
        hidden = vision.encoder(inputs_embeds=hidden, return_dict=True).last_hidden_state
        return vision.post_layernorm(hidden)

    def resized_positions(self, rows: int, columns: int) -> torch.Tensor:
        """CLIP's positions (1 + rows * columns, C): bilinearly resized, the class token's as it is."""
        table = self.vision_model.embeddings.position_embedding.weight
        side = round((len(table) - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        grid = table[1:].float().unflatten(0, (side, side)).permute(2, 0, 1)[None]
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
        return torch.cat([table[:1], grid[0].flatten(1).t().to(table.dtype)])

    def cells_with_image(self, pixel_mask: torch.Tensor) -> torch.Tensor:
        """(B, H, W), 1 where an image is -> (B, N), whether its cell holds a part of one; a class token does."""
        stride = self.config.grid_stride
        size = [side // stride for side in pixel_mask.shape[-2:]]
        cells = F.adaptive_max_pool2d(pixel_mask[:, None].float(), size).flatten(1) > 0
        return F.pad(cells, (1, 0), value=True) if self.config.has_class_token else cells


def check_grid(grid_features: object, config: ClipViLConfig) -> None:
    """ValueError unless they are floats as `get_grid_features` gives them."""
    width, is_tensor = config.visual_width, isinstance(grid_features, torch.Tensor)
    dimensions = 4 if config.is_resnet else 3
    shape = "rows, columns" if config.is_resnet else "1 + cells"
    fits = is_tensor and grid_features.dim() == dimensions and grid_features.shape[-1] == width
    if not fits or not grid_features.is_floating_point():
        got = f"{grid_features.dtype} {list(grid_features.shape)}" if is_tensor else type(grid_features).__name__
        raise ValueError(f"grid_features: got {got}, expected floats [batch, {shape}, {width}], of get_grid_features")
    if not torch.compiler.is_compiling() and not grid_features.numel():
        raise ValueError(f"grid_features: expected at least one image, got {list(grid_features.shape)}")


def initialise_grid(module: nn.Module, std: float) -> None:
    """What transformers' own initialisation does not do for the modules of this file."""
    if isinstance(module, ClipViLFlatPositions):
        init.zeros_(module.table)
    elif isinstance(module, ClipViLGridPosition):
        for table in (module.row_embedding, module.column_embedding):
            init.normal_(table.weight, std=std)


__all__ = ["ClipViLFlatPositions", "ClipViLGrid", "ClipViLGridPosition", "check_grid", "initialise_grid"]
