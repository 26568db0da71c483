"""Pictures and labels: sources, few-shot sampling, augmentation, features computed once, collators, the embedded emoji."""

import importlib
from typing import TYPE_CHECKING


_MODULE_OF = {
    "AugmentedViews": "augmentation",
    "EpochCallback": "features",
    "FeatureCollator": "collators",
    "FeatureDataset": "features",
    "FeatureStore": "features",
    "Features": "features",
    "FewShotSplit": "few_shot",
    "ImageClassificationCollator": "collators",
    "ImageSet": "image_set",
    "ImageTextCollator": "collators",
    "compute_features": "features",
    "emoji_styles": "emoji",
    "load_emoji": "emoji",
    "load_images": "sources",
    "sample_few_shot": "few_shot",
    "split_base_new": "few_shot",
}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .augmentation import AugmentedViews
    from .collators import FeatureCollator, ImageClassificationCollator, ImageTextCollator
    from .emoji import emoji_styles, load_emoji
    from .features import EpochCallback, FeatureDataset, Features, FeatureStore, compute_features
    from .few_shot import FewShotSplit, sample_few_shot, split_base_new
    from .image_set import ImageSet
    from .sources import load_images


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
