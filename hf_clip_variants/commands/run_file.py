"""run.yaml: the options of a command in a file, from which it can be run again."""

import os
from pathlib import Path
from typing import Any

import typer

from ..registry import did_you_mean
from .arguments import words


NAME = "run.yaml"
_NOT_OPTIONS = ("sources", "config", "dry_run", "json", "help")  # of `adapt`; what does not say what is run

_HEAD = """\
# hf-clip-variants adapt --config run.yaml
# runs this again; options on the command line win. In the same folder, finished runs are not repeated.
"""


def use(context: typer.Context, parameter: Any, value: str | None) -> str | None:
    """Callback of --config: what the file says takes the place of the defaults."""
    if value is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **read(value, context)}
    return value


def read(file: str, context: typer.Context) -> dict[str, Any]:
    """Options in a YAML file, as the command's parameters take them.

    Raises:
        OSError: no such file.
        ValueError: not a mapping in YAML, or an option that the command does not have.
    """
    import yaml

    path = Path(file).expanduser()
    if path.is_dir():
        path = path / NAME
    if not path.exists():
        raise FileNotFoundError(f"--config: no such file: {file}")
    if not path.is_file():
        raise OSError(f"--config: {file} is not a regular file")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--config: {file} holds {type(given).__name__}; want lines such as `shots: 1,4`")
    known = {flag_name(parameter): parameter for parameter in _parameters(context)}
    found = {}
    for key, value in given.items():
        name = str(key).lstrip("-").replace("_", "-")
        if name not in known:
            raise ValueError(f"--config: {file} has {key!r}, which is no option{did_you_mean(name, known)}")
        if value is not None:
            found[known[name].name] = _as_argument(value, known[name])
    return found


def _as_argument(value: Any, parameter: Any) -> Any:
    """`[1, 4]` -> "1,4", `{epochs: 20}` -> ["epochs=20"] for an option that may be repeated; flags stay."""
    if isinstance(value, bool):
        return value if getattr(parameter, "is_flag", False) else str(value).lower()
    if isinstance(value, dict):
        value = [f"{name}={one}" for name, one in value.items()]
    if parameter.multiple:
        return [str(one) for one in (value if isinstance(value, list) else [value])]
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def options_of(context: typer.Context, **instead: Any) -> dict[str, Any]:
    """The command's options by their names on the command line, without those that are not set; paths are absolute."""
    found = {}
    for parameter in _parameters(context):
        value = instead.get(parameter.name, context.params.get(parameter.name))
        if value not in (None, False, [], ()):
            found[flag_name(parameter)] = list(value) if isinstance(value, list | tuple) else value
    for name in ("data", "test-data"):
        if name in found:
            found[name] = [_absolute(source) for source in found[name]]
    for name in ("model", "out", "templates"):
        if name in found:
            found[name] = os.path.abspath(found[name]) if name == "out" else _absolute(found[name])
    for name in ("shots", "seeds"):
        found[name] = [int(word) for word in words(found[name])]
    found["methods"] = words(found["methods"])
    return found


def write(out: str, options: dict[str, Any] | None) -> None:
    """run.yaml in the run folder, once there is one."""
    import yaml

    from ..files.atomic_writes import write_atomically

    folder = Path(out)
    if options and (folder / "results.json").is_file() and not (folder / NAME).exists():
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
        write_atomically(folder / NAME, _HEAD + text)


def flag_name(parameter: Any) -> str:
    """`--test-data` without the hyphens in front."""
    return next(flag for flag in parameter.opts if flag.startswith("--")).lstrip("-")


def _parameters(context: typer.Context) -> list[Any]:
    return [parameter for parameter in context.command.params if parameter.name not in _NOT_OPTIONS]


def _absolute(source: str) -> str:
    """A path that is here, from any folder; `NAME=` and `coop:` may stand in front."""
    for front in ("=", ":"):
        name, sign, path = source.partition(front)
        if sign and not source.startswith("emoji") and Path(path).expanduser().exists():
            return f"{name}{sign}{Path(path).expanduser().absolute()}"
    here = Path(source).expanduser()
    return str(here.absolute()) if not source.startswith("emoji") and here.exists() else source
