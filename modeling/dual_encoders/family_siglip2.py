"""Where SigLIP 2 (NaFlex) differs from SigLIP."""

import torch
from torch import nn

from .family_siglip import SiglipFamily


class Siglip2Family(SiglipFamily):
    """`Siglip2Model` (NaFlex): patches, their mask and the grids' shapes instead of pixels; square images may come as
    pixels, too.
    """

    model_type = "siglip2"
    module = "transformers.models.siglip2"
    prefix = "Siglip2"
    masks_patches = True

    @staticmethod
    def image_size(config) -> int:
        return config.vision_config.patch_size * int(config.vision_config.num_patches**0.5)

    @staticmethod
    def image_features(
        model: nn.Module, pixel_values: torch.Tensor, pixel_attention_mask=None, spatial_shapes=None, **kwargs
    ):
        """As the model's own, from (B, P, 3 p²) patches with mask and shapes, or from (B, 3, H, W) pixels."""
        if pixel_values.dim() == 4:
            pixel_values, pixel_attention_mask, spatial_shapes = _as_patches(
                pixel_values, model.config.vision_config.patch_size
            )
        kwargs.pop("interpolate_pos_encoding", None)  # always done by this model
        return model.get_image_features(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )


def _as_patches(pixel_values: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) -> (B, P, 3 p²) patches row by row, channels last inside each, their mask (B, P) and grid shapes
    (B, 2).
    """
    batch, _, height, width = pixel_values.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"pixel_values: {height} x {width} pixels, expected multiples of the patch size {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    patches = pixel_values.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    mask = torch.ones(batch, rows * columns, dtype=torch.int32, device=pixel_values.device)
    shapes = torch.tensor([[rows, columns]], device=pixel_values.device).expand(batch, -1)
    return patches, mask, shapes


FAMILY = Siglip2Family

__all__ = ["FAMILY", "Siglip2Family"]
