"""The options of `convert`: those of all models, of all adapters, and of single formats. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..registry import CheckpointEntry, KindName, Option, checkpoint_entries


# By the kind of method.
COMMON_OPTIONS: Mapping[KindName, tuple[Option, ...]] = {
    "model": (
        Option("tokenizer", str, "Folder, Hub id or vocabulary file; none writes none.", default="the official one"),
        Option("dtype", ("float32", "float16", "bfloat16"), "Of the weights that are written.", default="float32"),
        Option("vision_heads", int, "Attention heads.", default="width / 64"),
        Option("text_heads", int, "Attention heads.", default="width / 64"),
    ),
    "adapter": (
        Option("base", str, "The CLIP that the adapter was trained on: folder or Hub id."),
        Option(
            "class_names",
            str,
            "Classes of the training in label order, with commas, or a .txt file with a name a line.",
            default="the base's",
            flag="--classes",
        ),
        Option("templates", str, "Prompt template, a named set, or a file."),
    ),
}


@dataclass(frozen=True)
class OfferedOption:
    """
    An option with the formats that take it.

    Args:
        kind: of the methods that these formats become.
        formats: in the table's order.
    """

    option: Option
    kind: KindName
    formats: tuple[CheckpointEntry, ...]

    @property
    def help(self) -> str:
        """With the formats in front, unless all of the kind take it."""
        if self.option in COMMON_OPTIONS[self.kind]:
            return self.option.help
        return f"{', '.join(entry.title for entry in self.formats)}: {self.option.help}"


def offered_options() -> dict[str, OfferedOption]:
    """Name -> every option of `convert`: of models and then of adapters, the common ones first."""
    found: dict[str, OfferedOption] = {}
    for kind, common in COMMON_OPTIONS.items():
        entries = [entry for row, entry in checkpoint_entries().values() if row.kind == kind]
        options = dict.fromkeys([*common, *(option for entry in entries for option in entry.options)])
        for option in options:
            if option.name in found:
                raise ValueError(
                    f"{option.name}: the table has two options of this name, expected one for all formats"
                )
            formats = tuple(entry for entry in entries if option in (*common, *entry.options))
            found[option.name] = OfferedOption(option, kind, formats)
    return found


def check_official(file: Path) -> None:
    """OSError for what `save_pretrained` wrote: there is nothing to convert."""
    folder = file if file.is_dir() else file.parent
    if (file.is_dir() or file.name.startswith("adapter_model.")) and (folder / "adapter_config.json").is_file():
        raise OSError(
            f"{file}: an adapter that `save_pretrained` wrote, not an official checkpoint; nothing to convert. "
            f"Use it: `hf-clip-variants predict IMAGES --adapter {folder}`"
        )
    if file.is_dir():
        what = "a saved model" if (folder / "config.json").is_file() else "a folder"
        raise IsADirectoryError(f"{file}: {what}, not an official checkpoint; want a file, such as ViT-B-32.pt")


def check_format(name: str) -> None:
    """ValueError for a method without a converter."""
    if name not in checkpoint_entries():
        raise ValueError(f"method: {name!r} has no converter, expected one of {', '.join(checkpoint_entries())}")


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """ValueError for an option of other formats (it would be ignored without a word), and for an unknown value."""
    offered = offered_options()
    for name, value in options.items():
        owners = [entry.name for entry in offered[name].formats]
        if method not in owners:
            raise ValueError(f"{name}: given, but it belongs to {', '.join(owners)}, and this is {method}")
        allowed = offered[name].option.type
        if isinstance(allowed, tuple) and value not in allowed:
            raise ValueError(f"{name}: {value!r}, expected one of {', '.join(allowed)}")


__all__ = ["COMMON_OPTIONS", "OfferedOption", "check_format", "check_official", "check_options", "offered_options"]
