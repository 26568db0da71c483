"""`hf-clip-variants demo`: `adapt` with the embedded model and images."""

from typing import Annotated

import typer

from ..registry import few_shot_entries
from .adapt import method_names, numbers, run
from .output import JsonOption, console, prepare_libraries


TRAINED_STYLES, TESTED_STYLES = ("fluentflat", "emojione"), ("notov1", "fluent3d")  # the far one first
_METHODS = [entry.name for entry in few_shot_entries().values() if entry.in_demo]


def demo(
    out: Annotated[str, typer.Option(help="The run folder.")] = "clip-demo",
    methods: Annotated[str, typer.Option(help="Methods, with commas, or all (some ten minutes).")] = ",".join(
        _METHODS
    ),
    shots: Annotated[str, typer.Option(help="Images per class, 1 or 2 or both.")] = "1,2",
    seeds: Annotated[str, typer.Option(help="Draws, with commas.")] = "1,2",
    json: JsonOption = False,
) -> None:
    """
    Adapt the embedded tiny CLIP to classes that it has never seen. Offline, about two minutes.

    190 animals, plants, foods and drinks as emoji. The model (6 M parameters) has never seen the four styles used
    here: it learns from one or two images of each class (fluentflat, emojione) and is tested on two other styles
    (notov1 by another designer, fluent3d by that of fluentflat).

    \b
    [bold]Examples[/bold]
      hf-clip-variants demo
      hf-clip-variants demo --methods tip_adapter --shots 2 --seeds 1
      hf-clip-variants predict --adapter clip-demo/adapters/tip_adapter_f/2-shot/seed-1 my-image.png --top 3
    """
    data = f"emoji:{','.join(TRAINED_STYLES)}"
    test_data = {style: f"emoji:{style}" for style in TESTED_STYLES}
    if not json:
        console().print("Loading …", style="dim")
    prepare_libraries()
    from ..few_shot.method import few_shot_method

    names = method_names(methods)
    shorter = {f"{name}.{setting}": value for name in names for setting, value in few_shot_method(name).demo.items()}
    run(
        None,
        data,
        out,
        json,
        methods=names,
        shots=numbers("shots", shots),
        seeds=numbers("seeds", seeds),
        test_data=test_data,
        templates="icons",
        overrides=shorter,
    )
