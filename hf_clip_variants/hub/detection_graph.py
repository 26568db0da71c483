"""Folders with a graph of a model that finds objects by texts: pixels to scores and boxes of fixed labels."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from ..files.atomic_writes import staged_folder
from .graph_export import GRAPH_FILES, INPUT, TOLERANCE, card_data, check_format, random_images, write_module


OUTPUTS = ("scores", "boxes")
_MULTIPLE = 32  # images of the graph have edges that are multiples of it
# As the processor's `post_process_grounded_object_detection` selects by default.
_SELECTION = {"nms_threshold": 0.6, "pre_nms": 1000, "max_detections": 100}


@dataclass(frozen=True)
class DetectionGraph:
    """What was written, and how it compares with PyTorch.

    Attributes:
        folder, file: the folder, and the graph in it.
        size: bytes of the graph and its weights.
        image_size: (height, width) of its images.
        images: how many were compared.
        score_difference: largest difference of a score.
        box_difference: of a box's edge, as a share of the image's longer side.
    """

    folder: Path
    file: Path
    size: int
    image_size: tuple[int, int]
    images: int
    score_difference: float
    box_difference: float


def export_detection_graph(
    model: torch.nn.Module,
    processor: Any,
    labels: Sequence[str],
    folder: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    images: torch.Tensor | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> DetectionGraph:
    """Writes a detector of fixed labels as an ONNX graph from pixels to scores and boxes; compares it with PyTorch.

    The graph takes any number of images (B, 3, H, W) float32 of one size, and gives `scores` (B, N, K) of K labels and
    `boxes` (B, N, 4) in pixels. Texts are folded in: the text encoder is left out. The folder holds the graph, labels
    and what selects objects (`config.json`), the processor's settings, which scale images into that size and pad them,
    a program that needs onnxruntime, NumPy and Pillow alone, and a card.

    Args:
        model: a detector that has `as_graph`.
        processor: its processor.
        labels: what to look for.
        folder: written in one step; nothing is left there if the comparison fails.
        image_size: (height, width), multiples of 32. Default: a square of the processor's shorter side.
        images: normalised images (B, 3, H, W) of that size to compare on; default: random ones.
        license, base_model: for the card.

    Raises:
        ValueError: a model that cannot be written so, a size that is no multiple of 32, or scores or boxes that differ
            by more than `TOLERANCE` (boxes: of the longer side).
        ImportError: the packages of the extra are not installed.
    """
    check_format("onnx", False)
    if not hasattr(model, "as_graph"):
        raise ValueError(
            f"model: {type(model).__name__} cannot be written as a graph; want one whose class has as_graph"
        )
    settings = copy.deepcopy(getattr(processor, "image_processor", processor))
    if image_size is None:
        short = settings.size.get("shortest_edge") or settings.size.get("max_height") or settings.size.get("height")
        image_size = (-(-short // _MULTIPLE) * _MULTIPLE,) * 2
    if len(image_size) != 2 or any(edge < _MULTIPLE or edge % _MULTIPLE for edge in image_size):
        raise ValueError(f"image_size: {image_size}, expected (height, width), multiples of {_MULTIPLE}")
    height, width = image_size
    images = random_images(3, height, width) if images is None else images.detach().float().cpu()
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, height, width):
        raise ValueError(f"images: got {list(images.shape)}, expected [batch, 3, {height}, {width}]")
    module = model.as_graph(processor, labels, (height, width))
    target = Path(folder)
    with staged_folder(target) as stage:
        file = stage / GRAPH_FILES["onnx"]
        write_module(module, random_images(2, height, width), file, OUTPUTS)
        differences = _compared(module, file, images)
        for name, difference in zip(OUTPUTS, differences, strict=True):
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{file.name}: its {name} differ from PyTorch's by up to {difference:.2g}, more than "
                    f"{TOLERANCE:g} is not accepted; nothing was written"
                )
        result = DetectionGraph(
            target,
            target / file.name,
            sum(path.stat().st_size for path in stage.iterdir() if path.is_file()),
            (height, width),
            len(images),
            *differences,
        )
        settings.size = {"max_height": height, "max_width": width}
        settings.pad_size = {"height": height, "width": width}
        settings.save_pretrained(stage)
        config = {
            "id2label": {str(number): name for number, name in enumerate(labels)},
            "image_size": [height, width],
            "level_sizes": module.level_sizes,
            "input": INPUT,
            "outputs": list(OUTPUTS),
            **_SELECTION,
        }
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        (stage / "config.json").write_text(text + "\n", encoding="utf-8")
        program = files(__package__).joinpath("run_detection_graph.py").read_text(encoding="utf-8")
        (stage / "detect.py").write_text(program, encoding="utf-8")
        _card(result, config, license, base_model).save(stage / "README.md")
    return result


@torch.no_grad()
def _compared(module: torch.nn.Module, file: Path, images: torch.Tensor) -> tuple[float, float]:
    """The largest differences of scores and of boxes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    scores, boxes = 0.0, 0.0
    for image in images.split(1):
        got = [torch.as_tensor(one) for one in session.run(list(OUTPUTS), {INPUT: image.numpy()})]
        expected = module(image)
        if not all(one.isfinite().all() for one in expected):
            raise ValueError("model: its answers are not finite, so there is nothing to compare a graph with")
        if not all(a.shape == b.shape and a.isfinite().all() for a, b in zip(got, expected, strict=True)):
            raise ValueError(f"{file.name}: gave {[list(one.shape) for one in got]}, or no finite numbers")
        # A label's score at its threshold may be on either side of it: the last bit of a sum decides.
        near = (got[0] > 0) == (expected[0] > 0)
        scores = max(scores, float((got[0] - expected[0])[near].abs().max()), float((~near).float().mean()))
        boxes = max(boxes, float((got[1] - expected[1]).abs().max()) / max(image.shape[-2:]))
    return scores, boxes


def _card(result: DetectionGraph, config: Mapping[str, Any], license: str | None, base_model: str | None) -> ModelCard:
    data = card_data("object-detection", "onnx", False, license, base_model)
    height, width = result.image_size
    text = f"""---
{data.to_yaml()}
---

# Detector of {len(config["id2label"])} labels, as a graph

`{result.file.name}`: images to scores and boxes, float32, any number of images of {height} x {width} pixels (height x
width) at once. The labels' texts are in it.

## Use

```
pip install onnxruntime numpy pillow
python detect.py photo.jpg
```

`detect.py` scales and pads the image, runs the graph and leaves out boxes that overlap better ones. It is short, to
read and to copy from. Labels are in `config.json`, how images are prepared is in `preprocessor_config.json`.

## Compared with PyTorch

On {result.images} images: scores differ by up to {result.score_difference:.2g}, boxes by
{result.box_difference:.2g} of the longer side. At most {TOLERANCE:g} is accepted.

## Licence

{f"Weights: {license}." if license else "The author of these weights has not stated one."}
"""
    return ModelCard(text)


__all__ = ["OUTPUTS", "DetectionGraph", "export_detection_graph"]
