"""Code in model cards, by what a model is for: each runs as it is, with an input that readers replace by theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..registration.auto_classes import tasks_of
from ..registry import Method


class Given(NamedTuple):
    """An example of an input: what it needs, and how it is made."""

    imports: str
    code: str


_IMAGE = Given(
    "from PIL import Image", 'image = Image.new("RGB", (224, 224), "orange")  # yours: a PIL image, a path or a URL'
)
_SHADES = Given(
    "from PIL import Image", 'image = Image.linear_gradient("L").convert("RGB")  # yours: a PIL image, a path or a URL'
)
_SOUND = Given(
    "import numpy as np", "audio = np.sin(np.arange(220500) / 20)  # yours: values between -1 and 1, 44100 a second"
)
_VIDEO = Given(
    "import numpy as np",
    "video = np.zeros((8, 224, 224, 3), np.uint8)  # yours: a path, a URL, a folder or list of frames, or an array",
)
_POINTS = Given(
    "import numpy as np",
    "points = np.random.default_rng(0).normal(size=(2048, 3))  # yours, with +y up: an array, or the path of a mesh",
)
_TEXT = Given("", 'text = "a red apple"  # yours; more steps give better pictures')
_LABELS = 'candidate_labels=["a cat", "a dog"]'
_STEPS = 'num_steps=2)["image"].size'

# Task of a pipeline -> what it is called, what it is given, and the call.
PIPELINES: Mapping[str, tuple[str, Given, str]] = {
    "image-classification": ("classify", _IMAGE, "classify(image, top_k=3)"),
    "zero-shot-image-classification": ("classify", _IMAGE, f"classify(image, {_LABELS})"),
    "zero-shot-image-segmentation": ("find", _IMAGE, f"find(image, {_LABELS})"),
    "zero-shot-object-detection": ("find", _IMAGE, f"find(image, {_LABELS})"),
    "zero-shot-audio-classification": (
        "classify", _SOUND, 'classify(audio, candidate_labels=["dog", "rain"], hypothesis_template="{}")'
    ),
    "zero-shot-video-classification": (
        "classify", _VIDEO, f'classify(video, {_LABELS}, video_metadata=[{{"fps": 8}}])'
    ),
    "video-anomaly-detection": ("detect", _VIDEO, "detect(video)"),
    "zero-shot-point-cloud-classification": (
        "classify", _POINTS, 'classify(points, candidate_labels=["chair", "table"])'
    ),
    "text-and-image-classification": ("classify", _IMAGE, 'classify("a fire in the town", image)'),
    "depth-estimation": ("estimate", _SHADES, 'estimate(image)["predicted_depth"]'),
    "image-question-answering": ("answer", _IMAGE, 'answer(image, "what colour is it?", top_k=3)'),
    "image-text-to-text": ("write", _IMAGE, 'write(image, text="", max_new_tokens=20)'),
    "text-to-drawing": ("make", _TEXT, f"make(text, {_STEPS}"),
    "text-to-image": ("make", _TEXT, f"make(text, {_STEPS}"),
    "image-to-drawing": ("make", _SHADES, f"make(image, {_STEPS}"),
}  # fmt: skip

# Auto class of models that no pipeline of ours reads -> what they are given, the processor's arguments, what is shown.
MODELS: Mapping[str, tuple[Given, str, str]] = {
    "AutoModelForVideoClassification": (
        _VIDEO,
        'videos=[video], video_metadata=[{"fps": 8}]',
        "model.config.id2label[int(outputs.logits[0].argmax())]",
    ),
}
_ANY_OF_IMAGE_AND_TEXT = (
    _IMAGE,
    'image, "what is it?"',
    '{name: getattr(value, "shape", "") for name, value in outputs.items()}',
)
_TASK_OF = {  # Auto classes whose models one pipeline reads
    "AutoModelForVisualQuestionAnswering": "image-question-answering",
    "AutoModelForImageTextToText": "image-text-to-text",
}


def model_snippet(row: Method, architectures: Sequence[str], repo_id: str, with_code: bool) -> str:
    """
    Args:
        row: of the model, or of an adapter that lies beside its classifier.
        architectures: class names in the model's configuration.
        repo_id: as a Python literal.
        with_code: the repository holds the code; else the package is imported.
    """
    first = [] if with_code else ["import hf_clip_variants  # makes its models known to transformers"]
    source = f"{repo_id}, trust_remote_code=True" if with_code else repo_id
    loads = {reference.rpartition(":")[2]: auto for auto, reference in row.auto_classes.items()}
    auto_class = next((loads[name] for name in architectures if name in loads), "AutoModel")
    task = _pipeline_task(row, auto_class)
    if task is None:
        given, arguments, shown = MODELS.get(auto_class, _ANY_OF_IMAGE_AND_TEXT)
        return "\n".join(
            [
                *first,
                *sorted(["import torch", given.imports], key=lambda line: not line.startswith("import")),
                f"from transformers import {auto_class}, AutoProcessor",
                "",
                f"model = {auto_class}.from_pretrained({source}).eval()",
                f"processor = AutoProcessor.from_pretrained({source})",
                given.code,
                "with torch.no_grad():",
                f'    outputs = model(**processor({arguments}, return_tensors="pt"))',
                f"print({shown})",
            ]
        )
    verb, given, call = PIPELINES[task]
    return "\n".join(
        [
            *first,
            *filter(None, [given.imports]),
            "from transformers import pipeline",
            "",
            f'{verb} = pipeline("{task}", model={source})',
            given.code,
            f"print({call})",
        ]
    )


def _pipeline_task(row: Method, auto_class: str) -> str | None:
    """The task of the pipeline that reads this model; None: none does."""
    if row.kind == "adapter" or "AutoModelForImageClassification" in row.auto_classes:
        return "image-classification"  # whose classes are set
    if auto_class in _TASK_OF:
        return _TASK_OF[auto_class]
    if auto_class in MODELS or row.task == "visual-question-answering":
        return None
    if row.task in PIPELINES:
        return row.task
    if "AutoModelForZeroShotImageClassification" in row.auto_classes:
        return "zero-shot-image-classification"
    return next(iter(tasks_of(row)), None)


__all__ = ["MODELS", "PIPELINES", "model_snippet"]
