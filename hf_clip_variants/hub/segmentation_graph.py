"""Folders with a graph of a model that segments by its own labels: pixels to logits, for images of any size."""

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
from .graph_export import (
    GRAPH_FILES,
    INPUT,
    OUTPUT,
    TOLERANCE,
    GraphExport,
    GraphFormat,
    card_data,
    check_format,
    onnx_to_openvino,
    quantize,
    random_images,
    runner,
    write_onnx,
)


# Where each pixel has one group, a tie is decided by the last bit of a sum: that pixel's logits are then another
# group's. This share of pixels may differ so.
TIES = 1e-3


@dataclass(frozen=True)
class SegmentationGraph(GraphExport):
    """As [`GraphExport`]; `images` were compared, `same_answers` is the share of pixels with the same label.

    Attributes:
        max_difference: of a logit, without the pixels that are counted in `other_pixels`.
        other_pixels: share of pixels whose logits differ by more than `TOLERANCE` of the largest.
        image_size: (height, width) of the graph's images; None: any.
        sizes: (height, width) of the images that were compared.
    """

    other_pixels: float = 0.0
    image_size: tuple[int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()


def export_segmentation_graph(
    model: torch.nn.Module,
    processor: Any,
    folder: str | Path,
    *,
    to: GraphFormat = "onnx",
    int8: bool = False,
    images: Sequence[torch.Tensor] | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> SegmentationGraph:
    """Writes a segmenter with labels as a graph from pixels to logits, and compares it with PyTorch.

    The graph takes any number of images (B, 3, H, W) float32 and gives `logits` (B, N, H, W) of the model's labels,
    with the background's channel if it has one. Texts are folded in: the text encoder is left out. H and W are free; a
    model that cannot be written so gets the size that it was trained with, and `preprocessor_config.json` makes images
    of that size. The folder holds the graph, labels (`config.json`), the processor's settings, a program that needs
    the runtime, NumPy and Pillow alone, and a card.

    Args:
        model: with labels (`set_labels`).
        processor: an image processor, or a processor that has one.
        folder: written in one step; nothing is left there if the comparison fails.
        to: "onnx", or "openvino" (which is converted from ONNX).
        int8: weights of matrix products in 8 bits; ONNX only.
        images: normalised images (B, 3, H, W) to compare answers on; default: random ones of four sizes.
        license, base_model: for the card.

    Raises:
        ValueError: a model without labels, int8 for OpenVINO, or a float32 graph whose logits differ by more than
            `TOLERANCE` of the largest in more than `TIES` of the pixels.
        ImportError: the packages of the extra are not installed.
    """
    check_format(to, int8)
    if getattr(model, "class_embeddings", None) is None:
        raise ValueError(
            "model: it has no labels; call model.set_labels([...], processor) first (--labels 'cat, sky')"
        )
    folded = _without_text_encoder(model)
    side = _training_side(model.config)
    target = Path(folder)
    image_processor = copy.deepcopy(getattr(processor, "image_processor", processor))
    with staged_folder(target) as stage:
        file, size = stage / GRAPH_FILES[to], None
        try:
            # Odd edges: with others, a model's padding to a multiple would be left out of the graph.
            write_onnx(
                folded, random_images(2, side * 3 // 4 | 1, side | 1), stage / GRAPH_FILES["onnx"], any_size=True
            )
            _convert(stage, file, to, int8)
            found = _compared(model, file, to, images or [random_images(2, *edges) for edges in _sizes(side)])
        except Exception:  # the exporter's and the runtime's errors are of many kinds
            found = None
        if found is None or not (int8 or found["other_pixels"] <= TIES):
            for path in stage.iterdir():
                path.unlink()
            size = (side, side)
            write_onnx(folded, random_images(2, *size), stage / GRAPH_FILES["onnx"])
            _convert(stage, file, to, int8)
            found = _compared(model, file, to, [random_images(2, *size)])
            image_processor.size = type(image_processor.size)(height=side, width=side)
            image_processor.size_multiple = image_processor.size_divisor = None
        if not int8 and not found["other_pixels"] <= TIES:
            raise ValueError(
                f"{file.name}: of {100 * found['other_pixels']:.2f} % of the pixels, logits differ from PyTorch's by "
                f"more than {TOLERANCE:g} of the largest ({found['largest_logit']:.3g}); nothing was written"
            )
        size_of_files = sum(path.stat().st_size for path in stage.iterdir() if path.is_file())
        result = SegmentationGraph(target, target / file.name, size_of_files, image_size=size, **found)
        image_processor.save_pretrained(stage)
        settings = _settings(model.config, size)
        (stage / "config.json").write_text(
            json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        program = files(__package__).joinpath("run_segmentation_graph.py").read_text(encoding="utf-8")
        (stage / "segment.py").write_text(program, encoding="utf-8")
        _card(result, settings, to, int8, license, base_model).save(stage / "README.md")
    return result


def _without_text_encoder(model: torch.nn.Module) -> torch.nn.Module:
    folded = copy.deepcopy(model).float().eval().requires_grad_(False).cpu()
    if folded.has_text_encoder:
        folded.drop_text_encoder()
    return folded


def _training_side(config: Any) -> int:
    side = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    return int(side if isinstance(side, int) else max(side))


def _sizes(side: int) -> list[tuple[int, int]]:
    return [(side, side), (side + 33, side * 2 // 3 + 5), (max(side // 3, 33), side + 1), (side * 2, side)]


def _convert(stage: Path, file: Path, to: GraphFormat, int8: bool) -> None:
    if int8:
        quantize(file)
    if to == "openvino":
        onnx_to_openvino(stage / GRAPH_FILES["onnx"], file)


@torch.no_grad()
def _compared(model: torch.nn.Module, file: Path, to: GraphFormat, images: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How the graph's answers differ from the model's."""
    run, device = runner(file, to), next(model.parameters()).device
    differences, same, pixels, largest = [], 0, 0, 0.0
    for batch in images:
        expected = model(pixel_values=batch.to(device, model.dtype)).logits.float().cpu()
        got = torch.as_tensor(run(batch))
        if got.shape != expected.shape or not got.isfinite().all():
            raise ValueError(
                f"{file.name}: gave {list(got.shape)} or no finite numbers, expected {list(expected.shape)}"
            )
        if not expected.isfinite().all():
            raise ValueError("model: its logits are not finite, so there is nothing to compare a graph with")
        differences.append((got - expected).abs().amax(1).flatten())
        largest = max(largest, float(expected.abs().max()))
        same += int((got.argmax(1) == expected.argmax(1)).sum())
        pixels += differences[-1].numel()
    difference = torch.cat(differences)
    close = difference <= TOLERANCE * max(1.0, largest)
    return {
        "images": sum(map(len, images)),
        "max_difference": float(difference[close].max()) if close.any() else float(difference.max()),
        "largest_logit": largest,
        "same_answers": same / pixels,
        "other_pixels": 1 - float(close.double().mean()),
        "sizes": tuple(tuple(batch.shape[-2:]) for batch in images),
    }


def _settings(config: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    own = config.background_has_own_channel
    return {
        "id2label": {str(number): name for number, name in sorted(config.id2label.items())},
        "background": config.background_index if own else None,
        "image_size": None if size is None else list(size),
        "input": INPUT,
        "output": OUTPUT,
    }


def _card(
    result: SegmentationGraph,
    settings: Mapping[str, Any],
    to: GraphFormat,
    int8: bool,
    license: str | None,
    base_model: str | None,
) -> ModelCard:
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[to]
    data = card_data("image-segmentation", to, int8, license, base_model)
    size = "any size" if result.image_size is None else "{} x {} pixels (height x width)".format(*result.image_size)
    sizes = ", ".join(f"{height} x {width}" for height, width in result.sizes)
    ties = (
        f" In {100 * result.other_pixels:.3f} % of the pixels they differ by more: there two groups tie."
        if result.other_pixels
        else ""
    )
    text = f"""---
{data.to_yaml()}
---

# Segmentation into {len(settings["id2label"])} labels, as a graph

`{result.file.name}`: images to logits of each pixel, {"weights of matrix products in 8 bits" if int8 else "float32"},
any number of images of {size} at once. The labels' texts are in it.

## Use

```
pip install {runtime} numpy pillow
python segment.py photo.jpg
```

It prints the share of each label and writes the label map `photo.labels.png`. `segment.py` is short, to read and to
copy from. Labels are in `config.json`, how images are prepared is in `preprocessor_config.json`.

## Compared with PyTorch

On {result.images} images ({sizes}): the largest difference of a logit is {result.max_difference:.2g}, where logits
reach {result.largest_logit:.3g}; {100 * result.same_answers:.2f} % of the pixels have the same label.{ties}

## Licence

{f"Weights: {license}." if license else "The author of these weights has not stated one."}
"""
    return ModelCard(text)


__all__ = ["TIES", "SegmentationGraph", "export_segmentation_graph"]
