"""What the commands share that make drawings: the guide, seeds, progress, and the files of a run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .arguments import numbers
from .options import FLAG, MODEL, RUNNING
from .output import console, say


if TYPE_CHECKING:
    from PIL import Image

    from ..modeling.synthesis.stroke_samples import SynthesizedDrawing
    from ..synthesis.runs import SynthesisRun

SIDE = 512  # pixels of the pictures that are written
_FRAME_SIDE = 256  # of the animation
_MOST_SEEDS = 64
_PREVIEW_EVERY = 2.0  # seconds

Seeds = Annotated[
    str,
    typer.Option(
        metavar="N|LIST", help="How many drawings of each, from seed 0 on; or seeds with commas, such as 3, or 7,8."
    ),
]
Guides = Annotated[
    list[str] | None,
    typer.Option(
        "--guide",
        metavar="MODEL",
        help="The dual encoder that guides: folder or Hub id. Repeated: several guide together.",
        show_default="the embedded tiny CLIP",
    ),
]
GuideWeights = Annotated[
    list[float] | None,
    typer.Option(
        "--guide-weight",
        min=1e-6,
        max=1000,
        metavar="X",
        help="Of a guide's loss in the mean; one for each --guide, in order.",
        show_default="equal",
        rich_help_panel=MODEL,
    ),
]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Of the models: float32, bfloat16, float16. What is optimised is float32.",
        show_default="float32; bfloat16 on a GPU",
        rich_help_panel=RUNNING,
    ),
]
Film = Annotated[
    bool,
    typer.Option(
        "--mp4", help="Also a film of the progress (needs the extra video).", rich_help_panel=RUNNING, **FLAG
    ),
]
Canvas = Annotated[
    int | None,
    typer.Option(
        min=8,
        max=2048,
        metavar="PIXELS",
        help="Side of the canvas that is optimised. The drawing is a vector graphic of any size.",
        show_default="what the guide takes",
        rich_help_panel=RUNNING,
    ),
]
Speed = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=100,
        metavar="X",
        help="The published learning rates times this. Few steps need faster ones.",
        show_default="1000 / steps, 1 to 4",
        rich_help_panel=RUNNING,
    ),
]
Preview = Annotated[
    bool,
    typer.Option("--preview", help="Keep preview.png in the folder up to date.", rich_help_panel=RUNNING, **FLAG),
]


def chosen_seeds(text: str) -> list[int]:
    """`"3"`: 0, 1, 2. `"7,8"`: these. A single seed is `"7,"`."""
    found = numbers("--seeds", text.rstrip(", "), least=0)
    if "," not in text:
        if not 1 <= found[0] <= _MOST_SEEDS:
            raise ValueError(f"--seeds: {found[0]}, want 1..{_MOST_SEEDS} drawings, or seeds with commas")
        return list(range(found[0]))
    if len(set(found)) != len(found) or len(found) > _MOST_SEEDS:
        raise ValueError(f"--seeds: {text}; want at most {_MOST_SEEDS} different ones")
    return found


def hasten(config, speed: float | None, steps: int) -> float:
    """Multiplies a configuration's learning rates, by default so that few steps reach about as far as the published
    ones; the factor."""
    factor = min(4.0, max(1.0, 1000 / steps)) if speed is None else speed
    for rate in ("points_lr", "radii_lr", "colors_lr"):
        if hasattr(config, rate):
            setattr(config, rate, getattr(config, rate) * factor)
    return factor


def load_guided(
    method: str,
    guide: str | Sequence[str] | None,
    device: str | None,
    guide_weights: Sequence[float] | None = None,
    dtype: str | None = None,
    **settings,
):
    """A model of a row with a dual encoder's weights, in `guide_dtype(dtype)`; its tokenizer and name. With several
    guides, lists of these.

    Raises:
        OSError, ValueError: a guide is none, or settings do not fit.
    """
    from ..evaluation.devices import choose_device
    from ..registry import method as row_of
    from ..synthesis.guides import guide_dtype, guide_names, guide_sources, prepare_guides

    sources = guide_sources(guide)
    chosen = choose_device(device)
    dtype = guide_dtype(dtype, chosen)
    given = {name: value for name, value in settings.items() if value is not None}
    model = row_of(method).load("model").from_pretrained(sources[0], dtype=dtype, **given)
    tokenizer = prepare_guides(model, sources, guide_weights)
    return model.to(chosen).eval(), tokenizer, guide_names(guide)


def check_film(mp4: bool) -> None:
    """ImportError before anything is drawn, if a film is wanted and cannot be written."""
    if mp4:
        from ..optional_dependencies import require

        require("av", "--mp4")


@dataclass
class Row:
    """What one drawing is called, and what it shows."""

    name: str
    caption: str
    photo: Image.Image | None = None


def run_with_progress(run: SynthesisRun, out: Path, preview: bool) -> float:
    """Runs to the end with a bar that tells the loss; seconds of this part."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..files.atomic_writes import write_atomically
    from ..synthesis.progress_pictures import preview_of
    from .segmentation import png_of

    loop, started, shown = run.loop, time.monotonic(), -_PREVIEW_EVERY
    if run.resumed_at:
        say(f"{out} goes on at step {run.resumed_at} of {loop.num_steps}.")
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console(), transient=True) as bars:
        bar = bars.add_task("Drawing", total=loop.num_steps, completed=loop.step, loss="…")

        def after_step(run: SynthesisRun) -> None:
            nonlocal shown
            values = [sample.losses[-1] for sample in run.loop.samples if sample.losses]
            bars.update(bar, completed=run.loop.step, loss=f"{sum(values) / len(values):.4f}")
            if preview and time.monotonic() - shown > _PREVIEW_EVERY:
                shown = time.monotonic()
                write_atomically(out / "preview.png", png_of(preview_of(run.loop)))

        run.run(after_step)
    return time.monotonic() - started


def write_results(
    run: SynthesisRun,
    results: Sequence[SynthesizedDrawing],
    rows: Sequence[Row],
    best: set[int],
    out: Path,
    title: str,
    about: dict[str, Any],
    mp4: bool = False,
) -> list[dict[str, Any]]:
    """Writes the files of all drawings, see `write_result_files`; returns their rows."""
    from ..modeling.synthesis.stroke_samples import drawing_of
    from ..synthesis.result_files import ResultFiles, facts_of, write_result_files
    from ..synthesis.result_page import PageEntry

    files = []
    for number, (result, row) in enumerate(zip(results, rows, strict=True)):
        drawing, sample = result.drawing, run.loop.samples[number]
        frames = []
        for frame in run.frames[number]:
            for name, tensor in frame["tensors"].items():
                sample.tensors[name].data.copy_(tensor)
            frames.append(drawing_of(sample, drawing.height))
        pictures = [frame.to_image(_FRAME_SIDE / drawing.height) for frame in (*frames, drawing)]
        facts = facts_of(result, row.name, row.caption, number in best)
        facts |= {"strokes": len(drawing), "svg": f"{row.name}.svg"}
        notes = [("seed", str(result.seed)), ("similarity", f"{result.similarity:.3f}")]
        notes += [("loss", f"{result.loss:.4f}"), ("strokes", str(len(drawing))), ("steps", str(len(result.losses)))]
        entry = PageEntry([*frames[:-1], drawing], row.caption, notes, row.photo, facts["svg"], number in best)
        exact = {".svg": drawing.to_svg(), ".safetensors": drawing.to_bytes()}
        picture = drawing.to_image(SIDE / drawing.height)
        files.append(ResultFiles(row.name, picture, pictures, exact, entry, facts))
    return write_result_files(run, files, out, title, about, "drawings", mp4)


def file_stem(text: str, taken: set[str]) -> str:
    """Letters, digits and dashes of a text, at most 40, numbered if it is taken.

    >>> taken = set()
    >>> [file_stem(text, taken) for text in ("A red apple!", "a red/apple", "苹果", "…")]
    ['a-red-apple', 'a-red-apple-2', '苹果', 'drawing']
    """
    stem = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:40].strip("-_") or "drawing"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def best_of_each(results: Sequence[SynthesizedDrawing], group_of: Callable[[int], Any]) -> set[int]:
    """Numbers of the drawings with the lowest loss of their group, where a group has several."""
    groups: dict[Any, list[int]] = {}
    for number in range(len(results)):
        groups.setdefault(group_of(number), []).append(number)
    return {min(group, key=lambda number: results[number].loss) for group in groups.values() if len(group) > 1}


__all__ = [
    "Canvas",
    "Film",
    "GuideWeights",
    "Guides",
    "Precision",
    "Preview",
    "Row",
    "Seeds",
    "Speed",
    "best_of_each",
    "check_film",
    "chosen_seeds",
    "file_stem",
    "hasten",
    "load_guided",
    "run_with_progress",
    "write_results",
]
