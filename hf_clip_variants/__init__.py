"""
CLIP and the methods built on it, for the Hugging Face ecosystem.

Importing this package makes every method known to transformers' Auto classes and to PEFT, and imports neither: see
`hf_clip_variants.registry`. Public names are imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING

from . import registry
from .optional_dependencies import EXTRAS, missing
from .registry import method, methods


if TYPE_CHECKING:
    from .adapters.clip_adapter.config import CLIPAdapterConfig
    from .adapters.cocoop.config import CoCoOpConfig
    from .adapters.coop.config import CoOpConfig
    from .adapters.ivlp.config import IVLPConfig
    from .adapters.loading import load_adapter
    from .adapters.maple.config import MaPLeConfig
    from .adapters.tip_adapter.config import TipAdapterConfig
    from .adapters.vpt.config import VPTConfig
    from .conversion.convert import convert_checkpoint
    from .data.images.emoji import embedded_model
    from .data.images.sources import load_images
    from .few_shot.adapt import adapt
    from .few_shot.fitting import fit_adapter
    from .hub.export import export_with_code
    from .modeling.audioclip.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig
    from .modeling.audioclip.feature_extraction_audioclip import AudioCLIPFeatureExtractor
    from .modeling.audioclip.modeling_audioclip import AudioCLIPAudioModel, AudioCLIPModel
    from .modeling.audioclip.processing_audioclip import AudioCLIPProcessor
    from .modeling.clip_classifier.configuration_clip_classifier import CLIPClassifierConfig
    from .modeling.clip_classifier.image_processing_clip_classifier import CLIPClassifierImageProcessor
    from .modeling.clip_classifier.modeling_clip_classifier import CLIPClassifier
    from .modeling.clip_classifier.processing_clip_classifier import CLIPClassifierProcessor
    from .modeling.clip_resnet.configuration_clip_resnet import CLIPResNetConfig, CLIPResNetVisionConfig
    from .modeling.clip_resnet.modeling_clip_resnet import CLIPResNetBackbone, CLIPResNetModel, CLIPResNetVisionModel
    from .modeling.slip.configuration_slip import SLIPConfig
    from .modeling.slip.modeling_slip import SLIPForPreTraining, SLIPModel
    from .training.callbacks import PretrainingCallback
    from .training.exact_contrastive_loss import ExactContrastiveLoss

__version__ = "0.1.0.dev0"

__all__ = [
    "AudioCLIPAudioConfig",
    "AudioCLIPAudioModel",
    "AudioCLIPConfig",
    "AudioCLIPFeatureExtractor",
    "AudioCLIPModel",
    "AudioCLIPProcessor",
    "CLIPAdapterConfig",
    "CLIPClassifier",
    "CLIPClassifierConfig",
    "CLIPClassifierImageProcessor",
    "CLIPClassifierProcessor",
    "CLIPResNetBackbone",
    "CLIPResNetConfig",
    "CLIPResNetModel",
    "CLIPResNetVisionConfig",
    "CLIPResNetVisionModel",
    "CoCoOpConfig",
    "CoOpConfig",
    "ExactContrastiveLoss",
    "IVLPConfig",
    "MaPLeConfig",
    "PretrainingCallback",
    "SLIPConfig",
    "SLIPForPreTraining",
    "SLIPModel",
    "TipAdapterConfig",
    "VPTConfig",
    "adapt",
    "convert_checkpoint",
    "embedded_model",
    "export_with_code",
    "fit_adapter",
    "load_adapter",
    "load_images",
    "method",
    "methods",
]

_SOURCES = {
    "adapt": "hf_clip_variants.few_shot.adapt",
    "ExactContrastiveLoss": "hf_clip_variants.training.exact_contrastive_loss",
    "PretrainingCallback": "hf_clip_variants.training.callbacks",
    "convert_checkpoint": "hf_clip_variants.conversion.convert",
    "fit_adapter": "hf_clip_variants.few_shot.fitting",
    "embedded_model": "hf_clip_variants.data.images.emoji",
    "export_with_code": "hf_clip_variants.hub.export",
    "load_adapter": "hf_clip_variants.adapters.loading",
    "load_images": "hf_clip_variants.data.images.sources",
}
_SOURCES |= {name: module for row in methods() for name, module in row.exports.items()}

registry.register()


def __getattr__(name: str):
    module = _SOURCES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            raise missing(error.name, f"hf_clip_variants.{name}") from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
