"""Dependencies that only an extra installs, and the error that names the extra."""

import importlib
from types import ModuleType


EXTRAS = {  # importable name -> extra in pyproject.toml
    "av": "video",
    "faiss": "search",
    "ftfy": "text",
    "h5py": "points",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "pillow_heif": "heic",
    "pycocotools": "detection",
    "sklearn": "probe",
    "soundfile": "audio",
    "soxr": "audio",
    "supervision": "supervision",
    "svgelements": "synthesis",
    "textblob": "nouns",
    "trimesh": "points",
}


def require(module: str, purpose: str) -> ModuleType:
    """
    Import an optional dependency.

    Args:
        module: importable name, a key of `EXTRAS`.
        purpose: what needs it; the subject of the error, for example `"CLIP's text cleaning"`.

    Raises:
        ImportError: it is not installed; the message has the `pip install` command.
        ValueError: `module` is not a key of `EXTRAS`.
    """
    if module not in EXTRAS:
        raise ValueError(f"module: {module!r} is not an optional dependency; known: {', '.join(sorted(EXTRAS))}")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # it is installed, but one of its own dependencies is not
            raise
        raise missing(module, purpose) from error


def missing(module: str, purpose: str) -> ImportError:
    """The error for a missing dependency, with the `pip install` command; see `require`."""
    return ImportError(f'{purpose} needs {module}: pip install "hf-clip-variants[{EXTRAS[module]}]"', name=module)
