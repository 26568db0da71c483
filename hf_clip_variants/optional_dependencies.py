"""What is installed by an extra only, and the error that says which one."""

import importlib
from types import ModuleType


EXTRAS = {  # importable name -> extra in pyproject.toml
    "ftfy": "text",
    "sklearn": "probe",
    "soundfile": "audio",
    "soxr": "audio",
}


def require(module: str, purpose: str) -> ModuleType:
    """
    Import an optional dependency where it is used.

    Args:
        module: importable name, a key of `EXTRAS`.
        purpose: subject of the error, for example `"CLIP's text cleaning"`.

    Raises:
        ImportError: it is not installed; the text holds the `pip install` command.
    """
    if module not in EXTRAS:
        raise ValueError(f"module: {module!r} is no optional dependency; known: {', '.join(sorted(EXTRAS))}")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise missing(module, purpose) from error


def missing(module: str, purpose: str) -> ImportError:
    return ImportError(f'{purpose} needs {module}: pip install "hf-clip-variants[{EXTRAS[module]}]"', name=module)
