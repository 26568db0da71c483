"""Cuts: what the guide sees of a picture in a step. Crops or the whole picture, augmented, with noise; differentiable,
batched, and each cut with parameters of its own from the picture's generator.

The official code augments with kornia. The same operations with the same ranges are here; pixels of warps are those of
`view_augmentation.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


# ---- augmentations: what is drawn, one row a cut, and what is done with it


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def draw_nothing(count: int, size: int, generator: torch.Generator) -> tuple:
    return ()


def flip(cuts: torch.Tensor) -> torch.Tensor:
    """From left to right."""
    return cuts.flip(-1)


def draw_affine(
    count: int, size: int, generator: torch.Generator, degrees: float, translate: float, shear: float = 0.0
) -> tuple:
    """Angles and slants in radians, moves along x and y in half sides."""
    turns = [_uniform(count, -d, d, generator).deg2rad() for d in (degrees, shear)]
    return *turns, *(_uniform(count, -2 * translate, 2 * translate, generator) for _ in range(2))


def affine(cuts, angle, slant, x, y, border: bool = False) -> torch.Tensor:
    """Turned, moved, sheared; outside is black, or, with `border`, the pixel at the edge."""
    cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
    rows = [torch.stack([cos, cos * tan - sin, x], 1), torch.stack([sin, sin * tan + cos, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(cuts), list(cuts.shape), align_corners=False)
    return F.grid_sample(cuts, grid, "bilinear", "border" if border else "zeros", align_corners=False)


def draw_perspective(count: int, size: int, generator: torch.Generator, distortion: float) -> tuple:
    """Each corner moves inwards by up to `distortion` of half of the side."""
    return (draw_perspectives(count, size, size, distortion, generator),)


def perspective(cuts: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Outside is black."""
    return warped(cuts, corners, fill=0.0)


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


def draw_jitter(
    count: int,
    size: int,
    generator: torch.Generator,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> tuple:
    """Factors of brightness, contrast and saturation in 1 - x..1 + x, turns of the hue up to `hue` of the circle."""
    factors = [_uniform(count, 1 - x, 1 + x, generator) for x in (brightness, contrast, saturation)]
    return *factors, _uniform(count, -hue, hue, generator)


def jitter(cuts, brightness, contrast, saturation, turns) -> torch.Tensor:
    """(n,) factors each, in this order, and turns of the hue; in 0..1."""
    factors = [factor.to(cuts)[:, None, None, None] for factor in (brightness, contrast, saturation)]
    cuts = clamp_with_grad(cuts * factors[0])
    if (contrast != 1).any():
        mean = _gray(cuts).mean((1, 2, 3), keepdim=True)
        cuts = clamp_with_grad(mean + (cuts - mean) * factors[1])
    gray = _gray(cuts)
    cuts = clamp_with_grad(gray + (cuts - gray) * factors[2])
    return adjust_hue(cuts, turns) if turns.any() else cuts


def draw_sharpness(count: int, size: int, generator: torch.Generator, factor: float) -> tuple:
    return (_uniform(count, 0, factor, generator),)


def sharpness(cuts: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """`shares` (n,) of the picture, and the rest of a blurred one."""
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5
    blurred = F.conv2d(cuts, (kernel / 13).to(cuts).expand(3, 1, 3, 3), groups=3)
    blurred = torch.cat([cuts[..., :1, 1:-1], blurred, cuts[..., -1:, 1:-1]], -2)  # the edge stays
    blurred = torch.cat([cuts[..., :1], blurred, cuts[..., -1:]], -1)
    return blurred + (cuts - blurred) * shares.to(cuts)[:, None, None, None]


def draw_erasing(count: int, size: int, generator: torch.Generator, scale=(0.1, 0.4), ratio=(0.3, 1 / 0.3)) -> tuple:
    """Top, left, height and width of one rectangle of an area in `scale` and sides in `ratio`, for all."""
    a, b, c, d = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    area = size * size * (scale[0] + a * (scale[1] - scale[0]))
    aspect = math.exp(math.log(ratio[0]) + b * (math.log(ratio[1]) - math.log(ratio[0])))
    w, h = min(size, round(math.sqrt(area * aspect))), min(size, round(math.sqrt(area / aspect)))
    left, top = int(c * (size - w + 1)), int(d * (size - h + 1))
    return (torch.tensor([[top, left, h, w]]).expand(count, 4),)


def erasing(cuts: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The first rectangle of `boxes` is black in all."""
    top, left, h, w = boxes[0].tolist()
    kept = torch.ones_like(cuts[:1, :1])
    kept[..., top : top + h, left : left + w] = 0
    return cuts * kept


@dataclass(frozen=True)
class Augmentation:
    """An operation, how often it is done, and whether all cuts of a step are treated alike.

    Args:
        draw: (count, S, generator) -> tensors with a row for each cut.
        apply: (n, 3, S, S) cuts, and their rows of these tensors -> the same shape.
    """

    draw: Callable[..., tuple[torch.Tensor, ...]]
    apply: Callable[..., torch.Tensor]
    probability: float
    alike: bool = False

    def chosen(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,), whether it is done to each cut."""
        drawn = torch.rand(1 if self.alike else count, generator=generator)
        return (drawn < self.probability).expand(count)

    def __call__(self, cuts: torch.Tensor, chosen: torch.Tensor, numbers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Only those that are chosen are computed."""
        if chosen.all():
            return self.apply(cuts, *numbers)
        only = chosen.nonzero()[:, 0]
        if not len(only):
            return cuts
        changed = self.apply(cuts[only], *(one[only] for one in numbers))
        return cuts.index_copy(0, only.to(cuts.device), changed)


def _affine(probability: float, border: bool = False, **options) -> Augmentation:
    return Augmentation(partial(draw_affine, **options), partial(affine, border=border), probability)


def _perspective(probability: float, distortion: float) -> Augmentation:
    return Augmentation(partial(draw_perspective, distortion=distortion), perspective, probability)


def _jitter(probability: float, **options) -> Augmentation:
    return Augmentation(partial(draw_jitter, **options), jitter, probability)


def _sharpness(probability: float) -> Augmentation:
    return Augmentation(partial(draw_sharpness, factor=0.3), sharpness, probability)


_FLIP = Augmentation(draw_nothing, flip, 0.5)
_ERASING = Augmentation(draw_erasing, erasing, 0.7, alike=True)
_UPDATED = (
    _FLIP,
    _jitter(0.7, hue=0.01, saturation=0.01),
    _sharpness(0.4),
    _affine(0.8, border=True, degrees=30, translate=0.1),
    _perspective(0.4, distortion=0.2),
)
_POOLING = (
    _affine(0.7, border=True, degrees=15, translate=0.1),
    _perspective(0.7, distortion=0.7),
    _jitter(0.7, hue=0.1, saturation=0.1),
    _ERASING,
)
BY_NAME = {
    "flip": _FLIP,
    "jitter": _jitter(0.7, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1),
    "sharpness": _sharpness(0.5),
    "affine": _affine(0.7, degrees=15, translate=0.1, shear=5),
    "perspective": _perspective(0.7, distortion=0.7),
    "erasing": _ERASING,
}
_DEFAULT_NAMES = ("affine", "perspective", "jitter", "erasing")


def augmentations_of(method: str, names: Sequence[str] | None) -> tuple[Augmentation, ...]:
    """Of a cut method; `names` instead of the default ones of `"nrupdated"` and `"latest"`."""
    if method == "original":
        return ()
    if method in ("updated", "updatedpooling"):
        return _UPDATED if method == "updated" else _POOLING
    return tuple(BY_NAME[name] for name in (_DEFAULT_NAMES if names is None else names))


@dataclass
class CutPlan:
    """
    All random numbers of one picture's cuts in a step, so that cuts can be made in parts, and a second time.

    Args:
        count, size: n and S.
        squares: (n, 3), or None where each cut shows the whole picture.
        steps: (augmentation, chosen (n,), its numbers).
        strengths: (n,) of the noise, or None.
        noise_states: of the generator before the noise of each cut.
    """

    count: int
    size: int
    squares: torch.Tensor | None
    steps: list[tuple[Augmentation, torch.Tensor, tuple[torch.Tensor, ...]]]
    strengths: torch.Tensor | None
    noise_states: list[torch.Tensor]

    def cuts(self, image: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """(3, H, W) -> (rows, 3, S, S)."""
        if self.squares is not None:
            cuts = square_cuts(image, self.squares[rows], self.size)
        else:
            cuts = pooled_cut(image, self.size).expand(len(range(self.count)[rows]), -1, -1, -1)
        for augmentation, chosen, numbers in self.steps:
            cuts = augmentation(cuts, chosen[rows], [one[rows] for one in numbers])
        if self.strengths is not None:
            generator = torch.Generator()
            noise = []
            for state in self.noise_states[rows]:
                generator.set_state(state)
                noise.append(torch.randn(3, self.size, self.size, generator=generator))
            cuts = with_noise(cuts, self.strengths[rows][:, None, None, None], torch.stack(noise))
        return cuts


def plan_cuts(
    height: int,
    width: int,
    count: int,
    size: int,
    generator: torch.Generator,
    *,
    method: str = "latest",
    power: float = 1.0,
    noise_factor: float = 0.1,
    augmentations: Sequence[str] | None = None,
) -> CutPlan:
    """
    What `cuts_of` makes of a picture of H x W pixels.

    Args:
        count, size: n and S.
        generator: on the CPU; all random numbers come from it.
        method: `"original"`, `"updated"`, `"nrupdated"` (squares), `"updatedpooling"`, `"latest"` (the whole picture).
        power: of the squares' sides.
        noise_factor: largest strength of noise; each cut has one of its own in 0..noise_factor.
        augmentations: names, instead of the default ones of `"nrupdated"` and `"latest"`.
    """
    squares, strengths = None, None
    steps, states = [], []
    if method in ("original", "updated", "nrupdated"):
        squares = draw_squares(count, height, width, size, power, generator)
    for augmentation in augmentations_of(method, augmentations):
        chosen = augmentation.chosen(count, generator)
        steps.append((augmentation, chosen, augmentation.draw(count, size, generator)))
    if noise_factor and method != "original":
        strengths = _uniform(count, 0, noise_factor, generator)
        for _ in range(count):
            states.append(generator.get_state())
            torch.randn(3, size, size, generator=generator)
    return CutPlan(count, size, squares, steps, strengths, states)


def cuts_of(image: torch.Tensor, count: int, size: int, generator: torch.Generator, **options) -> torch.Tensor:
    """(3, H, W) in 0..1 -> (n, 3, S, S), by one of the five methods; gradients flow back to the picture. Options are
    those of `plan_cuts`."""
    return plan_cuts(*image.shape[1:], count, size, generator, **options).cuts(image)


__all__ = [
    "CutPlan",
    "cuts_of",
    "draw_squares",
    "lanczos_kernel",
    "plan_cuts",
    "pooled_cut",
    "resample",
    "square_cuts",
    "with_noise",
]
