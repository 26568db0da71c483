"""`hf-clip-variants export` of a model that segments by texts: with its code, or as a graph of its labels."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from .output import say
from .segmentation import list_of_labels


def segments(model: str) -> bool:
    """Whether a folder or Hub id holds a segmenter; no other folders (adapters, runs) do."""
    from ..evaluation.segmentation import is_segmenter

    path = Path(model)
    return (not path.exists() or (path / "config.json").is_file()) and is_segmenter(model)


def export_segmenter(
    model: str,
    folder: str,
    *,
    labels: str | None,
    templates: str | None,
    graph: str | None,
    int8: bool,
    images: str | None,
    license: str | None,
    emit: Callable[[Any], None] | None,
) -> Path:
    """Writes the folder, says what was compared, and returns the folder."""
    from ..evaluation.segmentation import load_segmenter

    names = None if labels is None else list_of_labels(labels)
    segmenter = load_segmenter(model, names, templates, "cpu", labels_needed=graph is not None)
    loaded, processor = segmenter.pipeline.model, segmenter.pipeline.processor
    if names is not None:
        own = loaded.config.background
        loaded.set_labels(names, processor, templates, background=own if isinstance(own, int | float) else None)
    if graph is None:
        from ..hub.export import export_with_code

        written = export_with_code(loaded, processor, folder, license=license)
        if emit is not None:
            emit({"folder": str(written), "labels": len(loaded.config.id2label)})
        return written
    from ..hub.segmentation_graph import export_segmentation_graph

    result = export_segmentation_graph(
        loaded,
        processor,
        folder,
        to=graph,
        int8=int8,
        images=None if images is None else _read_images(processor, images),
        license=license,
        base_model=model,
    )
    size = "any size" if result.image_size is None else "{} x {} pixels (height x width)".format(*result.image_size)
    if emit is not None:
        emit(
            {
                "folder": str(result.folder),
                "labels": len(loaded.config.id2label),
                "file": result.file.name,
                "bytes": result.size,
                "image_size": None if result.image_size is None else list(result.image_size),
                "images": result.images,
                "max_difference": result.max_difference,
                "largest_logit": result.largest_logit,
                "same_answers": result.same_answers,
                "other_pixels": result.other_pixels,
            }
        )
    kind = "random images" if images is None else "images"
    say(
        f"{result.file.name}, {result.size / 1e6:.1f} MB, for images of {size}. Compared with PyTorch on "
        f"{result.images} {kind}: logits differ by up to {result.max_difference:.2g} "
        f"(they reach {result.largest_logit:.3g}), {100 * result.same_answers:.2f} % of the pixels have the same label"
    )
    return result.folder


def _read_images(processor: Any, folder: str) -> list[Any]:
    from ..evaluation.prediction import find_images
    from .export import CHECKED

    paths = list(islice(find_images([folder]), CHECKED))
    if not paths:
        raise ValueError(f"--images: no image files in {folder}")
    return [processor.image_processor([path], return_tensors="pt")["pixel_values"] for path in paths]
