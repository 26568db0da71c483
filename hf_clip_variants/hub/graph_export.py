"""Folders with a graph: a classifier as one ONNX or OpenVINO file, which runs without this package and PyTorch."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..files.atomic_writes import staged_folder
from ..optional_dependencies import require


GraphFormat = Literal["onnx", "openvino"]

# Largest difference to PyTorch's logits that a float32 graph may have, as a share of the largest logit: ten times what
# other orders of the same sums gave.
TOLERANCE = 1e-4
GRAPH_FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
INPUT, OUTPUT = "pixel_values", "logits"
_BATCH = 8  # images that are compared at once; not the size that the graph was made with
_QUANTIZED = ["MatMul", "Gemm"]  # ONNX Runtime is slower with 8-bit convolutions than with float32 ones


@dataclass(frozen=True)
class GraphExport:
    """What was written, and how it compares with PyTorch.

    Attributes:
        folder, file: the folder, and the graph in it.
        size: bytes of the graph and its weights.
        images: how many were compared.
        max_difference: largest difference of a logit.
        largest_logit: of PyTorch, by absolute value.
        same_answers: share of images with the same class; with several labels an image, of the same set of them.
    """

    folder: Path
    file: Path
    size: int
    images: int
    max_difference: float
    largest_logit: float
    same_answers: float


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits.float()


def with_folded_text_side(model: nn.Module) -> nn.Module:
    """A frozen float32 copy of a classifier, with or without an adapter, whose class features are constants.

    Where prompts depend on the images, the text encoder stays.
    """
    folded = copy.deepcopy(model).float().eval().requires_grad_(False)
    classifier = _classifier(folded)
    if not classifier.prompt_embedder.depends_on_images:
        with torch.no_grad():
            features = classifier.get_class_features()
        classifier.fix_class_features(features)
    return folded


def export_graph(
    model: nn.Module,
    processor: Any,
    folder: str | Path,
    *,
    to: GraphFormat = "onnx",
    int8: bool = False,
    images: torch.Tensor | None = None,
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> GraphExport:
    """Writes a classifier, with or without an adapter, as a graph from pixels to logits, and compares it with PyTorch.

    The graph takes any number of images, `pixel_values` (B, 3, H, W) float32 of the model's size, and gives `logits`
    (B, C). Text is folded in: only the image encoder is left, except under an adapter that makes prompts from each
    image. The folder holds the graph, the class names and settings (`config.json`), the processor's settings
    (`preprocessor_config.json`), a program that needs the runtime, NumPy and Pillow alone, and a card.

    Args:
        model: a `CLIPClassifier` with classes, or a `PeftModel` on one.
        processor: an image processor, or a processor that has one.
        folder: written in one step; nothing is left there if the comparison fails.
        to: "onnx", or "openvino" (which is converted from ONNX).
        int8: weights of matrix products in 8 bits; ONNX only.
        images: (B, 3, H, W) to compare answers on; default: 32 random ones.
        temperature: by which the program divides logits before they become scores.
        thresholds: of each class, with several labels an image.
        license, base_model: for the card.

    Raises:
        ValueError: a model without classes, one whose images have no fixed size, int8 for OpenVINO, or a float32
            graph whose logits differ by more than `TOLERANCE` of the largest.
        ImportError: the packages of the extra are not installed.
    """
    check_format(to, int8)
    classifier = _classifier(model)
    if not getattr(classifier.config, "templates", None):
        raise ValueError("model: the classifier has no classes; call set_classes([...]) first")
    if classifier.family.masks_patches:
        raise ValueError(
            f"model: images of a {classifier.config.backbone_model_type} keep their own shapes, a graph has one; "
            "want a model with one image size"
        )
    side = classifier.family.image_size(classifier.config)
    images = random_images(32, side) if images is None else images.detach().float().cpu()
    if images.dim() != 4 or images.shape[1:] != (3, side, side) or not len(images):
        raise ValueError(f"images: got {list(images.shape)}, expected [batch, 3, {side}, {side}]")
    folded = with_folded_text_side(model).cpu()
    expected = _in_batches(lambda part: _Logits(model)(part.to(classifier.device)).cpu(), images)
    if not expected.isfinite().all():
        raise ValueError("model: its logits are not finite, so there is nothing to compare a graph with")
    target = Path(folder)
    with staged_folder(target) as stage:
        file = stage / GRAPH_FILES[to]
        write_onnx(folded, random_images(2, side), stage / GRAPH_FILES["onnx"])
        if int8:
            quantize(file)
        if to == "openvino":
            onnx_to_openvino(stage / GRAPH_FILES["onnx"], file)
        got = _in_batches(runner(file, to), images)
        difference, largest = float((got - expected).abs().max()), float(expected.abs().max())
        if not int8 and not difference <= TOLERANCE * max(1.0, largest):
            raise ValueError(
                f"{file.name}: its logits differ from PyTorch's by up to {difference:.2g}, where logits reach "
                f"{largest:.3g}; more than {TOLERANCE:g} of that is not accepted, nothing was written"
            )
        if not got.isfinite().all():
            raise ValueError(f"{file.name}: its logits are not finite, nothing was written")
        result = GraphExport(
            folder=target,
            file=target / file.name,
            size=sum(path.stat().st_size for path in stage.iterdir() if path.is_file()),
            images=len(images),
            max_difference=difference,
            largest_logit=largest,
            same_answers=float(
                (_answers(got, thresholds) == _answers(expected, thresholds)).all(dim=1).float().mean()
            ),
        )
        getattr(processor, "image_processor", processor).save_pretrained(stage)
        settings = _settings(classifier, side, temperature, thresholds)
        (stage / "config.json").write_text(
            json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        program = files(__package__).joinpath("run_graph.py").read_text(encoding="utf-8")
        (stage / "classify.py").write_text(program, encoding="utf-8")
        _card(result, settings, to, int8, license, base_model).save(stage / "README.md")
    return result


def check_format(to: str, int8: bool) -> None:
    """ValueError for a format that is unknown or cannot be had so, ImportError for packages that are missing."""
    if to not in GRAPH_FILES:
        raise ValueError(f"to: {to!r}, expected one of {', '.join(GRAPH_FILES)}")
    if int8 and to != "onnx":
        raise ValueError(
            "int8: OpenVINO's own tool quantises its files (nncf.compress_weights); want --onnx --int8, or --openvino "
            "without --int8"
        )
    for package in ("onnx", "onnxscript", "onnxruntime" if to == "onnx" else "openvino"):
        require(package, f"export to {to}")


def random_images(count: int, side: int, width: int | None = None) -> torch.Tensor:
    """(count, 3, side, width or side) smooth random images of about unit variance, always the same."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (side, width or side), mode="bicubic")


def _classifier(model: nn.Module) -> nn.Module:
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(classifier, "prompt_embedder"):
        raise ValueError(f"model: {type(model).__name__} is no classifier with classes; want a CLIPClassifier")
    return classifier


@torch.no_grad()
def _in_batches(run, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.as_tensor(run(part)) for part in images.split(_BATCH)])


def _same_answers(got: torch.Tensor, expected: torch.Tensor, thresholds: Sequence[float] | None) -> float:
    same = _answers(got, thresholds) == _answers(expected, thresholds)
    return float(same.all(dim=1).float().mean())


def _answers(logits: torch.Tensor, thresholds: Sequence[float] | None) -> torch.Tensor:
    """(B, 1) classes, or (B, C) whether each class is in the image."""
    if thresholds is None:
        return logits.argmax(dim=1, keepdim=True)
    return logits.sigmoid() >= torch.tensor(list(thresholds))


def write_onnx(model: nn.Module, example: torch.Tensor, file: Path, any_size: bool = False) -> None:
    """Any number of images of the example's size, or with `any_size` of all sizes."""
    write_module(_Logits(model), example, file, [OUTPUT], any_size)


def write_module(
    module: nn.Module, example: torch.Tensor, file: Path, outputs: Sequence[str], any_size: bool = False
) -> None:
    """A module from pixels to tensors with these names."""
    dimensions = {0: torch.export.Dim("batch", min=1)}
    if any_size:
        dimensions |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=(dimensions,),
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    # The exporter writes where in which source file each node comes from: paths of this machine.
    graphs = [program.model.graph, *program.model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    program.save(file)


def quantize(file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(file, file, op_types_to_quantize=_QUANTIZED, per_channel=True, weight_type=QuantType.QInt8)


def onnx_to_openvino(source: Path, file: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(source), file, compress_to_fp16=False)
    for path in source.parent.glob(f"{source.name}*"):
        path.unlink()


def runner(file: Path, to: GraphFormat):
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda pixels: session.run([OUTPUT], {INPUT: pixels.numpy()})[0]
    import openvino

    # By default OpenVINO computes in bfloat16 where the processor can.
    compiled = openvino.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: compiled(pixels.numpy())[OUTPUT].copy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of the exporters on the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _settings(
    classifier: nn.Module, side: int, temperature: float, thresholds: Sequence[float] | None
) -> dict[str, Any]:
    names = list(classifier.class_names)
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "image_size": side,
        "input": INPUT,
        "output": OUTPUT,
        "problem_type": "single_label_classification" if thresholds is None else "multi_label_classification",
        "temperature": temperature,
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
    }


def card_data(task: str, to: GraphFormat, int8: bool, license: str | None, base_model: str | None) -> ModelCardData:
    """What the Hub reads of a graph's card."""
    is_hub_id = bool(base_model) and base_model.count("/") == 1 and not Path(base_model).exists()
    return ModelCardData(
        license=license,
        library_name=to,
        pipeline_tag=task,
        base_model=base_model if is_hub_id else None,
        base_model_relation="quantized" if is_hub_id and int8 else None,
        tags=sorted({"clip", "hf-clip-variants", to, *(["int8"] if int8 else [])}),
    )


def _card(
    result: GraphExport,
    settings: Mapping[str, Any],
    to: GraphFormat,
    int8: bool,
    license: str | None,
    base_model: str | None,
) -> ModelCard:
    runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[to]
    data = card_data("image-classification", to, int8, license, base_model)
    accepted = "" if int8 else f" At most {TOLERANCE:g} of the largest logit is accepted."
    text = f"""---
{data.to_yaml()}
---

# CLIP classifier for {len(settings["id2label"])} classes, as a graph

`{result.file.name}`: images to logits, {"weights of matrix products in 8 bits" if int8 else "float32"}, any number of
images of {settings["image_size"]} x {settings["image_size"]} pixels at once. The classes' texts are in it.

## Use

```
pip install {runtime} numpy pillow
python classify.py photo.jpg
```

`classify.py` is short, to read and to copy from. Class names, temperature and thresholds are in `config.json`, how
images are prepared is in `preprocessor_config.json`.

## Compared with PyTorch

On {result.images} images: the largest difference of a logit is {result.max_difference:.2g}, where logits reach
{result.largest_logit:.3g}; {100 * result.same_answers:.1f} % of the answers are the same.{accepted}

## Licence

{f"Weights: {license}." if license else "The author of these weights has not stated one."}
"""
    return ModelCard(text)


__all__ = ["TOLERANCE", "GraphExport", "export_graph", "random_images", "with_folded_text_side"]
