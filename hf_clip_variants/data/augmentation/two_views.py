"""SLIP's three views of an image: one for the CLIP loss, two for the self-supervised one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = ("pixel_values", "pixel_values_aug1", "pixel_values_aug2")

# Of the two views: strengths of brightness, contrast and saturation, and the largest turn of the hue; probabilities;
# radii in pixels.
_JITTER, _HUE = 0.4, 0.1
_JITTER_P, _GREY_P, _BLUR_P, _FLIP_P = 0.8, 0.2, 0.5, 0.5
_BLUR_RADIUS = (0.1, 2.0)


class TwoViews:
    """A transform for `Dataset.with_transform` and `IterableDataset.map`: rows get `pixel_values`, `pixel_values_aug1`
    and `pixel_values_aug2`, float32 (3, `size`, `size`), normalised, and lose the image; what else they hold stays.

    The first view is a random crop of half the image or more, unmirrored. The other two, drawn independently, are
    random crops of 8 % or more, with colour jitter (p 0.8), grey (p 0.2), Gaussian blur (p 0.5) and mirroring (p 0.5).
    Everything is done by Pillow at the size of the image or the crop, bilinearly, as in the official training; any
    number of loader workers.

    With `Trainer` pass `remove_unused_columns=False`, else the image's column is gone before the transform sees it.

    Args:
        size (`int`): side of the views.
        mean, std: of the normalisation; default ImageNet's, which SLIP has.
        clip_scale, view_scale (`tuple[float, float]`): shares of the image's area that the crops take.
        image_column (`str`)
        seed (`int`, *optional*): with one, views depend on it, on the image's pixels and on `set_epoch` alone,
            whatever the order, the batch and the worker. Without, they come from torch's generator, which `DataLoader`
            seeds in its workers.

    Raises:
        ValueError: sizes or shares that make no sense; on reading, rows without the column, and images that cannot be
            decoded.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> from hf_clip_variants.data import TwoViews, load_emoji
    >>> rows = {"image": load_emoji("notov1").dataset[:2]["image"], "text": ["one", "two"]}
    >>> data = Dataset.from_dict(rows).with_transform(TwoViews(size=64, seed=0))
    >>> {name: tuple(x.shape) if name.startswith("pixel") else x for name, x in sorted(data[1].items())}
    {'pixel_values': (3, 64, 64), 'pixel_values_aug1': (3, 64, 64), 'pixel_values_aug2': (3, 64, 64), 'text': 'two'}
    ```

    Paper: "SLIP: Self-supervision meets Language-Image Pre-training", https://arxiv.org/abs/2112.12750, section 4.
    """

    def __init__(
        self,
        size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        clip_scale: tuple[float, float] = (0.5, 1.0),
        view_scale: tuple[float, float] = (0.08, 1.0),
        image_column: str = "image",
        seed: int | None = None,
    ):
        from .views import Augmentation

        if size < 1:
            raise ValueError(f"size: got {size}; want a number of pixels >= 1")
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise ValueError(f"mean, std: got {mean} and {std}; want three numbers each, std > 0")
        self.size, self.mean, self.std = size, list(mean), list(std)
        self.clip_crop = Augmentation(scale=clip_scale, flip=0.0)
        self.view_crop = Augmentation(scale=view_scale, flip=_FLIP_P)
        self.image_column = image_column
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int):
        """With a `seed`: other views from now on."""
        self.epoch = epoch

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """One row, or several as a dictionary of lists."""
        if self.image_column not in rows:
            raise ValueError(
                f"image_column: rows have {sorted(rows)}; want {self.image_column!r}. With Trainer, pass "
                "remove_unused_columns=False."
            )
        images, others = rows[self.image_column], {n: v for n, v in rows.items() if n != self.image_column}
        if not isinstance(images, (list, tuple)):
            return others | self.views(images)
        made = []
        for index, image in enumerate(images):
            try:
                made.append(self.views(image))
            except ValueError as error:
                raise ValueError(f"{self.image_column}[{index}]: {error}") from error
        return others | {name: [views[name] for views in made] for name in VIEWS}

    def views(self, image: Any, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        """The three views of one image, a PIL image or whatever image processors take.

        Args:
            generator: of all draws, instead of `seed` and torch's own.
        """
        from ...modeling.decoding.image_decoding import decode_image

        image = decode_image(image)
        if isinstance(image, torch.Tensor):
            from torchvision.transforms.v2.functional import to_pil_image

            image = to_pil_image(image)
        generators = [generator] * len(VIEWS)
        if generator is None and self.seed is not None:
            from .views import view_generator

            content = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
            generators = [
                view_generator(self.seed, number, f"{self.epoch}\0{content}") for number in range(len(VIEWS))
            ]
        make = (self._clip_view, self._ssl_view, self._ssl_view)
        return {n: one(image, draws) for n, one, draws in zip(VIEWS, make, generators, strict=True)}

    def _clip_view(self, image, generator) -> torch.Tensor:
        crop, _ = self._crop(image, self.clip_crop, generator)
        return self._normalise(crop)

    def _ssl_view(self, image, generator) -> torch.Tensor:
        from PIL import ImageFilter
        from torchvision.transforms.v2 import functional as tv

        view, mirrored = self._crop(image, self.view_crop, generator)
        # All of them, needed or not: what one view draws does not depend on what it got.
        chances = torch.rand(3, generator=generator)
        factors = torch.empty(3).uniform_(1 - _JITTER, 1 + _JITTER, generator=generator).tolist()
        hue = torch.empty(1).uniform_(-_HUE, _HUE, generator=generator).item()
        radius = torch.empty(1).uniform_(*_BLUR_RADIUS, generator=generator).item()
        order = torch.randperm(4, generator=generator).tolist()
        if chances[0] < _JITTER_P:
            steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
            for step in order:
                view = steps[step](view, [*factors, hue][step])
        if chances[1] < _GREY_P:
            view = tv.rgb_to_grayscale(view, num_output_channels=3)
        if chances[2] < _BLUR_P:
            view = view.filter(ImageFilter.GaussianBlur(radius))
        return self._normalise(tv.horizontal_flip(view) if mirrored else view)

    def _crop(self, image, augmentation, generator):
        from torchvision.transforms.v2 import functional as tv

        top, left, height, width, mirrored = augmentation.draw(image.height, image.width, generator)
        size = [self.size, self.size]
        return tv.resized_crop(image, top, left, height, width, size, tv.InterpolationMode.BILINEAR), mirrored

    def _normalise(self, image) -> torch.Tensor:
        from torchvision.transforms.v2 import functional as tv

        return tv.normalize(tv.pil_to_tensor(image).float() / 255, self.mean, self.std)


__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "TwoViews"]
