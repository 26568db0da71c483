"""Augmentation of whole batches of images as tensors, each image by its own draws: in loader workers or on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow and torchvision


@dataclass(frozen=True)
class BatchAugmentation:
    """Random geometry, background, colours and blur, all drawn anew for each image of a batch.

    Everything is made of a few tensor operations over the batch, so that it runs on a GPU without a loop over images.
    Prefer torchvision's transforms, or [`TwoViews`], where an official recipe on large photographs is to be followed
    to the letter: this one samples once from an image near the output size, without antialiasing.

    Attributes:
        scale (`tuple[float, float]`): share of the image's area that the view covers; above 1 the image shrinks on its
            background.
        ratio (`tuple[float, float]`): width / height of that part, drawn log-uniformly.
        rotation (`float`): largest angle, degrees, in either direction.
        flip (`float`): probability of mirroring.
        backgrounds (`tuple[str, ...]`): what shows through transparent pixels and beyond the edge, each equally
            likely: "white", "flat" (one colour), "gradient" (two colours), "noise" (a colour with noise).
        brightness, contrast, saturation (`float`): factors are drawn from [1 - x, 1 + x].
        hue (`float`): largest turn of the colour circle (in YIQ), in turns.
        jitter (`float`): probability that the four above are applied.
        greyscale (`float`): probability of losing the colours.
        blur (`float`): probability of a Gaussian blur.
        blur_sigma (`tuple[float, float]`): its standard deviation, in pixels of the output.

    Example:

    ```python
    >>> import torch
    >>> images = torch.randint(0, 256, (2, 4, 72, 72), dtype=torch.uint8)
    >>> AUGMENTATIONS_OF_BATCHES["icons"](images, 64, [torch.Generator().manual_seed(i) for i in (1, 2)]).shape
    torch.Size([2, 3, 64, 64])
    ```
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation: float = 0.0
    flip: float = 0.0
    backgrounds: tuple[str, ...] = ("white",)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    greyscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: got {(low, high)}; want 0 < low <= high")
        for name in ("flip", "jitter", "greyscale", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; want a probability")
        unknown = [b for b in self.backgrounds if b not in _BACKGROUNDS]
        if unknown or not self.backgrounds:
            raise ValueError(f"backgrounds: got {list(self.backgrounds)}; want some of {', '.join(_BACKGROUNDS)}")

    def __call__(self, images: torch.Tensor, size: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One view of each image.

        Args:
            images: uint8 (B, 3 or 4, C, C), RGB or RGB with alpha.
            size: S, of the view.
            generators: one an image, on the CPU: a view depends on its image's generator alone, on any device and in
                any batch.

        Returns:
            float32 (B, 3, S, S) in [0, 1], where `images` are.

        Raises:
            ValueError: not uint8, not square, neither 3 nor 4 channels, or another number of generators.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (3, 4):
            raise ValueError(
                f"images: got {images.dtype} of shape {tuple(images.shape)}; want uint8 (B, 3 or 4, C, C)"
            )
        if images.shape[2] != images.shape[3] or len(generators) != len(images):
            raise ValueError(
                f"images: got shape {tuple(images.shape)} and {len(generators)} generators; want squares and a "
                "generator each"
            )
        if not len(images):
            return images.new_zeros((0, 3, size, size), dtype=torch.float32)
        # All random numbers first, in the generators' order: each name's draws of the batch, (B,), uniform in 0..1.
        draws = torch.stack([torch.rand(len(_DRAWS), generator=generator) for generator in generators])
        noise = None
        if "noise" in self.backgrounds:
            noise = torch.stack([torch.rand(3, size, size, generator=generator) for generator in generators])
            noise = noise.to(images.device)
        draw = dict(zip(_DRAWS, draws.to(images.device).T, strict=True))

        # (B, 4, H, W), with the colours multiplied by alpha, so that those of transparent pixels do not bleed in.
        pixels = images.float() / 255
        if images.shape[1] == 3:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        colour, alpha = pixels.split([3, 1], dim=1)
        premultiplied = torch.cat([colour * alpha, alpha], dim=1)

        # Crop, rotation, mirroring and resizing are one bilinear look-up. A crop stays within the image: "border"
        # keeps the pixels at its edge from being mixed with transparency. A view that reaches beyond is empty there.
        beyond = "border" if self.scale[1] <= 1 and not self.rotation else "zeros"
        view = F.grid_sample(premultiplied, self._grid(draw, size), padding_mode=beyond, align_corners=False)

        # The view over its background ("over" of premultiplied colours), then colours and blur of the result.
        colour, alpha = view.split([3, 1], dim=1)
        pixels = colour + (1 - alpha) * self._background(draw, size, noise)
        pixels = self._colours(pixels, draw)
        if self.blur:
            pixels = self._blurred(pixels, draw)
        return pixels.clamp(0, 1)

    def _grid(self, draw: dict[str, torch.Tensor], size: int) -> torch.Tensor:
        """Where each pixel of the view lies on the image, (B, S, S, 2): a turned rectangle within it, or around it."""
        # Width and height as shares of the image's: width * height = area, width / height = ratio.
        area = _between(draw["area"], *self.scale)
        low, high = torch.tensor(self.ratio).log().tolist()
        ratio = _between(draw["ratio"], low, high).exp()
        width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
        if self.scale[1] <= 1:  # a crop has nothing beyond the image's edge
            width, height = width.clamp(max=1), height.clamp(max=1)
        angle = torch.deg2rad(_between(draw["angle"], -self.rotation, self.rotation))
        mirror = torch.where(draw["flip"] < self.flip, -1.0, 1.0)
        # The centre, in coordinates from -1 to 1: a part smaller than the image stays inside, a larger one keeps the
        # whole image in sight.
        x = _between(draw["x"], -1, 1) * (1 - width).abs()
        y = _between(draw["y"], -1, 1) * (1 - height).abs()
        # From view to image: mirror, stretch to the rectangle, turn, move to the centre.
        #     [cos -sin] [mirror * width    0   ]   [x]
        #     [sin  cos] [      0        height ] + [y]
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack(
            [mirror * width * cos, -height * sin, x, mirror * width * sin, height * cos, y], dim=-1
        ).view(-1, 2, 3)
        return F.affine_grid(rows, (len(rows), 3, size, size), align_corners=False)

    def _background(self, draw: dict[str, torch.Tensor], size: int, noise: torch.Tensor | None) -> torch.Tensor:
        """(B, 3, S, S), of the kind that each image drew."""
        batch, device = len(draw["kind"]), draw["kind"].device
        kind = (draw["kind"] * len(self.backgrounds)).long().clamp(max=len(self.backgrounds) - 1)
        first, second = (
            torch.stack([draw[f"{name}{c}"] for c in "rgb"], dim=1)[:, :, None, None] for name in ("first", "second")
        )
        # A gradient runs from 0 to 1 along a random direction: the projection of each pixel's place (x and y from -1
        # to 1) on it lies within plus and minus the square root of 2.
        turn = 2 * torch.pi * draw["direction"][:, None, None]
        line = torch.linspace(-1, 1, size, device=device)
        slope = turn.cos() * line[None, None] + turn.sin() * line[None, :, None]
        slope = (slope / (2 * 2**0.5) + 0.5)[:, None]
        # Every kind for the whole batch, of which each image keeps its own; "white" is what is there already.
        shown = torch.ones(batch, 3, size, size, device=device)
        for number, name in enumerate(self.backgrounds):
            if name == "flat":
                made = first.expand_as(shown)
            elif name == "gradient":
                made = first + (second - first) * slope
            elif name == "noise":
                made = first + (noise - 0.5) * second
            else:
                continue
            shown = torch.where((kind == number)[:, None, None, None], made, shown)
        return shown.clamp(0, 1)

    def _colours(self, pixels: torch.Tensor, draw: dict[str, torch.Tensor]) -> torch.Tensor:
        """torchvision's ColorJitter in a fixed order, then RandomGrayscale; images that drew neither stay."""
        grey_weights = pixels.new_tensor(_GREY)[None, :, None, None]

        def factor(name: str, spread: float) -> torch.Tensor:
            value = _between(draw[name], max(0.0, 1 - spread), 1 + spread)
            return torch.where(draw["jitter"] < self.jitter, value, torch.ones_like(value))[:, None, None, None]

        # Brightness blends with black, contrast with the image's mean grey, saturation with each pixel's grey.
        if self.brightness:
            pixels = (pixels * factor("brightness", self.brightness)).clamp(0, 1)
        if self.contrast:
            mean = (pixels * grey_weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            pixels = (mean + (pixels - mean) * factor("contrast", self.contrast)).clamp(0, 1)
        if self.saturation:
            grey = (pixels * grey_weights).sum(1, keepdim=True)
            pixels = (grey + (pixels - grey) * factor("saturation", self.saturation)).clamp(0, 1)
        if self.hue:
            turn = 2 * torch.pi * _between(draw["hue"], -self.hue, self.hue)
            pixels = _turn_hue(pixels, torch.where(draw["jitter"] < self.jitter, turn, torch.zeros_like(turn)))
        if self.greyscale:
            grey = (pixels * grey_weights).sum(1, keepdim=True).expand_as(pixels)
            pixels = torch.where((draw["greyscale"] < self.greyscale)[:, None, None, None], grey, pixels)
        return pixels

    def _blurred(self, pixels: torch.Tensor, draw: dict[str, torch.Tensor]) -> torch.Tensor:
        """A Gaussian of its own for each image, down and then across."""
        # (B, 2 * reach + 1), cut at three standard deviations of the widest; a single 1 for images that stay sharp.
        reach = min(int(3 * self.blur_sigma[1] + 0.5), pixels.shape[-1] - 1)
        sigma = _between(draw["sigma"], *self.blur_sigma)
        steps = torch.arange(-reach, reach + 1, device=pixels.device)
        kernel = (-0.5 * (steps / sigma[:, None]) ** 2).exp()
        kernel = torch.where((draw["blur"] < self.blur)[:, None], kernel, (steps == 0).float())
        # As a grouped convolution with each channel of each image a group: one call for B different kernels.
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)[:, None]
        planes = F.pad(pixels.reshape(1, -1, *pixels.shape[2:]), [reach] * 4, mode="reflect")
        planes = F.conv2d(planes, kernel[:, :, None], groups=len(kernel))
        return F.conv2d(planes, kernel[..., None], groups=len(kernel)).view_as(pixels)


_BACKGROUNDS = ("white", "flat", "gradient", "noise")
# The uniform numbers of a view, in the order in which they are drawn: another order would give other views.
_DRAWS = (
    *("area", "ratio", "angle", "flip", "x", "y"),
    *("kind", "direction", "firstr", "firstg", "firstb", "secondr", "secondg", "secondb"),
    *("jitter", "brightness", "contrast", "saturation", "hue", "greyscale", "blur", "sigma"),
)


def _between(uniform: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * uniform


def _turn_hue(pixels: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turns the chroma plane of YIQ by `angle` (B,), radians; luma stays."""
    to_yiq = pixels.new_tensor([_GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    turned = torch.zeros(len(angle), 3, 3, device=pixels.device)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = angle.cos()
    turned[:, 1, 2], turned[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(to_yiq) @ turned @ to_yiq
    return torch.einsum("bij,bjhw->bihw", matrix, pixels).clamp(0, 1)


_ICONS = BatchAugmentation(
    scale=(0.8, 1.6),
    ratio=(0.85, 1.18),
    rotation=15,
    flip=0.2,
    backgrounds=("white", "flat", "gradient", "noise"),
    brightness=0.2,
    contrast=0.2,
    saturation=0.3,
    blur=0.2,
    blur_sigma=(0.1, 1.0),
)
# SimCLR's colours, as SLIP's two views have them.
_SIMCLR = {"flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_SIMCLR |= {"jitter": 0.8, "greyscale": 0.2, "blur": 0.5}

AUGMENTATIONS_OF_BATCHES: dict[str, BatchAugmentation] = {
    "none": BatchAugmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
    "clip": BatchAugmentation(),
    "slip": BatchAugmentation(scale=(0.5, 1.0)),  # SLIP's view of the CLIP loss
    "slip_views": BatchAugmentation(scale=(0.08, 1.0), **_SIMCLR),  # SLIP's two views of SimCLR
    "icons": _ICONS,  # drawings with alpha: what emoji-clip-tiny was trained with
    "icons_views": replace(_ICONS, scale=(0.2, 1.4), **_SIMCLR),
}
