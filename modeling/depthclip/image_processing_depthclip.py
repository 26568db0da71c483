"""Images of any size to DepthCLIP's pixels, depth maps to its labels, and depth back to the size of the image."""

import math

import numpy as np
import torch
from torch.nn import functional as F
from transformers.image_processing_base import BatchFeature

from ..dense.image_processing_dense import DenseImageProcessor, decoded_map, nearest_pixels


_MODES = ("L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # of PIL images with a depth a pixel


class DepthCLIPImageProcessor(DenseImageProcessor):
    r"""
    `DenseImageProcessor` with depth maps in the place of label maps: ImageNet's mean and deviation (the paper's, not
    CLIP's), the shorter edge 480 pixels and the longer one at most 2048, so that NYU's 480 x 640 stay as they are.

    The paper cuts NYU's images to 416 x 544 first (`image.crop((60, 56, 604, 472))`); `nyu_depth_metrics` puts the
    answer back into its place.

    `preprocess(images, depth_maps=None, return_tensors="pt")` gives `pixel_values` (B, 3, H, W) float32 and, with
    maps, `labels` (B, H, W) float32. A depth map has numbers (H, W) in the unit of the model's bins: an array, a
    tensor, a PIL image or a file of modes L, P, I, I;16 or F, times `depth_factor` (0.001 for a PNG in millimetres).
    0 and what is not finite is unknown; padding is unknown, too.

    Raises:
        ValueError: names the image or map: unreadable, empty, of another size than its image, negative.

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from hf_clip_variants import DepthCLIPImageProcessor

    >>> processor = DepthCLIPImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    >>> batch = processor(Image.new("RGB", (80, 40)), np.full((40, 80), 1.5), return_tensors="pt")
    >>> batch.pixel_values.shape, batch.labels.shape, batch.labels.unique().tolist()
    (torch.Size([1, 3, 32, 64]), torch.Size([1, 32, 64]), [1.5])
    ```
    """

    pad_mode = "edge"
    ignore_index = 0
    depth_factor = 1.0

    def __init__(self, **kwargs):
        factor = kwargs.pop("depth_factor", self.depth_factor)
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not is_number or not math.isfinite(factor) or factor <= 0:
            raise ValueError(f"depth_factor: {factor!r}, expected a number > 0")
        super().__init__(**kwargs)
        self.depth_factor = float(factor)

    def preprocess(self, images, depth_maps=None, **kwargs) -> BatchFeature:
        """See the class."""
        return super().preprocess(images, depth_maps, **kwargs)

    def _label_map(self, given, index, original, target, max_pixels, **unused) -> torch.Tensor:
        """(*target) float32: the nearest pixel's depth; 0 where it is not known."""
        what = f"depth_maps[{index}]"
        depth = decoded_map(given, what, max_pixels, _MODES, "iuf", "depths").astype(np.float64)
        if (depth < 0).any():
            raise ValueError(f"{what}: negative depths, expected 0 where the depth is not known")
        if depth.shape != original:
            height, width = depth.shape
            raise ValueError(f"{what}: {width} x {height} pixels, its image has {original[1]} x {original[0]}")
        rows, columns = (nearest_pixels(*edges) for edges in zip(original, target, strict=True))
        depth = torch.from_numpy(depth[rows[:, None], columns] * self.depth_factor)
        return torch.where(depth.isfinite(), depth, 0.0).float()

    def post_process_depth_estimation(self, outputs, target_sizes=None) -> list[dict[str, torch.Tensor]]:
        """A list of `{"predicted_depth": (H, W)}`, as of transformers' depth models.

        Args:
            outputs: with `predicted_depth` (B, h, w).
            target_sizes: (height, width) of the original images; the padding of a batch is then cut off, if the depth
                has the size of `pixel_values` and those were made with this processor's own settings. None: (h, w).

        Raises:
            ValueError: another number of sizes than of images.
        """
        depth = outputs.predicted_depth
        if target_sizes is None:
            return [{"predicted_depth": one} for one in depth]
        if len(target_sizes) != len(depth):
            raise ValueError(f"target_sizes: {len(target_sizes)} for {len(depth)} images, expected one for each")
        contents = self._content_sizes(depth[:, None], target_sizes) or [tuple(depth.shape[-2:])] * len(depth)
        found = []
        for one, (rows, columns), size in zip(depth, contents, target_sizes, strict=True):
            one, size = one[None, None, :rows, :columns].float(), tuple(map(int, size))
            if one.shape[-2:] != size:
                one = F.interpolate(one, size=size, mode="bilinear", align_corners=False)
            found.append({"predicted_depth": one[0, 0]})
        return found


__all__ = ["DepthCLIPImageProcessor"]
