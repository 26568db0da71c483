"""Pictures and labels: sources, few-shot sampling, augmentation, features computed once, collators, the embedded emoji."""
# ruff: noqa: F401 (the imports below are for type checkers; at run time names load on first use)

import importlib
from typing import TYPE_CHECKING


_MODULE_OF = {
    "Augmentation": "augmentation.views",
    "AugmentedViews": "augmentation.views",
    "EpochCallback": "epoch_callback",
    "FeatureCollator": "collators",
    "FeatureDataset": "images.feature_cache",
    "FeatureStore": "images.feature_cache",
    "Features": "images.feature_cache",
    "FewShotSplit": "few_shot_sampling",
    "ImageClassificationCollator": "collators",
    "ImageSet": "images.image_set",
    "ImageTextCollator": "collators",
    "SoundAugmentation": "augmentation.sounds",
    "SoundCollator": "audio.sounds",
    "TwoViews": "augmentation.two_views",
    "TwoViewsCollator": "collators",
    "compute_features": "images.feature_cache",
    "emoji_styles": "images.emoji",
    "load_emoji": "images.emoji",
    "load_images": "images.sources",
    "load_sound": "audio.sounds",
    "sample_few_shot": "few_shot_sampling",
    "split_base_new": "few_shot_sampling",
}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .audio.sounds import SoundCollator, load_sound
    from .augmentation.sounds import SoundAugmentation
    from .augmentation.two_views import TwoViews
    from .augmentation.views import Augmentation, AugmentedViews
    from .collators import FeatureCollator, ImageClassificationCollator, ImageTextCollator, TwoViewsCollator
    from .epoch_callback import EpochCallback
    from .few_shot_sampling import FewShotSplit, sample_few_shot, split_base_new
    from .images.emoji import emoji_styles, load_emoji
    from .images.feature_cache import FeatureDataset, Features, FeatureStore, compute_features
    from .images.image_set import ImageSet
    from .images.sources import load_images


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
