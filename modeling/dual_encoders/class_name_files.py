"""Files of class names; `read_class_names` in `prompts.py` says what they hold. Exported code does without."""

import json
from pathlib import Path

from ..decoding.opening import read_regular
from .prompts import names_in_text


def read_class_name_file(path: Path, argument: str = "class_names") -> list[str] | dict[str, str]:
    """The names in a `.txt` or `.json` file; see `read_class_names`."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"{argument}: no such file: {path}")
    if suffix not in (".txt", ".json"):
        raise ValueError(f"{argument}: {path} is a file of another kind than .txt and .json")
    try:
        text = read_regular(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise OSError(f"{argument}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{argument}: {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    if suffix == ".json":
        return _names_in_json(text, f"{argument}: {path}")
    lines = [line.strip() for line in text.strip().split("\n")]  # splitlines() would also divide at U+2028
    if len(lines) == 1:
        return names_in_text(text, f"{argument}: {path}")
    if "" in lines:
        raise ValueError(f"{argument}: {path}, line {lines.index('') + 1}: blank; want a name in each line")
    return lines


def _names_in_json(text: str, where: str) -> list[str] | dict[str, str]:
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    if isinstance(names, list):
        return names
    if not isinstance(names, dict):
        raise ValueError(f"{where} holds a JSON {type(names).__name__}; want a list of names, or a mapping")
    if names and all(isinstance(label, int) for label in names.values()):  # name -> label
        by_label: dict[str, str] = {}
        for name, label in names.items():
            if str(label) in by_label:
                raise ValueError(f"{where}: {by_label[str(label)]!r} and {name!r} have the same label {label}")
            by_label[str(label)] = name
        return by_label
    for label, name in names.items():
        if not isinstance(name, str):
            raise ValueError(f"{where}: the name of {label!r} is {name!r}; want text")
    return names


__all__ = ["read_class_name_file"]
