"""`hf-clip-variants draw`: texts become vector drawings of coloured strokes."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import check_device, check_model, check_out
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
from .options import MODEL, RUNNING
from .output import JsonOption, machine_output, prepare_libraries, say, screen, title_and_rows, use_all_cores


METHOD = "clipdraw"


def draw(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help="What to draw; each text becomes drawings.", show_default=False),
    ],
    strokes: Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Strokes of a drawing.")] = 64,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps; more is better, and slower.")] = 250,
    speed: Speed = None,
    seeds: Seeds = "1",
    negative: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What drawings should not look like. May be repeated.", show_default=False),
    ] = None,
    image_prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A picture that drawings should look like, too.", show_default=False),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="An SVG or safetensors drawing to begin with.", show_default=False),
    ] = None,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="What is written.", rich_help_panel=RUNNING)] = "drawing",
    guide: Guides = None,
    guide_weight: GuideWeights = None,
    canvas: Canvas = None,
    max_width: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="PIXELS",
            help="Widest line, on a picture of 224 pixels.",
            show_default="100",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dtype: Precision = None,
    preview: Preview = False,
    mp4: Film = False,
    device: options.Device = None,
    as_json: JsonOption = False,
) -> None:
    """
    Draw a text with coloured strokes: a picture, an SVG file, and a page that plays the strokes.

    \b
    [bold]Example[/bold]
      hf-clip-variants draw "a red apple"

    Nothing is trained and nothing is downloaded: the embedded tiny CLIP guides the strokes, which knows things that
    have an emoji. A larger CLIP (--guide openai/clip-vit-base-patch32) knows more and takes longer. The same command
    goes on where it was stopped, and ends with the same drawings.

    In a text, | stands between prompts of one drawing, :0.5 behind one is its weight (negative: away from it), and ^
    stands between chapters of a story.

    \b
    [bold]More examples[/bold]
      hf-clip-variants draw "a red apple" "a blue fish" --seeds 3
      hf-clip-variants draw "a cat | watercolour:0.3" --strokes 256 --steps 1000
      hf-clip-variants draw "a sunflower" --start logo.svg
      hf-clip-variants draw "a seed ^ a tree ^ a red apple" --mp4
      hf-clip-variants draw "a cat" --guide clip-b32 --guide chinese-clip
    """
    if not prompts or any(not text.strip() for text in prompts):
        raise ValueError("TEXT: empty; want what to draw, in words")
    chosen = chosen_seeds(seeds)
    check_out("--out", out)
    for source in guide or []:
        check_model("--guide", source)
    check_film(mp4)
    check_device(device)
    for option, files in (("--image-prompt", image_prompt or []), ("--start", [start] if start else [])):
        for file in files:
            if not Path(file).is_file():
                raise FileNotFoundError(f"{option}: no such file {file}")
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..modeling.strokes.stroke_drawing import StrokeDrawing
    from ..synthesis.runs import SynthesisRun

    with machine_output() as emit:
        radius = None if max_width is None else max_width / 2
        smallest = None if radius is None else min(1.0, radius)
        model, tokenizer, name = load_guided(
            METHOD, guide, device, guide_weight, dtype, canvas_size=canvas, max_radius=radius, min_radius=smallest
        )
        config = model.config
        factor = hasten(config, speed, steps)
        settings = {
            "method": METHOD, "prompts": prompts, "strokes": strokes, "steps": steps, "seeds": chosen,
            "negative": negative or [], "image_prompt": image_prompt or [], "start": start, "guide": name,
            "canvas": config.canvas, "max_width": max_width, "speed": factor,
            "guide_weights": config.guide_weights, "dtype": dtype,
        }  # fmt: skip
        with model.frozen():
            loop = model.make_loop(
                prompts,
                tokenizer,
                negative_prompts=negative,
                image_prompts=image_prompt,
                seeds=chosen,
                num_strokes=strokes,
                num_steps=steps,
                start=None if start is None else StrokeDrawing.load(start),
                evaluate_every=max(1, steps // 20),
            )
            run = SynthesisRun(out, loop, settings)
            run_with_progress(run, Path(out), preview)
            results = model.results(loop)
        taken: set[str] = set()
        rows = [
            Row(
                file_stem(f"{result.prompt}-{result.seed}" if len(chosen) > 1 else result.prompt, taken), result.prompt
            )
            for result in results
        ]
        best = best_of_each(results, lambda number: number // len(chosen))
        about = {"settings": settings, "guide": name}
        found = write_results(run, results, rows, best, Path(out), ", ".join(prompts), about, mp4)
        if as_json:
            for row in found:
                emit(row)
    if not as_json:
        cells = [
            (
                row["caption"] + (" (best)" if row["best"] else ""),
                str(row["seed"]),
                f"{row['similarity']:.3f}",
                row["svg"],
            )
            for row in found
        ]
        screen().print(title_and_rows(f"Drawings in {out}", ("text", "seed", "similarity", "file"), cells))
        say(f"{run.spent:.0f} s of drawing. Open {Path(out) / 'index.html'} in a browser: it plays the strokes.")


__all__ = ["draw"]
