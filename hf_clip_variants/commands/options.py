"""Options that several commands have: one name, one help text, one way to complete values in the shell."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import typer

from ..registry import few_shot_entries
from .arguments import DEVICES, words


# Groups of options in help pages; what stands in none is the first thing to know.
DATA, MODEL, TRAINING, RUNNING = "Data", "Model", "Training", "Running and output"
SEGMENTATION = "Segmentation"

# Names that accelerate knows; "all" is those that are installed.
TRACKERS = ("all", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")

# For flags, which take no value.
FLAG = {"metavar": ""}


# ---- values that the shell completes; nothing found means file names


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def several_of(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Names with commas: the last one is completed, and those before it are not offered again."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in names() if name.startswith(last) and name not in words(before)]

    return complete


def few_shot_methods() -> list[str]:
    return list(few_shot_entries())


def template_sets() -> list[str]:
    from ..modeling.dual_encoders.template_sets import TEMPLATE_SETS

    return list(TEMPLATE_SETS)


def benchmark_sets() -> list[str]:
    from ..few_shot.recipes import DATASETS

    return list(DATASETS)


def complete_source(incomplete: str) -> list[str]:
    """The embedded images by style; `NAME=` may stand in front."""
    name, equals, source = incomplete.rpartition("=")
    if not source.startswith("e"):
        return []
    from ..data.images.emoji import emoji_styles

    styles, comma, last = source.removeprefix("emoji:").rpartition(",") if "emoji:" in source else ("", "", "")
    front = f"{name}{equals}emoji:{styles}{comma}"
    found = [f"emoji:{styles}{comma}{style}" for style in emoji_styles() if style.startswith(last)]
    return [front + one.removeprefix(f"emoji:{styles}{comma}") for one in found if one.startswith(source)]


# ---- the options

NAMES = "names with commas, or a file: .txt with a name in each line, or .json"

SOURCES = "a folder with one sub-folder per class, Parquet, CSV, a Hub data set or emoji:STYLE"

Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cpu, gpu, cuda:1, mps, …",
        show_default="a GPU if there is one",
        autocompletion=one_of(lambda: DEVICES),
        rich_help_panel=RUNNING,
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help="Images in one pass of the model.", rich_help_panel=RUNNING)
]
Precision = Annotated[
    Literal["float32", "bf16", "int8"],
    typer.Option(
        metavar="NAME",
        help="Of the frozen image encoder's linear layers: float32, int8 (on a CPU) or bf16 (where the processor has "
        "it), which are faster. What they change is measured on the first images and printed.",
        rich_help_panel=RUNNING,
    ),
]
Adapter = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="An adapter: folder or Hub id. It names its model and classes.")
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The CLIP under the adapter, if it has moved: folder or Hub id.",
        show_default="the one that the adapter names",
        rich_help_panel=MODEL,
    ),
]
Templates = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Prompt such as 'a photo of a {}.', a named set (pets, icons, …) or a file (JSON: also prompts of each "
        "class).",
        show_default="the model's",
        autocompletion=one_of(template_sets),
        rich_help_panel=MODEL,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(metavar="FILE|LIST", help=f"Classes to choose from: {NAMES}.", rich_help_panel=MODEL),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="FILE|LIST",
        help=f"Names of labels that are numbers or codes, in label order: {NAMES} (a list, or label to name).",
        show_default="those in the data",
        rich_help_panel=DATA,
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the images.", show_default="found by its type", rich_help_panel=DATA),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the labels.", show_default="found by its type", rich_help_panel=DATA),
]
CommonClasses = Annotated[
    bool,
    typer.Option(
        "--common-classes",
        help="Keep only the classes that both sides have, instead of an error.",
        rich_help_panel=DATA,
        **FLAG,
    ),
]
SegmentationLabels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FILE|LIST",
        help=f"What to look for: {NAMES}. 'house;home' is one label with two texts.",
        show_default="the model's",
        rich_help_panel=SEGMENTATION,
    ),
]
Parts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|LIST",
        help=f"Of clouds of points: parts to divide each into: {NAMES}.",
        show_default=False,
        rich_help_panel=SEGMENTATION,
    ),
]
UpAxis = Annotated[
    Literal["x", "y", "z"] | None,
    typer.Option(
        metavar="NAME",
        help="Of clouds of points: the axis of the files that points up: x, y or z.",
        show_default="the model's, y",
        rich_help_panel=SEGMENTATION,
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        metavar="P|JSON",
        help="Pixels whose best label has a lower score have none; a number, or one for each label.",
        show_default="the model's",
        rich_help_panel=SEGMENTATION,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Run the model on windows of this side, instead of the whole image.",
        show_default=False,
        rich_help_panel=SEGMENTATION,
    ),
]
Masks = Annotated[
    Literal["polygons", "rle", "compressed_rle"] | None,
    typer.Option(
        metavar="NAME",
        help="How annotations.json holds masks: polygons, rle or compressed_rle.",
        show_default="polygons",
        rich_help_panel=SEGMENTATION,
    ),
]
Profile = Annotated[
    Literal["published", "tiny"] | None,
    typer.Option(
        metavar="NAME",
        help="published or tiny recipes.",
        show_default="by the size of the model",
        rich_help_panel=TRAINING,
    ),
]
License = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of the weights, as the Hub writes it: mit, cc-by-4.0, …"),
]


def reading(image_column: str | None, label_column: str | None, class_names: str | None = None) -> dict[str, Any]:
    """What was said about columns and labels, as arguments of `load_images`."""
    named = {"image_column": image_column, "label_column": label_column, "class_names": names_of_labels(class_names)}
    return {name: value for name, value in named.items() if value is not None}


def names_of_labels(text: str | None) -> list[str] | dict[str, str] | None:
    """What `--class-names` says: a list, or a mapping from label to name."""
    if text is None:
        return None
    from ..modeling.dual_encoders.prompts import read_class_names

    return read_class_names(text, "--class-names")


def classes_to_choose_from(text: str | None) -> list[str] | None:
    """What `--classes` says, in label order."""
    if text is None:
        return None
    from ..modeling.dual_encoders.prompts import resolve_class_names

    return resolve_class_names(text, "--classes")
