"""Registers every method of the table with transformers' Auto classes and with PEFT, without importing them."""

import importlib
import sys
from typing import NamedTuple

from ..registry import Method, load_reference, methods, split_reference
from .auto_mappings import register_lazily
from .post_import import after_import


class OwnTask(NamedTuple):
    """A pipeline that transformers lacks, or that differs for models of this package: its class, the Auto class that
    loads its model, the part of a row that its models have beside that, whether they are only those whose row names
    this task, which are then for no other one, and another Auto class that its models have."""

    pipeline: str
    auto_class: str
    part: str = "model"
    is_named: bool = False
    beside: str = "AutoModel"


TASKS = {
    "zero-shot-image-segmentation": OwnTask(
        "modeling.dense.zero_shot_image_segmentation.ZeroShotImageSegmentationPipeline",
        "AutoModelForSemanticSegmentation",
    ),
    "zero-shot-object-detection": OwnTask(
        "modeling.detection.zero_shot_object_detection.AllLabelsObjectDetectionPipeline",
        "AutoModelForZeroShotObjectDetection",
    ),
    "zero-shot-video-classification": OwnTask(
        "modeling.video.zero_shot_video_classification.ZeroShotVideoClassificationPipeline",
        "AutoModel",
        "video_processor",
    ),
    "video-anomaly-detection": OwnTask(
        "modeling.video.video_anomaly_detection.VideoAnomalyDetectionPipeline",
        "AutoModel",
        "video_processor",
        is_named=True,
    ),
    "zero-shot-point-cloud-classification": OwnTask(
        "modeling.points.zero_shot_point_cloud_classification.ZeroShotPointCloudClassificationPipeline",
        "AutoModel",
        "point_processor",
    ),
    "text-and-image-classification": OwnTask(
        "modeling.posts.text_and_image_classification.TextAndImageClassificationPipeline",
        "AutoModelForSequenceClassification",
    ),
    "text-to-drawing": OwnTask(
        "modeling.synthesis.drawing_pipelines.TextToDrawingPipeline", "AutoModel", is_named=True
    ),
    "text-to-image": OwnTask("modeling.synthesis.painting_pipelines.TextToImagePipeline", "AutoModel", is_named=True),
    "image-to-drawing": OwnTask(
        "modeling.synthesis.drawing_pipelines.ImageToDrawingPipeline", "AutoModel", is_named=True
    ),
    "grounded-question-answering": OwnTask(
        "modeling.detection.grounded_question_answering.GroundedQuestionAnsweringPipeline",
        "AutoModelForVisualQuestionAnswering",
        beside="AutoModelForZeroShotObjectDetection",
    ),
    "image-question-answering": OwnTask(
        "modeling.questions.image_question_answering.ImageQuestionAnsweringPipeline",
        "AutoModelForVisualQuestionAnswering",
    ),
}


def tasks_of(row: Method) -> dict[str, OwnTask]:
    """The tasks of `TASKS` that run models of a row."""
    named = TASKS.get(row.task)
    if named is not None and named.is_named:
        return {row.task: named}
    fits = {name: task for name, task in TASKS.items() if task.auto_class in row.auto_classes and not task.is_named}
    return {name: task for name, task in fits.items() if getattr(row, task.part) and task.beside in row.auto_classes}


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
    after_import("transformers.models.auto.video_processing_auto", _register_video_processors)
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


def _register_video_processors(module) -> None:
    for row in methods("model"):
        if row.video_processor:
            _register_for_config(
                module.VIDEO_PROCESSOR_MAPPING,
                row.config,
                lambda row=row: {"torchvision": row.load("video_processor")},  # transformers' only back-end
            )


def _register_feature_extractors(module) -> None:
    for row in methods("model"):
        for part in ("feature_extractor", "point_processor"):
            if getattr(row, part):
                _register_for_config(
                    module.FEATURE_EXTRACTOR_MAPPING, row.config, lambda row=row, part=part: row.load(part)
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
    for name, task in TASKS.items():
        entry = {"pt": (getattr(module, task.auto_class),), "type": "multimodal"} | tasks.get(name, {})
        tasks[name] = entry | {"impl": f"{__package__.partition('.')[0]}.{task.pipeline}"}


def _register_adapters(module) -> None:
    # `hf_clip_variants.adapters` imports PEFT and then registers the tuners. If it is in `sys.modules`, another thread
    # (or this one, further up the stack) is doing that and will finish. To import it here could deadlock with that
    # thread.
    if "hf_clip_variants.adapters" not in sys.modules:
        importlib.import_module("hf_clip_variants.adapters")
