"""Reads arguments of commands and refuses wrong ones before any library is loaded. Imports no library.

Names of options are part of the messages, so functions take them: `numbers("--shots", "1,2")`.
"""

import difflib
import glob
import json
import os
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer

from ..registry import did_you_mean, few_shot_entries, unknown_name


# Of torch, which is not imported yet; "gpu" is whichever there is.
DEVICES = ("cpu", "gpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DATA_FILES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".tar", ".zip", ".txt")


# ---- lists and values


def words(text: str) -> list[str]:
    """`"a, b"` -> `["a", "b"]`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str, least: int | None = None) -> list[int]:
    """`"1,2,4"` -> `[1, 2, 4]`. ValueError for anything else, a number below `least`, or one that is given twice."""
    wanted = "whole numbers" + ("" if least is None else f" of at least {least}") + " with commas, such as 1,2,4"
    try:
        found = [int(word) for word in words(text)]
    except ValueError:
        found = []
    if not found or (least is not None and min(found) < least):
        raise ValueError(f"{option}: got {text!r}; want {wanted}")
    if len(set(found)) < len(found):
        raise ValueError(f"{option}: got {text!r}; want none of them twice")
    return found


def method_names(text: str, option: str = "--methods") -> list[str]:
    """`"all"`, or names with commas. ValueError for an unknown one, with the names that are near."""
    known = few_shot_entries()
    found = list(known) if text.strip() == "all" else words(text)
    for name in found:
        check_name(option, name, known)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{option}: got {text!r}; want at least one of {', '.join(known)}, none of them twice")
    return found


def check_name(option: str, name: str, known: Collection[str]) -> None:
    """ValueError, with the names that are near, unless `name` is one of `known`."""
    if name not in known:
        raise ValueError(f"{option}: {unknown_name(name, known)}")


def parse_overrides(
    arguments: Iterable[str], option: str = "--set", wanted: str = "NAME=VALUE or METHOD.NAME=VALUE"
) -> dict[str, Any]:
    """`["coop.epochs=20", "augmentation=none"]` -> `{"coop.epochs": 20, "augmentation": "none"}`: JSON, else text."""
    overrides = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{option}: got {argument!r}; want {wanted}")
        try:
            overrides[name.strip()] = json.loads(value)
        except ValueError:
            overrides[name.strip()] = value
    return overrides


def check_templates(text: str | None) -> None:
    """ValueError for a word that is neither a template, a file nor a named set."""
    if text is None or Path(text).exists():
        return
    if "{" in text or "}" in text:
        from ..modeling.dual_encoders.prompts import with_slot

        with_slot(text, "--templates: template")
        return
    from ..modeling.dual_encoders.template_sets import TEMPLATE_SETS

    if text not in TEMPLATE_SETS:
        raise ValueError(
            f"--templates: {text!r} has no {{}} for the class name and is neither a file nor a named set"
            f"{did_you_mean(text, TEMPLATE_SETS)} Known: {', '.join(TEMPLATE_SETS)}"
        )


def check_benchmark(text: str | None) -> None:
    """ValueError for a data set for which no values are published."""
    if text is not None:
        from ..few_shot.recipes import benchmark_name

        benchmark_name(text, "--benchmark")


def check_device(text: str | None) -> None:
    """ValueError for a name that no device has. Whether this machine has the device, torch says later."""
    if text is not None and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", text):
        raise ValueError(f"--device: got {text!r}; want cpu, gpu, cuda, cuda:1, mps or the like")


# ---- files, folders, the Hub


def check_data(option: str, sources: Iterable[str]) -> None:
    """OSError for a source of images that is neither here nor on the Hub."""
    for source in sources:
        _check_data(option, source)


def _check_data(option: str, source: str) -> None:
    if re.match(r"emoji($|[:@])", source):
        styles = source.partition("@")[0].partition(":")[2]
        if styles:
            from ..data.images.emoji import emoji_styles

            for style in words(styles):
                check_name(option, style, emoji_styles())
        return
    layout, colon, path = source.partition(":")
    if colon and layout == "coop":
        if not Path(path).expanduser().is_dir():
            raise FileNotFoundError(f"{option}: {_not_here('folder', path)}")
        return
    if Path(source).expanduser().exists():
        return
    if glob.has_magic(source):
        if not glob.glob(os.path.expanduser(source), recursive=True):
            raise FileNotFoundError(f"{option}: no file matches {source}")
        return
    _check_hub_id(option, source, "datasets", "file or folder")


def check_model(option: str, source: str | None) -> None:
    """OSError for a model or adapter that is neither here nor on the Hub."""
    if source is None:
        return
    path = Path(source).expanduser()
    if path.is_file():
        raise NotADirectoryError(
            f"{option}: {source} is a file; want a folder that save_pretrained wrote, or a Hub id. "
            "`hf-clip-variants convert` makes a folder from an official checkpoint"
        )
    if not path.exists():
        _check_hub_id(option, source, "models", "folder")


def check_out(option: str, folder: str) -> None:
    """ValueError for a run folder that is a file, or whose name the libraries that write there do not take."""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in folder):
        raise ValueError(f"{option}: {folder} is not valid UTF-8; want another name")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"{option}: {folder} is a file; want a folder")


def _check_hub_id(option: str, text: str, kind: str, what: str) -> None:
    """OSError unless `text`, which is no path here, may be a repository of the Hub that can be had."""
    missing = f"{option}: {_not_here(what, text)}"
    owner, slash, _ = text.partition("/")
    if not _HUB_ID.fullmatch(text) or (slash and Path(owner).is_dir()) or text.endswith(_DATA_FILES):
        raise FileNotFoundError(f"{missing}; a Hub id has the form owner/name")
    if _hub_answers():
        return
    if not _is_cached(text, kind):
        raise ConnectionError(f"{missing}, and the Hub cannot be reached; a Hub id has the form owner/name")
    # Read when huggingface_hub is imported: it would try again and again for a minute.
    os.environ["HF_HUB_OFFLINE"] = "1"
    typer.secho(f"The Hub cannot be reached; {text} is read from the cache.", dim=True, err=True)


def _not_here(what: str, text: str) -> str:
    path = Path(text).expanduser()
    folder, name = path.parent, path.name
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(name, names, n=1)
    # As it was typed: the folder's own part stays.
    hint = f" (did you mean {os.path.join(os.path.dirname(text.rstrip('/')), near[0])}?)" if near else ""
    return f"no such {what} {text}{hint}"


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy knows
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    address = endpoint.hostname or "", endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


def _is_cached(repo_id: str, kind: str) -> bool:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    home = Path(os.environ.get("HF_HOME") or caches).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    found = (hub / f"{kind}--{repo_id.replace('/', '--')}" / "snapshots").is_dir()
    return found or (kind == "datasets" and (prepared / repo_id.replace("/", "___")).is_dir())


# What the library calls an argument, where a command's option has another name.
_OPTION_OF = {
    "class_names": "classes",
    "source": "data",
    "styles": "data",
    "overrides": "set",
    "cache_dir": "cache",
    "method": "methods",
    "max_iter": "max_iterations",
    "candidate_labels": "labels",
    "hypothesis_template": "templates",
    "background_threshold": "background",
    "sliding_window": "window",
}


def in_words_of(flags: Mapping[str, str], message: str) -> str:
    """The message with options instead of the library's arguments. `flags`: argument -> option.

    >>> in_words_of({"test_data": "--test-data"}, "test_data: got 'x'; test_data is what is tested on")
    "--test-data: got 'x'; --test-data is what is tested on"
    """
    flags = dict(flags)
    # Advice that only Python code can follow.
    message = re.sub(r",? or pass \w+=('[^']*'|\w+)", "", message)
    flags |= {ours: flags[option] for ours, option in _OPTION_OF.items() if ours not in flags and option in flags}
    message = re.sub(r"^\w+(?=(\[\d+\])?:| is )", lambda word: flags.get(word[0], word[0]), message)
    # Words with an underscore are names in any place, but not parts of paths or quoted text.
    name = r"(?<![\w/\\.'\"=-])[a-z]+(_[a-z]+)+(?![\w/\\.'\"=-])"
    return re.sub(name, lambda word: flags.get(word[0], word[0]), message)


__all__ = [
    "DEVICES",
    "check_benchmark",
    "check_data",
    "check_device",
    "check_model",
    "check_name",
    "check_out",
    "check_templates",
    "in_words_of",
    "method_names",
    "numbers",
    "parse_overrides",
    "words",
]
