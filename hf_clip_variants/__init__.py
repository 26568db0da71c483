"""
CLIP and the methods built on it, for the Hugging Face ecosystem.

Importing this package makes every method known to transformers' Auto classes and to PEFT, and imports neither: see
`hf_clip_variants.registration`. Public names are imported when they are used.
"""

import importlib

from .optional_dependencies import EXTRAS, missing
from .registration.auto_classes import register
from .registry import method as method
from .registry import methods as methods


__version__ = "0.1.0.dev0"

# Public name -> module. Classes come from the table; __init__.pyi has the same names for type checkers
# (scripts/make_generated_files.py).
_FUNCTIONS = {
    "ExactContrastiveLoss": "hf_clip_variants.training.exact_contrastive_loss",
    "PretrainingCallback": "hf_clip_variants.training.callbacks",
    "adapt": "hf_clip_variants.few_shot.adapt",
    "build_index": "hf_clip_variants.search.building",
    "calibrate_labels": "hf_clip_variants.evaluation.multi_label",
    "convert_checkpoint": "hf_clip_variants.conversion.convert",
    "embedded_model": "hf_clip_variants.data.images.emoji",
    "export_with_code": "hf_clip_variants.hub.export",
    "fit_adapter": "hf_clip_variants.few_shot.fitting",
    "load_adapter": "hf_clip_variants.adapters.loading",
    "load_images": "hf_clip_variants.data.images.sources",
    "load_multi_label_images": "hf_clip_variants.data.images.multi_label",
    "open_index": "hf_clip_variants.search.index",
}
_SOURCES = _FUNCTIONS | {name: module for row in methods() for name, module in row.exports.items()}
__all__ = sorted([*_SOURCES, "method", "methods"], key=lambda name: (name[0].islower(), name))

register()


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
