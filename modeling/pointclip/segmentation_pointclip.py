"""Parts of clouds of points by texts, without training: PointCLIP V2, section 3.4.

A cloud is drawn as for classification, at a higher resolution; each patch of a picture is compared with the texts of
the parts; a point gets the sum of what the pictures say at its place, of those in which it is seen. Only for image
encoders that are CLIP's ViT, whose patches are in the joint space after the projection.

Paper: https://arxiv.org/abs/2211.11682.
"""

import torch
from torch.nn import functional as F

from .projection_pointclip import GridSettings, as_picture, densified, filled_grid, in_cells
from .views_pointclip import VIEW_SETS


# V views, N points, K parts, G patches of a side, C joint width

PART_VIEWS = VIEW_SETS["parts_10"]
PART_GRID = GridSettings(
    resolution=224,
    depth=112,
    object_ratio=0.7,
    depth_bias=0.3,
    pool=(5, 11),
    pool_padding=(2, 5),
    kernel=(5, 5),
    sigma=(2.0, 1.0),
    last_point_wins=True,
)
CROP = (20, 204)  # of the picture's 224 pixels: what the encoder sees
_SEEN = 0.1  # largest difference between a point's own value and its pixel's
_POINTS_AT_ONCE = 2**24  # distances between points
_WINDOW, _PATCHES = 6, 14  # averaged patches of a side, for pictures of so many


def part_pictures(
    points: torch.Tensor, transposed_reading: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One cloud (N, 3) -> pictures (V, 224, 224) in 0..1 on white, whether each point is seen (V, N), and the pixel of
    each point (V, N, 2): row, column.

    Args:
        transposed_reading: as in the official code, which draws x along rows and then reads the pictures, and later
            the patches, with row and column exchanged, at a place where mostly another point is. For comparison with
            its numbers; else points are read where they were drawn.
    """
    pictures, seen, places = [], [], []
    for rotation in PART_VIEWS.matrices().to(points.device):
        cells, values = in_cells((points @ rotation)[None], None, PART_GRID)
        dense, (deep, wide) = densified(*filled_grid(cells, values, None, PART_GRID), PART_GRID)
        picture = as_picture(dense, wide, PART_GRID.image_size)[0]
        depth, column, row = cells[0].unbind(-1)
        if transposed_reading:
            row, column = column, row
        last = dense.new_tensor(dense.shape[1:]).long() - 1
        own = [(depth - deep, 0), (row - wide, 1), (column - wide, 2)]
        inside = torch.stack([(place >= 0) & (place <= last[axis]) for place, axis in own]).all(0)
        own = [place.clamp(min=0).minimum(last[axis]) for place, axis in own]
        value = torch.where(inside, dense[0][tuple(own)], 0) / dense.amax()
        pictures.append(picture)
        seen.append((picture[row, column] - (1 - value)).abs() < _SEEN)
        places.append(torch.stack([row, column], -1))
    return torch.stack(pictures), torch.stack(seen), torch.stack(places)


def cropped(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """(V, 224, 224) -> (V, 3, size, size): the middle, three equal channels."""
    middle = pictures[:, None, CROP[0] : CROP[1], CROP[0] : CROP[1]]
    resized = F.interpolate(middle, size=(size, size), mode="bilinear", align_corners=True)
    return resized.expand(-1, 3, -1, -1)


def places_after_crop(places: torch.Tensor) -> torch.Tensor:
    """(V, N, 2) pixels of the whole picture -> of the middle, resized to as many pixels."""
    size, side = PART_GRID.image_size, CROP[1] - CROP[0]
    return torch.ceil((places - CROP[0]) * size / side).long().clamp(0, size - 1)


def part_logits(
    patch_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    seen: torch.Tensor,
    places: torch.Tensor,
    view_weights: torch.Tensor | None = None,
    scale: float = 100.0,
) -> torch.Tensor:
    """Logits (N, K) of a cloud's points, 0 for one that is seen in no view.

    Args:
        patch_embeds: (V, G * G, C), row by row. text_embeds: (K, C).
        seen, places: (V, N) and (V, N, 2), as of `part_pictures`, the latter through `places_after_crop`.
        view_weights: (V,); None: all 1.
        scale: of similarities.
    """
    views, patches = patch_embeds.shape[:2]
    side, size = int(patches**0.5), PART_GRID.image_size
    maps = (scale * patch_embeds @ text_embeds.T).transpose(1, 2).unflatten(2, (side, side))
    # Six patches of fourteen, as officially; of another number as large a part of the picture.
    window = max(1, round(_WINDOW * side / _PATCHES))
    before = (window - 1) // 2
    maps = F.pad(maps, (before, window - 1 - before, before, window - 1 - before), mode="replicate")
    maps = F.avg_pool2d(maps, window, 1)
    total = maps.new_zeros(seen.shape[1], len(text_embeds))
    weights = seen.to(maps.dtype) if view_weights is None else seen * view_weights[:, None].to(maps)
    for view in range(views):  # one at a time: a map of 224 x 224 pixels for each part
        large = F.interpolate(maps[view][None], size=(size, size), mode="bilinear", align_corners=False)[0]
        row, column = places[view].unbind(-1)
        total = total + weights[view][:, None] * large[:, row, column].T
    return total


def from_nearest(logits: torch.Tensor, seen: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(N, K) logits; a point that is seen in no view (V, N) gets those of the nearest (N, 3) that is seen."""
    somewhere = seen.any(0)
    if somewhere.all() or not somewhere.any():
        return logits
    known, logits = somewhere.nonzero()[:, 0], logits.clone()
    for hidden in (~somewhere).nonzero()[:, 0].split(_POINTS_AT_ONCE // len(known) + 1):
        nearest = torch.cdist(points[hidden].float(), points[known].float()).argmin(1)
        logits[hidden] = logits[known[nearest]]
    return logits


__all__ = [
    "CROP",
    "PART_GRID",
    "PART_VIEWS",
    "cropped",
    "from_nearest",
    "part_logits",
    "part_pictures",
    "places_after_crop",
]
