"""How all commands take the names of classes."""

from typing import Annotated

import typer


HOW = "names with commas between them, or a file: .txt with a name in each line, or .json"

ClassNames = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="FILE|LIST",
        help=f"Names of the labels in the data, in label order, where they are numbers or codes: {HOW} (a list, or a "
        "mapping from label to name).",
        show_default="those in the data",
    ),
]


def names_of_labels(text: str | None) -> list[str] | dict[str, str] | None:
    """What `--class-names` says, for `load_images`: a list, or a mapping from label to name."""
    from ..modeling.dual_encoders.prompts import read_class_names

    return None if text is None else read_class_names(text, "--class-names")


def classes_to_choose_from(text: str | None) -> list[str] | None:
    """What `--classes` says, in label order."""
    from ..modeling.dual_encoders.prompts import resolve_class_names

    return None if text is None else resolve_class_names(text, "--classes")
