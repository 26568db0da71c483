"""Cuts: what the guide sees of a picture in a step. Crops or the whole picture, augmented, with noise; differentiable,
batched, and each cut with parameters of its own from the picture's generator.

The official code augments with kornia. The same operations with the same ranges are here; pixels of warps are those of
`view_augmentation.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn import functional as F

from ..synthesis.view_augmentation import draw_perspectives, warped
from .losses_vqgan_clip import clamp_with_grad


# n cuts, S pixels of their side, H x W of the picture


# ---- cuts


def lanczos_kernel(ratio: float) -> torch.Tensor:
    """Lanczos' window of width 2 at whole pixels, for shrinking to `ratio` (below 1) of a length; adds up to 1."""
    reach = math.ceil(2 / ratio) - 1
    places = torch.arange(-reach, reach + 1, dtype=torch.float64) * ratio
    values = torch.where(places.abs() < 2, torch.sinc(places) * torch.sinc(places / 2), 0.0)
    return (values / values.sum()).float()


def resample(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, *size): Lanczos' filter along an axis that shrinks, then bicubic with aligned corners."""
    flat = images.flatten(0, 1)[:, None]
    for axis, (wanted, given) in enumerate(zip(size, images.shape[2:], strict=True)):
        if wanted < given:
            kernel = lanczos_kernel(wanted / given).to(images)
            reach = min((len(kernel) - 1) // 2, given - 1)  # reflections end at the other side
            kernel = kernel[(len(kernel) - 1) // 2 - reach :][: 2 * reach + 1]
            pad = (0, 0, reach, reach) if axis == 0 else (reach, reach, 0, 0)
            shape = (1, 1, -1, 1) if axis == 0 else (1, 1, 1, -1)
            flat = F.conv2d(F.pad(flat, pad, mode="reflect"), kernel.view(shape))
    flat = F.interpolate(flat, size, mode="bicubic", align_corners=True)
    return flat[:, 0].unflatten(0, images.shape[:2])


def draw_squares(
    count: int, height: int, width: int, size: int, power: float, generator: torch.Generator
) -> torch.Tensor:
    """(n, 3) left, top and side of squares; sides between S (if the picture is larger) and the picture's shorter one.
    With a `power` above 1, small ones are drawn more often."""
    largest = min(height, width)
    smallest = min(largest, size)
    a, b, c = torch.rand(3, count, generator=generator, dtype=torch.float64)
    side = (a**power * (largest - smallest) + smallest).long()
    left, top = ((share * (whole - side + 1)).long() for share, whole in ((b, width), (c, height)))
    return torch.stack([left, top, side], 1)


def square_cuts(image: torch.Tensor, squares: torch.Tensor, size: int) -> torch.Tensor:
    """(3, H, W), (n, 3) -> (n, 3, S, S) in 0..1."""
    cuts = [
        resample(image[None, :, top : top + side, left : left + side], (size, size))
        for left, top, side in squares.tolist()
    ]
    return clamp_with_grad(torch.cat(cuts))


def pooled_cut(image: torch.Tensor, size: int) -> torch.Tensor:
    """(3, H, W) -> (3, S, S): the mean of mean and largest value of each field. The picture is squashed, not cut."""
    return (F.adaptive_avg_pool2d(image, size) + F.adaptive_max_pool2d(image, size)) / 2


def with_noise(cuts: torch.Tensor, strengths: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return cuts + strengths.to(cuts) * noise.to(cuts)


# ---- augmentations: (n, 3, S, S), generator, the rows `only` that are changed -> these rows. All rows' random numbers
# are drawn in any case: what happens to one cut does not depend on the others.


ALL = slice(None)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def flip(cuts: torch.Tensor, generator: torch.Generator, only: torch.Tensor | slice = ALL) -> torch.Tensor:
    """From left to right."""
    return cuts[only].flip(-1)


def affine(
    cuts: torch.Tensor,
    generator: torch.Generator,
    degrees: float,
    translate: float,
    shear: float = 0.0,
    border: bool = False,
    only: torch.Tensor | slice = ALL,
) -> torch.Tensor:
    """Turned by up to `degrees`, moved by up to `translate` of the side, sheared by up to `shear` degrees; outside is
    black, or, with `border`, the pixel at the edge."""
    n = len(cuts)
    angle, slant = (_uniform(n, -d, d, generator).deg2rad()[only] for d in (degrees, shear))
    x, y = (_uniform(n, -2 * translate, 2 * translate, generator)[only] for _ in range(2))
    cuts = cuts[only]
    cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
    rows = [torch.stack([cos, cos * tan - sin, x], 1), torch.stack([sin, sin * tan + cos, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(cuts), list(cuts.shape), align_corners=False)
    return F.grid_sample(cuts, grid, "bilinear", "border" if border else "zeros", align_corners=False)


def perspective(
    cuts: torch.Tensor, generator: torch.Generator, distortion: float, only: torch.Tensor | slice = ALL
) -> torch.Tensor:
    """Each corner moves inwards by up to `distortion` of half of the side; outside is black."""
    corners = draw_perspectives(len(cuts), *cuts.shape[-2:], distortion, generator)
    return warped(cuts[only], corners[only], fill=0.0)


def adjust_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) in 0..1, (n,) -> colours whose hue is moved by this part of the circle."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    safe = torch.where(chroma == 0, 1.0, chroma)
    of_red, of_green, of_blue = (green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4
    hue = torch.where(value == red, of_red, torch.where(value == green, of_green, of_blue))
    places = torch.tensor([5.0, 3.0, 1.0]).to(images)[None, :, None, None]
    place = (places + hue[:, None] + 6 * turns.to(images)[:, None, None, None]).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def _gray(images: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def jitter(
    cuts: torch.Tensor,
    generator: torch.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    only: torch.Tensor | slice = ALL,
) -> torch.Tensor:
    """Brightness, contrast, saturation by a factor in 1 - x..1 + x, hue by up to `hue` of the circle; in 0..1."""
    n = len(cuts)
    factors = [
        _uniform(n, 1 - x, 1 + x, generator)[only].to(cuts)[:, None, None, None]
        for x in (brightness, contrast, saturation)
    ]
    turns = _uniform(n, -hue, hue, generator)[only]
    cuts = clamp_with_grad(cuts[only] * factors[0])
    if contrast:
        mean = _gray(cuts).mean((1, 2, 3), keepdim=True)
        cuts = clamp_with_grad(mean + (cuts - mean) * factors[1])
    gray = _gray(cuts)
    cuts = clamp_with_grad(gray + (cuts - gray) * factors[2])
    return adjust_hue(cuts, turns) if hue else cuts


def sharpness(
    cuts: torch.Tensor, generator: torch.Generator, factor: float, only: torch.Tensor | slice = ALL
) -> torch.Tensor:
    """0..`factor` of the picture, and the rest of a blurred one."""
    share = _uniform(len(cuts), 0, factor, generator)[only].to(cuts)[:, None, None, None]
    cuts, kernel = cuts[only], torch.ones(3, 3)
    kernel[1, 1] = 5
    blurred = F.conv2d(cuts, (kernel / 13).to(cuts).expand(3, 1, 3, 3), groups=3)
    blurred = torch.cat([cuts[..., :1, 1:-1], blurred, cuts[..., -1:, 1:-1]], -2)  # the edge stays
    blurred = torch.cat([cuts[..., :1], blurred, cuts[..., -1:]], -1)
    return blurred + (cuts - blurred) * share


def erasing(
    cuts: torch.Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.1, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    only: torch.Tensor | slice = ALL,
) -> torch.Tensor:
    """One rectangle of an area in `scale` and sides in `ratio` is black, the same in all."""
    height, width = cuts.shape[-2:]
    a, b, c, d = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    area = height * width * (scale[0] + a * (scale[1] - scale[0]))
    aspect = math.exp(math.log(ratio[0]) + b * (math.log(ratio[1]) - math.log(ratio[0])))
    w, h = min(width, round(math.sqrt(area * aspect))), min(height, round(math.sqrt(area / aspect)))
    left, top = int(c * (width - w + 1)), int(d * (height - h + 1))
    kept = torch.ones_like(cuts[:1, :1])
    kept[..., top : top + h, left : left + w] = 0
    return cuts[only] * kept


@dataclass(frozen=True)
class Augmentation:
    """An operation, how often it is done, and whether all cuts of a step are treated alike."""

    apply: Callable[..., torch.Tensor]
    probability: float
    alike: bool = False
    options: dict = field(default_factory=dict)

    def __call__(self, cuts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        count = 1 if self.alike else len(cuts)
        chosen = (torch.rand(count, generator=generator) < self.probability).expand(len(cuts))
        if chosen.all():
            return self.apply(cuts, generator, **self.options)
        only = chosen.nonzero()[:, 0]
        place = only if len(only) else torch.zeros(1, dtype=torch.long)  # the random numbers are used up in any case
        changed = self.apply(cuts, generator, only=place, **self.options)
        return cuts.index_copy(0, only.to(cuts.device), changed) if len(only) else cuts


_JITTER = partial(Augmentation, jitter)
_UPDATED = (
    Augmentation(flip, 0.5),
    _JITTER(0.7, options={"hue": 0.01, "saturation": 0.01}),
    Augmentation(sharpness, 0.4, options={"factor": 0.3}),
    Augmentation(affine, 0.8, options={"degrees": 30, "translate": 0.1, "border": True}),
    Augmentation(perspective, 0.4, options={"distortion": 0.2}),
)
_POOLING = (
    Augmentation(affine, 0.7, options={"degrees": 15, "translate": 0.1, "border": True}),
    Augmentation(perspective, 0.7, options={"distortion": 0.7}),
    _JITTER(0.7, options={"hue": 0.1, "saturation": 0.1}),
    Augmentation(erasing, 0.7, alike=True),
)
BY_NAME = {
    "flip": Augmentation(flip, 0.5),
    "jitter": _JITTER(0.7, options=dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.1)),
    "sharpness": Augmentation(sharpness, 0.5, options={"factor": 0.3}),
    "affine": Augmentation(affine, 0.7, options={"degrees": 15, "translate": 0.1, "shear": 5}),
    "perspective": Augmentation(perspective, 0.7, options={"distortion": 0.7}),
    "erasing": Augmentation(erasing, 0.7, alike=True),
}
_DEFAULT_NAMES = ("affine", "perspective", "jitter", "erasing")


def augmentations_of(method: str, names: Sequence[str] | None) -> tuple[Augmentation, ...]:
    """Of a cut method; `names` instead of the default ones of `"nrupdated"` and `"latest"`."""
    if method == "original":
        return ()
    if method in ("updated", "updatedpooling"):
        return _UPDATED if method == "updated" else _POOLING
    return tuple(BY_NAME[name] for name in (_DEFAULT_NAMES if names is None else names))


def cuts_of(
    image: torch.Tensor,
    count: int,
    size: int,
    generator: torch.Generator,
    *,
    method: str = "latest",
    power: float = 1.0,
    noise_factor: float = 0.1,
    augmentations: Sequence[str] | None = None,
) -> torch.Tensor:
    """
    (3, H, W) in 0..1 -> (n, 3, S, S), by one of the five methods.

    Args:
        image: the picture; gradients flow back to it.
        count, size: n and S.
        generator: on the CPU; all random numbers come from it.
        method: `"original"`, `"updated"`, `"nrupdated"` (squares), `"updatedpooling"`, `"latest"` (the whole picture).
        power: of the squares' sides.
        noise_factor: largest strength of noise; each cut has one of its own in 0..noise_factor.
        augmentations: names, instead of the default ones of `"nrupdated"` and `"latest"`.
    """
    if method in ("original", "updated", "nrupdated"):
        squares = draw_squares(count, *image.shape[1:], size, power, generator)
        cuts = square_cuts(image, squares, size)
    else:
        cuts = pooled_cut(image, size).expand(count, -1, -1, -1)
    if method == "original":
        return cuts
    for augmentation in augmentations_of(method, augmentations):
        cuts = augmentation(cuts, generator)
    if noise_factor:
        strengths = _uniform(count, 0, noise_factor, generator)[:, None, None, None]
        cuts = with_noise(cuts, strengths, torch.randn(cuts.shape, generator=generator))
    return cuts


__all__ = ["cuts_of", "draw_squares", "lanczos_kernel", "pooled_cut", "resample", "square_cuts", "with_noise"]
