"""Pictures and labels: sources, few-shot sampling, augmentation, features computed once, collators, the embedded emoji."""
# ruff: noqa: F401 (the imports below are for type checkers; at run time names load on first use)

import importlib
from typing import TYPE_CHECKING


_MODULE_OF = {
    "Augmentation": "augmentation",
    "AugmentedViews": "augmentation",
    "EpochCallback": "epoch_callback",
    "FeatureCollator": "collators",
    "FeatureDataset": "features",
    "FeatureStore": "features",
    "Features": "features",
    "FewShotSplit": "few_shot",
    "ImageClassificationCollator": "collators",
    "ImageSet": "image_set",
    "ImageTextCollator": "collators",
    "SoundAugmentation": "audio_augmentation",
    "SoundCollator": "sounds",
    "TwoViews": "two_views",
    "TwoViewsCollator": "collators",
    "compute_features": "features",
    "emoji_styles": "emoji",
    "load_emoji": "emoji",
    "load_images": "sources",
    "load_sound": "sounds",
    "sample_few_shot": "few_shot",
    "split_base_new": "few_shot",
}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .audio_augmentation import SoundAugmentation
    from .augmentation import Augmentation, AugmentedViews
    from .collators import FeatureCollator, ImageClassificationCollator, ImageTextCollator, TwoViewsCollator
    from .emoji import emoji_styles, load_emoji
    from .epoch_callback import EpochCallback
    from .features import FeatureDataset, Features, FeatureStore, compute_features
    from .few_shot import FewShotSplit, sample_few_shot, split_base_new
    from .image_set import ImageSet
    from .sounds import SoundCollator, load_sound
    from .sources import load_images
    from .two_views import TwoViews


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
