"""Images, texts and audio: sources, few-shot sampling, augmentation, cached features, collators, embedded emoji."""
# ruff: noqa: F401 (the imports below are for type checkers; at run time names load on first use)

import importlib
from typing import TYPE_CHECKING


_MODULE_OF = {
    "Augmentation": "augmentation.views",
    "AugmentedViews": "augmentation.views",
    "DISTINCT_CLASSES": "scenes.scenes",
    "FeatureCollator": "collators",
    "FeatureDataset": "images.feature_cache",
    "FeatureStore": "images.feature_cache",
    "Features": "images.feature_cache",
    "FewShotSplit": "few_shot_sampling",
    "ImageClassificationCollator": "collators",
    "ImageSet": "images.image_set",
    "ImageTextCollator": "collators",
    "NounPromptCollator": "pairs.noun_prompts",
    "NounPrompts": "pairs.noun_prompts",
    "Scene": "scenes.scenes",
    "SceneMaker": "scenes.scenes",
    "SegmentationCollator": "collators",
    "AudioAugmentation": "augmentation.audio",
    "AudioCollator": "audio.files",
    "TwoViews": "augmentation.two_views",
    "TwoViewsCollator": "collators",
    "base_and_novel": "scenes.scenes",
    "compute_features": "images.feature_cache",
    "emoji_styles": "images.emoji",
    "export_coco": "scenes.coco",
    "instance_masks": "scenes.scenes",
    "label_map_names": "scenes.scenes",
    "load_emoji": "images.emoji",
    "load_images": "images.sources",
    "load_multi_label_images": "images.multi_label",
    "load_audio": "audio.files",
    "make_scenes": "scenes.scenes",
    "open_pairs": "pairs.sources",
    "sample_few_shot": "few_shot_sampling",
    "split_base_new": "few_shot_sampling",
}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .audio.files import AudioCollator, load_audio
    from .augmentation.audio import AudioAugmentation
    from .augmentation.two_views import TwoViews
    from .augmentation.views import Augmentation, AugmentedViews
    from .collators import (
        FeatureCollator,
        ImageClassificationCollator,
        ImageTextCollator,
        SegmentationCollator,
        TwoViewsCollator,
    )
    from .few_shot_sampling import FewShotSplit, sample_few_shot, split_base_new
    from .images.emoji import emoji_styles, load_emoji
    from .images.feature_cache import FeatureDataset, Features, FeatureStore, compute_features
    from .images.image_set import ImageSet
    from .images.multi_label import load_multi_label_images
    from .images.sources import load_images
    from .pairs.noun_prompts import NounPromptCollator, NounPrompts
    from .pairs.sources import open_pairs
    from .scenes.coco import export_coco
    from .scenes.scenes import (
        DISTINCT_CLASSES,
        Scene,
        SceneMaker,
        base_and_novel,
        instance_masks,
        label_map_names,
        make_scenes,
    )


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
