"""Folders with code: a model and its processor load where this package is not installed."""

import json
from pathlib import Path
from typing import Any

from ..files.atomic_writes import staged_folder
from ..registration.auto_classes import tasks_of
from ..registry import methods
from .code_export import TRAVELS, travelling_code
from .model_cards import model_card


# Parts of a processor -> the Auto class that loads them.
_NESTED = {
    "image_processor": "AutoImageProcessor",
    "video_processor": "AutoVideoProcessor",
    "feature_extractor": "AutoFeatureExtractor",
}


def _row_of(model: Any):
    reference = f"{type(model).__module__}.{type(model).__name__}"
    for row in methods("model"):
        if reference in {
            f"hf_clip_variants.{path}".replace(":", ".") for path in (row.model, *row.auto_classes.values())
        }:
            return row
    return None


def _refuse_to_export(model: Any):
    name, module = type(model).__name__, type(model).__module__
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"model: {name} carries an adapter. Code cannot travel with adapters: PEFT looks their type up before it "
            "would run code from a repository. Push the adapter as it is (hf_clip_variants.hub.push.push), whoever "
            "loads it imports hf_clip_variants; or export the classifier without it."
        )
    if module.startswith("transformers_modules."):
        raise ValueError(
            f"model: {name} was loaded with its code, save_pretrained and push_to_hub take the code along"
        )
    if module.startswith(TRAVELS + "."):
        raise ValueError(f"model: {name} is a part of a model; export the whole, whose files it loads, too")
    raise ValueError(f"model: {name} ({module}) is not a model of this package, save_pretrained is enough for it")


def _is_travelling(part: Any) -> bool:
    return part is not None and type(part).__module__.startswith(TRAVELS + ".")


def _reference(part: Any) -> str:
    cls = part if isinstance(part, type) else type(part)
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _edit_json(path: Path, change) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def export_with_code(
    model: Any, processor: Any, folder: str | Path, *, license: str | None = None, **card: Any
) -> Path:
    """Saves a model and its processor with their code; with `trust_remote_code=True` the folder loads without this
    package.

    Copies every file of `modeling/` that the classes need into one folder, with imports to match, and names the
    classes in `auto_map`; pipelines that transformers lacks (`zero-shot-image-segmentation`) go with the models that
    they run. A model loaded from there can be saved and pushed again with its code. In a process that has
    this package, its classes are used instead of the copies. The code for adapters and converters is not exported, nor
    is the fast way to encode many prompts: the copy runs each prompt through the whole text encoder. Of a classifier
    only what answers depend on is exported: checks of configurations and inputs, loading that insists on all weights,
    saving at once, memory limits for large images and URLs (which are refused) need the package. Prefer
    `save_pretrained` for users who have the package: it is smaller and gets the package's corrections.

    Args:
        model: a model of this package, without adapters.
        processor: its processor, of this package or transformers'; None leaves it out.
        folder: written in one step; other files in it stay.
        license: of the weights, for the card.
        card: `repo_id`, `base_model`, `results`, `recipe`, ... of `model_card`.

    Returns the folder.

    Raises:
        ValueError: a model with adapters, a model of another package, or code that cannot be exported.
        OSError: the disk is full.

    Example:

    ```python
    export_with_code(model, processor, "pets-classifier", license="mit", base_model="openai/clip-vit-base-patch32")
    AutoModelForImageClassification.from_pretrained("pets-classifier", trust_remote_code=True)
    ```
    """
    row = _row_of(model)
    if row is None or getattr(model, "_hf_peft_config_loaded", False):
        _refuse_to_export(model)
    from .. import __version__
    from ..modeling.dual_encoders.text_cleaning import clean_text

    parts = [model, model.config, processor]
    parts += [getattr(processor, name, None) for name in (*_NESTED, "tokenizer")]
    # Modules that are found by name: the family of a classifier's backbone, by its configuration.
    family = getattr(model, "family", None)
    by_name = {type(model.config).__module__: [family.__module__]} if family is not None else {}
    if getattr(model, "label_calibration", None) is not None:
        by_name[type(model).__module__] = [type(model.label_calibration).__module__]
    if getattr(processor, "clean_text", False) and _is_travelling(processor):
        by_name[type(processor).__module__] = [clean_text.__module__]
    # The row's other classes and its pipelines.
    found = [row.load(name).__module__ for name in row.auto_classes]
    found += [f"hf_clip_variants.{task.pipeline}".rpartition(".")[0] for task in tasks_of(row).values()]
    own = type(model).__module__
    by_name[own] = by_name.get(own, []) + [name for name in dict.fromkeys(found) if name != own]
    modules = {type(part).__module__ for part in parts if _is_travelling(part)}
    code = travelling_code(modules, __version__, by_name)
    target = Path(folder)
    with staged_folder(target) as stage:
        model.save_pretrained(stage)
        auto_map = {"AutoConfig": _reference(model.config)}
        auto_map |= {name: _reference(row.load(name)) for name in row.auto_classes}
        in_config: dict[str, Any] = {"auto_map": auto_map}
        if pipelines := tasks_of(row):
            in_config["custom_pipelines"] = {
                name: {"impl": ".".join(task.pipeline.split(".")[-2:]), "pt": [task.auto_class], "type": "multimodal"}
                for name, task in pipelines.items()
            }
        _edit_json(stage / "config.json", lambda values: values.update(in_config))
        if processor is not None:
            processor.save_pretrained(stage)
            _name_processor_classes(processor, stage)
        for name, source in code.items():
            (stage / name).write_bytes(source)
        model_card(model, license=license, with_code=True, weights=stage, **card).save(stage / "README.md")
    return target


def _name_processor_classes(processor: Any, folder: Path) -> None:
    def add(values: dict) -> None:
        if _is_travelling(processor):
            values["auto_map"] = {"AutoProcessor": _reference(processor)}
        for name, auto_class in _NESTED.items():
            part = getattr(processor, name, None)
            if _is_travelling(part) and name in values:
                values[name]["auto_map"] = {auto_class: _reference(part)}

    if (folder / "processor_config.json").is_file():
        _edit_json(folder / "processor_config.json", add)
    elif _is_travelling(processor):  # an image processor alone
        entry = {"AutoImageProcessor": _reference(processor)}
        _edit_json(folder / "preprocessor_config.json", lambda values: values.update(auto_map=entry))
    tokenizer = getattr(processor, "tokenizer", None)
    if _is_travelling(tokenizer):
        entry = {"AutoTokenizer": [None, _reference(tokenizer)]}
        _edit_json(folder / "tokenizer_config.json", lambda values: values.update(auto_map=entry))


__all__ = ["export_with_code"]
