"""`hf-clip-variants sketch`: photographs become sketches of few strokes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options
from .arguments import check_device, check_model, check_out, numbers
from .drawing import (
    Canvas,
    Film,
    Guides,
    GuideWeights,
    Precision,
    Preview,
    Row,
    Seeds,
    Speed,
    best_of_each,
    check_film,
    chosen_seeds,
    file_stem,
    hasten,
    load_guided,
    run_with_progress,
    write_results,
)
from .options import FLAG, MODEL, RUNNING
from .output import JsonOption, machine_output, prepare_libraries, say, screen, title_and_rows, use_all_cores


METHOD = "clipasso"


def sketch(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Pictures of one thing each.", show_default=False)
    ],
    strokes: Annotated[
        str, typer.Option(metavar="N|LIST", help="Strokes, the level of abstraction; several with commas: 32,16,8,4.")
    ] = "16",
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps at most.")] = 300,
    speed: Speed = None,
    seeds: Seeds = "1",
    mask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="White where the thing is, black elsewhere; one for each photo, in order.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="PIXELS",
            help="Of the lines, on a picture of 224 pixels.",
            show_default="3",
            rich_help_panel=MODEL,
        ),
    ] = None,
    color: Annotated[
        bool, typer.Option("--color", "--colour", help="Strokes have colours.", rich_help_panel=MODEL, **FLAG)
    ] = False,
    fade: Annotated[
        bool, typer.Option("--fade", help="Strokes may become transparent.", rich_help_panel=MODEL, **FLAG)
    ] = False,
    stages: Annotated[
        int,
        typer.Option(
            min=1, max=64, metavar="N", help="Add the strokes in N stages, not all at once.", rich_help_panel=MODEL
        ),
    ] = 1,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What the photo shows: the sketch is drawn to the words, too; one for each photo, in order.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    loss: Annotated[
        Literal["L2", "L1", "Cos"],
        typer.Option(metavar="NAME", help="How layers are compared: L2, L1 or Cos.", rich_help_panel=MODEL),
    ] = "L2",
    start: Annotated[
        Literal["salient", "edges"],
        typer.Option(
            metavar="NAME",
            help="Where strokes begin: salient, at salient points as published; edges, along the longest edges, with "
            "a --speed of 1.",
            rich_help_panel=MODEL,
        ),
    ] = "salient",
    squash: Annotated[
        bool,
        typer.Option(
            "--squash",
            help="Squash photos that are not square, instead of white margins.",
            rich_help_panel=MODEL,
            **FLAG,
        ),
    ] = False,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="What is written.", rich_help_panel=RUNNING)] = "sketch",
    guide: Guides = None,
    guide_weight: GuideWeights = None,
    canvas: Canvas = None,
    preview: Preview = False,
    mp4: Film = False,
    device: options.Device = None,
    dtype: Precision = None,
    as_json: JsonOption = False,
) -> None:
    """
    Sketch photographs with few strokes: a picture, an SVG file, and a page that plays the strokes.

    \b
    [bold]Example[/bold]
      hf-clip-variants sketch cat.jpg

    Nothing is trained and nothing is downloaded: the embedded tiny CLIP guides the strokes. A larger one
    (--guide openai/clip-vit-base-patch32) sees more detail and takes longer; several guide together. Of several seeds,
    the best is marked. The same command goes on where it was stopped, and ends with the same sketches.

    \b
    [bold]More examples[/bold]
      hf-clip-variants sketch cat.jpg --strokes 32,16,8,4 --out levels
      hf-clip-variants sketch cat.jpg --mask cat-mask.png --seeds 3 --color
      hf-clip-variants sketch cat.jpg --strokes 24 --stages 3 --text "a cat"
      hf-clip-variants sketch cat.jpg --strokes 8 --steps 40 --start edges
    """
    counts = numbers("--strokes", strokes, least=1)
    if not counts or max(counts) > 4096 or len(set(counts)) != len(counts):
        raise ValueError(f"--strokes: {strokes}; want different numbers in 1..4096")
    chosen = chosen_seeds(seeds)
    check_out("--out", out)
    for source in guide or []:
        check_model("--guide", source)
    check_film(mp4)
    check_device(device)
    for option, files in (("PHOTO", photos), ("--mask", mask or [])):
        for file in files:
            if "://" not in file and not Path(file).is_file():
                raise FileNotFoundError(f"{option}: no such file {file}")
    for option, given in (("--mask", mask or []), ("--text", text or [])):
        if given and len(given) != len(photos):
            raise ValueError(f"{option}: {len(given)} {option[2:]}s, want one for each of {len(photos)} photos")
    if any(not words.strip() for words in text or []):
        raise ValueError("--text: empty, want words")
    if stages > min(counts):
        raise ValueError(f"--stages: {stages}, want at most as many as strokes, {min(counts)}")
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..modeling.decoding.image_decoding import decode_image
    from ..modeling.strokes.stroke_drawing import image_of
    from ..modeling.synthesis.synthesis_loop import SynthesisLoop
    from ..synthesis.runs import SynthesisRun

    with machine_output() as emit:
        changes = {"optimize_colors": color or None, "optimize_opacity": fade or None, "loss_type": loss}
        changes |= {"num_stages": stages, "start": start}
        radius = None if width is None else width / 2
        model, tokenizer, name = load_guided(
            METHOD, guide, device, guide_weight, dtype, canvas_size=canvas, stroke_radius=radius, **changes
        )
        # Edges are near to what is wanted: strokes that move fast would leave them.
        factor = hasten(model.config, 1.0 if speed is None and start == "edges" else speed, steps)
        settings = {
            "method": METHOD, "photos": photos, "strokes": counts, "steps": steps, "seeds": chosen,
            "mask": mask or [], "guide": name, "canvas": model.config.canvas, "width": width, "color": color,
            "fade": fade, "loss": loss, "squash": squash, "speed": factor, "stages": stages, "text": text or [],
            "start": start, "guide_weights": model.config.guide_weights, "dtype": dtype,
        }  # fmt: skip
        masks = None if not mask else [decode_image(file).convert("L") for file in mask]
        with model.frozen():
            loops = [
                model.make_loop(
                    photos,
                    masks=masks,
                    texts=text or None,
                    tokenizer=tokenizer,
                    pad=not squash,
                    seeds=chosen,
                    num_strokes=count,
                    num_steps=steps,
                )  # fmt: skip
                for count in counts
            ]
            # One loop over all: photos, then numbers of strokes, then seeds.
            each = len(chosen)
            samples = [
                sample
                for photo in range(len(photos))
                for loop in loops
                for sample in loop.samples[photo * each : (photo + 1) * each]
            ]
            first = loops[0]
            loop = SynthesisLoop(
                first.task, samples, steps, first.samples_at_once, first.evaluate_every, True, first.min_delta
            )
            run = SynthesisRun(out, loop, settings)
            run_with_progress(run, Path(out), preview)
            results = model.results(loop)
        taken: set[str] = set()
        rows = []
        for number, result in enumerate(results):
            file = Path(photos[number // (each * len(counts))]).stem
            count = len(result.drawing)
            parts = [file, str(count), *([f"seed-{result.seed}"] if each > 1 else [])]
            photo = image_of(samples[number].goal.pixels).resize((256, 256))
            rows.append(Row(file_stem("-".join(parts), taken), f"{file}, {count} strokes", photo))
        best = best_of_each(results, lambda number: number // each)
        about = {"settings": settings, "guide": name}
        title = ", ".join(Path(p).name for p in photos)
        found = write_results(run, results, rows, best, Path(out), title, about, mp4)
        if as_json:
            for row in found:
                emit(row)
    if not as_json:
        cells = [
            (row["caption"] + (" (best)" if row["best"] else ""), str(row["seed"]), f"{row['loss']:.4f}",
             f"{row['similarity']:.3f}", row["svg"])
            for row in found
        ]  # fmt: skip
        screen().print(title_and_rows(f"Sketches in {out}", ("photo", "seed", "loss", "similarity", "file"), cells))
        say(f"{run.spent:.0f} s of sketching. Open {Path(out) / 'index.html'} in a browser: it plays the strokes.")


__all__ = ["sketch"]
