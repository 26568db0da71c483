"""What the JSON files of a saved model say, checked before transformers reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig

from ..modeling.loading_and_saving.configuration_checks import check_image_settings, check_values
from ..registry import methods


_PARTS = ("image_processor", "feature_extractor", "tokenizer", "video_processor")
_READS = {"images": "image_processor", "videos": "video_processor"}
_READS |= dict.fromkeys(("sounds", "points"), "feature_extractor")
_CLASS_FIELDS = ("processor_class", "image_processor_type", "feature_extractor_type")
_CLASS_FIELDS += ("video_processor_type", "tokenizer_class")
_BROKEN = (AttributeError, AssertionError, KeyError, IndexError, TypeError, ImportError, RecursionError)
SEGMENTATION_CLASS = "AutoModelForSemanticSegmentation"
DETECTION_CLASS = "AutoModelForZeroShotObjectDetection"
LARGEST_FILE = 64 * 2**20  # bytes of a JSON file


def check_model_folder(source: str | os.PathLike) -> None:
    """OSError for a path that exists and holds no saved model, ValueError for a configuration that no model has.

    A path that does not exist may be a Hub id.
    """
    if not Path(source).exists():
        return
    path = Path(source) / "config.json"
    if not path.is_file():
        raise OSError(f"{source}: no config.json there; want a folder that save_pretrained wrote, or a Hub id")
    values = read_json(path)
    check_values(values, _class_without_labels(values))


def _class_without_labels(values: Mapping[str, Any]) -> type | None:
    """The configuration class of one of our models that may have no labels of its own; None for other models."""
    rows = [row for row in methods("model") if row.model_type == values.get("model_type")]
    free = {SEGMENTATION_CLASS, DETECTION_CLASS}
    return rows[0].load("config") if rows and free & set(rows[0].auto_classes) else None


def configuration_of(source: str | os.PathLike) -> dict[str, Any]:
    """The fields of a model's configuration, of a folder or a Hub id, as they stand in the file."""
    check_model_folder(source)
    values, _ = PreTrainedConfig.get_config_dict(source)
    return values


def is_of_auto_class(source: str | os.PathLike, auto_class: str) -> bool:
    """Whether the folder or Hub id holds a model of this package that this Auto class loads. An adapter's folder does
    not."""
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        return False
    kinds = {row.model_type for row in methods("model") if auto_class in row.auto_classes}
    return configuration_of(source).get("model_type") in kinds


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file. OSError that names the file if there is none in it."""
    path = Path(path)
    if path.stat().st_size > LARGEST_FILE:
        raise OSError(f"{path}: {path.stat().st_size:,} bytes; want a JSON file of at most {LARGEST_FILE:,}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path}: not a valid JSON file ({error})") from error
    if not isinstance(values, dict):
        raise OSError(f"{path}: holds a JSON {type(values).__name__}; want an object with fields")
    return values


def load_saved_processor(
    source: str | os.PathLike, auto_class: Any = AutoProcessor, of: Sequence[str] = ("images",), **options: Any
) -> Any:
    """`AutoProcessor.from_pretrained`; ValueError or OSError that names the file or field that it cannot use.

    `of`: what a processor must read, at least one of "images", "videos", "sounds" and "points".
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = Path(source) / name
        if path.is_file():
            _check_processor(path, read_json(path))
    named = ", ".join(f"{field}: {value!r}" for field, value in _classes(source).items())
    unnamed = ", ".join(
        f"{name} ({name}_type)" if name in _PARTS else name
        for name, part in _parts(source)
        if not _names_its_class(name, part)
    )
    named = f"classes in its files: {named or 'none'}{f'; no class is named in {unnamed}' if unnamed else ''}"
    try:
        found = auto_class.from_pretrained(source, **options)
    except OSError as error:
        if not os.path.isdir(source):
            raise
        # transformers' text is about the Hub.
        raise OSError(
            f"{source}: its processor cannot be loaded, image_processor or tokenizer is missing; {named}"
        ) from error
    except (*_BROKEN, ValueError) as error:
        raise ValueError(
            f"{source}: its processor cannot be loaded ({type(error).__name__}: {str(error)[:200]}); {named}"
        ) from error
    if auto_class is AutoProcessor and all(getattr(found, _READS[kind], None) is None for kind in of):
        raise ValueError(f"{source}: its processor is a {type(found).__name__}, without {' or '.join(of)}; {named}")
    return found


def _check_processor(path: Path, values: Mapping[str, Any]) -> None:
    for name in _CLASS_FIELDS:
        if values.get(name) is not None and not isinstance(values[name], str):
            raise ValueError(f"{path}: {name}: {values[name]!r}, expected the name of a class")
    for name in _PARTS:
        part = values.get(name)
        if part and isinstance(part, Mapping):
            _check_processor(path, part)
        elif part is not None:
            raise ValueError(f"{path}: {name}: {part!r}, expected an object with settings")
    if "image_mean" in values or "image_processor_type" in values:
        try:
            check_image_settings(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _classes(source: str | os.PathLike) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, part in _parts(source):
        found |= {name: part[name] for name in _CLASS_FIELDS if part.get(name) is not None}
    return found


def _names_its_class(name: str, part: Mapping[str, Any]) -> bool:
    """Whether a file or a part in it says what it is; `processor_class` in a part is the whole processor's."""
    return any(part.get(field) for field in _CLASS_FIELDS if field != "processor_class" or name not in _PARTS)


def _parts(source: str | os.PathLike) -> list[tuple[str, Mapping[str, Any]]]:
    """The files of a processor and the objects in them, empty ones as well, by name."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for path in (Path(source) / f"{n}_config.json" for n in ("processor", "preprocessor", "tokenizer")):
        if path.is_file():
            values = read_json(path)
            found += [(path.name, values), *((name, values[name] or {}) for name in _PARTS if name in values)]
    return [(name, part) for name, part in found if isinstance(part, Mapping)]


__all__ = [
    "DETECTION_CLASS",
    "SEGMENTATION_CLASS",
    "check_model_folder",
    "configuration_of",
    "load_saved_processor",
    "read_json",
]
