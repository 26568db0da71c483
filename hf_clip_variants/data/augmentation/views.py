"""Augmented views of images that come out the same in every run, worker, batch and order."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torchvision.transforms.v2 import functional as tv
from torchvision.transforms.v2.functional import InterpolationMode

from ..images.image_set import ImageSet
from ..images.video_frames import frames_of, stacked


@dataclass(frozen=True)
class Augmentation:
    """RandomResizedCrop and horizontal flip.

    Attributes:
        scale (`tuple[float, float]`): the share of the image's area that the crop takes, drawn uniformly.
        ratio (`tuple[float, float]`): the crop's width / height, drawn log-uniformly.
        flip (`float`): probability of mirroring.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: got {self.scale}; want 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: got {self.ratio}; want 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: got {self.flip}; want a probability")

    def draw(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int, bool]:
        """(top, left, height, width, mirrored) of one crop.

        The draws and their order are torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`, which know only the
        global generator. After ten tries that do not fit, the largest centred crop of an allowed ratio is taken.
        """
        low, high = torch.log(torch.tensor(self.ratio))
        # Area and ratio give the sides; where the crop fits, its corner follows. Each try draws anew.
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.scale, generator=generator).item()
            ratio = torch.exp(torch.empty(1).uniform_(low.item(), high.item(), generator=generator)).item()
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(torch.randint(0, height - crop_height + 1, (1,), generator=generator))
                left = int(torch.randint(0, width - crop_width + 1, (1,), generator=generator))
                break
        else:
            crop_width = width if width / height <= self.ratio[1] else round(height * self.ratio[1])
            crop_height = height if width / height >= self.ratio[0] else round(width / self.ratio[0])
            top, left = (height - crop_height) // 2, (width - crop_width) // 2
        mirrored = torch.rand(1, generator=generator).item() < self.flip
        return top, left, crop_height, crop_width, mirrored


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,  # the image processor's own resize and centre crop
    "coop": Augmentation(scale=(0.08, 1.0)),  # CoOp, CoCoOp, CLIP-Adapter
    "tip": Augmentation(scale=(0.5, 1.0)),  # Tip-Adapter
}


def resolve_augmentation(augmentation: str | Augmentation | None) -> Augmentation | None:
    """A name from `AUGMENTATIONS`, an `Augmentation` of one's own, or `None`."""
    if augmentation is None or isinstance(augmentation, Augmentation):
        return augmentation
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation: got {augmentation!r}; want one of {sorted(AUGMENTATIONS)} or an Augmentation")
    return AUGMENTATIONS[augmentation]


def view_generator(seed: int, view: int, image_id: str) -> torch.Generator:
    """The generator of one view of one image; nothing else decides its draws."""
    digest = hashlib.sha256(f"{seed}\0{view}\0{image_id}".encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class AugmentedViews(torch.utils.data.Dataset):
    """`views[i]`: V augmented, normalised views of image i, float32, shape (V, 3, H, W).

    View v of an image is drawn with a generator of its own, seeded by SHA-256 of (`seed`, v, the image's id): it is
    the same in any batch, order, worker process and run, with any number of views, and in any selection from a larger
    set. An image that is in the set twice (Tip-Adapter repeats those of small classes) gets other views the second
    time.

    The image processor decides the rest: alpha on its background, conversion to RGB, output size (`crop_size`, or
    `size` without centre crop), `resample`, mean and std. Crops are resized by torchvision's antialiased uint8 kernel:
    at most one grey level from Pillow's, which the official training code uses. With `augmentation="none"` the one
    view is exactly `processor(images=image)`.

    Args:
        image_set ([`ImageSet`]): N images.
        processor: an image processor, or a processor that holds one.
        num_views (`int`): V; 1 with "none".
        augmentation: "coop", "tip", "none" or an [`Augmentation`].
        seed (`int`)

    Raises:
        ValueError: an unknown augmentation, V < 1, several views of "none"; on reading, an image that cannot be
            decoded (named).

    Example:

    ```python
    >>> from hf_clip_variants.data import AugmentedViews, load_emoji
    >>> from transformers import CLIPImageProcessor
    >>> processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    >>> views = AugmentedViews(load_emoji("notov1"), processor, 8, "tip")
    >>> views[0].shape
    torch.Size([8, 3, 64, 64])
    ```
    """

    def __init__(
        self,
        image_set: ImageSet,
        processor: Any,
        num_views: int = 1,
        augmentation: str | Augmentation | None = "none",
        seed: int = 0,
    ):
        self.image_set = image_set
        self.processor = getattr(processor, "image_processor", processor)
        self.augmentation = resolve_augmentation(augmentation)
        self.num_views = num_views
        self.seed = int(seed)
        if num_views < 1:
            raise ValueError(f"num_views: got {num_views}; want at least 1")
        if self.augmentation is None and num_views > 1:
            raise ValueError(f"num_views: got {num_views}, but without augmentation all views are equal; want 1")
        self.size = output_size(self.processor)
        self._ids = _distinct(image_set.ids)

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.views(index, range(self.num_views))

    def views(self, index: int, numbers) -> torch.Tensor:
        """The views `numbers` of image `index`, (len(numbers), 3, H, W): also ones beyond `num_views`."""
        image = self.image_set.image(index)
        try:
            frames = frames_of(image)
            if self.augmentation is None:
                pixels = stacked(torch.as_tensor(self.processor(images=frames, return_tensors="pt")["pixel_values"]))
                return pixels.expand(len(numbers), -1, -1, -1)
            rgb = [self._to_rgb(frame) for frame in frames]
            # All frames of a video are cut alike: what is drawn depends on the number and the name alone.
            crops = [
                stacked(torch.stack([self._crop(one, self._ids[index], number) for one in rgb])) for number in numbers
            ]
            return self._normalise(torch.stack(crops))
        except ValueError as error:
            reason = str(error).removeprefix("images[0]: ")
            raise ValueError(f"images[{index}] {self.image_set.ids[index]!r}: {reason}") from error

    def _to_rgb(self, image) -> torch.Tensor:
        """uint8 (3, height, width) at full size: what the processor does about modes and alpha, and nothing else."""
        off = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
        rgb = torch.as_tensor(self.processor(images=[image], return_tensors="pt", **off)["pixel_values"][0])
        # Channels last in memory: torchvision's uint8 kernel resizes those in one pass, to the same bits.
        return rgb.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def _crop(self, rgb: torch.Tensor, name: str, number: int) -> torch.Tensor:
        generator = view_generator(self.seed, number, name)
        top, left, height, width, mirrored = self.augmentation.draw(rgb.shape[1], rgb.shape[2], generator)
        crop = tv.resized_crop(rgb, top, left, height, width, list(self.size), self._interpolation, antialias=True)
        return tv.horizontal_flip(crop) if mirrored else crop

    @property
    def _interpolation(self) -> InterpolationMode:
        resample = getattr(self.processor, "resample", None)
        if isinstance(resample, InterpolationMode):
            return resample
        by_pillow_number = ("NEAREST_EXACT", "LANCZOS", "BILINEAR", "BICUBIC", "BOX", "HAMMING")
        return InterpolationMode[by_pillow_number[3 if resample is None else int(resample)]]

    def _normalise(self, crops: torch.Tensor) -> torch.Tensor:
        off = {"do_resize": False, "do_center_crop": False, "do_convert_rgb": False}
        # The layout is said, not guessed: a crop of 3 x 3 pixels has two axes that look like channels.
        batch = self.processor(images=list(crops), return_tensors="pt", input_data_format="channels_first", **off)
        return batch["pixel_values"]

    def describe(self) -> dict[str, Any]:
        """What decides the pixels besides images and processor; JSON-able, part of the feature cache's key."""
        if self.augmentation is None:
            return {"augmentation": None, "views": 1, "seed": 0}
        return {"augmentation": asdict(self.augmentation), "views": self.num_views, "seed": self.seed}


def output_size(processor: Any) -> tuple[int, int]:
    """(height, width) of what an image processor gives out."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    get = size.get if isinstance(size, dict) else lambda key: getattr(size, key, None)
    if get("height") and get("width"):
        return int(get("height")), int(get("width"))
    if get("shortest_edge"):
        return int(get("shortest_edge")), int(get("shortest_edge"))
    raise ValueError(f"processor: cannot tell the output size from {size}; want height and width, or shortest_edge")


def _distinct(ids: tuple[str, ...]) -> list[str]:
    """The n-th repetition of an id gets a suffix of its own."""
    seen: Counter[str] = Counter()
    names = []
    for name in ids:
        names.append(f"{name}\0{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names
