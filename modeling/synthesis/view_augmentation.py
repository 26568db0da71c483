"""Augmented views of pictures, differentiable and batched: each view has parameters of its own.

torchvision's `RandomPerspective` and `RandomResizedCrop` draw one set of parameters a call and read the global
generator, and a perspective with a fill cannot be differentiated (it changes the sampled picture in place). Here, all
views are warped by one `grid_sample` each for perspective and crop, with numbers from the picture's own generator. The
pixels are torchvision's, with antialiasing where a crop is made smaller.
"""

import math

import torch
from torch.nn import functional as F


# n views, S pixels of the views' side


def draw_perspectives(
    count: int, height: int, width: int, distortion: float, generator: torch.Generator
) -> torch.Tensor:
    """(n, 4, 2) places (x, y) where the corners go (top left, top right, bottom right, bottom left): each moves
    inwards by up to `distortion` of half of the side, in whole pixels, as torchvision draws them."""
    half = torch.tensor([distortion * (width // 2), distortion * (height // 2)]).floor()
    moved = (torch.rand(count, 4, 2, generator=generator) * (half + 1)).floor()
    corners = torch.tensor([[0.0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    inwards = torch.tensor([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])
    return corners + inwards * moved


def draw_crops(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> torch.Tensor:
    """(n, 4) top, left, height, width of crops, as torchvision draws them: area and logarithm of the ratio are
    uniform, ten attempts, then the largest central crop."""
    found = []
    for _ in range(count):
        for _ in range(10):
            a, b, c, d = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = height * width * (scale[0] + a * (scale[1] - scale[0]))
            aspect = math.exp(math.log(ratio[0]) + b * (math.log(ratio[1]) - math.log(ratio[0])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                found.append([int(c * (height - h + 1)), int(d * (width - w + 1)), h, w])
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(w / ratio[0])
            elif width / height > ratio[1]:
                w = round(h * ratio[1])
            found.append([(height - h) // 2, (width - w) // 2, h, w])
    return torch.tensor(found)


def warped(images: torch.Tensor, corners: torch.Tensor, fill: float) -> torch.Tensor:
    """(n, C, H, W), (n, 4, 2) of `draw_perspectives` -> (n, C, H, W); what comes from outside is `fill`."""
    height, width = images.shape[-2:]
    grid = _perspective_grid(corners, height, width)
    sampled = F.grid_sample(images, grid.to(images), "bilinear", "zeros", align_corners=False)
    # At the edge, the mask takes part twice, as in torchvision.
    mask = _inside(grid, height, width).to(images)
    sampled = sampled * mask
    return sampled + (1 - mask) * fill if fill else sampled


def _inside(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, H, W, 2) places -> (n, 1, H, W): how much of a place lies on pixels, 1 inside; what `grid_sample` gives of
    a picture of ones."""
    shares = []
    for places, side in zip(grid.unbind(-1), (width, height), strict=True):
        pixel = (places + 1) * (side / 2) - 0.5
        shares.append(torch.minimum(pixel + 1, side - pixel).clamp_(0, 1))
    return (shares[0] * shares[1])[:, None]


def _perspective_grid(corners: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(n, H, W, 2) places in -1..1 where the pixels of the warped picture come from."""
    corners = corners.double()
    start = corners.new_tensor([[0.0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]).expand_as(corners)
    one, zero = torch.ones_like(corners[..., 0]), torch.zeros_like(corners[..., 0])
    (x, y), (u, v) = corners.unbind(-1), start.unbind(-1)
    # u = (a x + b y + c) / (g x + h y + 1), and the same for v
    rows = torch.cat(
        [
            torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1),
            torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1),
        ],
        1,
    )
    a, b, c, d, e, f, g, h = torch.linalg.solve(rows, torch.cat([u, v], 1)).unbind(1)
    matrix = torch.stack([a, b, c, d, e, f, g, h, torch.ones_like(a)], 1).view(-1, 3, 3)
    # torchvision applies the coefficients, which are of whole pixel numbers, to centres, at + 0.5.
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    places = torch.stack([xs, ys, torch.ones_like(xs)], -1).double().view(-1, 3)
    mapped = places @ matrix.transpose(1, 2)
    mapped = mapped[..., :2] / mapped[..., 2:]
    return (mapped / mapped.new_tensor([width / 2, height / 2]) - 1).view(-1, height, width, 2)


def cropped(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """(n, C, H, W), (n, 4) of `draw_crops` -> (n, C, S, S), bilinear; antialiased where a crop is larger than S."""
    if int(boxes[:, 2:].max()) > size:
        parts = [
            F.interpolate(
                image[None, :, top : top + h, left : left + w], (size, size), mode="bilinear", antialias=True
            )
            for image, (top, left, h, w) in zip(images, boxes.tolist(), strict=True)
        ]
        return torch.cat(parts)
    height, width = images.shape[-2:]
    steps = (torch.arange(size) + 0.5) / size
    sides = []
    for first, length, whole in ((boxes[:, 1], boxes[:, 3], width), (boxes[:, 0], boxes[:, 2], height)):
        inside = (steps * length[:, None]).clamp(min=torch.tensor(0.5), max=(length - 0.5)[:, None])
        sides.append((first[:, None] + inside) * (2 / whole) - 1)
    grid = torch.stack([sides[0][:, None, :].expand(-1, size, -1), sides[1][:, :, None].expand(-1, -1, size)], -1).to(
        images
    )
    return F.grid_sample(images, grid, "bilinear", "border", align_corners=False)


def augmented_views(
    images: torch.Tensor,
    count: int,
    generators: list[torch.Generator],
    size: int,
    *,
    fill: float,
    distortion: float = 0.5,
    scale: tuple[float, float] = (0.7, 0.9),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> torch.Tensor:
    """
    (n, C, H, W) pictures, one generator each -> (n, V, C, S, S) views: a perspective, then a crop.

    Channels of one picture are warped alike: pictures that belong together go in as one of six channels. The defaults
    are CLIPDraw's.
    """
    parts = draw_views(count, *images.shape[-2:], generators, distortion=distortion, scale=scale, ratio=ratio)
    return views_of(images, *parts, size, fill).unflatten(0, (len(images), count))


def draw_views(
    count: int,
    height: int,
    width: int,
    generators: list[torch.Generator],
    *,
    distortion: float = 0.5,
    scale: tuple[float, float] = (0.7, 0.9),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n V,) the picture of each view, (n V, 4, 2) its perspective, (n V, 4) its crop, from one generator for each of
    n pictures."""
    corners = torch.cat([draw_perspectives(count, height, width, distortion, g) for g in generators])
    boxes = torch.cat([draw_crops(count, height, width, scale, ratio, g) for g in generators])
    return torch.arange(len(generators)).repeat_interleave(count), corners, boxes


def views_of(
    images: torch.Tensor, owner: torch.Tensor, corners: torch.Tensor, boxes: torch.Tensor, size: int, fill: float
) -> torch.Tensor:
    """(n, C, H, W) and some rows of `draw_views` -> (rows, C, S, S)."""
    return cropped(warped(images.index_select(0, owner.to(images.device)), corners, fill), boxes, size)


__all__ = ["augmented_views", "cropped", "draw_crops", "draw_perspectives", "draw_views", "views_of", "warped"]
