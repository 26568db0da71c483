"""`hf-clip-variants paint`: texts become pictures, or change one, through the codes of a VQGAN."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .arguments import check_device, check_model, check_out
from .drawing import (
    Film,
    Guides,
    GuideWeights,
    Precision,
    Preview,
    Seeds,
    best_of_each,
    check_film,
    chosen_seeds,
    file_stem,
    run_with_progress,
)
from .options import MODEL, RUNNING
from .output import JsonOption, machine_output, prepare_libraries, say, screen, title_and_rows, use_all_cores


METHOD = "vqgan_clip"
CHOSEN = ("cut_method", "learning_rate", "tv_weight")  # that follow from the VQGAN where they are not given
STARTS = ("mean", "codes", "pixels", "gradient")  # "mean" is a picture; the rest are the model's


def paint(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help="What to paint; each text becomes pictures.", show_default=False),
    ],
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps; more is better, and slower.")] = 100,
    seeds: Seeds = "1",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="A side, or width and height such as 96x64.",
            show_default="the start picture's, or what the guide takes; 64 with the embedded VQGAN",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|KIND",
            help="A picture to change; mean: that of emoji; codes, pixels, gradient: random ones.",
            show_default="codes; mean with the embedded VQGAN",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="White where the start picture may change; the rest stays.", show_default=False
        ),
    ] = None,
    image_prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A picture that the result should look like, too. May be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="What is written.", rich_help_panel=RUNNING)] = "painting",
    guide: Guides = None,
    guide_weight: GuideWeights = None,
    vqgan: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The VQGAN that paints: folder or Hub id (convert makes one of an official file).",
            show_default="the embedded tiny one",
            rich_help_panel=MODEL,
        ),
    ] = None,
    cuts: Annotated[
        int, typer.Option(min=1, max=4096, metavar="N", help="Views in each step.", rich_help_panel=MODEL)
    ] = 16,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the views: original, updated, nrupdated, updatedpooling, latest.",
            show_default="latest; updated with the embedded VQGAN",
            rich_help_panel=MODEL,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1000.0,
            metavar="X",
            help="Of the codes.",
            show_default="0.1; 0.15 with the embedded VQGAN",
            rich_help_panel=MODEL,
        ),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1000.0,
            metavar="X",
            help="Weight of the total variation: smoother pictures.",
            show_default="0; 0.3 with the embedded VQGAN",
            rich_help_panel=MODEL,
        ),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1000.0,
            metavar="X",
            help="Pulls to the start, most in the first steps.",
            rich_help_panel=MODEL,
        ),
    ] = 0.0,
    dtype: Precision = None,
    preview: Preview = False,
    mp4: Film = False,
    device: options.Device = None,
    as_json: JsonOption = False,
) -> None:
    """
    Paint a text, or change a picture by one: pictures, their progress, and a page that shows them.

    \b
    [bold]Example[/bold]
      hf-clip-variants paint "a red apple"

    Nothing is trained and nothing is downloaded: the embedded tiny CLIP guides the codes of the embedded tiny VQGAN,
    which know emoji and clip art. Larger ones (--guide openai/clip-vit-base-patch32 --vqgan FOLDER) know more and take
    longer. The same command goes on where it was stopped, and ends with the same pictures.

    In a text, | stands between prompts of one picture, :0.5 behind one is its weight (negative: away from it), and ^
    stands between chapters of a story.

    \b
    [bold]More examples[/bold]
      hf-clip-variants paint "a red apple" "a blue fish" --seeds 3 --out pictures
      hf-clip-variants paint "a cat | watercolour:0.3 | text:-0.5" --steps 300
      hf-clip-variants paint "a green apple" --start apple.png --mask area.png
      hf-clip-variants paint "a seed ^ a tree ^ a red apple" --size 96x64
    """
    if not prompts or any(not text.strip() for text in prompts):
        raise ValueError("TEXT: empty; want what to paint, in words")
    chosen, sides = chosen_seeds(seeds), _sides(size)
    check_out("--out", out)
    for source in guide or []:
        check_model("--guide", source)
    check_film(mp4)
    check_model("--vqgan", vqgan)
    check_device(device)
    files = [("--image-prompt", file) for file in image_prompt or []] + ([("--mask", mask)] if mask else [])
    start = start or ("mean" if vqgan is None else "codes")
    files += [] if start in STARTS else [("--start", start)]
    for option, file in files:
        if not Path(file).is_file():
            kinds = f"; want a picture, or one of {', '.join(STARTS)}" if option == "--start" else ""
            raise FileNotFoundError(f"{option}: no such file {file}{kinds}")
    if mask and start in STARTS:
        raise ValueError("--mask: given without a picture to change (--start FILE)")
    prepare_libraries(watched=not as_json)
    use_all_cores()
    from ..data.images.emoji import embedded_start
    from ..synthesis.painting_results import load_painter, write_paintings
    from ..synthesis.runs import SynthesisRun

    with machine_output() as emit:
        painter = load_painter(
            guide, vqgan, device, guide_weight, dtype,
            num_cuts=cuts, cut_method=method, learning_rate=learning_rate, tv_weight=smooth, init_weight=keep,
            init_target="start",
        )  # fmt: skip
        settings = {
            "method": METHOD, "prompts": prompts, "steps": steps, "seeds": chosen, "size": size, "start": start,
            "mask": mask, "image_prompt": image_prompt or [], "guide": painter.guide, "vqgan": painter.vqgan,
            "cuts": cuts, "keep": keep, "guide_weights": painter.model.config.guide_weights, "dtype": dtype,
            **{name: getattr(painter.model.config, name) for name in CHOSEN},
        }  # fmt: skip
        with painter.model.frozen():
            loop = painter.model.make_loop(
                prompts,
                painter.tokenizer,
                image_prompts=image_prompt,
                seeds=chosen,
                size=sides,
                num_steps=steps,
                start=embedded_start() if start == "mean" else start,
                mask=mask,
                evaluate_every=max(1, steps // 20),
            )
            run = SynthesisRun(out, loop, settings)
            run_with_progress(run, Path(out), preview)
            results = painter.model.results(loop)
        taken: set[str] = set()
        names = [
            file_stem(f"{result.prompt}-{result.seed}" if len(chosen) > 1 else result.prompt, taken)
            for result in results
        ]
        best = best_of_each(results, lambda number: number // len(chosen))
        found = write_paintings(run, results, names, best, Path(out), settings, mp4)
        if as_json:
            for row in found:
                emit(row)
    if not as_json:
        cells = [
            (
                row["caption"] + (" (best)" if row["best"] else ""),
                str(row["seed"]),
                f"{row['similarity']:.3f}",
                row["picture"],
            )
            for row in found
        ]
        screen().print(title_and_rows(f"Pictures in {out}", ("text", "seed", "similarity", "file"), cells))
        say(f"{run.spent:.0f} s of painting. Open {Path(out) / 'index.html'} in a browser.")


def _sides(text: str | None) -> tuple[int, int] | None:
    """`"96x64"` -> (64, 96): height and width. `"64"`: a square.

    >>> _sides("96x64"), _sides("64"), _sides(None)
    ((64, 96), (64, 64), None)
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ValueError(f"--size: {text}; want pixels of a side, or width and height such as 96x64")
    width, height = int(parts[0]), int(parts[-1])
    if not all(8 <= side <= 4096 for side in (width, height)):
        raise ValueError(f"--size: {text}; want sides of 8..4096 pixels")
    return height, width


__all__ = ["STARTS", "paint"]
