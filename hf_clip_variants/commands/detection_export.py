"""`hf-clip-variants export` of a model that finds objects by texts: with its code, or as a graph of its labels."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from .output import say
from .segmentation import list_of_labels


def detects(model: str) -> bool:
    """Whether a folder or Hub id holds a detector; no other folders (adapters, runs) do."""
    from ..evaluation.detection import is_detector

    path = Path(model)
    return (not path.exists() or (path / "config.json").is_file()) and is_detector(model)


def export_detector(
    model: str,
    folder: str,
    *,
    labels: str | None,
    graph: str | None,
    int8: bool,
    images: str | None,
    license: str | None,
    emit: Callable[[Any], None] | None,
) -> Path:
    """Writes the folder, says what was compared, and returns the folder."""
    from transformers import AutoModelForZeroShotObjectDetection

    from ..evaluation.saved_folders import load_saved_processor

    if graph is None and labels is not None:
        raise ValueError("--labels: got it without --onnx; a detector with its code takes labels when it is used")
    if graph not in (None, "onnx") or int8:
        raise ValueError(f"--{'int8' if int8 else graph}: detectors are written as --onnx in float32 alone")
    if graph is not None and labels is None:
        raise ValueError("--labels: missing; the graph of a detector finds fixed labels, such as 'cat, dog'")
    loaded = AutoModelForZeroShotObjectDetection.from_pretrained(model, dtype="float32").eval()
    processor = load_saved_processor(model)
    if graph is None:
        from ..hub.export import export_with_code

        written = export_with_code(loaded, processor, folder, license=license)
        if emit is not None:
            emit({"folder": str(written)})
        return written
    from ..hub.detection_graph import export_detection_graph

    names = list_of_labels(labels)
    result = export_detection_graph(
        loaded,
        processor,
        names,
        folder,
        images=None if images is None else _read_images(processor, images),
        license=license,
        base_model=model,
    )
    if emit is not None:
        emit(
            {
                "folder": str(result.folder),
                "labels": len(names),
                "file": result.file.name,
                "bytes": result.size,
                "image_size": list(result.image_size),
                "images": result.images,
                "score_difference": result.score_difference,
                "box_difference": result.box_difference,
            }
        )
    kind = "random images" if images is None else "images"
    height, width = result.image_size
    say(
        f"{result.file.name}, {result.size / 1e6:.1f} MB, for images of {height} x {width} pixels (height x width). "
        f"Compared with PyTorch on {result.images} {kind}: scores differ by up to {result.score_difference:.2g}, "
        f"boxes by {result.box_difference:.2g} of the longer side"
    )
    return result.folder


def _read_images(processor: Any, folder: str) -> Any:
    from ..evaluation.prediction import find_images
    from .export import CHECKED

    paths = list(islice(find_images([folder]), CHECKED))
    if not paths:
        raise ValueError(f"--images: no image files in {folder}")
    settings = processor.image_processor
    edge = -(-settings.size["shortest_edge"] // 32) * 32
    size = {"max_height": edge, "max_width": edge}
    return settings(paths, size=size, pad_size={"height": edge, "width": edge}, return_tensors="pt")["pixel_values"]
