"""`hf-clip-variants demo`: `adapt` with the embedded model and images."""

from typing import Annotated

import typer

from ..registry import few_shot_entries
from . import options
from .adapt import run
from .arguments import check_out, method_names, numbers
from .output import JsonOption, prepare_libraries


TRAINED_STYLES, TESTED_STYLES = ("fluentflat", "emojione"), ("notov1", "fluent3d")  # the far one first
_METHODS = [entry.name for entry in few_shot_entries().values() if entry.in_demo]


def demo(
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The run folder.")] = "clip-demo",
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="With commas, or all (some ten minutes).",
            show_default=", ".join(_METHODS),
            autocompletion=options.several_of(options.few_shot_methods),
        ),
    ] = ",".join(_METHODS),
    shots: Annotated[str, typer.Option(metavar="LIST", help="Images per class, 1 or 2 or both.")] = "1,2",
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Draws, with commas.")] = "1,2",
    json: JsonOption = False,
) -> None:
    """
    Adapt the embedded tiny CLIP to classes that it has never seen. Offline, two to four minutes.

    \b
    [bold]Example[/bold]
      hf-clip-variants demo

    190 animals, plants, foods and drinks as emoji. The model (6 M parameters) has never seen the four styles used
    here: it learns from one or two images of each class (fluentflat, emojione) and is tested on two other styles
    (notov1 by another designer, fluent3d by that of fluentflat).

    \b
    [bold]More examples[/bold]
      hf-clip-variants demo --methods tip_adapter --shots 2 --seeds 1
      hf-clip-variants predict my-image.png --top 3 \\
        --adapter clip-demo/adapters/tip_adapter_f/2-shot/seed-1
    """
    data = f"emoji:{','.join(TRAINED_STYLES)}"
    test_data = {style: f"emoji:{style}" for style in TESTED_STYLES}
    names, numbers_of_shots = method_names(methods), numbers("--shots", shots, least=1)
    draws = numbers("--seeds", seeds)
    check_out("--out", out)
    prepare_libraries(watched=not json)
    from ..few_shot.method import few_shot_method

    shorter = {f"{name}.{setting}": value for name in names for setting, value in few_shot_method(name).demo.items()}
    run(
        None,
        data,
        out,
        json,
        methods=names,
        shots=numbers_of_shots,
        seeds=draws,
        test_data=test_data,
        templates="icons",
        overrides=shorter,
    )
