"""Frozen features of any image encoder for labelled training and test images: the input of the probes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

from ..data.held_out import HELD_OUT, hold_out
from ..data.images.class_labels import UnnamedLabels
from ..data.images.feature_cache import Features, compute_features
from ..data.images.image_set import ImageSet, name_some
from ..data.images.labelled_sets import absolute_source, align_classes, read_labelled
from ..data.images.sources import load_images
from ..modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
from ..modeling.dual_encoders.backbones import CLIPFamily, find_family
from ..modeling.dual_encoders.fingerprint import features_key
from .devices import choose_device
from .finite_answers import check_answers
from .prediction import load_processor
from .saved_folders import check_model_folder, load_saved_processor


KINDS = ("encoder", "projected")
MANY_IMAGES = 256  # for more images than this, decoding in processes is worth their start on a GPU


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A frozen model as a function from images to features. Made by `load_image_encoder`.

    Attributes:
        encode: `pixel_values` (B, 3, H, W) on `device` -> (B, D), not normalised.
        processor: its image processor.
        make_key: computes `key`, which reads all weights.
        device (`torch.device`): of the model.
        pooling (`str`): "own", or "class token" if the checkpoint has no weights for its pooling.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    processor: Any
    make_key: Callable[[], str]
    device: torch.device
    pooling: Literal["own", "class token"] = "own"

    @property
    def key(self) -> str:
        """Identifies the weights as they are, the configuration and the kind of features."""
        return self.make_key()

    def features_of(
        self,
        images: ImageSet,
        batch_size: int = 64,
        cache_dir: str | os.PathLike | None = None,
        progress: bool | Callable[[int, int], None] = True,
    ) -> Features:
        """[`Features`] of N images, `features` (1, N, D) float32 on the CPU; see `compute_features`."""
        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" and len(images) > MANY_IMAGES else 0
        return compute_features(
            self.encode,
            images,
            self.processor,
            batch_size=batch_size,
            cache_dir=cache_dir,
            key=None if cache_dir is None else self.key,  # a key costs one more reading of all weights and files
            progress=progress,
            device=self.device,
            num_workers=workers,
        )


def load_image_encoder(
    source: str | os.PathLike,
    features: Literal["encoder", "projected"] = "encoder",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> ImageEncoder:
    """The image side of a dual encoder, or a plain image model, in eval mode and frozen.

    Args:
        source: folder or Hub id of what `AutoModel` loads: a dual encoder (CLIP, SigLIP, …, `CLIPClassifier`), or an
            image model (ViT, DINOv2, a ResNet, …).
        features: "encoder": what the image encoder pools, before a projection, as CLIP's and SLIP's papers probe it;
            "projected": the embedding that is compared with text. They are the same where there is no projection
            behind the pooling: SigLIP, CLIP-ResNet. An image model without a pooling, or whose checkpoint has no
            weights for it, gives the class token behind its last normalisation.
        device: default: a GPU if there is one.
        dtype: of the model; features are float32.

    Raises:
        ValueError: a model without images, `"projected"` of one without a joint space, a checkpoint that lacks
            weights.
        OSError: no such folder or Hub repository.

    Example:

    ```python
    >>> from hf_clip_variants import embedded_model, load_images
    >>> from hf_clip_variants.evaluation.image_encoder import load_image_encoder
    >>> images = load_images("emoji:notov1").select([0, 1])
    >>> for kind in ("encoder", "projected"):
    ...     encoder = load_image_encoder(embedded_model(), kind, device="cpu")
    ...     print(encoder.features_of(images, progress=False).features.shape)
    torch.Size([1, 2, 192])
    torch.Size([1, 2, 256])
    ```
    """
    if features not in KINDS:
        raise ValueError(f"features: got {features!r}; want {' or '.join(map(repr, KINDS))}")
    check_model_folder(source)
    device = choose_device(device)
    model, info = AutoModel.from_pretrained(source, dtype=dtype, output_loading_info=True)
    # AutoModel gives a ViT that was saved without its pooling layer a random one, and only logs it.
    random_pooling = [name for name in info["missing_keys"] if name.startswith("pooler.")]
    missing = sorted(set(info["missing_keys"]) - set(random_pooling))
    if missing:
        raise ValueError(
            f"model: {source} is not a whole {type(model).__name__} checkpoint, {len(missing)} weights are missing: "
            f"{missing[:5]}"
        )
    family = find_family(model.config.model_type)
    if isinstance(model, CLIPClassifier):
        family, model = model.family, model.clip
    model = model.to(device, dtype).eval().requires_grad_(False)
    pooling = "class token" if random_pooling else "own"
    pool = image_pooling(model, family, features, class_token=bool(random_pooling))
    if family is not None:
        processor = load_processor(source).image_processor
    else:
        processor = load_saved_processor(source, AutoImageProcessor, do_convert_rgb=True)

    def make_key() -> str:
        return f"{features_key(model)} {features} {pooling} {dtype}"

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        found = pool(pixels.to(dtype))
        check_answers(found, model, "features", pixel_values=pixels)
        return found

    return ImageEncoder(encode, processor, make_key, device, pooling)


def image_pooling(
    model: torch.nn.Module, family: type[CLIPFamily] | None, features: str, class_token: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`pixel_values` (B, 3, H, W) -> (B, D), not normalised; see `load_image_encoder`."""
    name = type(model).__name__
    if family is not None and (features == "projected" or family.visual_projection is None):
        return lambda pixels: family.pooled_image_features(model, pixels)
    if family is not None and family.vision_classes:
        return lambda pixels: family.pooled_image_features(model, pixels, project=False)
    is_dual = hasattr(model, "get_image_features")
    if is_dual and features == "projected":
        return lambda pixels: _vector(model.get_image_features(pixel_values=pixels))
    encoder = getattr(model, "vision_model", None) if is_dual else model
    if encoder is None:
        raise ValueError(f"features: 'encoder' of a {name}, which has no vision_model; want 'projected'")
    if encoder.main_input_name != "pixel_values":
        raise ValueError(
            f"model: {name} takes {encoder.main_input_name}, not images; want an image encoder or a dual encoder"
        )
    if features == "projected":
        raise ValueError(
            f"features: 'projected' of a {name}, which has no space that it shares with text; want 'encoder'"
        )
    return lambda pixels: _vector(encoder(pixel_values=pixels), class_token)


def _vector(output: Any, class_token: bool = False) -> torch.Tensor:
    """(B, D) from a model's output: its pooled output, or the first token if there is none."""
    if isinstance(output, torch.Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    if pooled is None or class_token:
        return output.last_hidden_state[:, 0]
    return pooled.flatten(1)  # a ResNet's is (B, D, 1, 1)


def load_probe_images(
    train: str,
    test: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    reading: Mapping[str, Any] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Training and test images with one list of classes, that of the training images; classes are matched by name.

    Where there are no test images, a share of the training images is held out (`hold_out`): the split `HELD_OUT`.
    Integer labels without names are named by their numbers.

    Args:
        train: what `load_images` reads.
        test: likewise; default: the test split of `train`, or a share of it that is held out.
        train_split, test_split: default: train, and test where there is one.
        reading: further arguments of `load_images`.

    Images that cannot be read are left out and listed in `skipped`.

    Raises:
        ValueError: test images of a class that has no training images (named), no class with
            an image to hold out, and what `load_images` raises.
    """
    reading = dict(reading or {})
    options = {"on_error": "skip", "empty_classes": "warn", "progress": False} | reading
    try:
        images = load_images(train, train_split, **options)
    except UnnamedLabels as error:
        reading["class_names"] = error.numbers
        images = load_images(train, train_split, **options | reading)
    if test is None and test_split is None and ("test" not in images.available_splits or images.split == "test"):
        learned, tested = hold_out(images.labels, images.ids)
        if not len(tested):
            raise ValueError(
                f"test: {train} has one image a class, so none can be held out; name images to test on (--test)"
            )
        return images.select(learned), replace(images.select(tested), split=HELD_OUT, skipped=())
    source = train if test is None else test
    if test is None and test_split is None:
        test_split = "test"
    tested = read_labelled(source, images.class_names, test_split, reading)
    if test_split is None and tested.split == "train" and "test" in tested.available_splits:
        tested = tested.load_split(split="test")
    if absolute_source(source) == absolute_source(train) and tested.split == images.split:
        logger.warning("the test images are the training images (%s): the result says nothing about others", source)
    tested = align_classes(tested, images.class_names, source)
    count = np.bincount(images.labels, minlength=len(images.class_names))
    unseen = [images.class_names[label] for label in np.unique(tested.labels) if not count[label]]
    if unseen:
        raise ValueError(f"test: {source} has images of classes without any training image: {name_some(unseen)}")
    return images, tested


__all__ = ["ImageEncoder", "image_pooling", "load_image_encoder", "load_probe_images"]
