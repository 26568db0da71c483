"""`hf-clip-variants export`: a folder that loads without this package."""

from typing import Annotated

import typer

from . import options
from .arguments import check_model, check_templates
from .output import JsonOption, machine_output, prepare_libraries


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A classifier, or any CLIP: folder or Hub id.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to write.")],
    classes: Annotated[
        str | None, typer.Option(metavar="LIST", help="Classes, with commas.", show_default="the model's own")
    ] = None,
    license: options.License = None,
    templates: options.Templates = None,
    json: JsonOption = False,
) -> None:
    """
    Write a model folder that loads without this package (trust_remote_code).

    \b
    [bold]Example[/bold]
      hf-clip-variants export run/base pets-classifier --license mit

    The folder holds weights, classes with their text features, processor, tokenizer, the code that they need, and a
    card. Adapters are PEFT folders and need no export.

    \b
    [bold]More examples[/bold]
      hf-clip-variants export openai/clip-vit-base-patch32 animals \\
        --classes "cat, dog, fox" --templates general
      hf-clip-variants push animals me/animals
    """
    check_model("MODEL", model)
    check_templates(templates)
    prepare_libraries(watched=not json)
    from ..evaluation.prediction import load_for_prediction
    from ..hub.export import export_with_code

    with machine_output() as emit:
        loaded = load_for_prediction(model, None, classes, templates, "cpu")
        written = export_with_code(loaded.model, loaded.processor, folder, license=license)
        if json:
            emit({"folder": str(written), "classes": len(loaded.class_names)})
    if not json:
        typer.echo(written)
