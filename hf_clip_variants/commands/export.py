"""`hf-clip-variants export`: a folder that loads without this package, as a model with its code or as a graph."""

from typing import Annotated, Any

import typer

from ..files.recommended_run import is_run_folder, recommended_run
from . import options
from .arguments import check_model, check_templates
from .detection_export import detects, export_detector
from .options import FLAG
from .output import JsonOption, machine_output, prepare_libraries, say
from .segmentation_export import export_segmenter, segments


CHECKED = 256  # images that answers are compared on, at most
GRAPH = "Graphs"


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A classifier, a segmenter, a detector, or any CLIP: folder or Hub id. For a graph also an adapter, "
            "or what adapt wrote.",
        ),
    ],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to write.")],
    classes: Annotated[
        str | None, typer.Option(metavar="LIST", help="Classes, with commas.", show_default="the model's own")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|LIST",
            help=f"Of a model that segments or finds objects: {options.NAMES}.",
            show_default="the model's own",
        ),
    ] = None,
    license: options.License = None,
    templates: options.Templates = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Write a graph for ONNX Runtime instead.", rich_help_panel=GRAPH, **FLAG),
    ] = False,
    openvino: Annotated[
        bool,
        typer.Option("--openvino", help="Write a graph for OpenVINO instead.", rich_help_panel=GRAPH, **FLAG),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Weights in 8 bits: a quarter of the size. Beside --onnx.", rich_help_panel=GRAPH, **FLAG
        ),
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help=f"Images to compare the graph's answers on, up to {CHECKED}.",
            show_default="random ones",
            rich_help_panel=GRAPH,
        ),
    ] = None,
    base: options.Base = None,
    json: JsonOption = False,
) -> None:
    """
    Write a model folder that loads without this package (trust_remote_code), or a graph (ONNX, OpenVINO).

    \b
    [bold]Example[/bold]
      hf-clip-variants export run/base pets-classifier --license mit

    The folder holds weights, classes with their text features, processor, tokenizer, the code that they need, and a
    card. Adapters are PEFT folders and need no export.

    A graph takes pixels and gives logits, of a model, an adapter or what a run folder recommends. Its folder has a
    short program that needs the runtime, NumPy and Pillow alone. It is compared with PyTorch, and the difference is
    printed: logits that differ by more than 0.0001 of the largest are an error, except with --int8. The graph of a
    segmenter takes images of any size, where its layers allow it; that of a detector finds fixed labels in images of
    one size, into which the program scales others.

    \b
    [bold]More examples[/bold]
      hf-clip-variants export openai/clip-vit-base-patch32 animals \\
        --classes "cat, dog, fox" --templates general
      hf-clip-variants export run graph --onnx
      hf-clip-variants export run small-graph --onnx --int8 --images photos/
      hf-clip-variants export groupvit street --onnx --labels "car, sky, road"
      hf-clip-variants export glip street --onnx --labels "car, person"
      hf-clip-variants push animals me/animals
    """
    check_model("MODEL", model)
    check_model("--base", base)
    check_templates(templates)
    graph = _graph_format(onnx, openvino, int8, images)
    if graph is None and base is not None:
        raise ValueError(f"--base: got {base} without --onnx or --openvino; adapters are exported as graphs only")
    prepare_libraries(watched=not json)
    if segments(model):
        for option, value in (("--classes", classes), ("--base", base)):
            if value is not None:
                raise ValueError(f"{option}: got it for a model that segments; want --labels")
        with machine_output() as emit:
            options_of_graph = {"graph": graph, "int8": int8, "images": images, "license": license}
            emit_json = emit if json else None
            written = export_segmenter(
                model, folder, labels=labels, templates=templates, emit=emit_json, **options_of_graph
            )
        if not json:
            typer.echo(written)
        return
    if detects(model):
        for option, value in (("--classes", classes), ("--base", base), ("--templates", templates)):
            if value is not None:
                raise ValueError(f"{option}: got it for a model that finds objects; want --labels")
        with machine_output() as emit:
            options_of_graph = {"graph": graph, "int8": int8, "images": images, "license": license}
            written = export_detector(model, folder, labels=labels, emit=emit if json else None, **options_of_graph)
        if not json:
            typer.echo(written)
        return
    if labels is not None:
        raise ValueError("--labels: got it for a model that classifies; want --classes")
    from ..evaluation.prediction import load_for_prediction

    with machine_output() as emit:
        if graph is not None and is_run_folder(model):
            say(f"{model} recommends {recommended_run(model)}")
        loaded = load_for_prediction(model, None, classes, templates, "cpu", base=base)
        if graph is None:
            from ..hub.export import export_with_code

            written = export_with_code(loaded.model, loaded.processor, folder, license=license)
            if json:
                emit({"folder": str(written), "classes": len(loaded.class_names)})
        else:
            written = _write_graph(loaded, model, folder, graph, int8, images, license, emit if json else None)
    if not json:
        typer.echo(written)


def _graph_format(onnx: bool, openvino: bool, int8: bool, images: str | None) -> str | None:
    if onnx and openvino:
        raise ValueError("--onnx: got it beside --openvino; want one of them")
    for option, given in (("--int8", int8), ("--images", images is not None)):
        if given and not (onnx or openvino):
            raise ValueError(f"{option}: got it without --onnx or --openvino; it is about graphs")
    if int8 and openvino:
        raise ValueError("--int8: got it beside --openvino, which has its own tool for that (nncf); want --onnx")
    return "onnx" if onnx else "openvino" if openvino else None


def _write_graph(
    loaded: Any, model: str, folder: str, graph: str, int8: bool, images: str | None, license: str | None, emit: Any
) -> Any:
    from ..evaluation.calibration import PRIOR_TEMPERATURE
    from ..evaluation.multi_label import label_thresholds
    from ..hub.graph_export import export_graph

    result = export_graph(
        loaded.model,
        loaded.processor,
        folder,
        to=graph,
        int8=int8,
        images=None if images is None else _read_images(loaded, images),
        temperature=loaded.calibration.temperature if loaded.calibration else PRIOR_TEMPERATURE,
        thresholds=label_thresholds(loaded.model).tolist() if loaded.several_labels else None,
        license=license,
        base_model=model,
    )
    if emit is not None:
        emit(
            {
                "folder": str(result.folder),
                "classes": len(loaded.class_names),
                "file": result.file.name,
                "bytes": result.size,
                "images": result.images,
                "max_difference": result.max_difference,
                "largest_logit": result.largest_logit,
                "same_answers": result.same_answers,
            }
        )
    say(
        f"{result.file.name}, {result.size / 1e6:.1f} MB. Compared with PyTorch on {result.images} "
        f"{'random ' if images is None else ''}images: logits differ by up to {result.max_difference:.2g} "
        f"(they reach {result.largest_logit:.3g}), {100 * result.same_answers:.1f} % of the answers are the same"
    )
    return result.folder


def _read_images(loaded: Any, folder: str) -> Any:
    from itertools import islice

    from ..evaluation.prediction import find_images

    paths = list(islice(find_images([folder]), CHECKED))
    if not paths:
        raise ValueError(f"--images: no image files in {folder}")
    return loaded.processor.image_processor(paths, return_tensors="pt")["pixel_values"]
