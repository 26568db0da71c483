"""Registers every method of the table with transformers' Auto classes and with PEFT, without importing them."""

import importlib
import sys

from ..registry import load_reference, methods, split_reference
from .auto_mappings import register_lazily
from .post_import import after_import


# Pipelines that transformers lacks, or that differ for models of this package: task -> class, and the Auto class that
# loads its model.
TASKS = {
    "zero-shot-image-segmentation": (
        "modeling.dense.zero_shot_image_segmentation.ZeroShotImageSegmentationPipeline",
        "AutoModelForSemanticSegmentation",
    ),
    "zero-shot-object-detection": (
        "modeling.detection.zero_shot_object_detection.AllLabelsObjectDetectionPipeline",
        "AutoModelForZeroShotObjectDetection",
    ),
    "grounded-question-answering": (
        "modeling.detection.grounded_question_answering.GroundedQuestionAnsweringPipeline",
        "AutoModelForVisualQuestionAnswering",
    ),
}


def register() -> None:
    """
    Register every method with transformers' Auto classes and with PEFT.

    `import hf_clip_variants` calls it. It may be called several times. It imports nothing: each module of transformers
    and PEFT gets our entries when it is imported (or now, if it is already imported), and each entry imports its class
    when it is looked up.
    """
    after_import("transformers.models.auto.configuration_auto", _register_configs)
    after_import("transformers.models.auto.modeling_auto", _register_models)
    after_import("transformers.models.auto.processing_auto", _register_processors)
    after_import("transformers.models.auto.image_processing_auto", _register_image_processors)
    after_import("transformers.models.auto.feature_extraction_auto", _register_feature_extractors)
    after_import("transformers.pipelines", _register_pipelines)
    after_import("peft", _register_adapters)


def _configs() -> list[tuple[str, str, dict[str, str]]]:
    """Model type, configuration class and Auto classes of every model and every submodel."""
    found = []
    for row in methods("model"):
        found.append((row.model_type, row.config, row.auto_classes))
        found += [(f"{row.model_type}_{part.name}", part.config, part.auto_classes) for part in row.submodels]
    return found


def _register_configs(module) -> None:
    for model_type, config, _ in _configs():
        register_lazily(
            module.CONFIG_MAPPING, model_type, lambda kind=model_type, config=config: (kind, load_reference(config))
        )


def _register_models(module) -> None:
    for _, config, auto_classes in _configs():
        for auto_class, reference in auto_classes.items():
            mapping = getattr(module, auto_class)._model_mapping
            _register_for_config(mapping, config, lambda reference=reference: load_reference(reference))


def _register_processors(module) -> None:
    for row in methods("model"):
        if row.processor:
            _register_for_config(module.PROCESSOR_MAPPING, row.config, lambda row=row: row.load("processor"))


def _register_image_processors(module) -> None:
    for row in methods("model"):
        if row.image_processors:
            _register_for_config(
                module.IMAGE_PROCESSOR_MAPPING,
                row.config,
                lambda row=row: {backend: load_reference(name) for backend, name in row.image_processors.items()},
            )


def _register_feature_extractors(module) -> None:
    for row in methods("model"):
        if row.feature_extractor:
            _register_for_config(
                module.FEATURE_EXTRACTOR_MAPPING, row.config, lambda row=row: row.load("feature_extractor")
            )


def _register_for_config(mapping, config: str, load_value) -> None:
    register_lazily(mapping, ".".join(split_reference(config)), lambda: (load_reference(config), load_value()))


def _register_pipelines(module) -> None:
    # transformers' table holds the names of its pipelines and imports them when they are asked for; so does ours.
    # Where a release's table is another one, the tasks stay as they are.
    tasks = getattr(module, "SUPPORTED_TASKS", {})
    features = tasks.get("image-feature-extraction", {})
    if not isinstance(features.get("impl"), str):
        return
    # Differs from transformers' own for models of this package only.
    features["impl"] = f"{__package__}.image_features.ImageFeaturePipeline"
    for task, (implementation, auto_class) in TASKS.items():
        entry = {"pt": (getattr(module, auto_class),), "type": "multimodal"} | tasks.get(task, {})
        tasks[task] = entry | {"impl": f"{__package__.partition('.')[0]}.{implementation}"}


def _register_adapters(module) -> None:
    # `hf_clip_variants.adapters` imports PEFT and then registers the tuners. If it is in `sys.modules`, another thread
    # (or this one, further up the stack) is doing that and will finish. To import it here could deadlock with that
    # thread.
    if "hf_clip_variants.adapters" not in sys.modules:
        importlib.import_module("hf_clip_variants.adapters")
